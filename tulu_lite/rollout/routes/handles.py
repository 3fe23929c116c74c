"""CUDA IPC handles as JSON: what torch's reduce_tensor gives, without pickle, which would run whatever it is sent."""

from __future__ import annotations

import base64
from typing import Any

import torch

# The arguments of torch.multiprocessing.reductions.rebuild_cuda_tensor, in order; the two classes are always the same.
_FIELDS = (
    "size", "stride", "offset", "dtype", "device", "handle", "storage_bytes", "storage_offset", "requires_grad",
    "counter_handle", "counter_offset", "event_handle", "event_sync",
)  # fmt: skip


def handle_to_json(arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Raises ValueError when it is no plain tensor's."""
    if len(arguments) != len(_FIELDS) + 2 or not issubclass(arguments[0], torch.Tensor):
        raise ValueError("these are not the arguments of rebuild_cuda_tensor")
    values = dict(zip(_FIELDS, (*arguments[1:4], *arguments[5:]), strict=True))
    return {name: _plain(value) for name, value in values.items()}


def handle_from_json(data: dict[str, Any]) -> tuple[Any, ...]:
    """What handle_to_json was given. Raises KeyError, ValueError on anything else."""
    values = [_rich(name, data[name]) for name in _FIELDS]
    return (torch.Tensor, *values[:3], torch.storage.TypedStorage, *values[3:])


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return list(value) if isinstance(value, (tuple, torch.Size)) else value


def _rich(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return base64.b64decode(value["bytes"], validate=True)
    if name == "dtype":
        dtype = getattr(torch, str(value), None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{value!r} is no type of a tensor")
        return dtype
    if name == "size":
        return torch.Size(value)
    return tuple(value) if isinstance(value, list) else value
