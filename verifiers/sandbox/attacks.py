"""Attacks that a sandbox must stop, run against a scene made for the purpose.

Each is Python that prints "GOT ..." when it gets through. The scene holds what it goes for: a secret that
anybody may read, a directory that anybody may write to, listeners, a process to harm. What stands afterwards
on the host counts as much as what was printed. Nothing here harms a machine where an attack succeeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from verifiers.sandbox.tiers import Tier

PRELUDE = """
import ctypes, errno, os, signal, socket, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def got(*what): print("GOT", *what, flush=True)
def call(*numbers):  # a raw system call; its result, or minus the error
    ctypes.set_errno(0)
    result = libc.syscall(*[ctypes.c_long(n) if isinstance(n, int) else n for n in numbers])
    return -ctypes.get_errno() if result < 0 else result
def tried(name, *numbers):
    result = call(*numbers)
    if result >= 0: got(name, result)
    else: print("no", name, errno.errorcode.get(-result, result), flush=True)
X86 = os.uname().machine == "x86_64"
"""


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack; `stopped_from` is the weakest tier that claims to stop it."""

    name: str
    source: str
    stopped_from: Tier = Tier.LANDLOCK
    limits: Mapping[str, Any] = field(default_factory=dict)
    hangs: bool = False  # it runs until it is ended
    not_in: tuple[Tier, ...] = ()  # stronger tiers that do not stop it nonetheless
    only_x86: bool = False


def _syscall(name: str, x86: int, other: int, *arguments: object) -> Attack:
    """An attack that consists of one system call being possible at all."""
    given = "".join(f", {argument}" for argument in arguments)
    return Attack(f"call {name}", f"tried({name!r}, {x86} if X86 else {other}{given})")


FILES = [
    Attack("read a secret", "got(open(SECRET).read())"),
    Attack("list the home directory", "got(os.listdir(os.path.dirname(SECRET)))"),
    Attack("see that a file exists", "got(os.stat(SECRET).st_size)", Tier.NAMESPACES),
    Attack("read through a symbolic link", "os.symlink(SECRET, 'link'); got(open('link').read())"),
    Attack("read through a hard link", "os.link(SECRET, 'hard'); got(open('hard').read())"),
    Attack("read by a relative path", "got(open('../' * 20 + SECRET.lstrip('/')).read())"),
    Attack("read the passwords", "got(len(open('/etc/passwd').read()))"),
    Attack("write outside", "open(OUTSIDE + '/mark', 'w').write('x'); got('written')"),
    Attack("delete a file", "os.unlink(OUTSIDE + '/keep'); got('deleted')"),
    Attack("rename a file", "os.rename(OUTSIDE + '/keep', OUTSIDE + '/mark'); got('renamed')"),
    Attack("truncate a file", "os.truncate(OUTSIDE + '/keep', 0); got('truncated')"),
    Attack("write into the standard library", "open(os.__file__, 'a').close(); got('opened')", Tier.LIMITS),
    Attack("make a device", "os.mknod('disk', 0o60666, os.makedev(8, 0)); got('made')", Tier.LIMITS),
    Attack(
        "open disks and memory",
        "for name in ('mem', 'kmsg', 'sda', 'vda', 'nvme0n1', 'tty', 'fuse', 'kvm', 'ptmx'):\n"
        "    try: os.open('/dev/' + name, os.O_RDWR); got(name)\n"
        "    except OSError as fault: print('no', fault)",
    ),
    Attack(
        "change root and climb out",
        "os.mkdir('in'); top = os.open('.', 0); os.chroot('in'); os.fchdir(top)\n"
        "os.chroot('../' * 30); got(open(SECRET).read())",
    ),
    Attack("start a shell", "os.execv('/bin/sh', ['sh', '-c', 'echo GOT a shell'])"),
    Attack(
        "start a file of its own",
        "place = open('mine', 'w'); place.write('#!' + sys.executable + '\\nprint(\"GOT\")\\n'); place.close()\n"
        "os.chmod('mine', 0o755); os.execv('./mine', ['mine'])",
    ),
]

NETWORK = [
    Attack("connect to the host", "s = socket.create_connection(('127.0.0.1', PORT), 2); got('connected')"),
    Attack("listen", "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); got(s.getsockname())"),
    Attack("send a datagram", "socket.socket(2, 2).sendto(b'x', ('127.0.0.1', PORT)); got('sent')"),
    Attack(
        "connect to an abstract socket",
        "s = socket.socket(1, 1); s.connect('\\0' + ABSTRACT); got('connected')",
    ),
    Attack(
        "connect to a socket file", "s = socket.socket(1, 2); s.sendto(b'x', OUTSIDE + '/log'); got('sent')"
    ),
    Attack(
        "send to a socket file over a pair",
        "a, b = socket.socketpair(1, 2); a.sendmsg([b'x'], [], 0, OUTSIDE + '/log'); got('sent')",
    ),
    Attack("raw and netlink sockets", "socket.socket(16, 3, 0); got('netlink')"),
]

