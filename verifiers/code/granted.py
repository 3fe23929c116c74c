"""What a programming contest's judge has imported before a program begins, as LeetCode's and LiveCodeBench's do.

Names go among the built-ins, so that whatever the program itself defines or imports comes first.
"""

from __future__ import annotations

import builtins
import importlib
import re
from functools import cache

# In case of doubt the later module wins; a module's own name stands for the module ("datetime", "copy")
MODULES = "operator io string re datetime random statistics json sys copy math itertools functools bisect heapq collections typing"  # fmt: skip
RECURSION = 50_000  # calls deep, as LiveCodeBench's judge; Python's own 1000 is little for a search


@cache
def _homes() -> dict[str, str]:
    """The module that each name is imported from; "" for a module itself."""
    found: dict[str, str] = {}
    for module in MODULES.split():
        loaded = importlib.import_module(module)
        public = getattr(loaded, "__all__", None) or [n for n in vars(loaded) if not n.startswith("_")]
        found.update({name: module for name in public if not hasattr(builtins, name)})
    found.update(dict.fromkeys(MODULES.split(), ""))
    return found


def prelude(code: str) -> str:
    """Source that makes the names which `code` mentions available to it, and recursion deep."""
    homes = _homes()
    names = sorted(set(re.findall(r"[A-Za-z_]\w*", code)) & homes.keys())
    modules = {name if not homes[name] else homes[name] for name in names}
    lines = [f"import {module} as _{module}" for module in sorted(modules | {"builtins", "sys"})]
    lines += [
        f"_builtins.{name} = " + (f"_{name}" if not homes[name] else f"_{homes[name]}.{name}")
        for name in names
    ]
    return "\n".join([*lines, f"_sys.setrecursionlimit({RECURSION})", ""])
