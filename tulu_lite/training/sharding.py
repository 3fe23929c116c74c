"""What several processes, and weights that are spread over them, need. With one process all of it is trivial."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .zero import gathered, is_zero, master_weight, set_weight


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def from_all(value: Any) -> list[Any]:
    """Every process's value, by rank. Every process calls it."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def agree(error: BaseException | None) -> None:
    """Raise the error that any process had, on all: the others would wait for one that is gone."""
    first = next((found for found in from_all(error) if found is not None), None)
    if error is not None:
        raise error
    if first is not None:
        raise first


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that FSDP or ZeRO may have spread over processes; itself when none did."""
    if is_zero(tensor):
        master = master_weight(tensor)
        if master is not None:
            return master
        with gathered([tensor]):
            return tensor.detach().clone()
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def spread_like(value: Tensor, like: Any) -> Tensor:
    """A whole tensor, spread over processes as `like` is; itself where that is not spread or has another shape."""
    if hasattr(like, "device_mesh") and value.shape == like.shape:
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value


@torch.no_grad()
def assign(parameter: Tensor, value: Tensor) -> None:
    """Overwrite a parameter, spread or not, by a whole tensor."""
    if is_zero(parameter):
        set_weight(parameter, value)
        return
    parameter.copy_(spread_like(value, parameter))
