"""Log-probabilities tile by tile against the textbook, values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tulu_lite.training import head as module
from tulu_lite.training.head import Scaling, is_one_matrix, through, tiled_logprobs, tiled_sum

PLAIN = Scaling()
ALL = Scaling(factor=0.7, cap=2.0, temperature=0.6)


def example(
    n: int = 11, d: int = 5, v: int = 9, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((n, d), (v, d), (v,))
    )
    targets = torch.randint(0, v, (n,), generator=generator)
    return hidden, weight, bias, targets


def textbook(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, targets: torch.Tensor, scaling: Scaling
) -> tuple[torch.Tensor, torch.Tensor]:
    z = (hidden @ weight.T + bias) * scaling.factor
    if scaling.cap is not None:
        z = scaling.cap * torch.tanh(z / scaling.cap)
    log_p = (z / scaling.temperature).log_softmax(1)
    return log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(1)


def leaves(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.clone().requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("scaling", [PLAIN, ALL], ids=["plain", "scaled"])
@pytest.mark.parametrize("rows", [1, 4, 64])
def test_values_and_gradients(scaling: Scaling, rows: int) -> None:
    *inputs, targets = example()
    g, h = torch.randn(2, len(targets), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted_in, ours_in = leaves(*inputs), leaves(*inputs)
    wanted, entropy = textbook(*wanted_in, targets, scaling)
    ours, our_entropy = tiled_logprobs(*ours_in, targets, scaling, rows, entropy=True)
    assert (ours - wanted).abs().max() < 1e-12
    assert (our_entropy - entropy).abs().max() < 1e-12
    (wanted * g + entropy * h).sum().backward()
    (ours * g + our_entropy * h).sum().backward()
    for one, other in zip(wanted_in, ours_in, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert (one.grad - other.grad).abs().max() < 1e-12


@pytest.mark.parametrize("which", ["logprobs", "entropy"])
def test_either_gradient_alone(which: str) -> None:
    *inputs, targets = example()
    wanted_in, ours_in = leaves(*inputs), leaves(*inputs)
    place = ["logprobs", "entropy"].index(which)
    textbook(*wanted_in, targets, ALL)[place].sum().backward()
    tiled_logprobs(*ours_in, targets, ALL, 4, entropy=True)[place].sum().backward()
    for one, other in zip(wanted_in, ours_in, strict=True):
        assert (one.grad - other.grad).abs().max() < 1e-12  # type: ignore[operator]


@pytest.mark.parametrize("scaling", [PLAIN, ALL], ids=["plain", "scaled"])
@pytest.mark.parametrize("trained", ["all", "hidden"])
def test_sum_and_its_gradient(scaling: Scaling, trained: str) -> None:
    hidden, weight, bias, targets = example()
    wanted_in, ours_in = (leaves(hidden, weight, bias) for _ in range(2))
    if trained == "hidden":  # a frozen head, under adapters
        for tensor in (*wanted_in[1:], *ours_in[1:]):
            tensor.requires_grad_(False)
    wanted = textbook(*wanted_in, targets, scaling)[0].sum()
    ours = tiled_sum(*ours_in, targets, scaling, 4)
    assert ours.item() == pytest.approx(wanted.item(), abs=1e-12)
    (wanted * -0.3).backward()
    (ours * -0.3).backward()
    for one, other in zip(wanted_in, ours_in, strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None and other.grad is not None:
            assert (one.grad - other.grad).abs().max() < 1e-12


def test_sum_without_gradient() -> None:
    *inputs, targets = example()
    with torch.no_grad():
        ours = tiled_sum(*leaves(*inputs), targets, ALL, 4)
    assert ours.item() == pytest.approx(textbook(*inputs, targets, ALL)[0].sum().item(), abs=1e-12)
    assert not ours.requires_grad


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(1, 12), st.integers(2, 30), st.integers(1, 25), st.integers(0, 99))
def test_any_shape(n: int, d: int, v: int, rows: int, seed: int) -> None:
    hidden, weight, bias, targets = example(n, d, v, seed)
    wanted, entropy = textbook(hidden, weight, bias, targets, PLAIN)
    ours, our_entropy = tiled_logprobs(hidden, weight, bias, targets, PLAIN, rows, entropy=True)
    assert (ours - wanted).abs().max() < 1e-12
    assert (our_entropy - entropy).abs().max() < 1e-11
    assert tiled_sum(hidden, weight, bias, targets, PLAIN, rows).item() == pytest.approx(
        wanted.sum().item(), abs=1e-10
    )


def test_extreme_logits_stay_finite() -> None:
    hidden, weight, bias, targets = example()
    (big,) = leaves(hidden * 1e4)
    ours, entropy = tiled_logprobs(big, weight, bias, targets, PLAIN, 3, entropy=True)
    (ours.sum() + entropy.sum()).backward()
    assert ours.isfinite().all()
    assert entropy.isfinite().all()
    assert big.grad is not None
    assert big.grad.isfinite().all()


def test_16_bit_factors_have_float32_sums() -> None:
    hidden, weight, bias, targets = example(n=200, d=16, v=50)
    narrow_in = leaves(*(tensor.bfloat16() for tensor in (hidden, weight, bias)))
    wide_in = leaves(*(tensor.detach().float() for tensor in narrow_in))
    total = tiled_sum(*narrow_in, targets, PLAIN, 7)
    assert total.dtype == torch.float32
    total.backward()
    textbook(*wide_in, targets, PLAIN)[0].sum().backward()
    for one, other in zip(wide_in, narrow_in, strict=True):
        assert other.grad is not None
        assert other.grad.dtype == torch.bfloat16
        assert torch.allclose(one.grad, other.grad.float(), rtol=0.05, atol=0.3)  # type: ignore[arg-type]


def test_which_heads_are_one_matrix() -> None:
    class Engine(nn.Linear):
        """As FSDP2 makes of a module that it wraps."""

    class Adapted(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) + 1

    assert is_one_matrix(nn.Linear(4, 9))
    assert is_one_matrix(Engine(4, 9))
    assert not is_one_matrix(Adapted(4, 9))
    assert not is_one_matrix(nn.Sequential(nn.Linear(4, 9)))
    quantised = nn.Linear(4, 9)
    quantised.weight = nn.Parameter(torch.zeros(18, 1, dtype=torch.uint8), requires_grad=False)
    assert not is_one_matrix(quantised)


def test_hooks_of_the_head_run_once_around_all_tiles() -> None:
    """As an engine gathers a weight that is spread: before the forward pass, and before the backward pass."""
    hidden, weight, bias, targets = example()
    head = nn.Linear(5, 9).double()
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    calls: list[str] = []
    head.register_forward_pre_hook(lambda *_: calls.append("forward"))
    head.register_full_backward_pre_hook(lambda *_: calls.append("backward"))
    (inputs,) = leaves(hidden)
    total = through(head, inputs, lambda h, w, b: tiled_sum(h, w, b, targets, PLAIN, 2))
    total.backward()
    assert calls == ["forward", "backward"]
    assert total.item() == pytest.approx(textbook(hidden, weight, bias, targets, PLAIN)[0].sum().item())
    assert torch.equal(head(hidden), nn.functional.linear(hidden, head.weight, head.bias))  # it is as it was


def test_tiles_have_a_size() -> None:
    hidden = torch.zeros(1, 4)
    assert module.chunk_rows(hidden, 1000, None) == (1 << 22) // 1000
    assert module.chunk_rows(hidden, 128_000, None) == 64  # at least so many, or the weight is read too often
    assert module.chunk_rows(hidden, 1000, 100) == 100
