"""A checksum of a tensor's bits on any device."""

from __future__ import annotations

import torch

from .digest import bytes_digest

_ELEMENTS_AT_ONCE = 1 << 23  # 64 MiB as int64


def fingerprint(tensor: torch.Tensor) -> int:
    """A checksum of the bits, in order: XXH3 on the CPU, on other devices a sum weighted by position, mod 2^64.

    The two differ: compare only what was taken on the same device.
    """
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.device.type == "cpu":
        return bytes_digest(flat)
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}[flat.element_size()]
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for start in range(0, flat.numel(), _ELEMENTS_AT_ONCE):
        chunk = flat[start : start + _ELEMENTS_AT_ONCE].view(integers).to(torch.int64)
        first = 2 * start + 1
        total += (
            chunk * torch.arange(first, first + 2 * chunk.numel(), 2, device=flat.device, dtype=torch.int64)
        ).sum()
    return int(total)
