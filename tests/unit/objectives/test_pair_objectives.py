"""Losses on pairs: golden values worked out by hand, and what must hold for any values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tulu_lite.objectives.dpo import preference_losses
from tulu_lite.objectives.reward import bradley_terry_losses

H = torch.tensor([2.0, 0.0, -3.0], dtype=torch.float64)


def softplus(x: float) -> float:
    """-log sigmoid(-x)"""
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("objective", "options", "golden"),
    [
        # beta h = 1, 0, -1.5
        ("dpo", {}, [softplus(-1.0), math.log(2), softplus(1.5)]),
        (
            "dpo",
            {"label_smoothing": 0.25},
            [
                0.75 * softplus(-1.0) + 0.25 * softplus(1.0),
                math.log(2),
                0.75 * softplus(1.5) + 0.25 * softplus(-1.5),
            ],
        ),
        # 1 / (2 beta) = 1: (2 - 1)^2, (0 - 1)^2, (-3 - 1)^2
        ("ipo", {}, [1.0, 1.0, 16.0]),
        (
            "robust",
            {"label_smoothing": 0.25},
            [
                (0.75 * softplus(-1.0) - 0.25 * softplus(1.0)) / 0.5,
                math.log(2),
                (0.75 * softplus(1.5) - 0.25 * softplus(-1.5)) / 0.5,
            ],
        ),
        ("hinge", {}, [0.0, 1.0, 2.5]),
        # beta d - gamma = 0.7, -0.3, -1.8
        ("simpo", {"gamma": 0.3}, [softplus(-0.7), softplus(0.3), softplus(1.8)]),
    ],
)
def test_losses_by_hand(objective, options, golden) -> None:
    losses, margin = preference_losses(objective, H, 0.5, **options)
    assert losses.tolist() == pytest.approx(golden, rel=1e-12)
    assert margin.tolist() == [1.0, 0.0, -1.5]


@pytest.mark.parametrize(
    ("objective", "options", "slope"),
    [
        # d loss / d h at h = 2, beta = 0.5
        ("dpo", {}, -0.5 / (1 + math.e)),
        ("ipo", {}, 2.0),
        ("hinge", {}, 0.0),
        ("simpo", {"gamma": 1.0}, -0.25),
    ],
)
def test_slopes_by_hand(objective, options, slope) -> None:
    h = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    losses, margin = preference_losses(objective, h, 0.5, **options)
    losses.sum().backward()
    assert h.grad is not None and h.grad.item() == pytest.approx(slope)
    assert not margin.requires_grad


numbers = st.floats(-30, 30)


@settings(max_examples=60)
@given(st.lists(numbers, min_size=1, max_size=5), st.floats(0.01, 10), st.floats(0, 0.49))
def test_the_robust_loss_is_unbiased_under_flipped_labels(values, beta, epsilon) -> None:
    """Its mean over labels that are wrong with probability epsilon is the loss of the right ones (arXiv:2403.00409)."""
    h = torch.tensor(values, dtype=torch.float64)
    right, _ = preference_losses("robust", h, beta, label_smoothing=epsilon)
    wrong, _ = preference_losses("robust", -h, beta, label_smoothing=epsilon)
    clean, _ = preference_losses("dpo", h, beta)
    torch.testing.assert_close((1 - epsilon) * right + epsilon * wrong, clean, atol=1e-6, rtol=1e-8)


@settings(max_examples=60)
@given(st.lists(numbers, min_size=2, max_size=6), st.floats(0.01, 10))
def test_what_holds_for_every_objective(values, beta) -> None:
    h = torch.tensor(sorted(values), dtype=torch.float64)
    for objective in ("dpo", "robust", "hinge", "simpo"):
        losses, _ = preference_losses(objective, h, beta)
        assert bool((losses >= 0).all())
        assert bool((losses[1:] <= losses[:-1] + 1e-12).all())  # the better the pair, the lower the loss
    plain, smooth = (preference_losses("dpo", h, beta, label_smoothing=e)[0] for e in (0.0, 0.5))
    torch.testing.assert_close(smooth, preference_losses("dpo", -h, beta, label_smoothing=0.5)[0])
    torch.testing.assert_close(plain, preference_losses("simpo", h, beta, gamma=0.0)[0])
    least = preference_losses("ipo", torch.tensor([1 / (2 * beta)], dtype=torch.float64), beta)[0]
    assert least.item() == pytest.approx(0)


def test_reward_losses_by_hand() -> None:
    chosen, rejected = torch.tensor([2.0, 0.5]).double(), torch.tensor([1.0, 1.5]).double()
    assert bradley_terry_losses(chosen, rejected).tolist() == pytest.approx([softplus(-1.0), softplus(1.0)])
    assert bradley_terry_losses(chosen, rejected, 0.5).tolist() == pytest.approx(
        [softplus(-0.5), softplus(1.5)]
    )
    margins = torch.tensor([0.0, 2.0]).double()
    assert bradley_terry_losses(chosen, rejected, margins, 0.1).tolist() == pytest.approx(
        [softplus(-1.0) + 0.9, softplus(3.0) + 0.4]
    )


@settings(max_examples=60)
@given(numbers, numbers, numbers, st.floats(0, 5))
def test_only_centring_sees_a_shift_of_all_rewards(chosen, rejected, shift, margin) -> None:
    def loss(c: float, r: float, centring: float = 0.0) -> float:
        chosen_B, rejected_B = torch.tensor([[c], [r]], dtype=torch.float64)
        return bradley_terry_losses(chosen_B, rejected_B, margin, centring).item()

    assert loss(chosen + shift, rejected + shift) == pytest.approx(loss(chosen, rejected), abs=1e-9)
    middle = (chosen + rejected) / 2
    assert loss(chosen - middle, rejected - middle, 1.0) <= loss(chosen, rejected, 1.0) + 1e-9
