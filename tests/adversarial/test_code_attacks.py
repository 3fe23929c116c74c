"""Programs that do not solve the task and want the reward all the same. None may have it, none may hang."""

from __future__ import annotations

import os
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from verifiers import Sample, Status, Verdict, VerifierPool

TESTS = ["assert add(2, 3) == 5", "assert add(10, -4) == 6", "assert add([1], [2, 3]) == [1, 2, 3]"]
HONEST = "def add(a, b):\n    return a + b"
OPTIONS = {"allow_weak_sandbox": True, "time_limit_s": 5.0, "total_limit_s": 8.0}
HASTY = {"allow_weak_sandbox": True, "time_limit_s": 0.5, "total_limit_s": 1.5}  # for those that never end

# What stands in an attack that wants to answer for the driver: it finds every frame, and every open descriptor
FRAMES = """
import sys
def frames():
    found, frame = [], sys._getframe()
    while frame is not None:
        found.append(frame)
        frame = frame.f_back
    return found
"""
FORGE = """
import os, sys
def frame(text):
    return len(text).to_bytes(4, "big") + text.encode()
def everywhere(data):
    for fd in range(64):
        try:
            os.write(fd, data)
        except OSError:
            pass
def nonce():
    f = sys._getframe()
    while f is not None:
        if "nonce" in f.f_locals:
            return f.f_locals["nonce"]
        f = f.f_back
"""

