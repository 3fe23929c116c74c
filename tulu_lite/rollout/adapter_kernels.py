"""LoRA products on the CPU, in place of vLLM's own.  [vLLM 0.32: lora/punica_wrapper/punica_cpu.py]

vLLM's gather one copy of the adapter's matrix for every token of the batch, and give a token without an adapter
(index -1) that of the last slot. Here each adapter's rows are multiplied at once, and rows without one are left as
they are. Rows are filled up to a multiple of 16, because matrix kernels for very few rows round otherwise: so a
response does not depend on how many others of its adapter are in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor

ROWS = 16


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
    missing = -len(x) % ROWS
    padded = F.pad(x, (0, 0, 0, missing)) if missing else x
    return (padded.to(weight.dtype) @ weight.T)[: len(x)]


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
    """Have vLLM's CPU backend use these."""
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    modules: list[Any] = [lora_ops, punica_cpu]
    for module in modules:
        module.bgmv_shrink = shrink
        module.bgmv_expand = expand
        module.bgmv_expand_slice = expand_slice
