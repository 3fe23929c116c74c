"""How tests are taken apart, what travels between processes, and which part of a response is the program."""

from __future__ import annotations

import copy
import marshal
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers import BadReference, SpecError, build
from verifiers.code import driver, extract, references, stdio, values
from verifiers.code.functions import TooMuch
from verifiers.code.names import State
from verifiers.code.plan import AssertFails, UnitReader

# ---------------------------------------------------------------- asserts, taken apart


class Told:
    """Answers questions by evaluating them here, and remembers what was asked."""

    def __init__(self, source: str) -> None:
        self.namespace: dict[str, Any] = {}
        exec(source, self.namespace)
        self.asked: list[str] = []

    def __call__(self, source: str, variables: dict[str, Any], want: str) -> Any:
        self.asked.append(source)
        self.namespace.update(copy.deepcopy(variables))  # they come over a pipe
        if want == "exec":
            return exec(source, self.namespace)
        value = eval(source, self.namespace)
        variables.update({name: self.namespace[name] for name in variables})
        return (
            list(value)
            if want == "iterable" and not isinstance(value, (list, tuple, set, dict, str))
            else value
        )


def run(test: str, program: str, setup: str = "") -> Told:
    unit = UnitReader(setup).read(test)
    assert (unit.mode, unit.weak_asserts) == ("apart", 0)
    told = Told(program)
    unit.run(State(told))
    return told


TWICE = "def f(x): return x * 2\ndef g(x):\n    for i in x: yield i\nclass Pair:\n    def __init__(s, a): s.a = a\n    def get(s): return s.a"
APART = [
    # test, what the candidate's process is asked, the wanted values that it is not told
    ("assert f(3) == 6", ["f(3)"]),
    ("assert 6 == f(3)", ["f(3)"]),
    ("assert f(3)", ["f(3)"]),
    ("assert not f(0)", ["f(0)"]),
    ("assert f(0) is not None", ["f(0)"]),
    ("assert f(3) != 7 and f(4) > 7", ["f(3)", "f(4)"]),
    ("assert math.isclose(f(1.5), 3.0, rel_tol=1e-9)", ["f(1.5)"]),
    ("from math import isclose\nassert isclose(f(1.5), 3.0)", ["from math import isclose", "f(1.5)"]),
    ("assert abs(f(1.5) - 3.0) < 1e-6", ["f(1.5)"]),
    ("assert round(f(1.234), 2) == 2.47", ["f(1.234)"]),
    ("assert set(f([1, 2])) == {1, 2}", ["f([1, 2])"]),
    ("assert sorted(g([3, 1]), reverse=True) == [3, 1]", ["g([3, 1])"]),
    ("assert sorted(f([[2], [1, 1]]), key=len)[0] == [2]", ["f([[2], [1, 1]])"]),
    ("assert f(3) in [5, 6]", ["f(3)"]),
    ("assert (f(1), f(2)) == (2, 4)", ["f(1)", "f(2)"]),
    ("assert [f(n) for n in range(3)] == [0, 2, 4]", ["f(_test_n)"] * 3),
    ("assert all(f(n) % 2 == 0 for n in (1, 2))", ["f(_test_n)"] * 2),
    ("assert f(f(3)) == 12", ["f(f(3))"]),
    ("assert len(f('ab')) == 4", ["f('ab')"]),
    ("assert int(f(1.5)) == 3", ["f(1.5)"]),
    ("assert f('ab').startswith('aba')", ["f('ab')"]),
    ("assert f([1, 2])[-1] == 2", ["f([1, 2])"]),
    ("assert isinstance(f(1), (int, float))", ["f(1)"]),
    ("assert type(f(1)) == int", ["f(1)"]),
    ("x = 5\nassert f(x) == x + 5", ["f(_test_x)"]),
    ("for n in range(2):\n    assert f(n) == n + n", ["f(_test_n)"] * 2),
    ("p = Pair(3)\nassert p.get() == 3", ["_test_p = Pair(3)", "_test_p.get()"]),
    ("assert Pair(7).get() == 7", ["Pair(7).get()"]),
    ("assert f(3) == 6, f'wanted 6, got {f(3)}'", ["f(3)"]),
]  # fmt: skip


