"""GSPO, CISPO, the dual clip, aggregation by a constant, and the weights for a sampler that differs, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tulu_lite.objectives.kl import kl_loss
from tulu_lite.objectives.policy import (
    aggregation_weights,
    cispo_surrogate,
    clipped_surrogate,
    gspo_surrogate,
    mismatch_weights,
)


def logs(*ratios: float) -> torch.Tensor:
    return torch.log(torch.tensor([ratios]))


def test_the_dual_clip_bounds_what_a_bad_token_costs() -> None:
    new = logs(5.0, 2.0, 0.5, 5.0).requires_grad_()
    advantage = torch.tensor([[-1.0, -1.0, -1.0, 1.0]])
    terms = clipped_surrogate(new, torch.zeros(1, 4), advantage, 0.2, 0.2, dual_clip=3.0)
    # A < 0: min(-5, -1.2) = -5, bounded to -3; min(-2, -1.2) = -2; min(-0.5, -0.8) = -0.8. A > 0: 1.2, no bound
    assert torch.allclose(terms.loss, torch.tensor([[3.0, 2.0, 0.8, -1.2]]))
    assert terms.clipped.tolist() == [[True, False, True, True]]
    terms.loss.sum().backward()
    assert new.grad is not None
    assert torch.allclose(new.grad, torch.tensor([[0.0, 2.0, 0.0, 0.0]]))


def test_gspo_uses_the_geometric_mean_of_the_response() -> None:
    new = logs(2.0, 0.5, 4.0, 9.0).requires_grad_()
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    ratio = 4.0 ** (1 / 3)  # (2 * 0.5 * 4)^(1/3); the last token is no part of the response
    terms = gspo_surrogate(new, torch.zeros(1, 4), torch.tensor([[2.0]]), mask, 0.2, 10.0)
    assert torch.allclose(terms.ratio, torch.full((1, 4), ratio))
    assert torch.allclose(terms.loss, torch.full((1, 4), -2.0 * ratio))
    (terms.loss * aggregation_weights(mask, "sequence", 3, 1)).sum().backward()
    assert new.grad is not None
    assert torch.allclose(new.grad, torch.tensor([[1.0, 1.0, 1.0, 0.0]]) * -2.0 * ratio / 3)
    bounded = gspo_surrogate(new, torch.zeros(1, 4), torch.tensor([[2.0]]), mask, 0.2, 0.1)
    assert bounded.clipped.all()
    assert torch.allclose(bounded.loss, torch.full((1, 4), -2.2))


def test_cispo_clips_the_weight_and_keeps_every_gradient() -> None:
    new = logs(4.0, 0.5, 1.0).requires_grad_()
    terms = cispo_surrogate(new, torch.zeros(1, 3), torch.tensor([[2.0]]), 1.0, 0.5)
    # weights 1.5, 0.5, 1: no lower bound with low = 1
    wanted = torch.tensor([[-1.5 * 2 * math.log(4), -0.5 * 2 * math.log(0.5), 0.0]])
    assert torch.allclose(terms.loss, wanted)
    assert terms.clipped.tolist() == [[True, False, False]]
    terms.loss.sum().backward()
    assert new.grad is not None
    assert torch.allclose(new.grad, torch.tensor([[-3.0, -1.0, -2.0]]))
    low = cispo_surrogate(new, torch.zeros(1, 3), torch.tensor([[2.0]]), 0.2, 0.5)
    assert low.clipped.tolist() == [[True, True, False]]


@given(st.lists(st.floats(-2, 2), min_size=4, max_size=4), st.floats(-3, 3))
def test_on_policy_all_three_have_the_policy_gradient(values: list[float], advantage: float) -> None:
    """With the same weights for every token, at ratio 1."""
    mask = torch.ones(1, 4, dtype=torch.float64)
    weight = torch.tensor([[advantage]], dtype=torch.float64)
    gradients = []
    for loss in ("clipped", "gspo", "cispo"):
        new = torch.tensor([values], dtype=torch.float64, requires_grad=True)
        old = new.detach()
        if loss == "clipped":
            terms = clipped_surrogate(new, old, weight, 0.2, 0.2)
        elif loss == "gspo":
            terms = gspo_surrogate(new, old, weight, mask, 0.2, 0.2)
        else:
            terms = cispo_surrogate(new, old, weight, 0.2, 0.2)
        (terms.loss * aggregation_weights(mask, "sequence", 4, 1)).sum().backward()
        assert new.grad is not None
        assert not terms.clipped.any()
        gradients.append(new.grad)
    assert torch.allclose(gradients[0], torch.full((1, 4), -advantage / 4, dtype=torch.float64))
    assert torch.allclose(gradients[0], gradients[1])
    assert torch.allclose(gradients[0], gradients[2])


def test_a_constant_gives_a_token_the_same_weight_in_every_response() -> None:
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0] * 4])
    assert torch.allclose(aggregation_weights(mask, "constant", 4, 2, constant=8), mask / 16)


TRAINER, SAMPLER = torch.log(torch.tensor([[4.0, 0.5, 3.0]])), torch.zeros(1, 3)
MASK = torch.tensor([[1.0, 1.0, 0.0]])


@pytest.mark.parametrize(
    ("how", "level", "wanted"),
    [
        ("truncate", "token", [2.0, 0.5, 1.0]),
        ("mask", "token", [0.0, 0.5, 1.0]),
        ("truncate", "sequence", [2.0, 2.0, 2.0]),  # 4 * 0.5, the last token is no part of it
        ("mask", "sequence", [2.0, 2.0, 2.0]),
    ],
)
def test_mismatch_weights_by_hand(how: str, level: str, wanted: list[float]) -> None:
    weights = mismatch_weights(TRAINER, SAMPLER, MASK, how, level, 0.5, 2.0)  # type: ignore[arg-type]
    assert torch.allclose(weights, torch.tensor([wanted]))
    assert not weights.requires_grad


def test_a_response_that_the_two_disagree_on_is_masked_whole() -> None:
    trainer = torch.log(torch.tensor([[0.9, 0.5], [1.1, 0.9]]))
    weights = mismatch_weights(trainer, torch.zeros(2, 2), torch.ones(2, 2), "mask", "sequence", 0.5, 2.0)
    assert torch.allclose(weights, torch.tensor([[0.0, 0.0], [0.99, 0.99]]))
    huge = mismatch_weights(torch.full((1, 9), 50.0), torch.zeros(1, 9), torch.ones(1, 9), "mask", "sequence", 0.5, 2.0)  # fmt: skip
    assert (huge == 0).all()


def test_k1_in_the_loss_has_its_value_and_the_gradient_of_k2() -> None:
    new = torch.tensor([-1.0, -2.0], requires_grad=True)
    term = kl_loss(new, torch.tensor([-1.5, -1.0]), "k1")
    assert torch.allclose(term, torch.tensor([0.5, -1.0]))
    term.sum().backward()
    assert new.grad is not None
    assert torch.allclose(new.grad, torch.tensor([0.5, -1.0]))
