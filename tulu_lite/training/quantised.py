"""Frozen weights in 4 bits under adapters (QLoRA, Dettmers et al. 2023, arXiv:2305.14314), by bitsandbytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .optim import bitsandbytes


def loading_options(device: torch.device | str) -> dict[str, Any]:
    """What from_pretrained needs to load a model's linear layers as NF4, with quantised scales. Products are in bf16 on a
    GPU, in float32 on a CPU. Raises TuluLiteError where bitsandbytes is not there."""
    bitsandbytes("lora.quantise: nf4")
    from transformers import BitsAndBytesConfig

    on_gpu = torch.device(device).type == "cuda"
    config: Any = BitsAndBytesConfig
    return {
        "quantization_config": config(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if on_gpu else torch.float32,
        ),
        "device_map": {"": str(device)},
    }


def is_quantised(value: Any) -> bool:
    return getattr(value, "quant_state", None) is not None


def dequantised(value: Any) -> Tensor:
    """A quantised weight as the forward pass uses it, float32; any other as it is."""
    if not is_quantised(value):
        return value.detach()
    functional = bitsandbytes("a 4-bit weight").functional
    return functional.dequantize_4bit(value.data, value.quant_state).float()
