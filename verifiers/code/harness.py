"""Tests as their authors wrote them, made to run: what a test runner would have called is called.

A test of asserts that nothing ever runs would be passed by every program, so it is refused when data is loaded.
"""

from __future__ import annotations

import ast

from verifiers.errors import BadReference

Definition = ast.FunctionDef | ast.ClassDef
SOLUTION = ("solution", "your_solution", "your_module", "candidate")  # modules that stand for the program


def count_checks(tree: ast.AST) -> int:
    """How many statements or calls in `tree` can find a program wrong: asserts, assertEqual, assert_allclose."""
    return sum(isinstance(node, ast.Assert) or _is_check(node) for node in ast.walk(tree))


def _is_check(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name.lower().startswith("assert")


def runnable(source: str, tree: ast.Module, entries: tuple[str, ...] = ()) -> str:
    """The test with its `test_...` functions and classes called, its main block run, its imports of the
    program's module dropped. Raises BadReference when none of its asserts can be reached.

    entries  names known to be called by whoever runs the test
    """
    body = [part for statement in tree.body for part in _main_block(statement)]
    kept = [statement for statement in body if not _of_the_program(statement)]
    _refuse_always_true(tree)
    text = source if kept == tree.body else "\n".join(map(ast.unparse, kept))
    defined = {node.name: node for node in kept if isinstance(node, Definition)}
    read = _read(kept) | set(entries)
    calls = [_call(node) for name, node in defined.items() if name not in read and _is_test(node)]
    called = read | {name for name, node in defined.items() if _is_test(node)}
    if not any(
        count_checks(node) for node in kept if not isinstance(node, Definition) or node.name in called
    ):
        asserting = [name for name, node in defined.items() if count_checks(node)]
        why = (
            f"its asserts stand in {asserting[0]}(), which nothing calls" if asserting else "asserts nothing"
        )
        raise BadReference(
            f"the test {source[:80]!r} can fail no program: {why}",
            cure="Give assert statements, or functions named test_...; for check(candidate) use code_humaneval.",
        )
    return text if not calls else text + "\n" + "".join(calls)


def _main_block(statement: ast.stmt) -> list[ast.stmt]:
    """The statements under `if __name__ == "__main__"`, but for a test runner's start; others as they are."""
    if not isinstance(statement, ast.If) or "__name__" not in ast.unparse(statement.test):
        return [statement]
    return [s for s in statement.body if not ast.unparse(s).startswith(("unittest.main(", "pytest.main("))]


def _of_the_program(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.ImportFrom)
        and statement.module in SOLUTION
        and all(alias.asname is None for alias in statement.names)
    )


def _refuse_always_true(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and isinstance(node.test, ast.Tuple) and node.test.elts:
            raise BadReference(
                f"the test {ast.unparse(node)[:80]!r} can fail no program: a tuple is always true",
                cure="Write the assert without the brackets.",
            )


def _read(body: list[ast.stmt]) -> set[str]:
    """Names read anywhere but in the definition of that name."""
    found: set[str] = set()
    for statement in body:
        own = statement.name if isinstance(statement, Definition) else None
        names = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        found |= names - {own}
    return found


def _is_test(node: Definition) -> bool:
    return node.name.lower().startswith("test") or (
        isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("TestCase") for base in node.bases)
    )


def _call(node: Definition) -> str:
    """Source that runs one test function, or each test of a class on an object of its own."""
    if isinstance(node, ast.FunctionDef):
        arguments = node.args
        if len(arguments.args) + len(arguments.posonlyargs) > len(arguments.defaults) or any(
            default is None for default in arguments.kw_defaults
        ):
            raise BadReference(
                f"the test function {node.name} takes arguments, and nothing gives it any",
                cure="Write its cases as assert statements; for check(candidate) use code_humaneval.",
            )
        return f"{node.name}()\n"
    methods = [m.name for m in node.body if isinstance(m, ast.FunctionDef) and m.name.startswith("test")]
    if any(ast.unparse(base).endswith("TestCase") for base in node.bases):
        runs = [f"{node.name}({name!r}).debug()\n" for name in methods]
        return f"{node.name}.setUpClass()\n" + "".join(runs)
    return "".join(f"{node.name}().{name}()\n" for name in methods)