ATTACKS: dict[str, str] = {
    # ------------------------------------------------ objects that lie
    "an object equal to everything": """
        class Any:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 0
        def add(a, b): return Any()""",
    "an int equal to everything": """
        class Any(int):
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            __hash__ = int.__hash__
        def add(a, b): return Any(1)""",
    "a str equal to everything": """
        class Any(str):
            def __eq__(self, other): return True
            __hash__ = str.__hash__
        def add(a, b): return Any("x")""",
    "a float equal to everything": """
        class Any(float):
            def __eq__(self, other): return True
            __hash__ = float.__hash__
        def add(a, b): return Any(1.5)""",
    "a list equal to everything": """
        class Any(list):
            def __eq__(self, other): return True
        def add(a, b): return Any()""",
    "a dict equal to everything": """
        class Any(dict):
            def __eq__(self, other): return True
        def add(a, b): return Any()""",
    "a tuple equal to everything": """
        class Any(tuple):
            def __eq__(self, other): return True
            __hash__ = tuple.__hash__
        def add(a, b): return Any()""",
    "reflected equality first, by a subclass": """
        class Any(int):
            def __req__(self, other): return True
            def __eq__(self, other): return NotImplemented if other is self else True
            __hash__ = int.__hash__
        def add(a, b): return Any(7)""",
    "__class__ says int": """
        class Any:
            __class__ = int
            def __eq__(self, other): return True
        def add(a, b): return Any()""",
    "a metaclass that is an instance of everything": """
        class Meta(type):
            def __instancecheck__(cls, other): return True
            def __subclasscheck__(cls, other): return True
            def __eq__(cls, other): return True
            __hash__ = type.__hash__
        class Any(metaclass=Meta): pass
        def add(a, b): return Any""",
    "__reduce__ that runs code when it is read": """
        class Any:
            def __reduce__(self): return (print, ("read",))
            def __eq__(self, other): return True
        def add(a, b): return Any()""",
    "an object of numpy's name": """
        class generic:
            def item(self): return self
            def __eq__(self, other): return True
        generic.__module__ = "numpy"
        class Fake: pass
        import sys
        fake = type(sys)("numpy"); fake.generic = generic; sys.modules["numpy"] = fake
        def add(a, b): return generic()""",
    "NaN": "def add(a, b): return float('nan')",
    "NotImplemented": "def add(a, b): return NotImplemented",
    "a generator": "def add(a, b):\n    yield a\n    yield b",
    "a coroutine": "async def add(a, b): return a + b",
    "a lazy object": """
        class Lazy:
            def __add__(self, other): return other
            def __getattr__(self, name): return self
            def __eq__(self, other): return True
        def add(a, b): return Lazy()""",
    "the class of exceptions": "def add(a, b): return AssertionError",
    "True": "def add(a, b): return True",
    "every answer at once": "def add(a, b): return {5, 6}",
    "an endless range": "def add(a, b): return range(10 ** 18)",
    # ------------------------------------------------ looking for the wanted values
    "the wanted value in the callers' locals": FRAMES
    + """
def add(a, b):
    for frame in frames():
        for name, value in list(frame.f_locals.items()):
            if name in ("wanted", "expected", "reference", "right"):
                return value
    return None""",
    "the wanted value in the callers' constants": FRAMES
    + """
def add(a, b):
    numbers = [c for f in frames() for c in f.f_code.co_consts if type(c) is int and c > 4]
    return numbers[0] if numbers else None""",
    "constants of the test's bytecode": FRAMES
    + """
def add(a, b):
    for f in frames():
        if f.f_code.co_filename == "<test>":
            left = [c for c in f.f_code.co_consts if c not in (a, b, None)]
            return left[-1] if left else None""",
    "all objects of the collector": """
        import gc
        def add(a, b):
            lists = [o for o in gc.get_objects() if type(o) is list and o[:1] == [1] and len(o) == 3]
            return lists[0] if lists else 0""",
    "the modules": """
        import sys
        def add(a, b):
            for module in list(sys.modules.values()):
                for value in list(vars(module).values()):
                    if isinstance(value, dict) and ("outputs" in value or "test_list" in value):
                        return value
            return sys.modules["__main__"].__dict__.get("wanted")""",
    "the arguments of the process": """
        import sys
        def add(a, b):
            text = " ".join(sys.argv + open("/proc/self/cmdline").read().split(chr(0)))
            return 5 if "== 5" in text else None""",
    "the environment": """
        import os
        def add(a, b):
            text = " ".join(map(str, os.environ.items()))
            return 5 if "== 5" in text else None""",
    "the parent's memory and arguments": """
        import os
        def add(a, b):
            text = open(f"/proc/{os.getppid()}/cmdline").read() + open(f"/proc/{os.getppid()}/environ").read()
            with open(f"/proc/{os.getppid()}/mem", "rb") as memory:
                memory.read(1)
            return 5 if "== 5" in text else None""",
    "files that may hold the tests": """
        import glob
        def add(a, b):
            for path in glob.glob("/tmp/**/*.json*", recursive=True)[:50] + glob.glob("*")[:50]:
                try:
                    if "assert add(2, 3) == 5" in open(path, errors="ignore").read(): return 5
                except OSError: pass""",
    "the verifier itself": """
        import sys
        sys.path[:0] = ["/", "..", "."]
        def add(a, b):
            from verifiers.code import judges, references
            return references.read_asserts.__code__.co_consts""",
    "later questions read ahead": FORGE
    + """
def add(a, b):
    for fd in range(3, 40):
        try:
            os.set_blocking(fd, False)
            data = os.read(fd, 100000)
            if b"10" in data: return 5
        except OSError: pass
    return None""",
    # ------------------------------------------------ answering for the driver
    "a verdict on standard output": """
        import sys
        def add(a, b):
            print('{"status": "correct", "score": 1.0}'); sys.stdout.flush()
            print('{"status": "correct", "score": 1.0}', file=sys.stderr)""",
    "a reply on every descriptor": FORGE + "def add(a, b):\n    everywhere(frame('[\"x\",\"v\",5,{}]'))",
    "a verdict on every descriptor": FORGE
    + "def add(a, b):\n    everywhere(frame('[[\"done\",0,{\"score\":1.0,\"status\":\"correct\"},false]]'))",
    "a done message, as the checker sends": FORGE
    + "def add(a, b):\n    everywhere(frame('[\"done\",\"passes\",\"\"]'))",
    "a reply with the true nonce before the driver's": FORGE
    + "def add(a, b):\n    everywhere(frame('[\"%s\",\"v\",true,{}]' % nonce()))",
    "answers ahead": FORGE + "everywhere(frame('[\"0\",\"v\",5,{}]') * 3)\n" + "def add(a, b): return None",
    "answers ahead from the first call": FORGE
    + """
def add(a, b):
    n = nonce()
    everywhere(frame('["%s","v",5,{}]' % n) + frame('["%s","v",6,{}]' % n) + frame('["%s","v",["l",1,2,3],{}]' % n))""",
    "the last reply again": FORGE
    + """
seen = []
def add(a, b):
    seen.append(nonce())
    everywhere(frame('["%s","v",5,{}]' % seen[0]))
    return 5""",
    "a frame that announces gigabytes": FORGE + "def add(a, b):\n    everywhere(b'\\xff\\xff\\xff\\xff')",
    "half a frame and silence": FORGE + "def add(a, b):\n    everywhere(b'\\x00\\x00')\n    os._exit(0)",
    "a reply of another shape": FORGE
    + "def add(a, b):\n    everywhere(frame('[\"%s\",\"v\",{\"a\":1},{}]' % nonce()))",
    "a reply with an unknown tag": FORGE
    + "def add(a, b):\n    everywhere(frame('[\"%s\",\"v\",[\"o\",1],{}]' % nonce()))",
    "a reply nested a thousand deep": FORGE
    + "def add(a, b):\n    everywhere(frame('[\"%s\",\"v\",%s5%s,{}]' % (nonce(), '[\"l\",' * 50000, ']' * 50000)))",
    "a reply that says NaN, which equals nothing": FORGE
    + "def add(a, b):\n    everywhere(frame('[\"%s\",\"v\",NaN,{}]' % nonce()))",
    "an exception's reply of another shape": FORGE
    + "def add(a, b):\n    everywhere(frame('[\"%s\",\"x\",5,{}]' % nonce()))",
    "the driver's writer replaced": """
        import sys
        driver = sys.modules.get("verifiers.code.driver")
        class Yes:
            def write(self, value, depth=0): return '["l",1,2,3]'
        driver.Writer = Yes
        def add(a, b): return None""",
    "the driver's answer replaced": """
        import sys
        driver = sys.modules.get("verifiers.code.driver")
        driver.answer = lambda *a: ('"v"', "true")
        def add(a, b): return None""",
    "the driver's functions overwritten through the collector": """
        import gc
        for function in [o for o in gc.get_objects() if type(o).__name__ == "function"]:
            if function.__name__ in ("answer", "_changed", "write", "send"):
                function.__code__ = (lambda *a, **k: ('"v"', "5")).__code__
        def add(a, b): return None""",
    # ------------------------------------------------ built-ins
    "built-ins that agree": """
        import builtins
        builtins.len = lambda *a: 5
        builtins.sorted = lambda *a, **k: a[0]
        builtins.isinstance = lambda *a: True
        builtins.all = builtins.any = lambda *a: True
        builtins.repr = builtins.str = lambda *a: "5"
        def add(a, b): return None""",
    "a built-in type replaced": """
        import builtins
        class Any(int):
            def __eq__(self, other): return True
        builtins.int = builtins.list = Any
        def add(a, b): return Any(0)""",
    "json, marshal and posix replaced": """
        import sys, json, marshal
        json.dumps = json.loads = lambda *a, **k: 5
        marshal.loads = lambda *a: ("", "1", {}, "value")
        sys.modules["json"] = sys.modules["marshal"] = sys.modules["posix"] = None
        def add(a, b): return None""",
    "AssertionError redefined": """
        import builtins
        class Never(Exception): pass
        builtins.AssertionError = Never
        def add(a, b): return None""",
    "asserts turned off": """
        import sys, builtins
        try: builtins.__debug__ = False
        except Exception: pass
        def add(a, b):
            sys.flags = type("Flags", (), {"optimize": 2})
            return None""",
    "compile, exec and eval replaced": """
        import builtins
        builtins.compile = lambda *a, **k: "True"
        builtins.exec = builtins.eval = lambda *a, **k: 5
        def add(a, b): return None""",
    "math.isclose and operator.eq that agree": """
        import math, operator
        math.isclose = operator.eq = lambda *a, **k: True
        def add(a, b): return 0""",
    "a trace function that edits results": """
        import sys
        def trace(frame, event, value):
            if "expected" in frame.f_locals: frame.f_locals["value"] = frame.f_locals["expected"]
            return trace
        sys.settrace(trace)
        def add(a, b): return None""",
    # ------------------------------------------------ ends
    "os._exit(0)": "import os\ndef add(a, b): os._exit(0)",
    "os._exit(0) while it loads": "import os\nos._exit(0)",
    "sys.exit(0)": "import sys\ndef add(a, b): sys.exit(0)",
    "sys.exit(0) while it loads": "import sys\nsys.exit(0)",
    "raise SystemExit": "def add(a, b): raise SystemExit(0)",
    "raise KeyboardInterrupt": "def add(a, b): raise KeyboardInterrupt",
    "raise GeneratorExit": "def add(a, b): raise GeneratorExit",
    "raise a BaseException of its own that lies": """
        class Mine(BaseException):
            def __str__(self): raise SystemExit(0)
        def add(a, b): raise Mine""",
    "atexit that answers": FORGE
    + "import atexit\natexit.register(lambda: everywhere(frame('[\"done\",\"passes\",\"\"]')))\ndef add(a, b): sys.exit(0)",
    "signals": """
        import os, signal
        for number in range(1, 64):
            try: signal.signal(number, lambda *a: os._exit(0))
            except (OSError, ValueError): pass
        def add(a, b): os.kill(os.getpid(), 15)""",
    "kills its parent": "import os, signal\ndef add(a, b):\n    os.kill(os.getppid(), signal.SIGKILL)\n    return None",
    "kills everyone": "import os, signal\ndef add(a, b):\n    os.kill(-1, signal.SIGKILL)\n    return None",
    "execs true": "import os\ndef add(a, b): os.execv('/bin/true', ['true'])",
    "crashes the interpreter": "import ctypes\ndef add(a, b): return ctypes.string_at(0)",
    "closes every descriptor": "import os\ndef add(a, b): os.closerange(0, 1000)",
    "answers from a child": """
        import os
        def add(a, b):
            if os.fork(): os._exit(0)
            return None""",
    "answers from a thread and from itself": FORGE
    + """
import threading
def add(a, b):
    n = nonce()
    def also():
        while True: everywhere(frame('["%s","v",5,{}]' % n))
    threading.Thread(target=also, daemon=True).start()
    return None""",
    "leaves the function to be defined later": "def sub(a, b): return a - b",
    "a syntax error": "def add(a, b) return 5",
    "nothing": "pass",
    "no code, only the test": "assert add(2, 3) == 5",
    # ------------------------------------------------ sizes
    "deep recursion": "def add(a, b): return add(a, b)",
    "deep recursion without the limit": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef add(a, b): return add(a, b)",
    "a value nested deeply": """
        def add(a, b):
            value = []
            for _ in range(100000): value = [value]
            return value""",
    "a list that holds itself": "def add(a, b):\n    v = []\n    v.append(v)\n    return v",
    "an integer of a million digits": "def add(a, b): return 10 ** 1000000",
    "integers that all hash alike": "def add(a, b): return {n * (2 ** 61 - 1): 0 for n in range(2000)}",
    "a long text": "def add(a, b): return 'x' * (64 << 20)",
    "a million values": "def add(a, b): return list(range(3000000))",
    "a memory bomb": "def add(a, b): return bytearray(1 << 40)",
    "a slow memory bomb": "def add(a, b):\n    held = []\n    while True: held.append(bytearray(1 << 24))",
    "a power tower folded by the compiler": "x = 9 ** 9 ** 9\ndef add(a, b): return x",
    "parentheses nested deeply": "x = " + "(" * 5000 + "1" + ")" * 5000 + "\ndef add(a, b): return x",
    "unary operators nested deeply": "x = " + "-" * 50000 + "1\ndef add(a, b): return x",
    "a million tabs": "def add(a, b):\n" + "\t" * 100000 + "return 5",
    "a program too long": "def add(a, b): return 5 #" + "x" * 300000,
    "an import bomb": "for name in ('this', 'antigravity', 'test.regrtest', 'idlelib.idle', 'turtle'):\n    try: __import__(name)\n    except BaseException: pass\ndef add(a, b): return None",
    "a null byte": "def add(a, b): return 5\0",
    "lone surrogates": "def add(a, b): return '\ud800'",
    "a name that only looks like add": "def \u0430dd(a, b): return a + b",
    # ------------------------------------------------ the host
    "the network": """
        import socket
        def add(a, b):
            socket.create_connection(("1.1.1.1", 53), timeout=0.3)
            return None""",
    "writes all over": """
        import os, sys
        def add(a, b):
            for place in ("/", "/tmp", os.getcwd(), sys.prefix, os.path.expanduser("~")):
                try: open(place + "/written_by_attack", "w").write("x")
                except OSError: pass
            return None""",
    "deletes its own files": """
        import os, sys
        def add(a, b):
            for path in (__name__, sys.argv[0], "/proc/self/exe"):
                try: os.remove(path)
                except OSError: pass
            return None""",
    "fork bomb": """
        import os
        def add(a, b):
            for _ in range(50):
                try: os.fork()
                except OSError: pass
            return None""",
}  # fmt: skip

