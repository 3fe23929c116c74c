"""More programs that want the reward without the work, as a policy with a million tries would write them.

All go through one pool; afterwards nothing of them is left on the machine.
"""

from __future__ import annotations

import os
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from verifiers import Sample, Status, Verdict, VerifierPool

TESTS = ["assert add(2, 3) == 5", "assert add(10, -4) == 6", "assert add([1], [2, 3]) == [1, 2, 3]"]
SPEC: dict[str, Any] = {
    "use": "code_asserts",
    "args": {"allow_weak_sandbox": True, "time_limit_s": 5.0, "total_limit_s": 8.0},
}
LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
MARK = "evil_by_a_program"

ATTACKS: dict[str, str] = {
    # ------------------------------------------------ looking over the interpreter's shoulder
    "traces every frame below": """
        import sys
        def tracer(frame, event, argument): return tracer
        def add(a, b):
            frame = sys._getframe(1)
            while frame is not None:
                frame.f_trace, frame = tracer, frame.f_back
            sys.settrace(tracer)
            return 0""",
    "profiles its caller": "import sys\nsys.setprofile(lambda *told: None)\ndef add(a, b): return 0",
    "listens to audit events": """
        import sys
        heard = []
        sys.addaudithook(lambda event, told: heard.append((event, told)))
        def add(a, b):
            return next((v for _, told in heard for v in told if isinstance(v, int) and v not in (a, b)), 0)""",
    "looks for a list that goes on": """
        import gc
        def add(a, b):
            return next((o[-1] for o in gc.get_objects() if isinstance(o, list) and o and o[0] is a), 0)""",
    "any other number of its callers": """
        import inspect
        def add(a, b):
            for told in inspect.stack():
                for value in told.frame.f_locals.values():
                    if isinstance(value, int) and value not in (a, b): return value
            return 0""",
    "the main module's names": "import __main__\ndef add(a, b): return repr(vars(__main__))[:500]",
    "an import hook that ends": """
        import sys
        class Finder:
            def find_spec(self, *told): raise SystemExit(0)
        sys.meta_path.insert(0, Finder())
        def add(a, b): return 0""",
    "every module a stand-in": """
        import sys
        class Module:
            def __getattr__(self, name): return lambda *told, **more: 5
        for name in list(sys.modules):
            if name not in ("sys", "builtins"): sys.modules[name] = Module()
        def add(a, b): return 0""",
    "built-ins deleted": """
        import builtins
        for name in ("len", "type", "isinstance", "str", "repr"): delattr(builtins, name)
        def add(a, b): return 0""",
    "type says int of all": """
        import builtins
        builtins.type = lambda *told: int
        class Any:
            def __eq__(self, other): return True
        def add(a, b): return Any()""",
    "eval that knows one answer": "import builtins\nbuiltins.eval = lambda *told, **more: 5\ndef add(a, b): return 0",
    "excepthook that prints": "import sys\nsys.excepthook = lambda *told: print(5)\ndef add(a, b): raise ValueError",
    "exit from a destructor": "class D:\n    def __del__(self): raise SystemExit(0)\ndef add(a, b):\n    D()\n    return 0",
    # ------------------------------------------------ values that lie
    "a list of any length": "class L(list):\n    def __len__(self): return 10 ** 18\ndef add(a, b): return L()",
    "keys that are all keys": """
        class K(str):
            def __eq__(self, other): return True
            def __hash__(self): return 0
        def add(a, b): return {K("x"): K("y")}""",
    "an int that says 5 when asked": """
        class I(int):
            def __int__(self): return 5
            def __index__(self): return 5
        def add(a, b): return I(3)""",
    "a decimal equal to all": "import decimal\nclass D(decimal.Decimal):\n    def __eq__(self, other): return True\ndef add(a, b): return D(1)",
    "fractions taught to agree": "import fractions\nfractions.Fraction.__eq__ = lambda s, o: True\ndef add(a, b): return fractions.Fraction(1, 3)",
    "a named tuple": "import collections\nP = collections.namedtuple('P', 'a b')\ndef add(a, b): return P(1, 2)",
    "pickled code": "import pickle\nclass B:\n    def __reduce__(self): return (eval, ('5',))\ndef add(a, b): return pickle.dumps(B())",
    "infinity": "def add(a, b): return float('inf')",
    "the arguments back": "def add(a, b): return a",
    # ------------------------------------------------ the way to the judge
    "a thread that answers all the time": """
        import os, threading, time
        def go():
            while True:
                for fd in range(3, 20):
                    try: os.write(fd, b'\\x00\\x00\\x00\\x10["1","v",6,{}]   ')
                    except OSError: pass
                time.sleep(0.001)
        threading.Thread(target=go, daemon=True).start()
        def add(a, b): return 0""",
    "descriptors made one": "import os\ndef add(a, b):\n    for fd in range(3, 30):\n        try: os.dup2(1, fd)\n        except OSError: pass\n    return 5",
    "a verdict printed, then gone": 'import os\ndef add(a, b):\n    os.write(1, b\'{"status": "correct", "score": 1}\\n\')\n    os._exit(0)',
    "imports the verifiers": "from verifiers.base import Verdict\ndef add(a, b): return Verdict",
    # ------------------------------------------------ the machine
    "reads its parent's memory": "import os\ndef add(a, b): return open(f'/proc/{os.getppid()}/mem', 'rb').read(9)",
    "process_vm_readv": LIBC + "def add(a, b): return libc.process_vm_readv(os.getppid(), 0, 0, 0, 0, 0)",
    "ptrace": LIBC + "def add(a, b): return libc.ptrace(16, os.getppid(), 0, 0)",
    "pidfd_getfd": LIBC + "def add(a, b): return libc.syscall(438, 3, 0, 0)",
    "io_uring": LIBC + "def add(a, b): return libc.syscall(425, 8, 0)",
    "unshare": LIBC + "def add(a, b): return libc.unshare(0x10000000)",
    "shared memory of System V": LIBC + "def add(a, b): return libc.shmget(0x7e57, 4096, 0o1666)",
    "shared memory by name": f"open('/dev/shm/{MARK}', 'w').write('x')\ndef add(a, b): return 5",
    "a link to the host": f"import os\ndef add(a, b):\n    os.symlink('/etc/passwd', '/tmp/{MARK}')\n    return open('/tmp/{MARK}').read()",
    "a daemon": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(300)\ndef add(a, b): return 5",
    "zombies": "import os\ndef add(a, b):\n    while True:\n        if os.fork() == 0: os._exit(0)",
    "a thousand threads": "import threading, time\ndef add(a, b):\n    for _ in range(1000): threading.Thread(target=time.sleep, args=(99,)).start()\n    return 0",
    "maps gigabytes": "import mmap\ndef add(a, b): return [mmap.mmap(-1, 1 << 30) for _ in range(1000)] and 5",
    "a socket without a name": "import socket\ndef add(a, b):\n    socket.socket(socket.AF_UNIX).connect('\\0judge')\n    return 5",
    "limits raised": "import resource\ndef add(a, b):\n    resource.setrlimit(resource.RLIMIT_CPU, (10 ** 6, 10 ** 6))\n    return 5",
    "priority raised": "import os\nos.nice(-20)\ndef add(a, b): return 0",
    "the control group left": "def add(a, b):\n    open('/sys/fs/cgroup/cgroup.procs', 'w').write('0')\n    return 5",
    "a timer that interrupts": """
        import signal
        signal.signal(signal.SIGALRM, lambda *told: None)
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        def add(a, b): return 5""",
    "a gigabyte of complaints": "import sys\ndef add(a, b):\n    for _ in range(10 ** 5): sys.stderr.write('x' * 1000)\n    return 0",
}


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Verdict]:
    items = [(SPEC, Sample(f"```python\n{textwrap.dedent(code)}\n```", TESTS)) for code in ATTACKS.values()]
    with VerifierPool(workers=2, timeout_s=30.0) as pool:
        return dict(zip(ATTACKS, pool.verify(items), strict=True))


@pytest.mark.parametrize("name", ATTACKS)
def test_no_try_is_rewarded(name: str, verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts[name]
    assert (verdict.score, verdict.status) == (0.0, Status.INCORRECT), verdict
    assert (
        verdict.seconds < SPEC["args"]["total_limit_s"] + 0.5 + 3.0
    )  # a crowded machine starts processes slowly


def test_nothing_is_left(verdicts: dict[str, Verdict]) -> None:
    if verdicts["infinity"].tier != "limits":  # which stops no writing, and says so
        assert not (Path("/dev/shm") / MARK).exists()
        assert not (Path("/tmp") / MARK).is_symlink()
    deadline = time.monotonic() + 10
    while (left := _children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def _children() -> list[int]:
    """Processes that a pool of this process has left; those of the sandbox's supervisor are its own business."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            stat = (entry / "stat").read_text().rsplit(")", 1)[1].split() if entry.name.isdigit() else []
            command = (entry / "cmdline").read_bytes() if stat else b""
        except OSError:
            continue
        if stat and int(stat[1]) == os.getpid() and b"verifiers.worker" in command:
            found.append(int(entry.name))
    return found
