"""LoRA products on the CPU, in place of vLLM's own.  [vLLM 0.32: lora/punica_wrapper/punica_cpu.py]

vLLM's gather one copy of the adapter's matrix for every token of the batch, and give a token without an adapter
(index -1) that of the last slot. Here each adapter of the batch is multiplied with all its rows at once, what that
gives for the rows of others is dropped, and which rows are whose is worked out once a step. Rows are filled up to a
multiple of 16, because matrix kernels for very few rows round otherwise: so a response does not depend on how many
others of its adapter are in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 16

Batch = list[
    tuple[int, Tensor | None]
]  # slots that occur, each with the rows of others, [rows, 1]; None: no others
Factors = list[
    list[tuple[Tensor, ...]]
]  # per slot, per slice of the output: what the rows are multiplied by in turn


def batch_of(indices: Tensor, rows: int) -> Batch:
    """The slots that occur in a batch of `rows`, each with a mask of the rows that are not its own.

    indices: [tokens], the slot of each token, -1: none.
    """
    found = indices[:rows].tolist()
    found += [-1] * (rows - len(found))
    slots = sorted(set(found) - {-1})
    if len(slots) == 1 and -1 not in found:
        return [(slots[0], None)]
    return [(slot, torch.tensor([other != slot for other in found])[:, None]) for slot in slots]


def factors_of(*stacks: Sequence[Tensor]) -> Factors:
    """The transposed matrices of each slot and slice, as views: what is loaded into a slot later shows in them.

    stacks: A's, then B's (or B's alone), per slice of the output [slots, 1, out, in].
    """
    slices = list(zip(*stacks, strict=True))
    return [
        [tuple(w[slot, 0].T for w in matrices) for matrices in slices] for slot in range(len(stacks[0][0]))
    ]


def add_products(output: Tensor, x: Tensor, factors: Factors, batch: Batch, scaling: float = 1.0) -> None:
    """output[:, slice] += scaling * x A^T B^T of each row's own adapter, slice by slice, in place.

    output: [rows, columns]; x: [rows, in]. Rows of other adapters and of none are left as they are, to the bit and
    whatever this adapter holds: one that has become NaN harms its own alone.
    """
    missing = -len(x) % ROWS
    padded = F.pad(x, (0, 0, 0, missing)) if missing else x
    for slot, others in batch:
        start = 0
        for matrices in factors[slot]:
            product = padded
            for matrix in matrices:
                product = product.to(matrix.dtype) @ matrix
            width = min(product.shape[1], output.shape[1] - start)
            product = product[: len(x), :width]
            if scaling != 1.0:
                product *= scaling
            if others is not None:
                product.masked_fill_(others, 0.0)
            output.narrow(1, start, width).add_(product)
            start += width


def use_them() -> None:
    """Have vLLM's CPU backend use these."""
    from vllm.lora.punica_wrapper import punica_cpu

    wrapper: Any = punica_cpu.PunicaWrapperCPU
    init, update_metadata = wrapper.__init__, wrapper.update_metadata

    def make(self: Any, *arguments: Any, **named: Any) -> None:
        init(self, *arguments, **named)
        self.batches = {}  # {(tokens or samples, rows): Batch} of this step
        self.factors = {}  # {id of what a layer holds: (that, Factors)}; vLLM allocates them once

    def update(self: Any, *arguments: Any, **named: Any) -> None:
        """Before a step: vLLM says which token has which slot."""
        update_metadata(self, *arguments, **named)
        self.batches.clear()

    def add(
        self: Any, which: str, y: Tensor, x: Tensor, scale: float, layer: Any, *stacks: Sequence[Tensor]
    ) -> None:
        """which: the indices that count, of tokens or of samples; layer: what the layer holds for good."""
        x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        if (which, len(x)) not in self.batches:
            self.batches[which, len(x)] = batch_of(getattr(self, which), len(x))
        if id(layer) not in self.factors:
            self.factors[id(layer)] = layer, factors_of(*stacks)
        add_products(y, x, self.factors[id(layer)][1], self.batches[which, len(x)], scale)

    def add_lora_linear(
        self: Any, y: Tensor, x: Tensor, a: Any, b: Any, scale: float, *_: Any, **__: Any
    ) -> None:
        add(self, "token_lora_indices", y, x, scale, b, a, b)

    def add_lora_embedding(
        self: Any, y: Tensor, x: Tensor, lora_b_stacked: Tensor, *_: Any, **__: Any
    ) -> None:
        add(self, "token_lora_indices", y, x, 1.0, lora_b_stacked, [lora_b_stacked])

    def add_lora_logits(
        self: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, **_: Any
    ) -> None:
        add(self, "sampler_indices", y, x, scale, b, [a], [b])

    wrapper.__init__ = make
    wrapper.update_metadata = update
    wrapper.add_lora_linear = add_lora_linear
    wrapper.add_lora_embedding = add_lora_embedding
    wrapper.add_lora_logits = add_lora_logits
