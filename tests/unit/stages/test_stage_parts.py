"""The pure parts of sft, dpo and rlvr: which prompts a step takes, rewards, and tensors from examples."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tulu_lite.datasets.conversations import Example
from tulu_lite.recipe import RlvrStage
from tulu_lite.records import Prompt, Rollout
from tulu_lite.stages import rlvr, sft
from tulu_lite.training import sequences
from verifiers.base import error, scored

CPU = torch.device("cpu")


def prompts(count: int) -> list[Prompt]:
    return [Prompt(id=str(i), text=str(i), token_ids=(i,), source="s") for i in range(count)]


def ids(chosen: list[Prompt]) -> list[int]:
    return [int(prompt.id) for prompt in chosen]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 13), st.integers(1, 9), st.integers(0, 5))
def test_each_epoch_is_a_permutation_of_all_prompts(n: int, count: int, seed: int) -> None:
    steps = -(-3 * n // count)
    sequence = [
        i for step in range(1, steps + 1) for i in ids(rlvr.prompts_of_step(prompts(n), step, count, seed))
    ]
    assert len(sequence) == steps * count
    for epoch in range(3):
        assert sorted(sequence[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_a_steps_prompts_depend_on_seed_and_step_alone() -> None:
    given = prompts(40)
    late = ids(rlvr.prompts_of_step(given, 9, 6, seed=1))  # asked for first, as after a resume
    for step in range(1, 9):
        rlvr.prompts_of_step(given, step, 6, seed=1)
    assert ids(rlvr.prompts_of_step(given, 9, 6, seed=1)) == late
    assert ids(rlvr.prompts_of_step(given, 9, 6, seed=2)) != late
    first, second = (
        [i for step in epoch for i in ids(rlvr.prompts_of_step(given, step, 8, 1))]
        for epoch in (range(1, 6), range(6, 11))
    )
    assert first != second  # epochs are shuffled anew


def rlvr_stage(**fields: Any) -> RlvrStage:
    return RlvrStage(
        name="rl", kind="rlvr", init="base", data="a.jsonl", validation="b.jsonl", steps=1, learning_rate=1e-4, sampling={"max_tokens": 4}, **fields  # type: ignore[arg-type]
    )  # fmt: skip


def answered(score: float | None, finish: str = "stop") -> Rollout:
    return Rollout((5,), (-1.0,), (0,), finish, "", error("broke") if score is None else scored(score))


@pytest.mark.parametrize(
    ("rollout", "fields", "expected"),
    [
        (answered(1.0), {}, 1.0),
        (answered(0.5), {"reward_scale": 10}, 5.0),
        (answered(1.0, "length"), {}, 1.0),  # by default what the verifier says
        (answered(1.0, "length"), {"unfinished_reward": -1.0, "reward_scale": 10}, -1.0),
        (answered(1.0, "length"), {"unfinished_reward": 0.0}, 0.0),
        (answered(1.0, "stop"), {"unfinished_reward": -1.0}, 1.0),
        (answered(None), {"reward_scale": 10}, math.nan),
        (answered(None, "length"), {"unfinished_reward": -1.0}, math.nan),  # an error is never a score
        (Rollout((5,), (-1.0,), (0,), "stop"), {}, math.nan),
    ],
)
def test_reward(rollout: Rollout, fields: dict[str, Any], expected: float) -> None:
    value = rlvr.reward(rollout, rlvr_stage(**fields))
    assert value == expected or (math.isnan(expected) and math.isnan(value))


def test_rlvr_tensors() -> None:
    items = [
        rlvr.Answered((7, 8), Rollout((3, 2), (-0.25, -0.5), (1, 1), "stop"), 1.5),
        rlvr.Answered((9,), Rollout((4,), (-2.0,), (1,), "length"), -1.5),
    ]
    token_ids, attention, mask, old, advantage = rlvr.collate(items, CPU, pad_id=0)
    assert token_ids.tolist() == [[7, 8, 3, 2], [9, 4, 0, 0]]
    assert attention.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert mask.tolist() == [[0, 0, 1, 1], [0, 1, 0, 0]]
    assert old.tolist() == [[0, 0, -0.25, -0.5], [0, -2.0, 0, 0]]
    assert advantage.tolist() == [1.5, -1.5]
    assert token_ids.dtype == torch.long


def test_an_empty_share_makes_tensors_that_teach_nothing() -> None:
    token_ids, attention, mask, _, advantage = rlvr.collate([], CPU, pad_id=6)
    assert token_ids.tolist() == [[6, 6]]
    assert attention.tolist() == [[1, 1]]  # a row that no position may attend to would be NaN
    assert mask.sum() == 0
    assert advantage.tolist() == [0.0]


def test_sft_tensors() -> None:
    items = [
        Example((1, 2, 3, 4), (False, False, True, True), "s", "f", 1),
        Example((1, 5), (False, True), "s", "f", 2),
    ]
    token_ids, attention, mask = sft.collate(items, CPU, pad_id=9)
    assert token_ids.tolist() == [[1, 2, 3, 4], [1, 5, 9, 9]]
    assert attention.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert mask.tolist() == [[0, 0, 1, 1], [0, 1, 0, 0]]
    token_ids, attention, mask = sft.collate([], CPU, pad_id=9)
    assert token_ids.shape == attention.shape == mask.shape == (1, 2)
    assert attention[0, 0] == 1
    assert mask.sum() == 0


def test_dpo_tensors() -> None:
    token_ids, attention, mask = sequences.collate([((1, 2), (3,)), ((4,), (5, 6, 7))], CPU, pad_id=0)
    assert token_ids.tolist() == [[1, 2, 3, 0], [4, 5, 6, 7]]
    assert attention.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert mask.tolist() == [[0, 0, 1, 0], [0, 1, 1, 1]]
