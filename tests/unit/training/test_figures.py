from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from tulu_lite.recipe.training import LoraSettings
from tulu_lite.training import figures
from tulu_lite.training.figures import ModelFlops, peak_flops, peak_memory_gb
from tulu_lite.training.logprobs import LogprobModel
from tulu_lite.training.model import load_model

Folder = Callable[..., Path]
LAYER = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48  # q, k and v (one head of two), o, the gated MLP
HEAD = 40 * 32


@pytest.mark.parametrize("tied", [True, False])
def test_flops_by_hand(llama_folder: Folder, tied: bool) -> None:
    flops = ModelFlops(load_model(llama_folder(tied=tied), "cpu"))
    weights = 2 * LAYER + HEAD  # the embedding itself multiplies nothing
    assert flops.of([10]) == 6 * weights * 10 + 6 * 2 * 2 * 16 * 100
    assert flops.of([10, 4]) == flops.of([10]) + flops.of([4])  # type: ignore[operator]


def test_frozen_weights_need_no_gradient(llama_folder: Folder) -> None:
    model = load_model(llama_folder(), "cpu", lora=LoraSettings(rank=2, targets=("q_proj",)))
    adapters = 2 * 2 * (32 * 2)
    assert ModelFlops(model).of([1]) == 4 * (2 * LAYER + HEAD) + 6 * adapters + 6 * 2 * 2 * 16


def test_experts_are_not_counted() -> None:
    config = Qwen3MoeConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=4,
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8,
    )  # fmt: skip
    assert ModelFlops(LogprobModel(Qwen3MoeForCausalLM(config))).of([3]) is None


def test_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops(torch.device("cpu"), "bf16") is None
    gpu = torch.device("cuda")
    for name, peak in (
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10G", 70e12),
        ("Some Other Card", None),
    ):
        monkeypatch.setattr(
            figures, "torch", SimpleNamespace(cuda=SimpleNamespace(get_device_name=lambda _, n=name: n))
        )
        assert peak_flops(gpu, "bf16") == peak, name
        assert peak_flops(gpu, "no") is None


def test_memory_is_in_gigabytes() -> None:
    assert 0.05 < peak_memory_gb(torch.device("cpu")) < 1000
