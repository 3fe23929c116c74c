"""A test, read once: statements that ask the candidate's process and compare here, or how else it must run.

Three modes, decided by the test alone and never by the candidate:

    apart    each assert taken apart into questions and comparisons (expressions.py)
    checker  the test runs as it is, in a process of its own, with stand-ins that pass calls on
    weak     the test runs in the candidate's process, or compares the candidate's word with its own word
"""

from __future__ import annotations

import ast
import builtins
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from verifiers.code.expressions import PREFIX, Compiler
from verifiers.code.harness import count_checks, runnable
from verifiers.code.names import ALIASES, Names, State, Unsupported
from verifiers.errors import BadReference

Step = Callable[[State], object]
Mode = Literal["apart", "checker", "weak"]
MAX_SOURCE = 1_000_000  # characters of one test


class AssertFails(Exception):
    """A test's assert does not hold."""


@dataclass(frozen=True)
class Unit:
    """One test."""

    source: str
    mode: Mode
    asserts: int  # of which this many are checked
    weak_asserts: int
    steps: tuple[Step, ...] = ()
    proxies: tuple[str, ...] = ()  # the candidate's functions, for the checker
    in_place: bool = False  # calls that stand alone, whose effect on their arguments matters
    imports: str = ""  # source of imports that the test takes for granted, for the checker
    leaves_state: bool = False  # statements that leave something in the candidate's process

    def run(self, state: State) -> None:
        """Raises AssertFails, and what `ask` and a computation on the candidate's answers raise."""
        for step in self.steps:
            step(state)


