"""Verdicts, samples and what a function may return."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.base import (
    MAX_REASON,
    Sample,
    Status,
    Verdict,
    as_verdict,
    correct,
    error,
    scored,
    strip_thinking,
)


@pytest.mark.parametrize(
    ("score", "status"),
    [
        (1.0, "incorrect"),
        (0.0, "correct"),
        (0.5, "correct"),
        (None, "correct"),
        (0.0, "error"),
        (1.5, "partial"),
        (math.nan, "partial"),
    ],
)
def test_score_and_status_must_agree(score: float | None, status: str) -> None:
    with pytest.raises(ValueError, match="score"):
        Verdict(score, Status(status))


@pytest.mark.parametrize("verdict", [correct("why", "72"), scored(0.25, "half"), error("broken"), scored(0)])
def test_json_round_trip(verdict: Verdict) -> None:
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict


@pytest.mark.parametrize(
    ("returned", "score"),
    [
        (True, 1.0),
        (False, 0.0),
        (0.25, 0.25),
        (1, 1.0),
        (Fraction(1, 4), 0.25),
        (np.bool_(True), 1.0),
        (np.float32(0.5), 0.5),
        ((0.5, "half"), 0.5),
        ({"score": 1, "reason": "good"}, 1.0),
        (correct(), 1.0),
    ],
)
def test_what_a_verifier_may_return(returned: object, score: float) -> None:
    assert as_verdict(returned).score == score


@pytest.mark.parametrize(
    "returned",
    [None, "1", 1.5, -0.1, math.nan, math.inf, [1], {"score": 2}, {"scroe": 1}, {}, {"score": None}, (True,), object(), 1 + 0j,
     {"score": 1, "extracted": 5}, (math.nan, "x")],
)  # fmt: skip
def test_what_is_no_verdict_is_an_error_and_no_score(returned: object) -> None:
    verdict = as_verdict(returned)
    assert verdict.status is Status.ERROR
    assert verdict.score is None


def test_reasons_are_clipped() -> None:
    assert len(error("x" * 10_000).reason) == MAX_REASON


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("72", "72"),
        ("<think>a 5</think>72", "72"),
        ("reasoning the template opened</think>72", "72"),
        ("<think>I could write <think> here</think>72", "72"),
        ("<think>a</think>b<think>c</think>d", "bd"),
        ("<THINK>a</THINK>72", "72"),
        ("<think>never closed 72", None),
        ("<think>a</think> 5 <think> 72", None),
        ("72 <think>", None),
        ("I think 72", "I think 72"),
    ],
)
def test_strip_thinking(response: str, answer: str | None) -> None:
    assert strip_thinking(response) == answer


@given(st.lists(st.sampled_from(["<think>", "</think>", "x", "\n"]), max_size=12))
def test_no_reasoning_survives_stripping(parts: list[str]) -> None:
    stripped = strip_thinking("".join(parts))
    assert stripped is None or "think>" not in stripped


def test_sample_defaults() -> None:
    sample = Sample("x")
    assert (sample.reference, sample.prompt, sample.finished, dict(sample.info)) == (None, "", True, {})
