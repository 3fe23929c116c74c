"""GAE, token rewards, batch normalisation and the value loss: golden values by hand, and against the definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tulu_lite.objectives.advantages import (
    generalised_advantages,
    group_advantages,
    moments,
    normalised,
    token_rewards,
)
from tulu_lite.objectives.value import explained_variance, value_losses


def test_gae_by_hand() -> None:
    mask = torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0]])
    values = torch.tensor([[9.0, 0.5, 1.0, 2.0, 9.0], [9.0, 3.0, 9.0, 9.0, 9.0]])
    rewards = token_rewards(torch.tensor([10.0, 1.0]), mask)
    assert rewards.tolist() == [[0, 0, 0, 10, 0], [0, 1, 0, 0, 0]]
    advantages, returns = generalised_advantages(rewards, values, mask, gamma=0.5, lam=0.5)
    # t = 3: 10 - 2 = 8; t = 2: 0.5 * 2 - 1 + 0.25 * 8 = 2; t = 1: 0.5 * 1 - 0.5 + 0.25 * 2 = 0.5
    assert torch.allclose(advantages, torch.tensor([[0.0, 0.5, 2.0, 8.0, 0.0], [0.0, -2.0, 0.0, 0.0, 0.0]]))
    assert torch.allclose(returns, torch.tensor([[0.0, 1.0, 3.0, 10.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0]]))


@given(
    st.lists(st.floats(-3, 3), min_size=5, max_size=5),
    st.lists(st.floats(-3, 3), min_size=5, max_size=5),
    st.floats(0.1, 1),
    st.floats(0, 1),
)
def test_gae_is_the_weighted_sum_of_later_errors(
    rewards: list[float], values: list[float], gamma: float, lam: float
) -> None:
    """Equation 16 itself: A_t = sum_l (gamma lam)^l delta_{t+l}."""
    ahead = [*values[1:], 0.0]
    errors = [r + gamma * after - v for r, v, after in zip(rewards, values, ahead, strict=True)]
    wanted = [sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, 5)) for t in range(5)]
    tensors = [torch.tensor([row], dtype=torch.float64) for row in (rewards, values)]
    advantages, returns = generalised_advantages(*tensors, torch.ones(1, 5), gamma, lam)
    assert advantages[0].tolist() == pytest.approx(wanted, abs=1e-9)
    assert returns[0].tolist() == pytest.approx(
        [a + v for a, v in zip(wanted, values, strict=True)], abs=1e-9
    )


def test_with_lambda_1_the_return_is_what_follows() -> None:
    mask = torch.ones(1, 3)
    rewards = token_rewards(torch.tensor([2.0]), mask, torch.tensor([[0.1, 0.2, 0.3]]))
    assert torch.allclose(rewards, torch.tensor([[-0.1, -0.2, 1.7]]))
    _, returns = generalised_advantages(rewards, torch.tensor([[5.0, -5.0, 1.0]]), mask, 1.0, 1.0)
    assert torch.allclose(returns, torch.tensor([[1.4, 1.5, 1.7]]))


def test_a_row_without_tokens_has_nothing() -> None:
    mask = torch.zeros(1, 3)
    rewards = token_rewards(torch.tensor([2.0]), mask)
    advantages, returns = generalised_advantages(rewards, torch.ones(1, 3), mask, 1.0, 0.9)
    assert rewards.tolist() == advantages.tolist() == returns.tolist() == [[0.0] * 3]


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=12), st.integers(1, 11))
def test_normalising_in_parts_is_normalising_whole(values: list[float], cut: int) -> None:
    whole = torch.tensor(values, dtype=torch.float64)
    parts = [part for part in (whole[:cut], whole[cut:]) if len(part)]
    total = torch.stack([moments(part, torch.ones_like(part)) for part in parts]).sum(0)
    mine = torch.cat([normalised(part, total) for part in parts])
    std = whole.std(correction=0)
    if std > 1e-3:
        assert torch.allclose(mine, (whole - whole.mean()) / std, atol=1e-5)
    assert torch.isfinite(mine).all()


def test_equal_advantages_become_zero_and_masked_ones_do_not_count() -> None:
    values = torch.full((1, 4), 0.1)
    assert normalised(values, moments(values, torch.ones(1, 4))).tolist() == [[0.0] * 4]
    values, mask = torch.tensor([[1.0, 3.0, 100.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    assert moments(values, mask).tolist() == [2.0, 4.0, 10.0]
    assert normalised(values, moments(values, mask))[0, :2].tolist() == [-1.0, 1.0]


def test_reinforce_is_the_reward_itself() -> None:
    rewards = torch.tensor([[1.0, math.nan, 0.5]], dtype=torch.float64)
    assert group_advantages(rewards, "reinforce").tolist() == [[1.0, 0.0, 0.5]]


def test_value_loss_by_hand() -> None:
    new = torch.tensor([[1.0, 3.0, 0.1, -2.0]], requires_grad=True)
    old, returns = torch.zeros(1, 4), torch.tensor([[2.0, 2.0, 0.0, 0.0]])
    terms = value_losses(new, old, returns, 0.2)
    # clipped values 0.2, 0.2, 0.1, -0.2: errors max(1, 1.8^2), max(1, 1.8^2), 0.01, max(4, 0.04)
    assert torch.allclose(terms.loss, torch.tensor([[1.62, 1.62, 0.005, 2.0]]))
    assert terms.clipped.tolist() == [[True, True, False, False]]
    terms.loss.sum().backward()
    assert new.grad is not None
    assert torch.allclose(new.grad, torch.tensor([[0.0, 0.0, 0.1, -2.0]]))
    free = value_losses(new.detach(), old, returns, None)
    assert torch.allclose(free.loss, torch.tensor([[0.5, 0.5, 0.005, 2.0]]))
    assert not free.clipped.any()


def test_explained_variance() -> None:
    returns, values = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 4.0])
    ones = torch.ones(3)
    # Var(R) = 2/3; errors 0, 0, -1: variance 2/9
    found = explained_variance(moments(returns, ones), moments(returns - values, ones))
    assert float(found) == pytest.approx(1 - 1 / 3)
    assert float(explained_variance(moments(ones, ones), moments(ones - values, ones))) == 0.0
    nearly = torch.tensor([1.0, 1.0 + 2**-23, 1.0])  # the same, but for float32's rounding
    assert float(explained_variance(moments(nearly, ones), moments(nearly - values, ones))) == 0.0
