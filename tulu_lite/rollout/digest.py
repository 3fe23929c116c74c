"""A short digest of a set of tensors, the same in the process that writes them and in the one that reads them.

It guards against a torn, mixed-up or forgotten tensor, not against an enemy: XXH3 with 64 bits, at the speed of memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    import torch


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not copied. Works for bfloat16, which NumPy does not know."""
    import torch

    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def bytes_digest(tensor: torch.Tensor) -> int:
    """XXH3 of the bytes of a contiguous CPU tensor."""
    return xxhash.xxh3_64_intdigest(tensor_bytes(tensor))


def tensor_digest(tensor: torch.Tensor, known: int | None = None) -> str:
    """Type, shape and bytes_digest (computed, or known already) of a contiguous CPU tensor."""
    shape = "x".join(str(size) for size in tensor.shape)
    number = bytes_digest(tensor) if known is None else known
    return f"{str(tensor.dtype).removeprefix('torch.')}:{shape}:{number:016x}"


def combined_digest(digests: Mapping[str, str]) -> str:
    """One digest of {name: tensor_digest}; the order of names does not matter."""
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return f"{len(digests)}:{xxhash.xxh3_64_hexdigest(lines.encode())}"
