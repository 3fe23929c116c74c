from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tulu_lite.objectives.advantages import group_advantages, has_signal
from tulu_lite.objectives.dpo import dpo_losses, sequence_logprob
from tulu_lite.objectives.kl import kl_estimate
from tulu_lite.objectives.policy import aggregation_weights, clipped_surrogate
from tulu_lite.objectives.sft import token_loss
from tulu_lite.objectives.signal import differ


def test_sft_by_hand() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -4.0], [-8.0, -16.0, -32.0]])
    mask = torch.tensor([[1, 0, 1], [0, 1, 0]])
    assert token_loss(logprobs, mask, 3).item() == pytest.approx((1 + 4 + 16) / 3)
    parts = [token_loss(logprobs[i : i + 1], mask[i : i + 1], 3) for i in range(2)]
    assert torch.stack(parts).sum().item() == pytest.approx(7.0)


def test_dpo_by_hand() -> None:
    chosen = torch.tensor(
        [[-4.0, -6.0, 0.0, 9.0], [-5.0, 9.0, 9.0, 9.0]], requires_grad=True
    )  # [B, T]; 9 is masked
    rejected = torch.tensor([[-3.0, -3.0, -3.0, -3.0], [-5.0, 9.0, 9.0, 9.0]], requires_grad=True)
    chosen_mask, rejected_mask = (
        torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]),
        torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]),
    )
    plain, margin = dpo_losses(
        sequence_logprob(chosen, chosen_mask, False), sequence_logprob(rejected, rejected_mask, False),
        torch.tensor([-11.0, -5.0]), torch.tensor([-10.0, -5.0]), 0.1,
    )  # fmt: skip
    # pair 0: 0.1 * ((-10 - -11) - (-12 - -10)) = 0.3
    assert plain.tolist() == pytest.approx([math.log(1 + math.exp(-0.3)), math.log(2)])
    assert margin.tolist() == pytest.approx([0.3, 0.0], abs=1e-6)
    assert not margin.requires_grad
    normal, margin = dpo_losses(
        sequence_logprob(chosen, chosen_mask, True), sequence_logprob(rejected, rejected_mask, True),
        torch.tensor([-5.5, -5.0]), torch.tensor([-2.5, -5.0]), 5.0,
    )  # fmt: skip
    # pair 0: 5 * (1/2 - -2/4) = 5
    assert normal.tolist() == pytest.approx([math.log(1 + math.exp(-5.0)), math.log(2)], rel=1e-5)
    assert margin.tolist() == pytest.approx([5.0, 0.0])
    normal[0].backward()
    slope = 1 / (1 + math.exp(5.0))  # sigmoid(-margin)
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad[0].tolist() == pytest.approx([-slope * 5 / 2] * 2 + [0, 0], rel=1e-5)
    assert rejected.grad[0].tolist() == pytest.approx([slope * 5 / 4] * 4, rel=1e-5)
    assert sequence_logprob(chosen, torch.zeros(2, 4), True).tolist() == [0.0, 0.0]


def test_kl_estimators_by_hand_and_against_the_true_divergence() -> None:
    d = torch.tensor([0.5])
    assert kl_estimate(d, torch.zeros(1), "k1").item() == pytest.approx(0.5)
    assert kl_estimate(d, torch.zeros(1), "k2").item() == pytest.approx(0.125)
    assert kl_estimate(d, torch.zeros(1), "k3").item() == pytest.approx(math.exp(-0.5) - 0.5)
    # Over all outcomes of two distributions, weighted by the policy: k1 and k3 have the exact mean.
    p, q = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.4, 0.4, 0.2])
    true = (p * (p / q).log()).sum().item()
    for estimator in ("k1", "k3"):
        assert (p * kl_estimate(p.log(), q.log(), estimator)).sum().item() == pytest.approx(true, rel=1e-5)
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(d, d, "k4")  # type: ignore[arg-type]


@given(st.floats(-20, 20), st.floats(-20, 20))
def test_k3_is_never_negative(a: float, b: float) -> None:
    x, y = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    assert kl_estimate(x, y, "k3").item() >= 0


