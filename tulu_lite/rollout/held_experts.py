"""The experts of a mixture as vLLM holds them: all of a layer in two tensors, in an order of the kernel's.  [vLLM 0.32]

w13_weight [E, 2I, H] is each expert's gate over its up projection, w2_weight [E, H, I] its down projection. The CPU's
kernel keeps them packed. The packing only moves elements about, expert by expert; which goes where is learnt by packing
numbers in a row, so that what is held can be put back in order and compared by bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch

_KEPT_IN_ORDER = ("TRITON", "BATCHED_TRITON")  # backends that keep the experts as they were loaded


def repack_experts_on_update() -> None:
    """Have the CPU's experts packed at every update, as they are when the server starts.

    vLLM packs them once and leaves later weights as they came, which its kernel then reads in the wrong order.
    """
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    set_up = UnquantizedFusedMoEMethod._setup_kernel

    def set_up_again(self: Any, layer: Any, w13: torch.Tensor, w2: torch.Tensor) -> None:
        again = self.moe_kernel is not None
        set_up(self, layer, w13=w13, w2=w2)
        if again and self.unquantized_backend.name == "CPU":
            self.moe_kernel.fused_experts.process_weights_after_loading(layer)

    UnquantizedFusedMoEMethod._setup_kernel = set_up_again  # type: ignore[method-assign]


def is_experts(layer: Any) -> bool:
    return {"w13_weight", "w2_weight"} <= layer._parameters.keys()


def expert_sources(prefix: str, layer: Any) -> dict[str, list[tuple[int, tuple[str, ...]]]]:
    """{parameter: [(expert, names of the tensors it is made of, in order)]} of an experts' layer of that name."""
    owner = prefix.removesuffix(".routed_experts")
    first = [name for name in (layer.ckpt_gate_proj_name, layer.ckpt_up_proj_name) if name]
    parts = {"w13": first, "w2": [layer.ckpt_down_proj_name]}
    found: dict[str, list[tuple[int, tuple[str, ...]]]] = {}
    for parameter in layer._parameters:
        key, _, leaf = parameter.partition("_")
        if key in parts and leaf in ("weight", "bias"):
            found[parameter] = [
                (expert, tuple(f"{owner}.{expert}.{part}.{leaf}" for part in parts[key]))
                for expert in range(layer.global_num_experts)
            ]
    return found


def held_parts(layer: Any, parameter: str, shapes: list[torch.Size]) -> Iterator[list[torch.Tensor]] | None:
    """For each expert, what the layer holds of each tensor that a parameter is made of; None where that cannot be told.

    shapes: of one expert's tensors, such as [gate, up] or [down].
    """
    method = layer.quant_method
    backend = getattr(getattr(method, "unquantized_backend", None), "name", None)
    packed = False
    if backend == "CPU":
        packed = parameter.endswith("weight") and not method.moe_kernel.fused_experts._use_zentorch
    elif backend not in _KEPT_IN_ORDER:
        return None
    held = layer._parameters[parameter].detach()
    if held.shape[0] != layer.global_num_experts:
        return None  # experts that are spread over workers
    order = _order(tuple(held.shape[1:]), held.dtype, method.moe_kernel.fused_experts.isa) if packed else None
    return (_split(_unpacked(held[expert], order), shapes) for expert in range(held.shape[0]))


def _split(held: torch.Tensor, shapes: list[torch.Size]) -> list[torch.Tensor]:
    """One expert's parts; each may be followed by padding, in rows and in columns."""
    rows = held.shape[0] // len(shapes)
    parts = []
    for number, shape in enumerate(shapes):
        part = held[number * rows :][: shape[0]]
        parts.append((part[:, : shape[1]] if len(shape) == 2 else part).contiguous())
    return parts


def _unpacked(held: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """One expert's weight [rows, columns] in the order it was loaded in."""
    if order is None:
        return held
    return held.reshape(-1)[order].view(held.shape)


@lru_cache(maxsize=8)
def _order(shape: tuple[int, int], dtype: torch.dtype, isa: str) -> torch.Tensor:
    """Where the packing puts each element: [rows * columns], int64."""
    from vllm._custom_ops import cpu_prepack_moe_weight

    places = torch.arange(shape[0] * shape[1], dtype=torch.int64).reshape(1, *shape)
    if dtype.itemsize == 4:
        packed = cpu_prepack_moe_weight(places.to(torch.int32).view(dtype), isa).view(torch.int32).long()
    else:  # 16 bits do not hold a place: the lower and the upper half are packed each by itself
        lower, upper = (
            cpu_prepack_moe_weight(half.to(torch.int16).view(dtype), isa).view(torch.int16).long()
            for half in (places & 0x7FFF, places >> 15)
        )
        packed = lower | (upper << 15)
    order = torch.empty(places.numel(), dtype=torch.int64)
    order[packed.reshape(-1)] = torch.arange(places.numel())
    return order
