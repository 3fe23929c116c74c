"""The choice among runs, by hand and by property; when a run has no hope."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tulu_lite.errors import TuluLiteError
from tulu_lite.pipeline.select import Candidate, choice_result, choose, hopeless
from tulu_lite.pipeline.show import headline
from tulu_lite.pipeline.steps import Step

NAN = math.nan


def of(*values: float, **more: Any) -> list[Candidate]:
    return [Candidate(f"seed-{n}", "", value, **more) for n, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("values", "higher", "chosen"),
    [
        ((0.5, 0.7, 0.6), True, "seed-2"),
        ((0.5, 0.7, 0.6), False, "seed-1"),
        ((0.7, 0.7, 0.6), True, "seed-1"),  # of equals the first
        ((0.3, 0.3), False, "seed-1"),
        ((NAN, 0.1), True, "seed-2"),
        ((NAN, 9.0), False, "seed-2"),
        ((NAN, NAN), True, "seed-1"),
        ((-0.0, 0.0), True, "seed-1"),
    ],
)
def test_the_best_seed_by_validation(values: tuple[float, ...], higher: bool, chosen: str) -> None:
    assert choose(of(*values), higher).id == chosen


def sweep(**settings: list[float]) -> list[Candidate]:
    return [
        Candidate(f"{name}/seed-{n}", name, value)
        for name, values in settings.items()
        for n, value in enumerate(values, 1)
    ]


def test_the_setting_is_chosen_by_its_mean_then_its_best_seed() -> None:
    candidates = sweep(a=[0.9, 0.1], b=[0.6, 0.55])
    assert choose(candidates, True).id == "b/seed-1"
    assert choose(candidates, False).id == "a/seed-2"  # means 0.5 and 0.575: the lower one, then its lowest
    assert choose(sweep(a=[0.5, 0.5], b=[0.6, 0.4]), True).id == "a/seed-1"  # equal means: the first listed


def test_a_setting_with_a_seed_without_a_score_comes_after_those_with_all() -> None:
    assert choose(sweep(a=[0.9, NAN], b=[0.3, 0.4]), True).id == "b/seed-2"
    assert choose(sweep(a=[NAN, NAN], b=[0.3, NAN]), True).id == "b/seed-1"


def test_stopped_runs_are_chosen_only_where_all_are() -> None:
    stopped = Candidate("seed-1", "", 0.9, stopped=True)
    assert choose([stopped, *of(0.1)], True).value == 0.1
    assert choose([stopped, Candidate("seed-2", "", NAN, stopped=True)], True) is stopped
    one = [Candidate("a/1", "a", 0.9, stopped=True), Candidate("a/2", "a", 0.9, stopped=True)]
    assert (
        choose([*one, Candidate("b/1", "b", 0.2), Candidate("b/2", "b", 0.1, stopped=True)], True).id == "b/1"
    )


def test_a_longer_run_competes_in_its_setting_and_has_no_say_in_the_settings_mean() -> None:
    candidates = sweep(a=[0.5, 0.5], b=[0.6, 0.6])
    longer = Candidate("a/seed-1+200", "a", 0.99, extended=True)
    assert choose([*candidates, longer], True).id == "b/seed-1"
    assert choose([*sweep(a=[0.5, 0.5]), longer], True) is longer
    worse = Candidate("a/seed-1+200", "a", 0.2, extended=True)
    assert choose([*sweep(a=[0.5, 0.4]), worse], True).id == "a/seed-1"


@given(
    st.lists(
        st.builds(
            Candidate,
            st.uuids().map(str),
            st.sampled_from("abc"),
            st.one_of(st.just(NAN), st.floats(0, 1)),
            st.booleans(),
        ),
        min_size=1,
        max_size=8,
    ),
    st.booleans(),
)
def test_what_is_chosen_is_best_within_its_setting(candidates: list[Candidate], higher: bool) -> None:
    best = choose(candidates, higher)
    rivals = [one for one in candidates if one.setting == best.setting and one.stopped == best.stopped]
    known = [one.value for one in rivals if not math.isnan(one.value)]
    if known:
        assert best.value == (max(known) if higher else min(known))
    if best.stopped:
        assert all(one.stopped for one in candidates)
    mirrored = [Candidate(one.id, one.setting, -one.value, one.stopped) for one in candidates]
    assert choose(mirrored, not higher).id == best.id


def run(folder: Path, id: str, **summary: Any) -> Step:
    stage: Any = None
    step = Step(id, "rlvr", stage, 1, "sft", (), {}, f"key-{id}", folder / id.replace("/", "."))
    step.folder.mkdir(parents=True)
    step.result_file.write_text(json.dumps({"model": "model", "summary": summary}))
    return step


def test_the_result_of_a_choice_points_to_the_chosen_model(tmp_path: Path) -> None:
    told = {"metric": "loss", "better": "lower"}
    runs = [
        run(tmp_path, f"rl/seed-{n}", validation={**told, "value": value})
        for n, value in ((1, 2.0), (2, 1.5))
    ]
    choice = run(tmp_path, "rl")
    result = choice_result(choice, runs)
    assert (choice.folder / result["model"]).resolve() == (runs[1].folder / "model").resolve()
    assert result["summary"]["chosen"] == "rl/seed-2"
    assert result["summary"]["validation"] == {**told, "value": 1.5}
    assert result["summary"]["candidates"] == {"rl/seed-1": 2.0, "rl/seed-2": 1.5}


def test_runs_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    one = run(tmp_path, "rl/seed-1", validation={"metric": "loss", "value": 1.0, "better": "lower"})
    other = run(tmp_path, "rl/seed-2", validation={"metric": "accuracy", "value": 1.0, "better": "higher"})
    with pytest.raises(TuluLiteError, match="accuracy .higher is better. or loss"):
        choice_result(run(tmp_path, "rl"), [one, other])
    with pytest.raises(TuluLiteError, match="rl/seed-3 has no validation"):
        choice_result(run(tmp_path, "rl2"), [one, run(tmp_path, "rl/seed-3")])


def marks(right: int, of_all: int = 100, first: int = 0) -> dict[str, float]:
    return {f"p{n}": float(n < right) for n in range(first, of_all)}


def test_a_run_far_behind_the_best_other_has_no_hope() -> None:
    others = {"seed-2": marks(60), "seed-3": marks(40)}
    found = hopeless(marks(30), others, margin=0.1, higher=True)
    assert found is not None
    assert found[0] == "seed-2"
    assert found[1].value == pytest.approx(0.3)
    assert hopeless(marks(30), others, margin=0.3, higher=True) is None  # not more than the margin
    assert hopeless(marks(60), others, margin=0.1, higher=True) is None  # the best itself
    assert hopeless(marks(30), {}, margin=0.1, higher=True) is None
    assert (
        hopeless(marks(30), {"seed-2": {"other": 1.0}}, margin=0.1, higher=True) is None
    )  # no common prompt


def test_a_difference_that_could_be_chance_stops_nothing() -> None:
    own, other = marks(1, of_all=4), marks(2, of_all=4)  # 25 points behind, on four prompts
    assert hopeless(own, {"seed-2": other}, margin=0.1, higher=True) is None


def test_where_lower_is_better_the_sides_change() -> None:
    low = {f"p{n}": 1.0 + n / 100 for n in range(50)}
    high = {id: value + 0.5 for id, value in low.items()}
    found = hopeless(high, {"seed-2": low}, margin=0.1, higher=False)
    assert found is not None
    assert (found[1].value, found[1].low > 0) == (pytest.approx(0.5), True)
    assert hopeless(low, {"seed-2": high}, margin=0.1, higher=False) is None


def test_a_run_alone_goes_on_without_a_validation(tmp_path: Path) -> None:
    """As one that is trained on recorded rollouts."""
    one = run(tmp_path, "rl/seed-1", step=3)
    result = choice_result(run(tmp_path, "rl"), [one])
    assert result["summary"] == {
        "chosen": "rl/seed-1",
        "seed": 1,
        "setting": "",
        "candidates": {"rl/seed-1": None},
    }
    choice = run(tmp_path, "rl2", **result["summary"])
    assert headline(replace(choice, kind="select"), choice.summary) == "rl/seed-1 goes on: the only run"
