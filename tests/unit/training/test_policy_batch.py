"""Responses as tensors, their constants, and seconds by what they went into."""

from __future__ import annotations

import torch

from tulu_lite.records import Rollout
from tulu_lite.training.policy_batch import Answered, Clock, collate, fixed_rows, keep_rows

CPU = torch.device("cpu")
ITEMS = [
    Answered((7, 8), Rollout((3, 2), (-0.25, -0.5), (1, 1), "stop"), 1.5),
    Answered((9,), Rollout((4,), (-2.0,), (1,), "length"), -1.5),
]


def test_tensors() -> None:
    token_ids, attention, mask, old, advantage = collate(ITEMS, CPU, pad_id=0)
    assert token_ids.tolist() == [[7, 8, 3, 2], [9, 4, 0, 0]]
    assert attention.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert mask.tolist() == [[0, 0, 1, 1], [0, 1, 0, 0]]
    assert old.tolist() == [[0, 0, -0.25, -0.5], [0, -2.0, 0, 0]]
    assert advantage.tolist() == [1.5, -1.5]
    assert token_ids.dtype == torch.long


def test_an_empty_share_makes_tensors_that_teach_nothing() -> None:
    token_ids, attention, mask, _, advantage = collate([], CPU, pad_id=6)
    assert token_ids.tolist() == [[6, 6]]
    assert attention.tolist() == [[1, 1]]  # a row that no position may attend to would be NaN
    assert mask.sum() == 0
    assert advantage.tolist() == [0.0]
    keep_rows([], "value", torch.ones(1, 1))
    assert fixed_rows([], "value", torch.ones(1, 1)).tolist() == [[0.0]]


def test_constants_lie_where_the_log_probabilities_do() -> None:
    mask = collate(ITEMS, CPU, pad_id=0)[2][:, 1:]  # [[0, 1, 1], [1, 0, 0]]
    keep_rows(ITEMS, "value", torch.tensor([[9.0, 1.0, 2.0], [3.0, 9.0, 9.0]]))
    assert [item.fixed["value"].tolist() for item in ITEMS] == [[1.0, 2.0], [3.0]]
    assert torch.equal(fixed_rows(ITEMS, "value", mask), torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]))


def test_the_clock_forgets_what_was_taken() -> None:
    clock = Clock()
    clock.add("wait", 0.25)
    with clock("train"):
        pass
    assert clock.take()["wait_s"] == 0.25
    assert clock.take() == {}