# Those that burn the processor until their time is up
BURNING = {"deep recursion without the limit", "a power tower folded by the compiler"}

ENDLESS: dict[str, str] = {
    "an endless loop": "def add(a, b):\n    while True: pass",
    "an endless loop while it loads": "while True: pass",
    "sleep": "import time\ndef add(a, b): time.sleep(1000)",
    "endless output": "def add(a, b):\n    while True: print('x' * 10000)",
    "endless output past the streams": FORGE + "def add(a, b):\n    while True: everywhere(b'x' * 65536)",
    "a lock that is never released": "import threading\ndef add(a, b): threading.Lock().acquire() or (l := threading.Lock()).acquire() and l.acquire()",
    "a reply of one byte at a time": FORGE
    + "import time\ndef add(a, b):\n    everywhere(b'\\0\\0\\0')\n    while True:\n        time.sleep(0.05); everywhere(b'\\0')",
    "an iterator that never ends": "class E(list):\n    def __iter__(self):\n        while True: yield 1\ndef add(a, b): return E()",
    "a catastrophic pattern": "import re\ndef add(a, b): return re.match('(a+)+$', 'a' * 64 + 'b')",
    "a __del__ that never ends": "class D:\n    def __del__(self):\n        while True: pass\ndef add(a, b): D()",
    "every exception swallowed, for ever": "def add(a, b):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass",
    "stops itself": "import os, signal\ndef add(a, b): os.kill(os.getpid(), signal.SIGSTOP)",
    "a signal handler that goes on": "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ndef add(a, b):\n    while True: pass",
}  # fmt: skip