def parse(source: str, what: str) -> ast.Module:
    """Raises BadReference for what is no Python."""
    if len(source) > MAX_SOURCE:
        raise BadReference(f"{what} is {len(source)} characters long, more than {MAX_SOURCE}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a SyntaxWarning in a data set is nobody's business here
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as fault:
        raise BadReference(f"{what} {source[:80]!r} is no Python: {fault}") from None


class UnitReader:
    """Reads the tests of one reference.

    setup         source that belongs to the tests: its literals are kept here, its classes go to the candidate
    entry_points  names that are certainly the candidate's
    strict        nothing else is the candidate's
    """

    def __init__(self, setup: str = "", entry_points: tuple[str, ...] = (), strict: bool = False) -> None:
        self.setup = setup
        self.entry_points = entry_points
        self.strict = strict
        self.imported: dict[str, str] = {}
        self.helpers: set[str] = set()
        self.ours: set[str] = set()
        self.constants: list[ast.stmt] = []  # of the setup, kept here
        theirs: list[ast.stmt] = []
        for statement in parse(setup, "the setup").body:
            if self._is_constant(statement):
                self.constants.append(statement)
            else:
                theirs.append(statement)
                self.imported.update(imports(statement))
                if isinstance(statement, ast.FunctionDef):
                    self.helpers.add(statement.name)
        self.theirs = theirs

    def _is_constant(self, statement: ast.stmt) -> bool:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
            return False
        try:
            Compiler(Names(ours=set(self.ours))).expression(statement.value)
        except Unsupported:
            return False
        if any(Names(ours=self.ours).root(n) for n in ast.walk(statement.value) if isinstance(n, ast.expr)):
            return False
        self.ours.add(statement.targets[0].id)
        return True

    def candidate_setup(self) -> tuple[str, str]:
        """The setup's source for the candidate's process: what goes before its code, and what after."""
        kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
        before = [s for s in self.theirs if isinstance(s, kinds)]
        after = [s for s in self.theirs if not isinstance(s, kinds)]
        return "\n".join(map(ast.unparse, before)), "\n".join(map(ast.unparse, after))

    def read(self, source: str) -> Unit:
        """The unit for one test. Raises BadReference when it is no Python or tests nothing."""
        source = runnable(source, parse(source, "the test"))
        tree = parse(source, "the test")
        asserts = count_checks(tree)
        try:
            units = self._apart([*self.constants, *tree.body], source)
        except Unsupported:
            return self._whole(source, asserts)
        weak = sum(unit.weak_asserts for unit in units)
        steps = tuple(step for unit in units for step in unit.steps)
        leaves = any(unit.leaves_state for unit in units)
        return Unit(source, "apart", asserts, weak, steps, leaves_state=leaves)

    def read_check(self, body: list[ast.stmt], source: str, asserts: int, parameter: str) -> tuple[Unit, ...]:
        """A unit for each assert of a check function's body, in one state, or one unit for all of it.

        `parameter` is what the candidate's function is called there.
        """
        try:
            return tuple(self._apart(body, source, parameter))
        except Unsupported:
            return (self._whole(source, asserts),)

    def _whole(self, source: str, asserts: int) -> Unit:
        proxies = self._proxies(parse(source, "the test"))
        if proxies is None:
            return Unit(source, "weak", asserts, asserts, leaves_state=True)
        tree = parse(source, "the test")
        calls = [n.value for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)]
        in_place = any(isinstance(c.func, ast.Name) and not hasattr(builtins, c.func.id) for c in calls)
        granted = granted_imports(tree)
        return Unit(source, "checker", asserts, 0, proxies=proxies, in_place=in_place, imports=granted)

    # ------------------------------------------------------------ apart

    def _apart(self, body: list[ast.stmt], source: str, parameter: str = "") -> list[Unit]:
        """One unit for each statement that asserts, with the statements before it that do not."""
        names = Names(imported=dict(self.imported), helpers=set(self.helpers))
        names.tested = {name for name in self.entry_points if hasattr(builtins, name)}
        names.only = set(self.entry_points) if self.strict else None
        if not self.entry_points:
            names.tested |= tested_builtins(body)
        if parameter:
            body = [_Rename(parameter, self.entry_points[0]).visit(statement) for statement in body]
        reader = StatementReader(names)
        units: list[Unit] = []
        steps = _have_modules(body, names)
        for statement in body:
            before = reader.weak
            steps += reader.read(statement)
            asserts = sum(isinstance(node, ast.Assert) for node in ast.walk(statement))
            if asserts and not _is_trivial(statement):
                weak = reader.weak - before
                units.append(
                    Unit(
                        ast.unparse(statement),
                        "apart",
                        asserts,
                        weak,
                        tuple(steps),
                        leaves_state=reader.leaves_state,
                    )
                )
                steps = []
        if not reader.asks or not units:
            raise BadReference(f"the test {source[:80]!r} does not call the candidate")
        return units

    # ------------------------------------------------------------ in a process of its own

    def _proxies(self, tree: ast.Module) -> tuple[str, ...] | None:
        """The candidate's functions that the test calls; None when it needs more of the candidate than calls."""
        if self.entry_points:
            return self.entry_points
        setup = parse(self.setup, "the setup")
        stores = {name for part in (tree, setup) for name in bound_names(part)}
        unknown = {
            name
            for part in (tree, setup)
            for name in _read_names(part)
            if name not in stores and not hasattr(builtins, name) and not is_module_name(name)
        }
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        called = {n.func.id for n in calls if isinstance(n.func, ast.Name)}
        for call in calls:  # `map(f, values)` calls f
            if isinstance(call.func, ast.Name) and call.func.id in ("map", "filter"):
                called |= {a.id for a in call.args[:1] if isinstance(a, ast.Name)}
        if not unknown or not unknown <= called or any(name[:1].isupper() for name in unknown):
            return None
        return tuple(sorted(unknown))


