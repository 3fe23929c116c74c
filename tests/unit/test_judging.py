"""Verdicts land on the right responses, and a broken verifier stops the stage instead of teaching it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tulu_lite.datasets.bad import BadRow
from tulu_lite.errors import TuluLiteError
from tulu_lite.judging import Judge, code_check, judging, row_check, verifier_spec
from tulu_lite.recipe import Recipe
from tulu_lite.records import Prompt, Rollout, RolloutGroup
from verifiers import Verdict
from verifiers.base import error, scored


def recipe(**fields: Any) -> Recipe:
    stage = {"name": "test", "kind": "evaluate", "models": ["base"], "data": "rows.jsonl", "max_tokens": 4}
    return Recipe(name="r", model="/m", output="/o", verifier_workers=1, stages=[stage], **fields)  # type: ignore[arg-type]


def prompt(id: str, reference: Any = "3", verifier: str = "number") -> Prompt:
    return Prompt(
        id=id, text=id, token_ids=(1,), source="rows", verifier=verifier, reference=reference, user=f"q{id}"
    )


def group(id: str, *texts: str, **fields: Any) -> RolloutGroup:
    return RolloutGroup(
        prompt(id, **fields), tuple(Rollout((5,), (-1.0,), (0,), "stop", text) for text in texts)
    )


class Pool:
    """Stands for the verifier pool: verdicts by response text."""

    def __init__(self, verdicts: dict[str, Verdict]) -> None:
        self.verdicts, self.items = verdicts, []  # type: ignore[var-annotated]

    def verify(self, items: Any) -> list[Verdict]:
        self.items = list(items)
        return [self.verdicts[sample.response] for _, sample in self.items]


def test_verdicts_land_on_their_own_rollouts_in_order() -> None:
    pool = Pool({"a": scored(1.0), "b": scored(0.0), "c": scored(0.5)})
    groups = [group("1", "a", "b"), group("2", "c", reference="9", verifier="mine"), group("3", "b", "a")]
    judged = Judge(recipe(verifiers={"mine": "boxed"}), pool, 0.0)(groups)  # type: ignore[arg-type]
    assert [one.scores for one in judged] == [[1.0, 0.0], [0.5], [0.0, 1.0]]
    assert [one.prompt for one in judged] == [one.prompt for one in groups]
    spec, sample = pool.items[2]
    assert spec == "boxed"
    assert (sample.response, sample.reference, sample.prompt, sample.finished) == ("c", "9", "q2", True)


def test_more_errors_than_allowed_stop_the_stage_and_name_the_commonest() -> None:
    verdicts = {"a": scored(1.0), "x": error("no such file"), "y": error("other")}
    judge = Judge(recipe(), Pool(verdicts), 0.5)  # type: ignore[arg-type]
    assert judge([group("1", "a", "x")])[0].scores == [1.0, None]  # half is allowed
    with pytest.raises(TuluLiteError) as caught:
        judge([group("1", "a", "x", "x", "y")])
    assert "failed on 3 of 4 responses" in caught.value.what
    assert "no such file" in caught.value.why
    assert "other" not in caught.value.why
    assert "max_error_share" in caught.value.cure


def test_real_pool_judges_and_its_processes_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "def judge(response, reference):\n    return response == reference * 2\n"
    )
    monkeypatch.chdir(tmp_path)
    with judging(recipe(verifiers={"double": "mine.py:judge"}), 0.0) as judge:
        judged = judge(
            [group("1", "so 3.", "so 4."), group("2", "xx", "x", reference="x", verifier="double")]
        )
    assert [one.scores for one in judged] == [[1.0, 0.0], [1.0, 0.0]]


def test_specs_by_name_by_registry_and_as_json() -> None:
    own = recipe(verifiers={"mine": {"all_of": ["number"]}})
    assert verifier_spec(own, "mine") == {"all_of": ["number"]}
    assert verifier_spec(own, "number") == "number"
    assert verifier_spec(own, '{"all_of": ["number"]}') == {"all_of": ["number"]}


def test_the_source_of_a_row_chooses_its_verifier_and_a_scale_reaches_the_reward() -> None:
    by_source = {"rows": {"scale": "number", "by": 10}, "style": "no_commas"}
    with judging(recipe(verifiers={"mixed": {"choose": by_source}}), 0.0) as judge:
        judged = judge([group("1", "so 3.", "4", verifier="mixed")])
    assert judged[0].scores == [1.0, 0.0]
    right = judged[0].rollouts[0].verdict
    assert right is not None
    assert right.reward == 10.0
    row_check(recipe(verifiers={"mixed": {"choose": by_source}}), "rl")("mixed", "3", "rows", True)
    with pytest.raises(BadRow, match="no verifier for source 'rows'"):
        row_check(recipe(verifiers={"mixed": {"choose": {"other": "number"}}}), "rl")(
            "mixed", "3", "rows", True
        )


def test_a_recipe_demands_a_sandbox_tier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "asks.py").write_text(
        "from verifiers.demand import demanded\n"
        "def asks(response):\n    return 1.0, f'{demanded().tier} {demanded().allow_weak}'\n"
    )
    monkeypatch.chdir(tmp_path)
    fields = {"verifier_sandbox": "namespaces", "verifier_allow_weak_sandbox": True}
    with judging(recipe(verifiers={"asks": "asks.py:asks"}, **fields), 0.0) as judge:
        verdict = judge([group("1", "x", verifier="asks")])[0].rollouts[0].verdict
    assert verdict is not None
    assert verdict.reason == "namespaces True"
    with pytest.raises(ValueError, match="verifier_sandbox"):
        recipe(verifier_sandbox="docker")


def test_a_row_that_its_verifier_cannot_use_is_a_bad_row_and_a_wrong_recipe_is_not() -> None:
    check = row_check(recipe(verifiers={"broken": {"scale": "nosuch", "by": 2}}), "stage rl", "boxed")
    check("number", "3", "rows", True)
    with pytest.raises(BadRow, match="'number' cannot use the reference.*'no number'") as caught:
        check("number", "no number", "rows", False)
    assert caught.value.reason == "a reference that its verifier cannot use"
    for _ in range(2):
        with pytest.raises(BadRow, match="'nosuch' cannot be used") as caught:
            check("nosuch", "3", "rows", True)
        assert caught.value.reason == "a verifier that cannot be used"
    for name, of_row in (("nosuch", False), ("broken", True)):  # named by the data source, or in `verifiers`
        with pytest.raises(TuluLiteError, match="stage rl: the verifier") as error:
            check(name, "3", "rows", of_row)
        assert not isinstance(error.value, BadRow)
    with pytest.raises(TuluLiteError, match="'nosuch' cannot be used") as error:
        row_check(recipe(), "stage rl", "nosuch")("number", "3", "rows", True)  # as rank_by is
    assert not isinstance(error.value, BadRow)


@pytest.mark.parametrize(
    "named",
    [
        "mine.py:f", "/somewhere/mine.py", "os.path:exists", '{"use": "mine.py:f"}',
        '{"all_of": ["math", {"weighted": [{"use": "a.b:c", "weight": 1}]}]}', '{"choose": {"s": "mine.py:f"}, "by": "source"}',
    ],
)  # fmt: skip
def test_what_a_row_says_is_not_run(named: str) -> None:
    """Only the recipe names code, by whatever name."""
    for check in (code_check(recipe()), row_check(recipe(), "rl")):
        with pytest.raises(BadRow, match="the row names the Python code") as caught:
            check(named, "3", "rows", True)
        assert "in the recipe" in str(caught.value.cure)
    code_check(recipe(verifiers={named: "math"}))(named, "3", "rows", True)
    code_check(recipe())(named, "3", "rows", False)  # the data source's, which is of the recipe


def test_what_is_no_code_may_stand_in_a_row() -> None:
    check = code_check(recipe())
    for named in ("math", '{"use": "contains", "args": {"word": "a:b.py"}, "name": "x:y"}', "{not json"):
        check(named, "3", "rows", True)
