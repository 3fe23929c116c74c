"""The few Linux calls that Python has no function for, through the C library. Each raises OSError.

Importable everywhere; elsewhere than on Linux the calls fail with ENOSYS. PyPI's `landlock` is a development
version, and `pyseccomp` needs libseccomp on the machine, so the calls are made here: numbers and structures are
those of the kernel's headers, which never change.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
SECCOMP_MODE_FILTER = 2
CAP_DAC_READ_SEARCH = 2
CAP_SYS_ADMIN = 21

ON_LINUX = sys.platform.startswith("linux")
MACHINE = os.uname().machine if hasattr(os, "uname") else ""
# Numbers of x86_64 and of the table that newer architectures share.
_NUMBERS = {
    "pivot_root": (155, 41),
    "capget": (125, 90),
    "capset": (126, 91),
    "close_range": (436, 436),
    "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(name: str, result: int, path: str | None = None) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}", path)
    return result


def syscall(name: str, *arguments: object) -> int:
    """A call by name; integers are passed as longs, anything else as ctypes has it."""
    if not ON_LINUX or MACHINE not in ("x86_64", "aarch64"):
        raise OSError(errno.ENOSYS, f"{name}: not on {sys.platform} {MACHINE}")
    number = _NUMBERS[name][MACHINE != "x86_64"]
    values = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return _checked(name, _libc.syscall(ctypes.c_long(number), *values))


def _libc_call(name: str, *arguments: object) -> int:
    if not ON_LINUX:
        raise OSError(errno.ENOSYS, f"{name}: not on {sys.platform}")
    return _checked(name, getattr(_libc, name)(*arguments))


def prctl(option: int, value: int = 0, third: object = 0) -> int:
    last = ctypes.c_ulong(third) if isinstance(third, int) else third
    zero = ctypes.c_ulong(0)
    return _libc_call("prctl", ctypes.c_int(option), ctypes.c_ulong(value), last, zero, zero)


def unshare(flags: int) -> None:
    _libc_call("unshare", ctypes.c_int(flags))


def setns(descriptor: int, kind: int) -> None:
    _libc_call("setns", ctypes.c_int(descriptor), ctypes.c_int(kind))


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    _libc_call(
        "mount",
        source.encode(),
        target.encode(),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        options.encode() or None,
    )


def umount(target: str, flags: int = 0) -> None:
    _libc_call("umount2", target.encode(), ctypes.c_int(flags))


def pivot_root(new: str, old: str) -> None:
    syscall("pivot_root", ctypes.c_char_p(new.encode()), ctypes.c_char_p(old.encode()))


MOUNT_ATTR = {MS_RDONLY: 1, MS_NOSUID: 2, MS_NODEV: 4, MS_NOEXEC: 8}
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000


def restrict_mount(target: str, flags: int) -> None:
    """Add MS_RDONLY and its like to a mount and the mounts below it (mount_setattr, Linux 5.12)."""
    bits = sum(bit for flag, bit in MOUNT_ATTR.items() if flags & flag)
    attributes = struct.pack("=QQQQ", bits, 0, 0, 0)
    syscall(
        "mount_setattr",
        _AT_FDCWD,
        ctypes.c_char_p(target.encode()),
        _AT_RECURSIVE,
        ctypes.c_char_p(attributes),
        32,
    )


# ---------------------------------------------------------------- capabilities

_CAP_VERSION_3 = 0x20080522


def capabilities() -> int:
    """The effective capabilities of this process, one bit each; 0 where there are none."""
    header = ctypes.create_string_buffer(struct.pack("=II", _CAP_VERSION_3, 0))
    data = ctypes.create_string_buffer(24)
    try:
        syscall("capget", header, data)
    except OSError:
        return 0
    low, _, _, high, _, _ = struct.unpack("=6I", data.raw[:24])
    return low | high << 32


def drop_capabilities(keep: int = 0) -> None:
    """Leave only the bits of `keep`, in every set, so that no later exec brings one back."""
    for number in range(64):
        if not keep >> number & 1:
            try:
                prctl(PR_CAPBSET_DROP, number)
            except OSError as fault:
                if fault.errno == errno.EINVAL:  # past the last one this kernel has
                    break
                if fault.errno != errno.EPERM:  # EPERM: has no capability to drop
                    raise
    header = ctypes.create_string_buffer(struct.pack("=II", _CAP_VERSION_3, 0))
    low, high = keep & 0xFFFFFFFF, keep >> 32
    syscall(
        "capset", header, ctypes.create_string_buffer(struct.pack("=6I", low, low, low, high, high, high))
    )
    for number in range(64):
        if keep >> number & 1:
            prctl(PR_CAP_AMBIENT, 2, number)  # raise: it outlasts exec


def close_all_but(kept: set[int]) -> None:
    """Close every descriptor that is not in `kept`."""
    edges = [-1, *sorted(kept)]
    for low, high in zip(edges, [*edges[1:], 1 << 31], strict=True):
        if high - low > 1:
            try:
                syscall("close_range", low + 1, high - 1, 0)
            except OSError:  # before Linux 5.9
                os.closerange(low + 1, min(high, 1 << 16))


# ---------------------------------------------------------------- seccomp


def install_filter(program: bytes) -> None:
    """Put a BPF program (8 bytes an instruction) on every later system call, for good."""
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(header))