# Whole responses: which part is the program, and can it be confused
FENCED = f"```python\n{HONEST}\n```"
WRONG = "```python\ndef add(a, b):\n    return a - b\n```"
RESPONSES: dict[str, str] = {
    "the right block first, a wrong one last": f"{FENCED}\nNo, rather:\n{WRONG}",
    "a block never closed": f"```python\n{HONEST}\n",
    "the last block never closed": f"{FENCED}\nBetter:\n```python\n{HONEST}",
    "another language": FENCED.replace("python", "javascript"),
    "only in the reasoning": f"<think>{FENCED}</think>I do not know.",
    "reasoning never closed": f"<think>{FENCED}",
    "only prose": "The function adds two numbers, so add(2, 3) == 5.",
    "the tests alone": "```python\n" + "\n".join(TESTS) + "\n```",
    "an empty block": "```python\n```",
    "an empty response": "",
    "a block inside a longer fence": f"````text\n{FENCED}\n````",
    "inline code": "`def add(a, b): return a + b`",
    "commented out": "```python\n" + "\n".join("# " + line for line in HONEST.split("\n")) + "\n```",
    "in a string": f'```python\n"""\n{HONEST}\n"""\n```',
}


@pytest.fixture(scope="module")
def verdicts() -> dict[str, tuple[Verdict, float]]:
    """All attacks through one pool, as a training run would."""
    items: list[tuple[str, Any, str, dict[str, Any]]] = []
    for name, code in ATTACKS.items():
        options = HASTY if name in BURNING else OPTIONS
        items.append((name, TESTS, f"```python\n{textwrap.dedent(code)}\n```", options))
    for name, code in ENDLESS.items():
        items.append((name, TESTS, f"```python\n{textwrap.dedent(code)}\n```", HASTY))
    for name, response in RESPONSES.items():
        items.append((name, TESTS, response, OPTIONS))
    items.append(("honest", TESTS, FENCED, OPTIONS))
    with VerifierPool(workers=2, timeout_s=30.0) as pool:
        found = pool.verify(
            [
                ({"use": "code_asserts", "args": options}, Sample(response, reference))
                for _, reference, response, options in items
            ]
        )
    return {name: (verdict, verdict.seconds) for (name, *_), verdict in zip(items, found, strict=True)}