@pytest.mark.parametrize(("test", "asked"), APART)
def test_the_candidate_is_asked_its_calls_and_nothing_else(test: str, asked: list[str]) -> None:
    assert run(test, TWICE).asked[-len(asked) :] == asked


@pytest.mark.parametrize("test", [t for t, _ in APART if "Pair" not in t and "g(" not in t])
def test_every_assert_can_fail(test: str) -> None:
    failed = 0
    for wrong in ("None", "'?'"):
        try:
            run(test, f"def f(x): return {wrong}")
        except Exception:
            failed += 1
    assert failed


def test_a_list_that_the_candidate_sorts_is_sorted_for_the_test() -> None:
    run("x = [3, 1]\nsort(x)\nassert x == [1, 3]", "def sort(x): x.sort()")


def test_what_it_is_compared_with_is_not_the_candidate_s_to_change() -> None:
    with pytest.raises(AssertFails):
        run("x = [3, 1]\nassert f(x) == sorted(x)", "def f(x):\n    x.clear()\n    return []")


def test_constants_of_the_setup_stay_here() -> None:
    reader = UnitReader("wanted = [2, 4]\nimport math\nroot = Node(1)\nclass Helper: pass")
    before, after = reader.candidate_setup()
    assert "wanted" not in before + after
    assert "import math" in before and "class Helper" in before and after == "root = Node(1)"
    unit = reader.read("assert f([1, 2]) == wanted")
    told = Told("def f(x): return [2 * v for v in x]\nwanted = None")
    unit.run(State(told))
    assert told.asked == ["f([1, 2])"]


def test_a_built_in_name_that_is_tested_is_the_candidate_s() -> None:
    assert run("assert sum(10, 15) == 25", "def sum(a, b): return a + b").asked == ["sum(10, 15)"]
    assert run("assert sum([f(1), 2]) == 4", TWICE).asked == ["f(1)"]


MODES = {
    "try:\n    f(-1)\n    assert False\nexcept ValueError:\n    pass": "checker",
    "def near(a, b):\n    return abs(a - b) < 1\nassert near(f(1), 2)": "checker",
    "while True:\n    assert f(1) == 2\n    break": "checker",
    "assert np.allclose(f(1), [2])": "checker",
    "p = Pair(1)\ntry:\n    p.get()\nexcept ValueError:\n    assert False": "weak",
}


@pytest.mark.parametrize("test", MODES)
def test_what_is_not_taken_apart(test: str) -> None:
    assert UnitReader().read(test).mode == MODES[test]


@pytest.mark.parametrize(
    "test",
    [
        "assert f(1) == g(1)",
        "assert f(1) == Pair(1)",
        "assert Pair(1) == Pair(1)",
        "assert same(f(1), 2)",
        "assert f(1).equals(2)",
    ],
)
def test_the_candidate_s_word_against_its_own_word_is_weak(test: str) -> None:
    assert UnitReader().read(test).weak_asserts == 1


def test_a_helper_of_the_setup_never_sees_the_wanted_value_beside_the_candidate() -> None:
    unit = UnitReader("def same(a, b):\n    return a == b").read("assert same(f(1), [1, 2])")
    assert unit.mode == "checker"
    assert unit.proxies == ("f",)


@pytest.mark.parametrize(
    "test",
    ["assert 'a' * f(1) == 'b'", "assert 10 ** f(1) == 5", "assert 1 << f(1) == 5", "assert math.factorial(f(1)) == 1",
     "assert len(range(f(1))) == 5", "assert f(1) * f(1) == 0"],
)  # fmt: skip
def test_no_answer_makes_the_test_itself_expensive(test: str) -> None:
    unit = UnitReader().read(test)
    with pytest.raises((TooMuch, values.NotPlain)):
        unit.run(State(lambda source, variables, want: 1 << 900_000 if "*" in test[10:14] else 10**9))


