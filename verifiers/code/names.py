"""What the names in a test stand for, and what a run of a test holds."""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from verifiers.code.functions import TooMuch

MAX_STEPS = 1_000_000  # of loops
# Modules that are not Python's own, by the names that tests use for them
ALIASES = {"np": "numpy", "pd": "pandas"} | {
    m: m for m in ("numpy", "pandas", "scipy", "sympy", "torch", "pytest")
}
_PLACES = (ast.Call, ast.Attribute, ast.Subscript)


class Unsupported(Exception):
    """An expression or statement that is not taken apart."""


class Ask(Protocol):
    """Evaluate `source` in the candidate's process with these variables; may change them as the call did."""

    def __call__(self, source: str, variables: dict[str, Any], want: str) -> Any: ...


@dataclass
class State:
    """One run of a test."""

    ask: Ask
    variables: dict[str, Any] = field(default_factory=dict)
    steps: int = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise TooMuch("a loop of too many steps")


Run = Callable[[State], Any]


@dataclass(frozen=True)
class Expression:
    run: Run
    asks: bool  # whether the candidate is asked anything
    weak: bool = False  # whether the candidate's word is compared with its own word


@dataclass
class Names:
    """What the names of a test stand for."""

    ours: set[str] = field(default_factory=set)  # variables kept here
    theirs: set[str] = field(default_factory=set)  # variables kept in the candidate's process
    tested: set[str] = field(default_factory=set)  # names of built-ins that the candidate defines
    helpers: set[str] = field(default_factory=set)  # functions that the test itself defines
    imported: dict[str, str] = field(default_factory=dict)  # alias: dotted name
    only: set[str] | None = None  # the candidate's names, where they are known

    def within(self, bound: Iterable[str]) -> Names:
        """The same, inside an expression that binds these names."""
        return replace(self, ours=self.ours | set(bound), theirs=self.theirs - set(bound))

    def dotted(self, node: ast.expr) -> str | None:
        """`math.isclose` for that attribute of a module; None for what is none."""
        if isinstance(node, ast.Name):
            return self.imported.get(node.id)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = node.value.id
            if name in self.ours | self.theirs:
                return None
            if name in self.imported:
                return f"{self.imported[name]}.{node.attr}"
            if name in sys.stdlib_module_names or name in ALIASES:
                return f"{name}.{node.attr}"
        return None

    def is_module(self, node: ast.expr) -> bool:
        """Whether the chain of attributes begins at a module."""
        while isinstance(node, _PLACES):
            if self.dotted(node) is not None:  # type: ignore[arg-type]
                return True
            node = node.func if isinstance(node, ast.Call) else node.value
        return isinstance(node, ast.Name) and node.id in self.imported

    def root(self, node: ast.expr) -> str | None:
        """The candidate's name that a chain of calls, attributes and items begins with; None if it is ours."""
        if self.is_module(node):
            return None
        while isinstance(node, _PLACES):
            node = node.func if isinstance(node, ast.Call) else node.value
        if not isinstance(node, ast.Name) or node.id in self.ours:
            return None
        if hasattr(builtins, node.id) and node.id not in self.tested | self.theirs:
            return None
        return node.id