def imports(node: ast.AST) -> dict[str, str]:
    """The names that an import binds, and the dotted names that they stand for."""
    if isinstance(node, ast.Import):
        return {
            alias.asname or alias.name.partition(".")[0]: (
                alias.name if alias.asname else alias.name.partition(".")[0]
            )
            for alias in node.names
        }
    if isinstance(node, ast.ImportFrom):
        return {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return {}


def _read_names(tree: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def bound_names(tree: ast.AST) -> set[str]:
    """Every name that `tree` binds anywhere."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.ExceptHandler)) and node.name:
            found.add(node.name)
        found |= set(imports(node))
    return found


def is_module_name(name: str) -> bool:
    return name in sys.stdlib_module_names or name in ALIASES


def granted_imports(tree: ast.AST) -> str:
    """Imports of the modules whose attributes a test uses, as the program under test usually has them."""
    used = {
        node.value.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and is_module_name(node.value.id)
    }
    bound = {name for node in ast.walk(tree) for name in imports(node)}
    return "".join(f"import {ALIASES.get(name, name)} as {name}\n" for name in sorted(used - bound))


def tested_builtins(body: list[ast.stmt]) -> set[str]:
    """Built-in names that the candidate defines: `assert sum(2, 3) == 5` where nothing else is called."""
    found = set()
    for statement in body:
        if not isinstance(statement, ast.Assert):
            continue
        calls = [n for n in ast.walk(statement.test) if isinstance(n, ast.Call)]
        named = [c.func.id for c in calls if isinstance(c.func, ast.Name)]
        if len(named) == len(calls) and named and all(hasattr(builtins, name) for name in named):
            found.add(named[0])
    return found


def _is_trivial(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Assert)
        and isinstance(statement.test, ast.Constant)
        and bool(statement.test.value)
    )


def _have_modules(body: list[ast.stmt], names: Names) -> list[Step]:
    """Tests such as `f(math.pi)` take it that the program imports math: it is there even if it does not."""
    used = {
        node.value.id
        for statement in body
        for node in ast.walk(statement)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    modules = sorted(name for name in used if name in sys.stdlib_module_names and name not in names.imported)
    source = "".join(f"try: {name}\nexcept NameError: import {name}\n" for name in modules)
    return [lambda state: state.ask(source, {}, "exec")] if modules else []


class _Rename(ast.NodeTransformer):
    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.new, node.ctx) if node.id == self.old else node


class StatementReader:
    """Turns straight-line statements into steps. Raises Unsupported for loops, functions, with, try."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.asks = False
        self.weak = 0
        self.leaves_state = False

    def read(self, node: ast.stmt) -> list[Step]:
        read = getattr(self, f"_{type(node).__name__}", None)
        if read is None:
            raise Unsupported(type(node).__name__)
        return read(node)  # type: ignore[no-any-return]

    def _Pass(self, node: ast.Pass) -> list[Step]:
        return []

    def _Import(self, node: ast.Import | ast.ImportFrom) -> list[Step]:
        self.names.imported.update(imports(node))
        source = ast.unparse(node)
        return [lambda state: state.ask(source, {}, "exec")]

    _ImportFrom = _Import

    def _Assert(self, node: ast.Assert) -> list[Step]:
        test = Compiler(self.names).truth(node.test)
        self.asks |= test.asks
        self.weak += test.weak
        text = ast.unparse(node.test)

        def step(state: State) -> None:
            if not test.run(state):
                raise AssertFails(text if len(text) <= 200 else text[:197] + "...")

        return [step]

    def _Assign(self, node: ast.Assign) -> list[Step]:
        if len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):
            raise Unsupported("an assignment to more than one name")
        name, compiler = node.targets[0].id, Compiler(self.names)
        root = self.names.root(node.value)
        if root is not None and not isinstance(node.value, ast.Subscript):
            source, used = compiler.source(node.value)
            self.names.theirs.add(name)
            self.names.ours.discard(name)
            self.asks = self.leaves_state = True

            def assign(state: State) -> None:
                variables = {PREFIX + n: state.variables[n] for n in used}
                state.ask(f"{PREFIX}{name} = {source}", variables, "exec")

            return [assign]
        value = compiler.expression(node.value)
        self.asks |= value.asks
        self.names.ours.add(name)
        self.names.theirs.discard(name)
        return [lambda state: state.variables.__setitem__(name, value.run(state))]

    def _For(self, node: ast.For) -> list[Step]:
        compiler = Compiler(self.names)
        members = compiler.expression(node.iter, "iterable")
        bound, bind = compiler.bind(node.target)
        if node.orelse:
            raise Unsupported("for with else")
        self.names.ours |= set(bound)
        self.names.theirs -= set(bound)
        steps = [step for statement in node.body for step in self.read(statement)]

        def loop(state: State) -> None:
            for member in members.run(state):
                state.step()
                bind(state.variables, member)
                for step in steps:
                    step(state)

        return [loop]

    def _Expr(self, node: ast.Expr) -> list[Step]:
        called = node.value.func if isinstance(node.value, ast.Call) else None
        if isinstance(node.value, (ast.Constant, ast.Name)) or (
            isinstance(called, ast.Name) and called.id == "print"
        ):
            return []
        if self.names.root(node.value) is None:
            raise Unsupported("a statement of no effect here")
        asked = Compiler(self.names).asked(node.value, "truth", in_place=True)
        self.asks = self.leaves_state = True
        return [asked.run]
