"""The figures of an evaluation against values by hand; what has no score is left out and counted."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tulu_lite.files import json_lines
from tulu_lite.records import Prompt, Rollout, RolloutGroup
from tulu_lite.stages.evaluate import _write, response_row, summarise
from verifiers.base import error, scored


def group(id: str, source: str, *scores: float | None, finish: str = "stop", tokens: int = 2) -> RolloutGroup:
    prompt = Prompt(id=id, text=id, token_ids=(1,), source=source, user=f"user {id}", reference="3")
    rollouts = [
        Rollout(
            (5,) * tokens,
            (-1.0,) * tokens,
            (0,) * tokens,
            finish,
            "text",
            error("broke") if score is None else scored(score),
        )
        for score in scores
    ]
    return RolloutGroup(prompt, tuple(rollouts))


GREEDY = [
    group("1", "add", 1.0), group("2", "add", 0.0), group("3", "sub", 1.0, finish="length", tokens=6),
    group("4", "sub", 0.5), group("5", "sub", None),
]  # fmt: skip


def test_greedy_figures_by_hand() -> None:
    summary = summarise(GREEDY, [], ())
    accuracy = summary["accuracy"]
    assert (accuracy["value"], accuracy["n"]) == (0.5, 4)  # half marks are not full marks
    # Wilson, 2 of 4, z = 1.96: (0.5 + z²/8) / (1 + z²/4) ± z / (1 + z²/4) sqrt(1/16 + z²/64)
    assert accuracy["low"] == pytest.approx(0.15004, abs=1e-5)
    assert accuracy["high"] == pytest.approx(0.84996, abs=1e-5)
    assert summary["mean_score"]["value"] == pytest.approx(2.5 / 4)
    assert summary["unscored"] == 1
    assert summary["finished_share"] == pytest.approx(4 / 5)
    assert summary["mean_tokens"] == pytest.approx((4 * 2 + 6) / 5)
    assert "sampled_accuracy" not in summary


def test_by_source_figures_are_those_of_the_sources_rows() -> None:
    by_source = summarise(GREEDY, [], ())["by_source"]
    assert list(by_source) == ["add", "sub"]
    assert (by_source["add"]["accuracy"]["value"], by_source["add"]["accuracy"]["n"]) == (0.5, 2)
    assert (
        by_source["sub"]["accuracy"]["value"],
        by_source["sub"]["accuracy"]["n"],
        by_source["sub"]["unscored"],
    ) == (0.5, 2, 1)


def test_pass_at_k_by_hand() -> None:
    sampled = [
        group("1", "add", 1.0, 0.0, 0.0, 0.0),  # 1 of 4: pass@2 = 1 - C(3,2)/C(4,2) = 1/2
        group("2", "add", 1.0, 1.0, 0.5, 0.0),  # 2 of 4: 1 - 1/6
        group("3", "sub", 0.0, 0.0, None, None),  # 0 of 2
        group("4", "sub", None, None, None, None),  # nothing known: left out
    ]
    summary = summarise(GREEDY, sampled, (1, 2, 4))
    assert summary["sampled_accuracy"]["value"] == pytest.approx((1 / 4 + 2 / 4 + 0) / 3)
    assert summary["pass@1"]["value"] == pytest.approx((1 / 4 + 2 / 4 + 0) / 3)
    assert summary["pass@2"]["value"] == pytest.approx((1 / 2 + 5 / 6 + 0) / 3)
    assert (summary["pass@4"]["value"], summary["pass@4"]["n"]) == (
        1.0,
        2,
    )  # the prompt with two known scores has no pass@4
    assert summary["unscored"] == 1 + 2 + 4
    assert summary["by_source"]["sub"]["pass@2"]["value"] == 0.0


def test_nothing_scored_is_not_an_accuracy_of_zero() -> None:
    accuracy = summarise([group("1", "add", None)], [], ())["accuracy"]
    assert math.isnan(accuracy["value"])
    assert accuracy["n"] == 0


def test_a_response_as_a_row() -> None:
    row = response_row(GREEDY[2], GREEDY[2].rollouts[0], "greedy")
    assert (row["kind"], row["prompt_id"], row["source"], row["tokens"], row["finish_reason"]) == (
        "greedy",
        "3",
        "sub",
        6,
        "length",
    )
    assert row["prompt"] == "user 3"
    assert row["verdict"]["score"] == 1.0


@given(st.text(st.characters(), max_size=20))
@example("\u2028 \u2029 \x85 \x0b \x0c \x1c \x1e \r\n \ud800")
def test_any_response_comes_back(text: str) -> None:
    prompt = Prompt(id="1", text="", token_ids=(1,), source="add", user=text, reference="3")
    rollout = Rollout((5,), (-1.0,), (0,), "stop", text, scored(1.0))
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder) / "rows.jsonl", [("greedy", [RolloutGroup(prompt, (rollout, rollout))])])
        rows = json_lines((Path(folder) / "rows.jsonl").read_bytes())
    assert [(row["prompt"], row["response"]) for row in rows] == [(text, text)] * 2