def test_the_gradient_that_each_kl_estimator_has_as_a_loss() -> None:
    """What the docstring says: on the policy's own samples, k1 pulls nowhere and k2 follows the true gradient."""
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, logits)[0]

    p = logits.softmax(-1)
    true = gradient((p * (p / q).log()).sum())
    for estimator, wanted in (("k1", torch.zeros(3, dtype=torch.float64)), ("k2", true)):
        logp = logits.log_softmax(-1)
        sampled = (logp.exp().detach() * kl_estimate(logp, q.log(), estimator)).sum()  # type: ignore[arg-type]
        assert torch.allclose(gradient(sampled), wanted, atol=1e-12)
    logp = logits.log_softmax(-1)
    reverse = gradient((logp.exp().detach() * kl_estimate(logp, q.log(), "k3")).sum())
    logp = logits.log_softmax(-1)
    assert torch.allclose(reverse, gradient((q * (q.log() - logp)).sum()), atol=1e-12)


NAN = float("nan")
REWARDS = torch.tensor(
    [[1.0, 0.0, NAN, 0.5], [0.1, 0.1, 0.1, 0.1], [NAN, NAN, NAN, NAN], [1.0, NAN, NAN, NAN]],
    dtype=torch.float64,
)


def test_advantages_by_hand() -> None:
    std = math.sqrt((0.25 + 0.25 + 0.0) / 3)
    wanted = {
        "grpo": [0.5 / std, -0.5 / std, 0.0, 0.0],
        "dr_grpo": [0.5, -0.5, 0.0, 0.0],
        "rloo": [1.0 - 0.25, 0.0 - 0.75, 0.0, 0.0],
    }
    for kind, row in wanted.items():
        advantages = group_advantages(REWARDS, kind)  # type: ignore[arg-type]
        assert advantages[0].tolist() == pytest.approx(row)
        assert advantages[1:].tolist() == [[0.0] * 4] * 3
    assert has_signal(REWARDS).tolist() == [True, False, False, False]
    with pytest.raises(ValueError, match="ppo"):
        group_advantages(REWARDS, "ppo")  # type: ignore[arg-type]


def test_rounding_is_no_signal() -> None:
    """0.1 + 0.2 and 0.3 are one reward, whichever way a verifier added it up."""
    rewards = torch.tensor(
        [[0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2], [0.3, 0.3 + 1e-6, 0.3, 0.3]], dtype=torch.float64
    )
    assert has_signal(rewards).tolist() == [False, True]
    for kind in ("grpo", "dr_grpo", "rloo"):
        assert group_advantages(rewards, kind)[0].tolist() == [0.0] * 4  # type: ignore[arg-type]
    assert not differ(math.inf, -math.inf)
    assert not differ(0.0, 0.0)
    assert differ(0.0, 1e-300)


def test_a_penalty_counts_by_its_size_also_where_all_rewards_are_the_same() -> None:
    """(r - p - mean) / std, with the std of r alone: 0.5 in the first group, and 1 in the second."""
    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0], [NAN, 1.0]], dtype=torch.float64)
    penalty = torch.tensor([[0.1, 0.0], [0.02, 0.0], [0.5, 0.5]], dtype=torch.float64)
    wanted = [[0.45 / 0.5, -0.45 / 0.5], [-0.01, 0.01], [0.0, 0.0]]
    assert torch.allclose(
        group_advantages(rewards, "grpo", penalty), torch.tensor(wanted, dtype=torch.float64)
    )
    centred = group_advantages(rewards, "dr_grpo", penalty)
    assert torch.allclose(centred[:2], torch.tensor([[0.45, -0.45], [-0.01, 0.01]], dtype=torch.float64))
    none = torch.zeros_like(penalty)
    assert torch.equal(group_advantages(rewards, "grpo", none), group_advantages(rewards, "grpo"))


GROUPS = st.lists(
    st.lists(st.sampled_from([NAN, 0.0, 0.1, 0.3, 0.5, 1.0]), min_size=5, max_size=5), min_size=1, max_size=4
)


@given(GROUPS, st.sampled_from(["grpo", "dr_grpo", "rloo"]))
def test_advantages_sum_to_zero_over_the_scored_and_missing_ones_do_not_matter(
    groups: list[list[float]], kind: Any
) -> None:
    rewards = torch.tensor(groups, dtype=torch.float64)
    advantages = group_advantages(rewards, kind)
    assert torch.isfinite(advantages).all()
    assert advantages.sum(-1).abs().max() < 1e-9
    assert (advantages[rewards.isnan()] == 0).all()
    # The same group without its missing scores has the same advantages.
    for row, reward in enumerate(rewards):
        present = reward[~reward.isnan()]
        if len(present):
            assert torch.allclose(group_advantages(present[None], kind)[0], advantages[row][~reward.isnan()])
        flat = len(set(present.tolist())) < 2
        assert bool((advantages[row] == 0).all()) or not flat


