"""What a data set's row says about a program: asserts, a check function, or inputs and outputs.

Each reader raises BadReference, when data is loaded and not in the middle of a run.
"""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from verifiers.code.harness import count_checks
from verifiers.code.names import Names
from verifiers.code.plan import Unit, UnitReader, imports, parse
from verifiers.code.values import is_plain
from verifiers.errors import BadReference

MAX_TESTS = 10_000


@dataclass(frozen=True)
class Tests:
    """What function-call tests need of the candidate's process, and the tests."""

    units: tuple[Unit, ...]
    names: tuple[str, ...]  # that the program is to define, for finding its block
    before: str = ""  # run in the candidate's process before its code
    after: str = ""  # and after it
    setup: str = ""  # run in the checker's process
    check: str = ""  # the check function that the checker calls
    prompt: str = ""  # that the response may continue
    one_state: bool = False  # the units are one test's statements

    @property
    def weak(self) -> int:
        return sum(unit.weak_asserts > 0 for unit in self.units)


@dataclass(frozen=True)
class Pairs:
    """Inputs and wanted outputs."""

    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    function: str = ""


def _mapping(reference: Any, known: Sequence[str]) -> Mapping[str, Any]:
    if isinstance(reference, str):
        try:
            reference = json.loads(reference)
        except ValueError:
            raise BadReference(f"the reference {reference[:80]!r} is neither a mapping nor JSON") from None
    if not isinstance(reference, Mapping):
        raise BadReference(f"the reference must be a mapping, got {type(reference).__name__}")
    if not set(known) & set(reference):
        raise BadReference(
            f"the reference has none of {', '.join(known)}: it has {', '.join(map(str, reference))}"
        )
    return reference


def _text(mapping: Mapping[str, Any], key: str) -> str:
    value = mapping.get(key) or ""
    if isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, str) for v in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise BadReference(f"the reference's {key} must be text, got {type(value).__name__}")
    return value


# ---------------------------------------------------------------- asserts


def read_asserts(reference: Any) -> Tests:
    """Assert statements: one string, a list of them, or a mapping as MBPP's rows are:

    {test_list: [...], test_setup_code: "...", test_imports: [...], challenge_test_list: [...]}, where
    `tests` and `setup` may stand for the first two, and `entry_point` may name the candidate's function.
    """
    setup, entry, tests = "", "", reference
    if isinstance(reference, str) and reference.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(ValueError):
            reference = tests = json.loads(reference)
    if isinstance(reference, Mapping):
        mapping = _mapping(reference, ("test_list", "tests"))
        setup = "\n".join(
            filter(None, (_text(mapping, k) for k in ("test_imports", "test_setup_code", "setup")))
        )
        entry = _text(mapping, "entry_point")
        tests = [
            *_list(mapping, "test_list"),
            *_list(mapping, "tests"),
            *_list(mapping, "challenge_test_list"),
        ]
    elif isinstance(reference, str):
        tests = [reference]
    if not isinstance(tests, Sequence) or not tests or not all(isinstance(t, str) for t in tests):
        raise BadReference(f"the reference must be assert statements, got {repr(reference)[:80]}")
    if len(tests) > MAX_TESTS:
        raise BadReference(f"the reference has {len(tests)} tests, more than {MAX_TESTS}")
    return _asserts(tuple(tests), setup.replace("\r\n", "\n"), entry)


def _list(mapping: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = mapping.get(key) or []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Sequence):
        raise BadReference(f"the reference's {key} must be a list, got {type(value).__name__}")
    return value


@lru_cache(maxsize=256)
def _asserts(tests: tuple[str, ...], setup: str, entry: str) -> Tests:
    reader = UnitReader(setup, (entry,) if entry else ())
    units = tuple(reader.read(text) for text in tests)
    before, after = reader.candidate_setup()
    names = (entry,) if entry else tuple(dict.fromkeys(n for text in tests for n in _called(text)))
    return Tests(units, names, before, after, setup)


def _called(source: str) -> list[str]:
    """The names in a test that the candidate may be meant to define."""
    names = Names()
    nodes = [n for n in ast.walk(parse(source, "the test")) if isinstance(n, ast.expr)]
    found = [root for node in nodes if (root := names.root(node)) is not None]
    return found or [n.id for n in nodes if isinstance(n, ast.Name)]


# ---------------------------------------------------------------- a check function


def read_check(reference: Any) -> Tests:
    """A check function as HumanEval's rows have it: {test: "def check(candidate): ...", entry_point: "f",
    prompt: "..."}; what stands in the prompt before the function belongs to the tests too.
    """
    mapping = _mapping(reference, ("test",))
    entry = _text(mapping, "entry_point")
    if not entry.isidentifier():
        raise BadReference(f"the reference's entry_point {entry!r} is no name of a function")
    return _check(_text(mapping, "test"), entry, _text(mapping, "prompt"))


@lru_cache(maxsize=256)
def _check(test: str, entry: str, prompt: str) -> Tests:
    tree = parse(test, "the test")
    checks = [n for n in tree.body if isinstance(n, ast.FunctionDef) and len(n.args.args) == 1]
    check = next((n for n in checks if n.name == "check"), checks[-1] if checks else None)
    if check is None:
        raise BadReference(
            f"the test of {entry} defines no function of one argument such as check(candidate)"
        )
    asserts = count_checks(check)
    if not asserts and not _calls_a_check(check, tree):
        raise BadReference(f"the check function of {entry} asserts nothing")
    before = _stub(prompt)
    reader = UnitReader("", (entry,), strict=True)
    beside = [n for n in tree.body if n is not check]
    for statement in [*parse(before, "the prompt").body, *beside]:
        reader.imported.update(imports(statement))
    parameter = check.args.args[0].arg
    body = [n for n in beside if isinstance(n, ast.Assign) and _is_literal(n)] + check.body
    units = reader.read_check(body, test, asserts, parameter)
    return Tests(units, (entry,), before, "", before, check.name, prompt, one_state=True)


