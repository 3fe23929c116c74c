"""How verifiers are found, bound and put together."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from verifiers import (
    BadReference,
    NameTaken,
    Sample,
    SpecError,
    Status,
    UnknownVerifier,
    build,
    names,
    registry,
    verifier,
)
from verifiers.layout import allowed_seconds
from verifiers.spec import portable

MINE = '''
from verifiers import BadReference, Sample, verifier

def check(reference):
    if not isinstance(reference, str):
        raise BadReference("text, please")

@verifier("polite_{tag}", version="3", check_reference=check)
def polite(response: str, reference: str, word: str = "please") -> bool:
    """Ends politely."""
    return response.endswith(word)

def plain(answer, gold):
    return answer == gold

def by_sample(sample: Sample):
    return (0.5 if sample.prompt == "p" else 0.0, "prompt")

def fails(response, reference):
    raise RuntimeError("oh")

@verifier("stateful_{tag}")
class Stateful:
    def __init__(self, least: int = 2):
        if least < 0:
            raise ValueError("least")
        self.least = least
    def check_reference(self, reference):
        int(reference)
    def verify(self, response: str) -> bool:
        return len(response) >= self.least
'''


@pytest.fixture
def mine(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    file = tmp_path / "mine.py"
    file.write_text(MINE.replace("{tag}", str(abs(hash(request.node.name)))))
    return file


def test_every_built_in_is_where_the_table_says() -> None:
    for name in registry.BUILT_IN:
        definition = registry.find(name)
        assert (definition.name, definition.built_in) == (name, True)
        assert definition.summary, f"{name} has no description"


def test_nothing_registers_behind_the_table() -> None:
    assert {n for n, d in registry._registered.items() if d.built_in} <= set(registry.BUILT_IN)


def test_decorated_function_of_a_file(mine: Path) -> None:
    built = build({"use": "mine.py:polite", "args": {"word": "thanks"}}, mine.parent)
    assert built.version == "3"
    assert built.layout.runs == "worker"
    assert built.verify(Sample("ok thanks", "x")).score == 1
    assert built.verify(Sample("ok please", "x")).score == 0
    with pytest.raises(BadReference, match="text, please"):
        built.check_reference(5)
    with pytest.raises(BadReference, match="the row has none"):
        built.check_reference(None)


def test_plain_function_of_a_file_needs_no_decorator_and_is_versioned_by_content(mine: Path) -> None:
    built = build("mine.py:plain", mine.parent)
    assert built.verify(Sample("a", "a")).score == 1
    assert built.verify(Sample("a", "b")).score == 0
    assert built.version.startswith("sha256:")


def test_sample_function_and_class(mine: Path) -> None:
    assert build(f"{mine}:by_sample").verify(Sample("x", prompt="p")).score == 0.5
    built = build({"use": f"{mine}:Stateful", "args": {"least": 3}})
    assert [built.verify(Sample(text)).score for text in ("ab", "abc")] == [0, 1]
    with pytest.raises(BadReference, match="ValueError"):
        built.check_reference("x")
    with pytest.raises(SpecError, match="least"):
        build({"use": f"{mine}:Stateful", "args": {"least": -1}})


def test_file_with_several_verifiers_must_be_told_which(mine: Path) -> None:
    with pytest.raises(SpecError, match="has 2 verifiers"):
        build(str(mine))


def test_unknown_names_are_guessed_at(mine: Path) -> None:
    with pytest.raises(UnknownVerifier, match="Did you mean 'gsm8k'"):
        build("gsm8")
    with pytest.raises(UnknownVerifier, match="Did you mean 'plain'"):
        build(f"{mine}:plian")
    with pytest.raises(SpecError, match="does not exist"):
        build("nowhere.py:f")
    with pytest.raises(SpecError, match="ModuleNotFoundError"):
        build("no_such_module_at_all:f")


def test_file_that_fails_to_load_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import does_not_exist_1\ndef f(response): return True\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(SpecError, match="does_not_exist_1"):
        build("broken.py:f", tmp_path)
    with pytest.raises(SpecError, match="SystemExit"):
        build("leaves.py:f", tmp_path)


def test_name_taken_twice(mine: Path) -> None:
    def other(response: str) -> bool:
        return True

    with pytest.raises(NameTaken, match="math"):
        verifier("math")(other)
    verifier("taken_once")(other)
    verifier("taken_once")(other)  # the same function again, as a reload does

    def third(response: str) -> bool:
        return True

    with pytest.raises(NameTaken, match="taken_once"):
        verifier("taken_once")(third)


def test_how_it_runs_must_fit_the_function() -> None:
    async def later(response: str) -> bool:
        return True

    def now(response: str) -> bool:
        return True

    with pytest.raises(SpecError, match="is async, and runs is 'worker'"):
        verifier("later", runs="worker")(later)
    with pytest.raises(SpecError, match="is no coroutine function, and runs is 'async'"):
        verifier("now", runs="async")(now)
    with pytest.raises(SpecError, match="inline, worker, sandbox, async"):
        verifier("now", runs="thread")(now)  # type: ignore[arg-type]
    for wrong in (0, -1, True, float("inf"), float("nan"), "5"):
        with pytest.raises(SpecError, match="timeout_s"):
            verifier("now", timeout_s=wrong)(now)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="concurrency"):
        verifier("later", concurrency=0)(later)


def test_deadlines_come_from_the_spec_the_instance_or_the_decorator(tmp_path: Path) -> None:
    (tmp_path / "timed.py").write_text(
        "from verifiers import verifier\n"
        "@verifier('timed_one', timeout_s=7)\ndef one(response): return True\n"
        "@verifier('timed_many')\nclass Many:\n"
        "    def __init__(self, cases: int): self.timeout_s = 2.0 * cases\n"
        "    def verify(self, response): return True\n"
    )
    many = {"use": "timed.py:Many", "args": {"cases": 4}}

    def allowed(spec: Any) -> float:
        return allowed_seconds(build(spec, tmp_path).layout, 5.0)

    assert allowed("timed.py:one") == 7
    assert allowed(many) == 8
    assert allowed({**many, "timeout_s": 3}) == 3
    assert allowed("number") == 5
    assert allowed({"all_of": ["number", "gsm8k"]}) == 5  # nobody asked for more
    assert allowed({"all_of": ["number", "gsm8k", many, "timed.py:one"]}) == 5 + 8 + 7
    assert allowed({"all_of": [many, "timed.py:one"]}) == 15
    assert allowed({"choose": {"a": many, "b": "timed.py:one"}, "otherwise": "number"}) == 13
    with pytest.raises(SpecError, match="timeout_s"):
        build({**many, "timeout_s": 0}, tmp_path)


def test_a_scaled_verdict_keeps_its_score() -> None:
    verdict = build({"scale": "number", "by": 10}).verify(Sample("72", 72))
    assert (verdict.score, verdict.reward, verdict.scale) == (1.0, 10.0, 10.0)
    assert build({"scale": "number", "by": 10}).verify(Sample("7", 72)).reward == 0.0
    assert build({"scale": "number", "by": 10}).verify(Sample("7")).reward is None


def test_a_choice_by_a_column_of_the_row() -> None:
    spec = {
        "choose": {"gsm8k": {"scale": "number", "by": 10}, "style": "no_commas"},
        "by": "dataset",
        "otherwise": "exact",
    }
    built = build(spec)
    assert built.verify(Sample("so, 72", 72, info={"dataset": "gsm8k"})).reward == 10.0
    assert built.verify(Sample("so, 72", 72, info={"dataset": "style"})).score == 0.0
    assert built.verify(Sample("a", "a", info={"dataset": "new"})).score == 1.0
    built.check_reference(None, {"dataset": "style"})
    with pytest.raises(BadReference, match="not one number"):
        built.check_reference("many", {"dataset": "gsm8k"})
    strict = build({"choose": {"gsm8k": "number"}})
    assert "no verifier for source 'other'" in strict.verify(Sample("1", 1, info={"source": "other"})).reason
    assert strict.verify(Sample("1", 1)).status is Status.ERROR
    with pytest.raises(BadReference, match="there is one for gsm8k"):
        strict.check_reference(1, {"source": "other"})


def test_entry_points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "offered_pkg.py").write_text(
        "def good(response): return True\ndef also(response): return False\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        EntryPoint("offered", "offered_pkg:good", "verifiers"),
        EntryPoint("twice", "offered_pkg:good", "verifiers"),
        EntryPoint("twice", "offered_pkg:also", "verifiers"),
        EntryPoint("gone", "no_such_package:f", "verifiers"),
    ]
    monkeypatch.setattr(registry, "_entry_points", lambda: points)
    built = build("offered")
    assert (built.name, built.verify(Sample("x")).score) == ("offered", 1.0)
    assert built.version.startswith("sha256:")
    assert "offered" in names()
    with pytest.raises(NameTaken, match="offered_pkg:also and offered_pkg:good"):
        build("twice")
    with pytest.raises(SpecError, match="'gone', an entry point at no_such_package:f, does not load"):
        build("gone")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"use": "contains"}, "needs the argument 'word'"),
        ({"use": "contains", "args": {"word": "a", "wrod": "b"}}, "no argument 'wrod'"),
        ({"use": "contains", "args": {"word": 5}}, "word is int"),
        ({"use": "length", "args": {"unit": "verses", "min": 1}}, "unit is 'verses'"),
        ({"use": "exact", "args": {"reference": "x", "ignore_case": "yes"}}, "ignore_case is str"),
        ({"use": "math", "all_of": ["math"]}, "Give exactly one"),
        ({"use": "math", "sale": 2}, "unknown keys: sale"),
        ({"use": ["math"]}, "use is a name"),
        ({"all_of": []}, "needs a list"),
        ({"scale": "math"}, "not a number above 0"),
        ({"scale": "math", "by": -1}, "not a number above 0"),
        ({"all_of": [{"scale": "math", "by": 2}]}, "scale inside another composition"),
        ({"gate": ["math", {"choose": {"a": {"scale": "math", "by": 2}}}]}, "scale inside"),
        ({"choose": {}}, "choose needs a mapping"),
        ({"choose": {"a": "math"}, "by": ""}, "not the name of a column"),
        ({"choose": {"a": "mathh"}}, "Did you mean 'math'"),
        ({"weighted": ["math"]}, "weight above 0"),
        ({"use": "math", "timeout_s": "5"}, "timeout_s"),
        ({"all_of": "math"}, "needs a list"),
        ({"gate": ["math"]}, "at least two"),
        ({"weighted": [{"use": "math"}]}, "weight above 0"),
        ({"weighted": [{"use": "math", "weight": 0}]}, "weight above 0"),
        ({"weighted": [{"use": "math", "weight": True}]}, "weight above 0"),
        (5, "is int"),
        ({}, "none of use"),
    ],
)
def test_wrong_specs(spec: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build(spec)


def test_nesting_is_bounded() -> None:
    spec: Any = "number"
    for _ in range(20):
        spec = {"all_of": [spec]}
    with pytest.raises(SpecError, match="nested deeper"):
        build(spec)


def test_exceptions_are_errors_and_never_scores(mine: Path) -> None:
    verdict = build(f"{mine}:fails").verify(Sample("x", "y"))
    assert (verdict.score, verdict.status, verdict.reason) == (None, Status.ERROR, "RuntimeError: oh")


def test_truncated_and_unclosed_are_incorrect() -> None:
    built = build("number")
    assert built.verify(Sample("72", 72, finished=False)).reason == "truncated"
    assert built.verify(Sample("<think>72", 72)).score == 0
    assert built.verify(Sample("<think>5</think>72", 72)).score == 1
    assert built.verify(Sample("<think>72</think>5", 72)).score == 0


def test_bad_reference_at_verification_is_an_error() -> None:
    assert build("number").verify(Sample("72", "many")).status is Status.ERROR
    assert build("number").verify(Sample("72")).status is Status.ERROR


# ---------------------------------------------------------------- compositions

STORY = {"use": "contains", "args": {"word": "story"}}


def test_all_of_takes_the_lowest() -> None:
    built = build({"all_of": ["no_commas", STORY]})
    assert built.name == "all_of(no_commas,contains)"
    assert [built.verify(Sample(t)).score for t in ("a story", "a, story", "a tale")] == [1, 0, 0]


def test_weighted_mean() -> None:
    built = build({"weighted": [{"use": "no_commas", "weight": 3}, {"spec": STORY, "weight": 1}]})
    assert [built.verify(Sample(t)).score for t in ("a story", "a, story", "a tale", "a, tale")] == [
        1,
        0.25,
        0.75,
        0,
    ]


def test_weights_that_do_not_add_up_in_floats_still_give_full_marks() -> None:
    built = build({"weighted": [{"use": "no_commas", "weight": 0.1}] * 3})
    assert built.verify(Sample("ok")).status is Status.CORRECT


def test_gate_needs_the_first_for_the_second() -> None:
    built = build({"gate": ["think_answer", "number"]})
    full = "<think>x</think><answer>{}</answer>"
    assert built.verify(Sample(full.format("72"), 72)).score == 1
    assert built.verify(Sample(full.format("73"), 72)).score == 0
    missed = built.verify(Sample("72", 72))
    assert (missed.score, missed.reason.split(":")[0]) == (0, "gate think_answer")


def test_a_childs_error_is_the_wholes(mine: Path) -> None:
    for how in ("all_of", "gate"):
        verdict = build({how: ["no_commas", f"{mine}:fails"]}).verify(Sample("x", "y"))
        assert (verdict.score, verdict.status) == (None, Status.ERROR)
        assert verdict.reason == "fails: RuntimeError: oh"


def test_children_get_their_own_reference_by_name() -> None:
    built = build({"all_of": [{"use": "number", "name": "sum"}, {"use": "exact", "name": "text"}]})
    assert built.verify(Sample("It is 72", {"sum": 72, "text": "It is 72"})).score == 1
    built.check_reference({"sum": 72, "text": "t"})
    with pytest.raises(BadReference):
        built.check_reference({"sum": "none", "text": "t"})
    assert build({"all_of": ["number", "gsm8k"]}).verify(Sample("72", "72")).score == 1  # shared


def test_portable_specs_name_places(mine: Path) -> None:
    registered = registry.from_file(str(mine), "polite").name
    moved = portable({"all_of": ["math", {"use": registered}, "mine.py:plain"]}, mine.parent)
    assert moved == {"all_of": ["math", {"use": f"{mine.resolve()}:polite"}, f"{mine.resolve()}:plain"]}


def test_a_user_verifier_declared_inline_still_runs_in_a_worker(tmp_path: Path) -> None:
    (tmp_path / "inline.py").write_text(
        "from verifiers import verifier\n@verifier('fast_mine', runs='inline')\ndef f(response): return True\n"
    )
    assert build("inline.py:f", tmp_path).layout.runs == "worker"


def test_importing_the_package_is_lean() -> None:
    code = (
        "import sys, verifiers, verifiers.worker\n"
        "print([m for m in ('torch', 'sympy', 'mpmath', 'math_verify', 'numpy', 'yaml', 'tulu_lite') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_names_lists_the_built_ins() -> None:
    assert {"math", "gsm8k", "ifeval", "think_answer"} <= set(names())