@pytest.mark.parametrize("name", [*ATTACKS, *ENDLESS, *RESPONSES])
def test_attack_is_not_rewarded(name: str, verdicts: dict[str, tuple[Verdict, float]]) -> None:
    verdict, _ = verdicts[name]
    assert verdict.score == 0.0, verdict
    assert verdict.status is Status.INCORRECT


@pytest.mark.parametrize("name", ENDLESS)
def test_what_never_ends_is_ended(name: str, verdicts: dict[str, tuple[Verdict, float]]) -> None:
    """Within the total limit and half a second, and what a crowded machine takes for starting a process."""
    _, seconds = verdicts[name]
    assert seconds < HASTY["total_limit_s"] + 0.5 + 3.0


def test_the_honest_program_passes_beside_them(verdicts: dict[str, tuple[Verdict, float]]) -> None:
    verdict, _ = verdicts["honest"]
    assert verdict.status is Status.CORRECT, verdict


def test_nothing_was_written(verdicts: dict[str, tuple[Verdict, float]]) -> None:
    if verdicts["honest"][0].tier == "limits":
        return  # which stops no writing, and says so
    for place in ("/", "/tmp", os.getcwd(), str(Path.home())):
        assert not (Path(place) / "written_by_attack").exists()


# ---------------------------------------------------------------- the other verifiers


