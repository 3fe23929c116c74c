"""Which rows of a batch a loss that is not finite comes from, and where the rows of a batch stand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ..errors import TuluLiteError

NAMED = 8  # rows that a message names


def place_of(item: Any) -> str:
    """file:line of a batch's item (an example, or a pair with more around it); "" where it is not known."""
    row = getattr(item, "pair", item)
    file = getattr(row, "file", "")
    return f"{file}:{row.line}" if file else str(getattr(row, "where", ""))


def places_of(batch: Sequence[Any]) -> list[str]:
    return [place_of(item) for item in batch]


def rows_not_finite(
    accelerator: Accelerator, batch: Sequence[Any], loss_of: Callable[[Sequence[Any]], Tensor]
) -> list[int]:
    """Which of the batch's rows have a loss by themselves that is not finite. Every process calls it, since engines that
    gather weights in the forward pass need them all; each is told the same.

    loss_of: the items' share of the step's loss.
    """
    own = range(accelerator.process_index, len(batch), accelerator.num_processes)
    rounds = -(-len(batch) // accelerator.num_processes)
    found: list[int] = []
    with torch.no_grad():
        for number in range(rounds):
            items = [batch[own[number]]] if number < len(own) else []
            value = float(loss_of(items))
            if items and not math.isfinite(value):
                found.append(own[number])
    return sorted(gather_object(found))


def named_rows(batch: Sequence[Any], culprits: Sequence[int]) -> str:
    """Where they stand, the first few of them."""
    named = ", ".join(place_of(batch[i]) or f"number {i + 1} of the batch" for i in culprits[:NAMED])
    return named + (f" and {len(culprits) - NAMED} more" if len(culprits) > NAMED else "")


def loss_not_finite(batch: Sequence[Any], culprits: Sequence[int], loss: float, where: str) -> TuluLiteError:
    """The error that says which rows a loss that is not finite comes from.

    culprits: from rows_not_finite. where: the stage and step, for the message. Nothing was updated.
    """
    named = named_rows(batch, culprits)
    if culprits and len(culprits) < len(batch):
        why = f"so is the loss of {named} by itself, and that of the batch's other rows is not"
        cure = (
            "look at these rows (tulu-lite replay shows each row's loss), and remove or mend them; "
            "`bad_rows: drop` leaves such rows out and counts them (not under DeepSpeed)"
        )
    elif culprits:
        why = f"so is the loss of every row of the batch by itself ({named}): the weights are broken, not the rows"
        cure = "lower learning_rate or lengthen the warm-up; go on from an earlier save (tulu-lite replay shows the step before)"
    else:
        why = f"no row's loss is so by itself; the batch is {', '.join(places_of(batch)[:NAMED])}"
        cure = "lower learning_rate; with fp16, use bf16"
    return TuluLiteError(f"{where}: the loss is {loss}; the weights were not updated", why, cure)
