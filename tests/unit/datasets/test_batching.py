from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tulu_lite.datasets.batching import (
    epoch_order,
    pack_by_length,
    share_of_rank,
    step_indices,
    steps_in_all,
)


@given(st.integers(1, 60), st.integers(1, 17), st.integers(1, 4), st.integers(0, 9))
def test_every_epoch_has_every_example_once(n: int, batch_size: int, epochs: int, seed: int) -> None:
    steps = steps_in_all(n, batch_size, epochs)
    batches = [step_indices(n, batch_size, epochs, seed, step) for step in range(1, steps + 1)]
    per_epoch = steps // epochs
    for epoch in range(epochs):
        own = batches[epoch * per_epoch : (epoch + 1) * per_epoch]
        flat = [i for batch in own for i in batch]
        assert flat == epoch_order(n, seed, epoch)
        assert sorted(flat) == list(range(n))
        assert all(len(batch) == batch_size for batch in own[:-1])
        assert 1 <= len(own[-1]) <= batch_size


def test_order_is_fixed_by_seed_and_epoch() -> None:
    assert epoch_order(8, 1, 0) == epoch_order(8, 1, 0)
    assert len({tuple(epoch_order(8, seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert epoch_order(5, 0, 0) == [2, 3, 1, 0, 4]  # a killed run must go on with the order it began with


def test_last_batch_of_an_epoch_is_smaller_and_steps_end() -> None:
    assert [len(step_indices(5, 2, 2, 0, step)) for step in range(1, 7)] == [2, 2, 1, 2, 2, 1]
    for step in (0, 7):
        with pytest.raises(ValueError, match="no step"):
            step_indices(5, 2, 2, 0, step)


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 120))
def test_micro_batches_hold_each_item_once_within_the_bound(lengths: list[int], max_tokens: int) -> None:
    batches = pack_by_length(lengths, max_tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert batch
        padded = len(batch) * max(lengths[i] for i in batch)
        assert padded <= max_tokens or len(batch) == 1
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest == sorted(longest)


def test_packing_by_hand() -> None:
    assert pack_by_length([3, 9, 3, 4, 20], 9) == [[0, 2], [3], [1], [4]]
    assert pack_by_length([2, 2, 2, 2], 6) == [[0, 1, 2], [3]]
    assert pack_by_length([], 6) == []


@given(st.lists(st.integers()), st.integers(1, 8))
def test_shares_of_ranks_are_disjoint_complete_and_even(indices: list[int], world: int) -> None:
    shares = [share_of_rank(indices, rank, world) for rank in range(world)]
    assert Counter(i for share in shares for i in share) == Counter(indices)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    with pytest.raises(ValueError, match="rank"):
        share_of_rank(indices, world, world)