@pytest.mark.parametrize(
    "reference",
    [None, 5, "", [], [""], ["x = 1"], ["assert"], ["assert f(1 == 2"], ["assert True"], ["assert 1 == 1"], {"tests": []},
     {"test_list": [5]}, {"nothing": 1}, ["f(1) == 2"], [b"assert f(1)"]],
)  # fmt: skip
def test_bad_asserts_are_found_when_data_is_loaded(reference: Any) -> None:
    with pytest.raises(BadReference):
        build("code_asserts").check_reference(reference)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("code_humaneval", {"test": "def check(candidate):\n    pass", "entry_point": "f"}),
        ("code_humaneval", {"test": "assert f(1)", "entry_point": "f"}),
        (
            "code_humaneval",
            {"test": "def check(candidate):\n    assert candidate(1)", "entry_point": "not a name"},
        ),
        ("code_humaneval", {"test": "def check(candidate):\n    assert True", "entry_point": "f"}),
        (
            "code_humaneval",
            {"test": "def check(c):\n    assert c(1)", "entry_point": "f", "prompt": "def f(:"},
        ),
        ("code_io", {"fn_name": "f", "inputs": [[1]], "outputs": []}),
        ("code_io", {"fn_name": "", "inputs": [[1]], "outputs": [1]}),
        ("code_io", {"fn_name": "f", "inputs": ["{"], "outputs": ["1"]}),
        ("code_io", {"fn_name": "f", "inputs": [5], "outputs": [1]}),
        ("code_stdio", {"inputs": ["1"], "outputs": [""]}),
        ("code_stdio", {"inputs": [1], "outputs": [2]}),
        ("code_stdio", [{"input": "1"}]),
        ("code_stdio", "no JSON"),
    ],
)
def test_other_bad_references(name: str, reference: Any) -> None:
    with pytest.raises(BadReference):
        build(name).check_reference(reference)


@pytest.mark.parametrize(
    "options",
    [
        {"time_limit_s": 0},
        {"max_tests": 0},
        {"sandbox": "iron"},
        {"memory_mb": 1},
        {"tolerance": 2.0},
        {"unknown": 1},
    ],
)
def test_bad_options_are_found_when_the_verifier_is_built(options: dict[str, Any]) -> None:
    from verifiers.errors import VerifierError

    with pytest.raises(VerifierError):
        build({"use": "code_io", "args": options})
    assert issubclass(SpecError, VerifierError)


def test_the_pool_waits_as_long_as_the_verifier_says() -> None:
    from verifiers.code.judges import CodeAsserts

    assert CodeAsserts(total_limit_s=40.0).timeout_s > 40.5


# ---------------------------------------------------------------- plain data on its way

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=20)
    | st.complex_numbers(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
    | st.frozensets(st.integers() | st.text(), max_size=4),
    max_leaves=20,
)  # fmt: skip


def travelled(value: Any) -> Any:
    return values.read(values.load(driver.Writer().write(value).encode("ascii")))


@given(PLAIN)
def test_plain_data_arrives_as_it_was_sent(value: Any) -> None:
    found = travelled(value)
    assert found == value
    assert type(found) is type(value)
    assert repr(found) == repr(value) or isinstance(value, (dict, frozenset, list, tuple))


def test_special_values() -> None:
    nan = travelled(float("nan"))
    assert nan != nan
    for value in (
        float("inf"),
        -float("inf"),
        -0.0,
        10**400,
        -(10**400),
        {1, (2, 3)},
        bytearray(b"x"),
        range(2, 9, 3),
    ):
        found = travelled(value)
        assert (found, type(found), repr(found) if not isinstance(value, (int, set)) else "") == (
            value, type(value), repr(value) if not isinstance(value, (int, set)) else "")  # fmt: skip
    assert travelled('\ud800 \U0001f600 \0 \\ "') == '\ud800 \U0001f600 \0 \\ "'
    assert travelled(True) is True and travelled(1) == 1 and type(travelled(1)) is int


def test_subclasses_become_what_they_hold() -> None:
    from collections import Counter, OrderedDict, defaultdict, namedtuple
    from enum import IntEnum

    class Liar(str):
        def __eq__(self, other: object) -> bool:
            return True

        def __str__(self) -> str:
            return "wanted"

        __hash__ = str.__hash__

    class Colour(IntEnum):
        RED = 3

    point = namedtuple("point", "x y")(1, 2)
    for value, held in (
        (Liar("x"), "x"),
        (Colour.RED, 3),
        (point, (1, 2)),
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(int, a=1), {"a": 1}),
    ):
        found = travelled(value)
        assert type(found) is type(held)
        assert found == held