PROCESSES = [
    Attack("kill a process", "os.kill(VICTIM, signal.SIGTERM); got('killed')"),
    Attack("kill the parent", "os.kill(PARENT, 0); got('could')"),
    Attack("kill all", "os.kill(-1, signal.SIGCONT); os.kill(VICTIM, 0); got('could')"),
    Attack("kill by process descriptor", "tried('pidfd', 434, VICTIM, 0)"),
    Attack("trace a process", "tried('ptrace', 101 if X86 else 117, 16, VICTIM, 0, 0)"),
    Attack(
        "read a process's memory", "tried('process_vm_readv', 310 if X86 else 270, VICTIM, 0, 0, 0, 0, 0)"
    ),
    Attack("read the parent's environment", "got(open(f'/proc/{PARENT}/environ', 'rb').read())"),
    Attack("read the parent's memory", "open(f'/proc/{PARENT}/mem', 'rb'); got('opened')"),
    Attack("list processes", "got([n for n in os.listdir('/proc') if n.isdigit()][:3])"),
    Attack("reach files through a process", "got(open(f'/proc/{VICTIM}/root' + SECRET).read())"),
    Attack("change another's limits", "import resource; resource.prlimit(VICTIM, 7, (9, 9)); got('changed')"),
    Attack("change another's priority", "os.setpriority(0, VICTIM, 19); got('changed')"),
    Attack(
        "leave a daemon",
        "if os.fork() == 0:\n    try: os.setsid()\n    except OSError: pass\n    if os.fork() == 0:\n        got('a daemon'); time.sleep(60)\n"
        "    os._exit(0)\nos.wait(); time.sleep(0.2)",
        Tier.NAMESPACES,
        {"processes": 8},
    ),
    Attack("a daemon though one process is allowed", "os.fork() or time.sleep(60); got('forked')"),
    Attack(
        "outlive its end",
        "for n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        "while True: time.sleep(1)",
        Tier.LIMITS,
        hangs=True,
    ),
    Attack("stay when the parent dies", "tried('prctl', 157 if X86 else 167, 1, 0, 0, 0, 0)"),
    Attack(
        "a child that is the parent's",
        "tried('clone', 56 if X86 else 220, 0x8011, 0, 0, 0, 0) or os._exit(0)",
    ),
]

EXHAUSTION = [
    Attack("burn the processor", "while True: pass", Tier.LIMITS, {"cpu_s": 1}, hangs=True),
    Attack(
        "fork without end",
        "made = 0\nfor _ in range(300):\n    try:\n        if os.fork() == 0: time.sleep(60)\n        made += 1\n"
        "    except OSError: break\nprint(made); made > 40 and got(made)",
        Tier.NAMESPACES,
        {"processes": 8},
    ),
    Attack(
        "threads without end",
        "made = 0\nthreading.stack_size(1 << 16)\nfor _ in range(300):\n"
        "    try: threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); made += 1\n"
        "    except RuntimeError: break\nprint(made); made > 40 and got(made); os._exit(0)",
        Tier.NAMESPACES,  # below, a user's threads can be counted apart only when started by root
    ),
    Attack("fill the memory", "x = bytearray(1 << 30); got(len(x))", Tier.LIMITS, {"memory_mb": 256}),
    Attack(
        "fill the memory with many",
        "for _ in range(7):\n    if os.fork() == 0:\n        x = b'x' * (100 << 20); time.sleep(1); print('held', flush=True)\n"
        "        os._exit(0)\ntime.sleep(1.5)",
        Tier.NAMESPACES,
        {"processes": 8, "memory_mb": 256},
    ),
    Attack(
        "fill the disk",
        "total = 0\nfor n, place in enumerate(['.', '/tmp', '/dev/shm', '/var/tmp', OUTSIDE] * 5):\n"
        "        try:\n            with open(f'{place}/fill{n}', 'wb', 0) as file:\n"
        "                for _ in range(8): total += file.write(b'x' * (1 << 20))\n"
        "        except OSError as fault: print(fault)\n"
        "for n, place in enumerate(['.', '/tmp', '/dev/shm', '/var/tmp', OUTSIDE] * 5):\n"
        "    try: os.unlink(f'{place}/fill{n}')\n    except OSError: pass\n"
        "print(total); total > 10 << 20 and got(total)",
        limits={"file_mb": 8},
    ),
    Attack(
        "many files",
        "made = 0\nfor n in range(20000):\n    try: open(f'f{n}', 'w').close(); made += 1\n"
        "    except OSError: break\nprint(made); made > 5000 and got(made)",
        not_in=(Tier.BUBBLEWRAP,),  # bwrap bounds the bytes of its private directory, not the number of files
    ),
    Attack(
        "open files without end",
        "held = []\nfor _ in range(500):\n    try: held.append(os.open('/dev/null', 0))\n    except OSError: break\n"
        "print(len(held)); len(held) > 64 and got(len(held))",
        Tier.LIMITS,
    ),
    Attack(
        "raise its limits",
        "import resource\nfor name in ('AS', 'CPU', 'FSIZE', 'NPROC', 'NOFILE'):\n"
        "    try: resource.setrlimit(getattr(resource, 'RLIMIT_' + name), (-1, -1)); got(name)\n"
        "    except (OSError, ValueError) as fault: print('no', fault)",
        Tier.LIMITS,
    ),
    Attack(
        "shared memory that stays",
        "tried('shmget', 29 if X86 else 194, KEY, 4096, 0o1666)",
    ),
    Attack(
        "semaphores that stay",
        "tried('semget', 64 if X86 else 190, KEY, 1, 0o1666); open('/dev/shm/' + ABSTRACT, 'w'); got('shm')",
    ),
    Attack("message queues that stay", "tried('msgget', 68 if X86 else 186, KEY, 0o1666)"),
]

