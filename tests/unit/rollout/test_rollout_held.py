"""What a model holds, by parameter: fused, tied, padded, packed, experts, buffers; and each way of being wrong."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tulu_lite.rollout import held_experts
from tulu_lite.rollout.fingerprint import fingerprint
from tulu_lite.rollout.held import HeldWeights, tied_layers

E, WIDE, HIDDEN = 3, 4, 8


class Fused(nn.Module):
    """As vLLM's QKV layer: the rows of three matrices, and of three biases, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, HIDDEN))
        self.bias = nn.Parameter(torch.randn(12))


class Packed(nn.Module):
    """As vLLM's linear layers on the CPU: the weight is gone, a kernel holds a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0))
        self.kept = torch.randn(6, HIDDEN)
        self.input_size = HIDDEN
        self.cpu_linear = True
        self.quant_method = SimpleNamespace(apply=lambda layer, x, bias: x @ layer.kept.T)


class Experts(nn.Module):
    def __init__(self, backend: str = "TRITON") -> None:
        super().__init__()
        self.w13_weight = nn.Parameter(torch.randn(E, 2 * WIDE, HIDDEN))
        self.w2_weight = nn.Parameter(torch.randn(E, HIDDEN, WIDE))
        self.ckpt_gate_proj_name, self.ckpt_up_proj_name = "gate_proj", "up_proj"
        self.ckpt_down_proj_name, self.global_num_experts = "down_proj", E
        kernel = SimpleNamespace(fused_experts=SimpleNamespace(_use_zentorch=False, isa="vec"))
        self.quant_method = SimpleNamespace(
            unquantized_backend=SimpleNamespace(name=backend), moe_kernel=kernel
        )


class Model(nn.Module):
    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}  # noqa: RUF012

    def __init__(self, backend: str = "TRITON") -> None:
        super().__init__()
        self.embed = nn.Embedding(10, HIDDEN)
        self.qkv_proj, self.down, self.experts = Fused(), Packed(), nn.Module()
        self.experts.routed_experts = Experts(backend)
        self.norm = nn.LayerNorm(HIDDEN)
        self.head = nn.Linear(HIDDEN, 10, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("rope", torch.randn(5))


def checkpoint(model: Any) -> dict[str, torch.Tensor]:
    """The model's weights under checkpoint names; the embedding without its padding of two rows."""
    weights = {"embed.weight": model.embed.weight[:8], "down.weight": model.down.kept}
    for leaf in ("weight", "bias"):
        parts = getattr(model.qkv_proj, leaf).split([6, 3, 3])
        weights |= {
            f"{name}.{leaf}": part for name, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True)
        }
        weights[f"norm.{leaf}"] = getattr(model.norm, leaf)
    experts = model.experts.routed_experts
    for number in range(E):
        weights[f"experts.{number}.gate_proj.weight"] = experts.w13_weight[number, :WIDE]
        weights[f"experts.{number}.up_proj.weight"] = experts.w13_weight[number, WIDE:]
        weights[f"experts.{number}.down_proj.weight"] = experts.w2_weight[number]
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def verdict(model: Any, sent: dict[str, torch.Tensor], sharded: bool = False) -> Any:
    held = HeldWeights(model, torch.float32, tied_layers(model), sharded)
    for name, tensor in sent.items():
        held.expect(name, tensor)
    return held.compare()


@torch.no_grad()
def test_every_parameter_and_buffer_is_compared():
    model = Model()
    found = verdict(model, checkpoint(model))
    assert found == ([], 10, [])  # embed, head (tied), qkv x 2, down, w13, w2, norm x 2, and the rope table
    assert verdict(model, checkpoint(model), sharded=True).unchecked == [
        "embed.weight", "qkv_proj.weight", "qkv_proj.bias", "down.weight", "experts.routed_experts.w13_weight",
        "experts.routed_experts.w2_weight", "norm.weight", "norm.bias", "head.weight",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("embed.weight", "embed.weight"),
        ("qkv_proj.weight", "qkv_proj.weight"),
        ("qkv_proj.bias", "qkv_proj.bias"),
        ("norm.weight", "norm.weight"),
        ("norm.bias", "norm.bias"),
        ("down.kept", "down.weight"),
        ("experts.routed_experts.w13_weight", "experts.routed_experts.w13_weight"),
        ("experts.routed_experts.w2_weight", "experts.routed_experts.w2_weight"),
        ("rope", "rope"),
    ],
)
@torch.no_grad()
def test_one_element_that_differs_is_found(path, where):
    model = Model()
    sent = checkpoint(model)
    held = HeldWeights(model, torch.float32, tied_layers(model), False)
    for name, tensor in sent.items():
        held.expect(name, tensor)
    tensor = model.get_submodule(path.rpartition(".")[0])
    value = getattr(tensor, path.rpartition(".")[2])
    value.view(-1)[1] += 1e-3
    assert where in held.compare().wrong


@pytest.mark.parametrize("name", ["k_proj.weight", "v_proj.bias", "experts.1.up_proj.weight", "norm.bias"])
@torch.no_grad()
def test_what_was_not_sent_is_wrong_although_it_is_still_right(name):
    model = Model()
    sent = checkpoint(model)
    del sent[name]
    assert len(verdict(model, sent).wrong) == 1


@torch.no_grad()
def test_swapped_parts_of_one_size_are_found():
    model = Model()
    sent = checkpoint(model)
    for one, other in (
        ("k_proj.weight", "v_proj.weight"),
        ("experts.0.gate_proj.weight", "experts.0.up_proj.weight"),
    ):
        swapped = sent | {one: sent[other], other: sent[one]}
        assert len(verdict(model, swapped).wrong) == 1


@torch.no_grad()
def test_experts_that_a_kernel_shuffles_are_not_said_to_be_checked():
    model = Model("FLASHINFER_CUTLASS")
    found = verdict(model, checkpoint(model))
    assert found.wrong == []
    assert found.unchecked == ["experts.routed_experts.w13_weight", "experts.routed_experts.w2_weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_packed_experts_are_put_back_in_order(monkeypatch, dtype):
    """With a packing of the test's own: transposed, and padded from 4 to 6 rows a projection; larger than 2^15."""
    hidden = 4096
    ops = SimpleNamespace(cpu_prepack_moe_weight=lambda w, isa: w.transpose(1, 2).contiguous().view(w.shape))
    monkeypatch.setitem(sys.modules, "vllm._custom_ops", ops)
    held_experts._order.cache_clear()
    layer = Experts("CPU")
    gates = [torch.randn(WIDE, hidden).to(dtype) for _ in range(2 * E)]
    padded = torch.zeros(E, 2, 6, hidden, dtype=dtype)
    for number, gate in enumerate(gates):
        padded[number // 2, number % 2, :WIDE] = gate
    layer.w13_weight = nn.Parameter(ops.cpu_prepack_moe_weight(padded.view(E, 12, hidden), "vec"))
    pieces = held_experts.held_parts(layer, "w13_weight", [gates[0].shape] * 2)
    assert pieces is not None
    assert all(
        torch.equal(piece, gate)
        for piece, gate in zip([p for parts in pieces for p in parts], gates, strict=True)
    )
    held_experts._order.cache_clear()


def test_fingerprint_sees_order_and_type():
    one = torch.tensor([1.0, 2.0, 3.0])
    assert fingerprint(one) != fingerprint(one.flip(0))
    assert fingerprint(one) != fingerprint(one.bfloat16())
    assert fingerprint(one) == fingerprint(one.reshape(3, 1).expand(3, 1))
