"""What a sandboxed program sees of the file system: the interpreter, the libraries, a few devices, a private /tmp."""

from __future__ import annotations

import os
import stat

from verifiers.sandbox import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
PRIVATE = "/private"  # the writable directory, in tiers with a file system of their own
LINK = "/tmp"  # leads there too, unless the interpreter itself lies below
BASE = "/sys"  # where it is put together: a directory that no wanted path lies below


def build(base: str, reads: Sequence[str], writes: Sequence[str]) -> None:
    """Put the view together below `base`, a fresh file system of this mount namespace. Raises OSError."""
    for path in reads:
        _bind(path, base, linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV)
    for path in DEVICES:
        if os.path.exists(path) and stat.S_ISCHR(os.stat(path).st_mode):
            _bind(path, base, linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NOEXEC)
    for path in writes:
        _bind(path, base, linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    os.makedirs(base + PRIVATE, exist_ok=True)
    if not os.path.exists(base + LINK):
        os.symlink(PRIVATE, base + LINK)


def _bind(path: str, base: str, flags: int) -> None:
    target = base + path
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.exists(target):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    linux.mount(path, target, flags=linux.MS_BIND | linux.MS_REC)
    linux.restrict_mount(target, flags)