def _calls_a_check(check: ast.FunctionDef, tree: ast.Module) -> bool:
    """Whether the check function calls a function of the test's own that asserts."""
    asserting = {
        n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n is not check and count_checks(n)
    }
    return any(isinstance(node, ast.Name) and node.id in asserting for node in ast.walk(check))


def _is_literal(node: ast.Assign) -> bool:
    try:
        ast.literal_eval(node.value)
    except (ValueError, TypeError, SyntaxError):
        return False
    return True


def _stub(prompt: str) -> str:
    """The prompt as source: a last function that has no body yet gets one."""
    for source in (prompt, f"{prompt.rstrip()}\n    pass\n"):
        try:
            ast.parse(source)
            return source
        except (SyntaxError, ValueError):
            continue
    raise BadReference(f"the prompt {prompt[:80]!r} is no Python")


# ---------------------------------------------------------------- inputs and outputs


def read_calls(reference: Any) -> Pairs:
    """{fn_name: "f", inputs: [[arguments], ...], outputs: [value, ...]}, or {fn_name: "f", tests: [{input, output}, ...]}.

    With `wrapped: true` each output is a list that holds the value (some rows of APPS). An input that is text holds one argument a line, as JSON, and an output that is text beside it is JSON
    (LiveCodeBench); a list or mapping is the arguments themselves (APPS).
    """
    mapping = _mapping(reference, ("inputs", "tests", "fn_name"))
    function = next(
        filter(None, (_text(mapping, name) for name in ("fn_name", "func_name", "entry_point"))), ""
    )
    if not all(part.isidentifier() for part in function.split(".")) or function.count(".") > 1:
        raise BadReference(f"the reference's fn_name {function!r} is no name of a function")
    pairs = [_call(i, o) for i, o in zip(*_sides(_from_tests(mapping)), strict=True)]
    if mapping.get("wrapped"):
        if not all(isinstance(o, list) and len(o) == 1 for _, o in pairs):
            raise BadReference("wrapped: true, and an output is no list of one value")
        pairs = [(i, o[0]) for i, o in pairs]
    return Pairs(tuple(i for i, _ in pairs), tuple(o for _, o in pairs), function.rpartition(".")[2])


def _from_tests(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    tests = mapping.get("tests")
    if tests is None:
        return mapping
    if not isinstance(tests, Sequence) or not all(
        isinstance(test, Mapping) and {"input", "output"} <= set(test) for test in tests
    ):
        raise BadReference("each of `tests` needs an input and an output")
    return {"inputs": [test["input"] for test in tests], "outputs": [test["output"] for test in tests]}


def _sides(mapping: Mapping[str, Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    one, other = ("inputs", "outputs") if "inputs" in mapping else ("input", "output")
    inputs, outputs = _list(mapping, one), _list(mapping, other)
    if not inputs or len(inputs) != len(outputs):
        raise BadReference(f"the reference has {len(inputs)} inputs and {len(outputs)} outputs")
    if len(inputs) > MAX_TESTS:
        raise BadReference(f"the reference has {len(inputs)} tests, more than {MAX_TESTS}")
    return inputs, outputs


def _call(given: Any, wanted: Any) -> tuple[Any, Any]:
    if isinstance(given, str):
        lines = [line for line in given.split("\n") if line.strip()]
        given = [_json(line) for line in lines]
        wanted = _json(wanted) if isinstance(wanted, str) else wanted
    elif isinstance(given, Mapping):
        given = dict(given)
    elif isinstance(given, Sequence):
        given = list(given)
    else:
        raise BadReference(f"an input must be a list of arguments, got {type(given).__name__}")
    if not is_plain(given) or not is_plain(wanted):
        raise BadReference("inputs and outputs must be plain data")
    return given, wanted


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadReference(f"{text[:80]!r} is no JSON") from None


def read_programs(reference: Any) -> Pairs:
    """{inputs: ["...", ...], outputs: ["...", ...]}, or {input: ..., output: ...} (CodeContests), or a list of
    {input: "...", output: "..."} (LiveCodeBench)."""
    if isinstance(reference, str):
        try:
            reference = json.loads(reference)
        except ValueError:
            raise BadReference(f"the reference {reference[:80]!r} is no JSON") from None
    if isinstance(reference, Sequence) and not isinstance(reference, str):
        if not all(isinstance(pair, Mapping) and {"input", "output"} <= set(pair) for pair in reference):
            raise BadReference("each test needs an input and an output")
        reference = {"inputs": [p["input"] for p in reference], "outputs": [p["output"] for p in reference]}
    mapping = _mapping(reference, ("inputs", "input"))
    if mapping.get("fn_name"):
        raise BadReference(
            f"the reference's fn_name {mapping['fn_name']!r} names a function to call",
            cure="Such rows are for code_io.",
        )
    inputs, outputs = (tuple(_lines(text) for text in side) for side in _sides(mapping))
    if not any(text.strip() for text in outputs):
        raise BadReference("every output is empty: a program that prints nothing would pass")
    return Pairs(inputs, outputs)


def _lines(text: Any) -> str:
    if isinstance(text, Sequence) and not isinstance(text, str) and all(isinstance(t, str) for t in text):
        return "\n".join(text)
    if not isinstance(text, str):
        raise BadReference(f"inputs and outputs must be text, got {type(text).__name__}")
    return text
