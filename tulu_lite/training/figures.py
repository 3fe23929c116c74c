"""How fast training is: tokens a second, the share of padding, model FLOPs utilisation, memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .model import unwrapped
from .zero import shape_of

# Peak of dense bf16 (fp16) matrix products in FLOP/s, from the vendors' data sheets; the first name that fits counts.
PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H20": 148e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 6000 Ada": 364e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Of a device in a 16-bit type; None where it is not known, and on CPUs."""
    if device.type != "cuda" or precision not in ("bf16", "fp16"):
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_FLOPS.items() if known in name), None)


class ModelFlops:
    """FLOPs that a training step needs whatever does it (Chowdhery et al. 2022, arXiv:2204.02311, appendix B): of each
    token 6 for a weight of a matrix that is trained, 4 for one that is frozen (its own gradient is not needed), and of
    attention what causality leaves, 6 L H Q l for a sequence of l tokens (half of the paper's 12). Activations that are
    computed again do not count. None for a mixture of experts, whose tokens do not use all weights."""

    def __init__(self, model: nn.Module) -> None:
        inner: Any = unwrapped(model)
        config = inner.config.get_text_config()
        experts = any(
            getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")
        )
        self.known = not experts
        embeddings = inner.get_input_embeddings().weight
        tied = bool(getattr(config, "tie_word_embeddings", False))
        self.per_token = 0
        for parameter in inner.parameters():
            shape = shape_of(parameter)
            if len(shape) >= 2 and (parameter is not embeddings or tied):
                self.per_token += (6 if parameter.requires_grad else 4) * _product(shape)
        heads = getattr(config, "num_attention_heads", 0)
        size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
        self.attention = 6 * getattr(config, "num_hidden_layers", 0) * heads * size

    def of(self, lengths: Sequence[float]) -> float | None:
        """Of sequences of these many tokens."""
        if not self.known:
            return None
        return self.per_token * sum(lengths) + self.attention * sum(length * length for length in lengths)


def _product(shape: Sequence[int]) -> int:
    found = 1
    for size in shape:
        found *= size
    return found


def peak_memory_gb(device: torch.device) -> float:
    """The most that this process has held so far: of the GPU's memory, or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
