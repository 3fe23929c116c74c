"""A short digest of a set of tensors, the same in the process that writes them and in the one that reads them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not copied. Works for bfloat16, which NumPy does not know."""
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy().data


def tensor_digest(tensor: torch.Tensor) -> str:
    """Type, shape and CRC-32 of the bytes of a contiguous CPU tensor."""
    shape = "x".join(str(size) for size in tensor.shape)
    return f"{str(tensor.dtype).removeprefix('torch.')}:{shape}:{zlib.crc32(tensor_bytes(tensor)):08x}"


def combined_digest(digests: Mapping[str, str]) -> str:
    """One digest of {name: tensor_digest}; the order of names does not matter."""
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return f"{len(digests)}:{zlib.crc32(lines.encode()):08x}"
