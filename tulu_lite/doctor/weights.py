"""Whether two sets of weights are the same, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from ..training.model import merged_weights

ROUNDED = 1e-2  # relative difference that storing in a 16-bit type may make


def differing(model: nn.Module, files: Sequence[Path]) -> tuple[list[tuple[str, float]], int]:
    """([(name, relative L2 difference), largest first], how many tensors were compared).

    A tensor that files hold in a 16-bit type may differ by its rounding. Names on one side alone (tied copies) are
    not compared.
    """
    held: dict[str, Path] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            held |= dict.fromkeys(opened.keys(), file)
    found = []
    compared = 0
    for name, tensor in merged_weights(model):
        if name not in held:
            continue
        compared += 1
        with safe_open(held[name], framework="pt") as opened:
            other = opened.get_tensor(name)
        mine = tensor.detach().cpu().float()
        allowed = (
            ROUNDED if torch.finfo(other.dtype).bits < 32 or torch.finfo(tensor.dtype).bits < 32 else 0.0
        )
        size = (
            float((mine - other.float()).norm() / mine.norm().clamp_min(1e-30))
            if mine.shape == other.shape
            else 1.0
        )
        if size > allowed:
            found.append((name, size))
    return sorted(found, key=lambda item: -item[1]), compared
