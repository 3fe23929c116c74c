"""Rewards from verdicts, what length costs, and which responses teach."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tulu_lite.recipe.stages.rlvr_parts import OverlongSettings
from tulu_lite.records import RolloutGroup
from tulu_lite.rl.rewards import is_silent, length_cost, passed, reward, teaches

NAN = math.nan


@pytest.mark.parametrize(
    ("score", "finish", "fields", "expected"),
    [
        (1.0, "stop", {}, 1.0),
        (0.5, "stop", {"reward_scale": 10}, 5.0),
        (1.0, "length", {}, 1.0),  # by default what the verifier says
        (1.0, "length", {"unfinished_reward": -10, "reward_scale": 10}, -10.0),
        (1.0, "length", {"unfinished_reward": 0.0}, 0.0),
        (1.0, "stop", {"unfinished_reward": -1.0}, 1.0),
        (None, "stop", {"reward_scale": 10}, NAN),
        (None, "length", {"unfinished_reward": -1.0}, NAN),  # an error is never a score
        (1.0, "stop", {"overlong": {"buffer_tokens": 4}}, 1.0),  # 3 of 8 tokens
        (1.0, "stop", {"overlong": {"buffer_tokens": 8, "penalty": 2.0}}, 1.0 - 2 * 3 / 8),
    ],
)
def test_reward(
    stage_of: Any, rollout_of: Any, score: Any, finish: str, fields: Any, expected: float
) -> None:
    value = reward(rollout_of(score, finish=finish), stage_of(**fields))
    assert value == pytest.approx(expected, nan_ok=True)


def test_an_unjudged_response_has_no_reward(stage_of: Any, rollout_of: Any) -> None:
    assert math.isnan(reward(rollout_of(1.0).judged(None), stage_of()))


def test_length_costs_in_proportion_over_the_last_tokens() -> None:
    settings = OverlongSettings.model_validate({"buffer_tokens": 4, "penalty": 3.0})
    assert [length_cost(n, 20, settings) for n in (1, 16, 17, 18, 20, 25)] == [0, 0, 0.75, 1.5, 3.0, 3.0]
    assert length_cost(20, 20, OverlongSettings.model_validate({"mask": True})) == 0.0


def test_what_is_masked_for_its_length_still_counts_in_its_group(stage_of: Any, rollout_of: Any) -> None:
    stage = stage_of(overlong={"mask": True})
    cut = rollout_of(0.0, finish="length")
    assert not teaches(cut, stage)
    assert teaches(cut, stage_of())
    assert teaches(rollout_of(0.0), stage)
    assert not teaches(rollout_of(None), stage)
    assert reward(cut, stage) == 0.0


def test_silence(stage_of: Any, group_of: Any, rollout_of: Any, prompt_of: Any) -> None:
    stage = stage_of()
    assert [is_silent(group_of(0, *scores), stage) for scores in ((1, 1, 1), (1, 0, 1), (1, None, None), (None,))] == [True, False, True, True]  # fmt: skip
    lengths = RolloutGroup(prompt_of(0), (rollout_of(1.0), rollout_of(1.0, tokens=(3, 4, 5, 6, 7, 8, 9))))
    assert is_silent(lengths, stage)
    assert not is_silent(lengths, stage_of(overlong={"buffer_tokens": 4}))  # the longer one costs
    assert passed(group_of(0, 1.0, 0.5, None)) == (0.5, 2)
    assert passed(group_of(0, None)) == (0.0, 0)


def test_what_differs_by_rounding_alone_is_silent(stage_of: Any, group_of: Any) -> None:
    assert is_silent(group_of(0, 0.1 + 0.2, 0.3, 0.3), stage_of())
    assert not is_silent(group_of(0, 0.3, 0.31, 0.3), stage_of())
