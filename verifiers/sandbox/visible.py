"""Which of the host's paths a sandboxed program needs to see."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Iterable

_SYSTEM = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/share/zoneinfo",
)


def interpreter_paths() -> list[str]:
    """This interpreter, its standard library and its site-packages, and the system's shared libraries.

    Of a virtual environment not the folder it lies in, which is mostly somebody's working tree.
    """
    base = sys.base_prefix
    found = [
        *_SYSTEM,
        os.path.realpath(sys.executable),
        sys.executable,
        os.path.join(base, "lib"),
        os.path.join(base, "lib64"),
        os.path.join(sys.prefix, "pyvenv.cfg"),
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
    ]
    return outermost(path for path in found if os.path.exists(path))


def outermost(paths: Iterable[str]) -> list[str]:
    """Absolute paths, sorted, without those that lie below another."""
    kept: list[str] = []
    for path in sorted({os.path.normpath(os.path.abspath(path)) for path in paths}):
        if not kept or not (path == kept[-1] or path.startswith(kept[-1].rstrip("/") + "/")):
            kept.append(path)
    return kept
