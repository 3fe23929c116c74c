"""Landlock: which files this process and all its descendants may touch from now on (Linux 5.13).

Rights and structures: https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct

from verifiers.sandbox import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

EXECUTE = 1 << 0
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
TRUNCATE = 1 << 14
IOCTL_DEV = 1 << 15
_MAKE_DEVICE = 1 << 6 | 1 << 11
_RIGHTS_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_RIGHTS_NOW = (1 << 16) - 1
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

READ = EXECUTE | READ_FILE | READ_DIR
DEVICE = READ_FILE | WRITE_FILE
WRITE = _RIGHTS_NOW & ~(EXECUTE | IOCTL_DEV | _MAKE_DEVICE)  # and read, but never start

_NET = 3  # bind and connect TCP, from ABI 4
_SCOPES = 3  # abstract sockets and signals stay inside, from ABI 6
SCOPED_SIGNALS_ABI = 6


def abi() -> int:
    """The kernel's Landlock version; 0 when it has none or it is switched off."""
    try:
        return linux.syscall("landlock_create_ruleset", 0, 0, 1)
    except OSError:
        return 0


def restrict(rules: Iterable[tuple[str, int]], version: int) -> None:
    """Deny every path but those below the given ones, each with its rights. Paths that are not there are left out.

    `version` is what abi() said. Needs no_new_privs. Raises OSError.
    """
    rights = _RIGHTS_BY_ABI.get(version, _RIGHTS_NOW)
    attributes = struct.pack("=QQQ", rights, _NET if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = linux.syscall("landlock_create_ruleset", ctypes.c_char_p(attributes), size, 0)
    try:
        for path, wanted in rules:
            _allow(ruleset, path, wanted & rights)
        linux.syscall("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _OF_FILES
        rule = struct.pack("=Qi", rights, descriptor)
        linux.syscall("landlock_add_rule", ruleset, 1, ctypes.c_char_p(rule), 0)
    finally:
        os.close(descriptor)