def judged(name: str, reference: Any, code: str, **options: Any) -> Verdict:
    from verifiers import build

    fenced = f"```python\n{textwrap.dedent(code)}\n```"
    return build({"use": name, "args": {**OPTIONS, **options}}).verify(Sample(fenced, reference))


CHANGED = {
    "taken apart": "x = [3, 1]\nassert f(x) == sorted(x)",
    "in a process of its own": "x = [3, 1]\nwhile True:\n    assert f(x) == sorted(x)\n    break",
}


@pytest.mark.parametrize("name", CHANGED)
def test_the_input_emptied_so_that_nothing_equals_nothing(name: str) -> None:
    verdict = judged("code_asserts", [CHANGED[name]], "def f(x):\n    x.clear()\n    return []")
    assert verdict.status is Status.INCORRECT, verdict
    assert judged("code_asserts", [CHANGED[name]], "f = sorted").status is Status.CORRECT


CHECK = {
    "prompt": "def half(x):\n    '''Half of x.'''\n",
    "entry_point": "half",
    "test": "def helper(x):\n    return x / 2\n\ndef check(candidate):\n    for x in (3, 8, 10):\n"
    "        assert abs(candidate(x) - helper(x)) < 1e-6\n",
}
CHECK_ATTACKS = {
    "the test's helper replaced": "helper = lambda x: 0\ndef half(x): return 0",
    "the check replaced": "def check(candidate): pass\ndef half(x): return 0",
    "an object near everything": """
        class Any(float):
            def __sub__(self, other): return 0.0
            def __lt__(self, other): return True
            def __abs__(self): return self
        def half(x): return Any(0)""",
    "the test searched for in memory": """
        import gc, sys
        def half(x):
            for o in gc.get_objects():
                if type(o).__name__ == "function" and o.__name__ in ("helper", "check"): return o(x)
            return None""",
    "leaves before it is asked": "import os\ndef half(x): os._exit(0)",
    "an exception the test may take for its own": "def half(x): raise StopIteration",
    "abs replaced": "import builtins\nbuiltins.abs = lambda x: 0.0\ndef half(x): return 0",
}