KERNEL = [
    _syscall("mount", 165, 40, "b'x'", "b'/'", "b'tmpfs'", 0, 0),
    _syscall("umount2", 166, 39, "b'/'", 2),
    _syscall("unshare", 272, 97, 0x10000000),
    _syscall("setns", 308, 268, 0, 0),
    Attack(
        "call clone into a user namespace",
        "tried('clone', 56 if X86 else 220, 0x10000011, 0, 0, 0, 0)",
        Tier.NAMESPACES,
        {"processes": 8},
    ),
    _syscall("clone3", 435, 435, "ctypes.create_string_buffer(88)", 88),
    _syscall("pivot_root", 155, 41, "b'.'", "b'.'"),
    _syscall("setuid 0", 105, 146, 0),
    _syscall("add_key", 248, 217, "b'user'", "b'x'", "b'x'", 1, -3),
    _syscall("keyctl", 250, 219, 0, -3, 1),
    _syscall("bpf", 321, 280, 0, "ctypes.create_string_buffer(64)", 64),
    _syscall(
        "perf_event_open", 298, 241, "ctypes.create_string_buffer(b'\\x01\\0\\0\\0\\x70', 112)", 0, -1, -1, 0
    ),
    _syscall("userfaultfd", 323, 282, 1),
    _syscall("io_uring_setup", 425, 425, 4, "ctypes.create_string_buffer(120)"),
    _syscall("open_by_handle_at", 304, 265, 0, "ctypes.create_string_buffer(16)", 0),
    _syscall("personality", 135, 92, 0x0040000),
    _syscall("memfd_create", 319, 279, "b'x'", 0),
    _syscall("syslog", 103, 116, 10, 0, 0),
    _syscall("kexec_load", 246, 104, 0, 0, 0, 0),
    _syscall("init_module", 175, 105, "b''", 0, "b''"),
    _syscall("sethostname", 170, 161, "b'x'", 1),
    _syscall("vmsplice", 278, 75, 1, 0, 0, 0),
    Attack(
        "type into the terminal",
        "import fcntl\nfor fd in (0, 1, 2):\n    try: fcntl.ioctl(fd, 0x5412, b'x'); got('typed')\n"
        "    except OSError as fault: print(fault)\nos.open('/dev/tty', os.O_RDWR); got('a terminal')",
        Tier.LIMITS,
    ),
    Attack("calls of the x32 kind", "tried('x32 getpid', 0x40000000 | 39)", Tier.LANDLOCK, only_x86=True),
    Attack(
        "calls of the 32-bit kind",
        "import mmap\npage = mmap.mmap(-1, 4096, prot=7)\n"
        "page.write(bytes.fromhex('53b814000000cd805bc3'))\n"  # push rbx; eax = 20 (getpid); int 0x80; pop; ret
        "run = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))\n"
        "result = run(); result > 0 and got(result)",
        only_x86=True,
    ),
]

SECRETS = [
    Attack("inherited environment", "got(os.environ['SANDBOX_CANARY'])", Tier.LIMITS),
    Attack(
        "inherited descriptors",
        "for fd in range(3, 300):\n    try: fd != LIFELINE and (os.fstat(fd), got(fd))\n    except OSError: pass",
        Tier.LIMITS,
    ),
    Attack(
        "what its launcher remembers",
        "import gc\nfound = [o for o in gc.get_objects() if isinstance(o, socket.socket) and o.fileno() >= 0]\n"
        "found and got(found)",
        Tier.LIMITS,
    ),
]

ATTACKS = [*FILES, *NETWORK, *PROCESSES, *EXHAUSTION, *KERNEL, *SECRETS]
