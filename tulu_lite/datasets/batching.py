"""Which examples make up an optimiser step, and how they are split into ranks and micro-batches.

The step's examples depend on the seed and the step alone, not on the number of processes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

Item = TypeVar("Item")


def epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    """A permutation of range(n) for the epoch (counted from 0)."""
    return list(_order(n, seed, epoch))


@lru_cache(maxsize=4)
def _order(n: int, seed: int, epoch: int) -> tuple[int, ...]:
    order = list(range(n))
    random.Random(f"{seed}:{epoch}").shuffle(order)
    return tuple(order)


def steps_in_all(n: int, batch_size: int, epochs: int) -> int:
    """Optimiser steps of a training run; the last step of each epoch takes what is left."""
    return -(-n // batch_size) * epochs


def step_indices(n: int, batch_size: int, epochs: int, seed: int, step: int) -> list[int]:
    """The examples of optimiser step `step`, counted from 1 over all epochs.

    Raises ValueError when there is no such step.
    """
    if not 1 <= step <= steps_in_all(n, batch_size, epochs):
        raise ValueError(
            f"there is no step {step}: {n} examples make {steps_in_all(n, batch_size, epochs)} steps"
        )
    epoch, place = divmod(step - 1, -(-n // batch_size))
    return list(_order(n, seed, epoch)[place * batch_size : (place + 1) * batch_size])


def token_batches(lengths: Sequence[int], batch_tokens: int, epochs: int, seed: int) -> list[list[int]]:
    """The examples of every optimiser step of a training run whose steps are said in tokens.

    Each step takes examples, in the epoch's order, until the next would make it longer than batch_tokens; an example
    longer than that is a step by itself. No step spans two epochs. lengths: tokens of each example.
    """
    steps: list[list[int]] = []
    for epoch in range(epochs):
        filled = batch_tokens + 1  # so that the epoch begins with a step of its own
        for index in _order(len(lengths), seed, epoch):
            if filled + lengths[index] > batch_tokens:
                steps.append([])
                filled = 0
            steps[-1].append(index)
            filled += lengths[index]
    return steps


def pack_by_length(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Micro-batches of indices, each of which fills at most max_tokens when padded to its longest item.

    lengths: tokens of each item. Items of like length come together, shortest first; an item longer than
    max_tokens is a micro-batch of its own. The result depends on the arguments alone.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[index] <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def share_of_rank(indices: Sequence[Item], rank: int, world: int) -> list[Item]:
    """Every world-th item, from the rank's on: disjoint over the ranks, complete, and equal to within one."""
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world} processes")
    return list(indices[rank::world])
