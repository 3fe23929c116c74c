"""The pure parts of stages: tensors from examples."""

from __future__ import annotations

import torch

from tulu_lite.datasets.conversations import Example
from tulu_lite.stages import sft
from tulu_lite.training import sequences

CPU = torch.device("cpu")


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