@pytest.mark.parametrize("value", [object(), object, len, iter([]), {1: object()}, NotImplemented, ...])
def test_objects_do_not_travel(value: Any) -> None:
    with pytest.raises(driver.Unplain):
        driver.Writer().write(value)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b'{"a":1}', b'["q",1]', b"[1]", b"[]", b'["i","zz"]', b'["i",5]', b'["n","1"]', b'["b","0"]', b'["c",1,2]',
     b'["s",["l"]]', b'["d",1]', b'["d",["l"],1]', b'["r",0,1,0]', b'["r",0,100000000000,1]', b"NaN", b"Infinity", b"9" * 5000,
     b'["l",' * 200 + b"1" + b"]" * 200, b"[" * 100_000, b'"\xff"', b'["t",{"a":1}]'],
)  # fmt: skip
def test_what_is_no_message_is_not_read(text: bytes) -> None:
    with pytest.raises(values.NotPlain):
        values.read(values.load(text))


def test_members_that_all_hash_alike_are_refused_before_they_cost_anything() -> None:
    modulus = sys.hash_info.modulus
    crafted = ",".join(f'["i","{n * modulus:x}"]' for n in range(20_000))
    for tag in "sf":
        with pytest.raises(values.NotPlain, match="one hash"):
            values.read(values.load(f'["{tag}",{crafted}]'.encode()))
    assert len(values.guarded([1] * 1000)) == 1000
    assert values.read(values.load(('["s",' + ",".join(map(str, range(1000))) + "]").encode())) == set(
        range(1000)
    )


def test_near() -> None:
    assert values.near([1.0, {"a": 2.0}], [1.0 + 1e-9, {"a": 2.0}], 1e-6)
    assert not values.near([1.0], [1.1], 1e-6)
    assert not values.near([1.0, 2.0], [1.0], 1e-6)
    assert not values.near(10**400, 1.0, 1e-6)
    assert not values.near("1.0", 1.0, 1e-6)
    assert not values.near(float("nan"), 1.0, 1e-6)


def test_questions_can_be_written_for_the_candidate() -> None:
    assert marshal.loads(marshal.dumps(("nonce", "f(x)", {"x": [1, {"a": (2,)}]}, "value")))[1] == "f(x)"


# ---------------------------------------------------------------- which part is the program

A, B = "def f(x):\n    return 1", "def f(x):\n    return 2"
EXTRACTED: dict[str, tuple[str, str | None]] = {
    "one block": (f"Here:\n```python\n{A}\n```\nDone.", A),
    "py": (f"```py\n{A}\n```", A),
    "upper case": (f"```Python\n{A}\n```", A),
    "unmarked": (f"```\n{A}\n```", A),
    "tildes": (f"~~~python\n{A}\n~~~", A),
    "the last of two": (f"```python\n{A}\n```\n```python\n{B}\n```", B),
    "a marked one before an unmarked one": (f"```python\n{A}\n```\nOutput:\n```\n1\n```", A),
    "an example of use at the end": (f"```python\n{A}\n```\n```python\nprint(f(1))\n```", A),
    "another language at the end": (f"```python\n{A}\n```\n```bash\npython f.py\n```", A),
    "no fence": (A, A),
    "indented with a list": (f"1. So:\n   ```python\n   {A.replace(chr(10), chr(10) + '   ')}\n   ```", A),
    "Windows line ends": (f"```python\r\n{A}\r\n```\r\n".replace("\n", "\r\n").replace("\r\r", "\r"), A),
    "a longer fence around it": (f"````python\n{A}\n# ```\n````", A + "\n# ```"),
    "a fence inside a string": (
        f"```python\n{A}\n    '''``` not the end'''\n```",
        A + "\n    '''``` not the end'''",
    ),
    "never closed": (f"```python\n{A}", None),
    "the last never closed": (f"```python\n{A}\n```\n```python\n{B}", None),
    "only another language": (f"```c\n{A}\n```", None),
    "empty": ("", None),
    "only white space": (" \n\n", None),
}