@given(GROUPS, st.floats(0.01, 1000), st.floats(-5, 5))
def test_grpo_does_not_depend_on_scale_or_offset_of_the_rewards(
    groups: list[list[float]], scale: float, offset: float
) -> None:
    rewards = torch.tensor(groups, dtype=torch.float64)
    assert torch.allclose(
        group_advantages(rewards * scale, "grpo"), group_advantages(rewards, "grpo"), atol=1e-9
    )


def test_clipped_surrogate_by_hand() -> None:
    new = torch.log(torch.tensor([[1.5, 0.5, 1.1], [1.5, 0.5, 0.9]])).requires_grad_()
    terms = clipped_surrogate(new, torch.zeros(2, 3), torch.tensor([[2.0], [-1.0]]), 0.2, 0.3)
    # A = 2: min(3, 2.6), min(1, 1.6), 2.2 ; A = -1: min(-1.5, -1.3), min(-0.5, -0.8), -0.9
    assert torch.allclose(terms.loss, torch.tensor([[-2.6, -1.0, -2.2], [1.5, 0.8, 0.9]]))
    assert terms.clipped.tolist() == [[True, False, False], [False, True, False]]
    terms.loss.sum().backward()
    assert new.grad is not None
    assert torch.allclose(new.grad, torch.tensor([[0.0, -1.0, -2.2], [1.5, 0.0, 0.9]]))


def test_on_policy_gradient_is_the_policy_gradient() -> None:
    new = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    loss, clipped, ratio = clipped_surrogate(new, new, torch.tensor([[0.7]]), 0.2, 0.2)
    assert ratio.tolist() == [[1.0, 1.0]]
    assert not clipped.any()
    loss.sum().backward()
    assert new.grad is not None
    assert torch.allclose(new.grad, torch.tensor([[-0.7, -0.7]]))


MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])


def test_weights_by_hand() -> None:
    assert torch.allclose(aggregation_weights(MASK, "token", 4, 2), MASK / 4)
    sequence = aggregation_weights(MASK, "sequence", 4, 2)
    assert torch.allclose(sequence, torch.tensor([[1 / 6, 1 / 6, 1 / 6, 0], [1 / 2, 0, 0, 0], [0, 0, 0, 0]]))
    with pytest.raises(ValueError, match="batch"):
        aggregation_weights(MASK, "batch", 1, 1)  # type: ignore[arg-type]


@given(st.sampled_from(["token", "sequence"]), st.integers(1, 3))
def test_parts_of_a_step_add_up_to_the_step(aggregation: Any, part: int) -> None:
    generator = torch.Generator().manual_seed(0)
    new, old, reference = -torch.rand(3, 3, 4, dtype=torch.float64, generator=generator)
    advantages = torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)

    def loss(rows: slice) -> torch.Tensor:
        terms = clipped_surrogate(new[rows], old[rows], advantages[rows], 0.2, 0.2)
        weights = aggregation_weights(MASK[rows], aggregation, 4, 2)
        return ((terms.loss + 0.1 * kl_estimate(new[rows], reference[rows], "k3")) * weights).sum()

    split = [loss(slice(start, start + part)) for start in range(0, 3, part)]
    assert torch.stack(split).sum().item() == pytest.approx(loss(slice(None)).item(), abs=1e-12)
    assert aggregation_weights(MASK, aggregation, 4, 2).sum().item() == pytest.approx(1)


def test_masked_positions_are_finite_and_do_not_count() -> None:
    new = torch.where(MASK.bool(), -0.5, 0.0).requires_grad_()
    terms = clipped_surrogate(new, new.detach(), torch.full((3, 1), 1e6), 0.2, 0.2)
    loss = (terms.loss * aggregation_weights(MASK, "token", 4, 2)).sum()
    loss.backward()
    assert torch.isfinite(terms.loss).all()
    assert loss.item() == -1e6
    assert new.grad is not None
    assert (new.grad[MASK == 0] == 0).all()
    assert torch.isfinite(new.grad).all()
