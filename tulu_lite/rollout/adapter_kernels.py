"""LoRA products on the CPU, in place of vLLM's own.  [vLLM 0.32: lora/punica_wrapper/punica_cpu.py]

vLLM's gather one copy of the adapter's matrix for every token of the batch, and give a token without an adapter
(index -1) that of the last slot. Here each adapter of the batch is multiplied with all its rows at once, the rows of
others are set to nothing between its two products, and which rows are whose is worked out once a step. Rows are
filled up to a multiple of 16, because matrix kernels for very few rows round otherwise: so a response does not depend
on how many others of its adapter are in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 16

Whose = list[
    tuple[int, Tensor | None]
]  # each slot in the batch, and its rows: 1 or 0, [padded rows, 1]; None: all
Matrices = list[list[tuple[Tensor, Tensor]]]  # of each slot, of each slice of the output: A^T, B^T


def whose(indices: Tensor, rows: int) -> Whose:
    """The slots that occur, each with a mask of the rows that are its own (none where all are).

    indices: [tokens], the slot of each token, -1: none; rows: of the batch, filled up to a multiple of ROWS.
    """
    found = indices[:rows].tolist()
    slots = sorted(set(found) - {-1})
    if len(slots) == 1 and -1 not in found and len(found) == rows:
        return [(slots[0], None)]
    found += [-1] * (rows - len(found) + -rows % ROWS)
    return [(slot, torch.tensor([float(other == slot) for other in found])[:, None]) for slot in slots]


def matrices(lora_a: Sequence[Tensor], lora_b: Sequence[Tensor]) -> Matrices:
    """A^T and B^T of each slot and slice, as views: what is loaded into a slot later shows in them.

    lora_a: per slice [slots, 1, rank, in]; lora_b: per slice [slots, 1, out, rank].
    """
    return [
        [(a[slot, 0].T, b[slot, 0].T) for a, b in zip(lora_a, lora_b, strict=True)]
        for slot in range(len(lora_a[0]))
    ]


def add_low_rank(output: Tensor, inputs: Tensor, held: Matrices, batch: Whose, scaling: float = 1.0) -> None:
    """output[:, slice] += scaling * x A^T B^T of each row's own adapter, slice by slice, in place.

    output: [rows, sum of the slices]; inputs: [rows, in]; batch: from `whose`.
    """
    if not batch:
        return
    count = len(inputs)
    padded = _padded(inputs).to(held[0][0][0].dtype)
    for slot, mask in batch:
        start = 0
        for a, b in held[slot]:
            small = padded @ a
            if mask is not None:
                small *= mask
            if scaling != 1.0:
                small *= scaling
            large = small @ b
            output.narrow(1, start, b.shape[1]).add_(large if len(large) == count else large[:count])
            start += b.shape[1]


def _padded(x: Tensor) -> Tensor:
    missing = -len(x) % ROWS
    return F.pad(x, (0, 0, 0, missing)) if missing else x


def _products(x: Tensor, stacked: Tensor, indices: Tensor) -> Iterator[tuple[Tensor | None, Tensor]]:
    """(rows or None for all, x[rows] W^T) of each adapter in the batch.

    x: [tokens, in]; stacked: [slots, (1,) out, in]; indices: [tokens], the slot of each token, -1: none.
    """
    weights = stacked.squeeze(1) if stacked.ndim == 4 else stacked
    first = int(indices[0]) if len(indices) else -1
    if bool((indices == first).all()):
        if first >= 0:
            yield None, _product(x, weights[first])
        return
    for slot in indices.unique().tolist():
        if slot >= 0:
            rows = (indices == slot).nonzero()[:, 0]
            yield rows, _product(x[rows], weights[slot])


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T, [n, in] by [out, in], with rows that do not depend on n."""
    return (_padded(x).to(weight.dtype) @ weight.T)[: len(x)]


def shrink(
    inputs: Tensor, lora_a: Tensor, output: Tensor, lora_indices_tensor: Tensor, scaling: float = 1.0
) -> None:
    """output[:, :rank] = scaling * x A^T for tokens with an adapter. The signature is vLLM's bgmv_shrink."""
    for rows, product in _products(inputs, lora_a, lora_indices_tensor[: len(inputs)]):
        value = (product if scaling == 1.0 else scaling * product).to(output.dtype)
        if rows is None:
            output[: len(value), : value.shape[1]] = value
        else:
            output[rows, : value.shape[1]] = value


def expand(
    inputs: Tensor, lora_b: Tensor, output: Tensor, lora_indices_tensor: Tensor, add_inputs: bool = True
) -> None:
    """output += x B^T for tokens with an adapter. The signature is vLLM's bgmv_expand."""
    weights = lora_b.squeeze(1) if lora_b.ndim == 4 else lora_b
    expand_slice(
        inputs,
        lora_b,
        output,
        lora_indices_tensor,
        0,
        min(weights.shape[1], output.shape[1]),
        add_inputs,
    )


def expand_slice(
    inputs: Tensor,
    lora_b: Tensor,
    output: Tensor,
    lora_indices_tensor: Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """output[:, offset : offset + size] += x B^T for tokens with an adapter. The signature is vLLM's bgmv_expand_slice."""
    span = slice(slice_offset, slice_offset + slice_size)
    for rows, product in _products(inputs, lora_b, lora_indices_tensor[: len(inputs)]):
        value = product[:, :slice_size].to(output.dtype)
        if rows is None:
            target = output[: len(value), span]
            target.copy_(target + value if add_inputs else value)
        else:
            output[rows, span] = output[rows, span] + value if add_inputs else value


def use_them() -> None:
    """Have vLLM's CPU backend use these: `add_low_rank` for linear layers, the rest for embeddings and the head."""
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    modules: list[Any] = [lora_ops, punica_cpu]
    for module in modules:
        module.bgmv_shrink = shrink
        module.bgmv_expand = expand
        module.bgmv_expand_slice = expand_slice
    _use_for_linear_layers(punica_cpu.PunicaWrapperCPU)


def _use_for_linear_layers(wrapper: Any) -> None:
    init, update_metadata = wrapper.__init__, wrapper.update_metadata

    def make(self: Any, *arguments: Any, **named: Any) -> None:
        init(self, *arguments, **named)
        self.batches = {}  # {rows: Whose} of this step
        self.layers = {}  # {id of a layer's tuple of A: (that tuple, Matrices)}; vLLM allocates them once

    def update(self: Any, *arguments: Any, **named: Any) -> None:
        """Before a step: vLLM says which token has which slot."""
        update_metadata(self, *arguments, **named)
        self.batches.clear()

    def add_lora_linear(
        self: Any,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: Sequence[Tensor],
        lora_b_stacked: Sequence[Tensor],
        scale: float,
        output_slices: Sequence[int],
        **_: Any,
    ) -> None:
        x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        if len(x) not in self.batches:
            self.batches[len(x)] = whose(self.token_lora_indices, len(x))
        if id(lora_a_stacked) not in self.layers:
            self.layers[id(lora_a_stacked)] = lora_a_stacked, matrices(lora_a_stacked, lora_b_stacked)
        add_low_rank(y, x, self.layers[id(lora_a_stacked)][1], self.batches[len(x)], scale)

    wrapper.__init__ = make
    wrapper.update_metadata = update
    wrapper.add_lora_linear = add_lora_linear