@pytest.mark.parametrize("name", EXTRACTED)
def test_the_block_that_counts(name: str) -> None:
    response, wanted = EXTRACTED[name]
    assert extract.program(response, ("f",))[0] == wanted


def test_a_whole_program_is_the_last_block() -> None:
    assert extract.program("```python\nprint(1)\n```\n```python\nprint(2)\n```")[0] == "print(2)"


PROMPT = 'def f(x):\n    """Twice x."""\n'


@pytest.mark.parametrize(
    "body", ["    return 2 * x", "return 2 * x", "    y = x\n    return y + y", "y = x\n    return y + y"]
)
def test_a_body_continues_the_prompt(body: str) -> None:
    namespace: dict[str, Any] = {}
    exec(extract.continuation(PROMPT, body), namespace)
    assert namespace["f"](4) == 8


# ---------------------------------------------------------------- printed output

SAME = [("3\n", "3"), ("3 \n\n", "3\n"), ("1 2\n3", "1 2\n3\n"), ("1\n2", "1 2"), ("1.0", "1"), ("0.50", ".5"), ("1e3", "1000"), ("a  b", "a b")]  # fmt: skip
OTHER = [("4", "3"), ("3 3", "3"), ("", "3"), ("007", "7"), ("+7", "7"), ("nan", "NaN"), ("Yes", "YES"), ("1.0001", "1"), ("inf", "1e999"), ("1_0", "10")]  # fmt: skip


@pytest.mark.parametrize(("found", "wanted"), SAME)
def test_the_same_output(found: str, wanted: str) -> None:
    assert stdio.same_output(found, wanted)


@pytest.mark.parametrize(("found", "wanted"), OTHER)
def test_another_output(found: str, wanted: str) -> None:
    assert not stdio.same_output(found, wanted)


def test_tolerance_is_for_numbers_with_a_point() -> None:
    assert stdio.same_output("0.3333", "0.33333", 1e-3)
    assert not stdio.same_output("0.3333", "0.33333", 1e-6)
    assert not stdio.same_output("1000", "1001", 0.1)


def test_references_of_every_documented_shape() -> None:
    assert len(references.read_asserts("assert f(1) == 2").units) == 1
    assert (
        len(
            references.read_asserts(
                {"tests": ["assert f(1) == 2"], "challenge_test_list": ["assert f(2)"]}
            ).units
        )
        == 2
    )
    pairs = references.read_calls({"fn_name": "f", "inputs": ["[1, 2]\n3"], "outputs": ["[4]"]})
    assert (pairs.inputs, pairs.outputs) == (([[1, 2], 3],), ([4],))
    assert references.read_programs([{"input": "1", "output": "2"}]).outputs == ("2",)


# ---------------------------------------------------------------- answers out of turn


class Pipe:
    """A process that says what it is told to say, whatever it is asked."""

    def __init__(self, said: bytes) -> None:
        self.said = said

    def write(self, data: bytes, deadline: float) -> None:
        pass

    def read(self, size: int, deadline: float) -> bytes:
        part, self.said = self.said[:size], self.said[size:]
        return part

    def wait(self, deadline: float) -> str:
        return "exit status 0"


def framed(text: str) -> bytes:
    return len(text).to_bytes(4, "big") + text.encode()


def answered(said: bytes, monkeypatch: pytest.MonkeyPatch) -> Any:
    from verifiers.code import session

    monkeypatch.setattr(session.secrets, "token_hex", lambda size: "now")
    candidate = session.Candidate.__new__(session.Candidate)
    candidate._process, candidate._pending, candidate.deadline = Pipe(said), b"", float("inf")  # type: ignore[assignment]
    return candidate.put("f(1)", {}, "value")


def test_only_one_answer_with_the_question_s_own_mark_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from verifiers.code.session import Gone

    right = framed('["now","v",5,{}]')
    assert answered(right, monkeypatch) == 5
    for said in (framed('["before","v",5,{}]'), right + right, right + b"x", right[:-1], b"", framed('["now","v",5]'), b"\xff" * 9):  # fmt: skip
        with pytest.raises(Gone):
            answered(said, monkeypatch)
