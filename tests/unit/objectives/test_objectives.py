from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tulu_lite.objectives.advantages import group_advantages, has_signal, score_tensors
from tulu_lite.objectives.dpo import dpo_terms
from tulu_lite.objectives.kl import kl_estimate
from tulu_lite.objectives.policy import clipped_terms, policy_loss, policy_metrics, token_weights
from tulu_lite.objectives.sft import sft_loss


def test_sft_by_hand() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -4.0], [-8.0, -16.0, -32.0]])
    mask = torch.tensor([[1, 0, 1], [0, 1, 0]])
    assert sft_loss(logprobs, mask, 3).item() == pytest.approx((1 + 4 + 16) / 3)
    parts = [sft_loss(logprobs[i : i + 1], mask[i : i + 1], 3) for i in range(2)]
    assert torch.stack(parts).sum().item() == pytest.approx(7.0)


def test_dpo_by_hand() -> None:
    policy = torch.tensor([[-10.0, -5.0], [-12.0, -5.0]], requires_grad=True)  # rows: chosen, rejected
    reference = torch.tensor([[-11.0, -5.0], [-10.0, -5.0]])
    tokens = torch.tensor([[2, 1], [4, 1]])
    plain = dpo_terms(policy, reference, tokens, beta=0.1, length_normalised=False)
    # pair 0: 0.1 * (1 - -2) = 0.3 ; -log sigmoid(0.3)
    assert plain.loss.tolist() == pytest.approx([math.log(1 + math.exp(-0.3)), math.log(2)])
    normal = dpo_terms(policy, reference, tokens, beta=5.0, length_normalised=True)
    # pair 0: 5 * (1/2 - -2/4) = 5
    assert normal.loss.tolist() == pytest.approx([math.log(1 + math.exp(-5.0)), math.log(2)], rel=1e-5)
    assert normal.chosen_reward.tolist() == pytest.approx([2.5, 0.0])
    assert normal.rejected_reward.tolist() == pytest.approx([-2.5, 0.0])
    assert normal.correct.tolist() == [1.0, 0.0]  # a tie is not correct
    normal.loss[0].backward()
    slope = 1 / (1 + math.exp(5.0))  # sigmoid(-margin)
    assert policy.grad is not None
    assert policy.grad[:, 0].tolist() == pytest.approx([-slope * 5 / 2, slope * 5 / 4], rel=1e-5)
    assert not normal.chosen_reward.requires_grad


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


SCORES: list[list[float | None]] = [
    [1.0, 0.0, None, 0.5],
    [0.1, 0.1, 0.1, 0.1],
    [None, None, None, None],
    [1.0, None, None, None],
]


def test_advantages_by_hand() -> None:
    scores, scored = score_tensors(SCORES)
    std = math.sqrt((0.25 + 0.25 + 0.0) / 3)
    wanted = {
        "grpo": [0.5 / std, -0.5 / std, 0.0, 0.0],
        "dr_grpo": [0.5, -0.5, 0.0, 0.0],
        "rloo": [1.0 - 0.25, 0.0 - 0.75, 0.0, 0.0],
    }
    for kind, row in wanted.items():
        advantages = group_advantages(scores, scored, kind)  # type: ignore[arg-type]
        assert advantages[0].tolist() == pytest.approx(row)
        assert advantages[1:].tolist() == [[0.0] * 4] * 3
    assert has_signal(scores, scored).tolist() == [True, False, False, False]
    with pytest.raises(ValueError, match="ppo"):
        group_advantages(scores, scored, "ppo")  # type: ignore[arg-type]


GROUPS = st.lists(
    st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0])), min_size=5, max_size=5),
    min_size=1,
    max_size=4,
)


@given(GROUPS, st.sampled_from(["grpo", "dr_grpo", "rloo"]))
def test_advantages_sum_to_zero_over_the_scored_and_missing_ones_do_not_matter(
    groups: list[list[float | None]], kind: str
) -> None:
    scores, scored = score_tensors(groups)
    advantages = group_advantages(scores, scored, kind)  # type: ignore[arg-type]
    assert torch.isfinite(advantages).all()
    assert advantages.sum(-1).abs().max() < 1e-9
    assert (advantages[~scored] == 0).all()
    # The same group without its missing scores has the same advantages.
    for row, group in enumerate(groups):
        present = [score for score in group if score is not None]
        if present:
            alone, there = score_tensors([present])  # type: ignore[list-item]
            assert torch.allclose(group_advantages(alone, there, kind)[0], advantages[row][scored[row]])  # type: ignore[arg-type]
        flat = len(set(present)) < 2
        assert bool((advantages[row] == 0).all()) or not flat