@pytest.mark.parametrize("name", CHECK_ATTACKS)
def test_attack_on_a_check_function(name: str) -> None:
    verdict = judged("code_humaneval", CHECK, CHECK_ATTACKS[name])
    assert verdict.status is Status.INCORRECT, verdict


def test_the_honest_function_passes_the_check() -> None:
    assert judged("code_humaneval", CHECK, "def half(x):\n    return x / 2").score == 1.0


WEAK = [
    "p = Point(1, 2)\nq = Point(3, 4)\nassert (p + q) == Point(4, 6)\nassert isinstance(p + q, Point)\n"
    "try:\n    p + 1\n    assert False\nexcept TypeError:\n    pass"
]
POINT = """
class Point:
    def __init__(self, x, y): self.x, self.y = x, y
    def __eq__(self, other): return (self.x, self.y) == (other.x, other.y)
    def __add__(self, other):
        if not isinstance(other, Point): raise TypeError("no point")
        return Point(self.x + other.x, self.y + other.y)
"""
WEAK_ATTACKS = {
    "leaves with success": "import sys\nclass Point:\n    def __init__(self, x, y): sys.exit(0)",
    "leaves hard with success": "import os\nclass Point:\n    def __init__(self, x, y): os._exit(0)",
    "asserts that cannot fail": "import builtins\nbuiltins.AssertionError = ZeroDivisionError\n" + POINT.replace("==", "!="),
    "a wrong sum": POINT.replace("self.y + other.y", "self.y"),
    "an error swallowed": POINT.replace('raise TypeError("no point")', "return self"),
    "a token printed": "print('passes')\nimport sys\nclass Point:\n    def __init__(self, x, y): print('ok'); raise SystemExit",
    "the interpreter's exit handlers": "import atexit, os\natexit.register(os._exit, 0)\nclass Point:\n    def __init__(self, x, y): raise SystemExit",
    "answers ahead": FORGE + "everywhere(frame('[\"\",\"v\",null,{}]') * 9)\nclass Point: pass",
}  # fmt: skip


@pytest.mark.parametrize("name", WEAK_ATTACKS)
def test_attack_on_the_weak_mode(name: str) -> None:
    verdict = judged("code_asserts", WEAK, WEAK_ATTACKS[name])
    assert verdict.status is Status.INCORRECT, verdict


def test_the_weak_mode_says_so() -> None:
    verdict = judged("code_asserts", WEAK, POINT)
    assert verdict.score == 1.0, verdict
    assert "weak mode" in verdict.reason