def test_missing_scores_may_hold_anything() -> None:
    scores = torch.tensor([[1.0, float("nan"), 0.0]])
    scored = torch.tensor([[True, False, True]])
    assert group_advantages(scores, scored, "grpo").tolist() == [[1.0, 0.0, -1.0]]


def test_clipped_terms_by_hand() -> None:
    logprobs = torch.log(torch.tensor([[1.5, 0.5, 1.1], [1.5, 0.5, 0.9]])).requires_grad_()
    terms = clipped_terms(logprobs, torch.zeros(2, 3), torch.tensor([2.0, -1.0]), (0.2, 0.3))
    # A = 2: min(3, 2.6), min(1, 1.6), 2.2 ; A = -1: min(-1.5, -1.3), min(-0.5, -0.8), -0.9
    assert torch.allclose(terms.loss, torch.tensor([[-2.6, -1.0, -2.2], [1.5, 0.8, 0.9]]))
    assert terms.clipped.tolist() == [[True, False, False], [False, True, False]]
    terms.loss.sum().backward()
    assert logprobs.grad is not None
    assert torch.allclose(logprobs.grad, torch.tensor([[0.0, -1.0, -2.2], [1.5, 0.0, 0.9]]))


def test_on_policy_gradient_is_the_policy_gradient() -> None:
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    terms = clipped_terms(logprobs, logprobs.detach(), torch.tensor([0.7]), (0.2, 0.2))
    assert terms.ratio.tolist() == [[1.0, 1.0]] and not terms.clipped.any()
    terms.loss.sum().backward()
    assert logprobs.grad is not None and torch.allclose(logprobs.grad, torch.tensor([[-0.7, -0.7]]))


MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])


def test_weights_by_hand() -> None:
    assert torch.allclose(token_weights(MASK, "token", 4), MASK / 4)
    sequence = token_weights(MASK, "sequence", 2)
    assert torch.allclose(sequence, torch.tensor([[1 / 6, 1 / 6, 1 / 6, 0], [1 / 2, 0, 0, 0], [0, 0, 0, 0]]))
    with pytest.raises(ValueError, match="batch"):
        token_weights(MASK, "batch", 1)  # type: ignore[arg-type]


@given(st.sampled_from(["token", "sequence"]), st.integers(1, 3))
def test_parts_of_a_step_add_up_to_the_step(aggregation: str, parts: int) -> None:
    torch.manual_seed(0)
    logprobs, old, ref = (
        -torch.rand(3, 4, dtype=torch.float64),
        -torch.rand(3, 4, dtype=torch.float64),
        -torch.rand(3, 4, dtype=torch.float64),
    )
    advantages = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def loss(rows: slice) -> torch.Tensor:
        terms = clipped_terms(logprobs[rows], old[rows], advantages[rows], (0.2, 0.2))
        weights = token_weights(MASK[rows], aggregation, 4.0)  # type: ignore[arg-type]
        return policy_loss(terms, MASK[rows], weights, kl_estimate(logprobs[rows], ref[rows], "k3"), 0.1)

    split = [loss(slice(start, start + parts)) for start in range(0, 3, parts)]
    assert torch.stack(split).sum().item() == pytest.approx(loss(slice(None)).item(), abs=1e-12)


def test_masked_positions_do_not_leak() -> None:
    logprobs = torch.full((3, 4), -0.5)
    broken = torch.where(MASK.bool(), torch.tensor(-0.5), torch.tensor(float("nan")))
    terms = clipped_terms(logprobs, broken, torch.ones(3), (0.2, 0.2))
    assert policy_loss(terms, MASK, token_weights(MASK, "token", 4)).item() == pytest.approx(-1.0)
    metrics = {name: float(value) for name, value in policy_metrics(terms, MASK).items()}
    assert metrics == {"tokens": 4.0, "clipped": 0.0, "ratio": 4.0, "kl_old": 0.0}