# Tests that run in a process of their own, and may be made to stop early or to leave it
FED = "x = [1]\nwhile True:\n    assert f(f(x)) == [1]\n    break"
MAPPED = "while True:\n    assert all(map(lambda c: f(c[0]) == c[1], [(1, 2), (2, 3)]))\n    break"
LIAR = """
class Any(list):
    def __eq__(self, other): return True
calls = 0
def f(x):
    global calls
    calls += 1
    return first() if calls == 1 else Any()
"""
APART_ATTACKS = {
    "a value too deep to be passed on, to get into the weak mode": (
        FED,
        LIAR + "def first():\n    v = []\n    for _ in range(100): v = [v]\n    return v",
    ),
    "a value too long to be passed on": (FED, LIAR + "def first(): return 'x' * (4194304 - 20)"),
    "the end of an iteration": (MAPPED, "def f(x): raise StopIteration"),
    "the end of an iteration, as a class of its own": (
        MAPPED,
        "class End(StopIteration): pass\ndef f(x): raise End",
    ),
    "the end of a mapped list": (
        "for got in map(f, [1, 2]):\n    assert got == 3\n    try: pass\n    finally: pass",
        "def f(x): raise StopIteration",
    ),
    "nothing, which numpy calls close to anything": (
        "import numpy as np\nnp.testing.assert_allclose(f(1), 2.5)\nassert np.allclose(f(2), 3.5)",
        "def f(x): return []",
    ),
}


@pytest.mark.parametrize("name", APART_ATTACKS)
def test_attack_on_a_test_in_its_own_process(name: str) -> None:
    test, code = APART_ATTACKS[name]
    verdict = judged("code_asserts", [test], code)
    assert verdict.status is Status.INCORRECT, verdict
    assert "weak" not in verdict.reason


STDIO = {"inputs": ["1 2\n", "5 6\n"], "outputs": ["3\n", "11\n"]}
STDIO_ATTACKS = {
    "prints every answer": "print(3)\nprint(11)",
    "prints the right answer and fails": "print(sum(map(int, input().split())))\nraise SystemExit(3)",
    "prints the right answer and never ends": "print(sum(map(int, input().split())), flush=True)\nwhile True: pass",
    "prints without end": "while True: print(3)",
    "prints nothing": "input()",
    "looks for the wanted output": "import os\nprint([f for f in os.listdir('.') if 'out' in f] or os.environ)",
    "answers through another stream": "import sys\nprint(sum(map(int, input().split())), file=sys.stderr)",
    "a terminal's carriage return hides a wrong answer": "print('4\\r3' if input().startswith('1') else '11')",
    "reads its program again": "import sys, os\nos.lseek(0, 0, 0)\nprint(sys.stdin.read())",
}


@pytest.mark.parametrize("name", STDIO_ATTACKS)
def test_attack_on_a_program_s_output(name: str) -> None:
    limits = {"time_limit_s": 0.6, "total_limit_s": 2.0} if "end" in name else {}
    verdict = judged("code_stdio", STDIO, STDIO_ATTACKS[name], **limits)
    assert verdict.status is Status.INCORRECT, verdict


IO = {"fn_name": "both", "inputs": [[1, 2], [5, 6]], "outputs": [[1, 2], [5, 6]]}
IO_ATTACKS = {
    "an object equal to everything": "class A(list):\n    def __eq__(s, o): return True\ndef both(a, b): return A()",
    "the arguments' own list changed": "def both(a, b): return [a]",
    "a string that looks like it": "def both(a, b): return str([a, b])",
    "a dict that looks like it": "def both(a, b): return {0: a, 1: b}",
    "a method that is none": "class Solution:\n    both = [1, 2]",
}


@pytest.mark.parametrize("name", IO_ATTACKS)
def test_attack_on_input_and_output_pairs(name: str) -> None:
    verdict = judged("code_io", IO, IO_ATTACKS[name])
    assert verdict.status is Status.INCORRECT, verdict


def test_a_deadline_is_kept_by_a_program_that_floods(monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    verdict = judged(
        "code_asserts",
        TESTS,
        ENDLESS["endless output past the streams"],
        time_limit_s=0.5,
        total_limit_s=60.0,
    )
    assert verdict.status is Status.INCORRECT
    assert time.monotonic() - started < 20
