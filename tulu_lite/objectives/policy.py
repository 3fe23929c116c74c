"""The clipped policy gradient and how its token losses are weighted. B responses, T positions."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Aggregation = Literal["token", "sequence"]


class PolicyTerms(NamedTuple):
    """Per-token terms, all [B, T]; nothing is masked yet."""

    loss: Tensor
    ratio: Tensor  # pi(y_t) / pi_old(y_t), detached
    clipped: Tensor  # bool: the clip is active here, so this token has no gradient


def clipped_terms(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: tuple[float, float]
) -> PolicyTerms:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A) with rho = pi / pi_old.

    Schulman et al. 2017 (arXiv:1707.06347), eq. 7; with the two bounds apart, Yu et al. 2025 (arXiv:2503.14476).
    logprobs [B, T] with gradient; old_logprobs [B, T] of the policy that sampled (or the trainer's own, recomputed
    before the first update); advantages [B] or [B, T]; clip: (low, high).
    """
    low, high = clip
    if advantages.dim() == 1:
        advantages = advantages[:, None]
    advantages = advantages.to(logprobs.dtype)
    ratio = torch.exp(logprobs - old_logprobs)
    free = ratio * advantages
    bounded = ratio.clamp(1 - low, 1 + high) * advantages
    return PolicyTerms(-torch.minimum(free, bounded), ratio.detach(), (bounded < free).detach())


def token_weights(mask: Tensor, aggregation: Aggregation, denominator: float) -> Tensor:
    """[B, T] weights by which token losses are summed; mask [B, T] is 1 on the response tokens that count.

    token: mask / D with D the step's number of response tokens: the mean over tokens. sequence: mask / (length D)
    with D the step's number of responses: the mean over responses of their token means. D is over all micro-batches
    and processes, so that parts of a step add up to the step.
    """
    if aggregation == "token":
        return mask / denominator
    if aggregation == "sequence":
        return mask / (mask.sum(-1, keepdim=True).clamp(min=1) * denominator)
    raise ValueError(f"there is no aggregation {aggregation!r}; it is token or sequence")


def policy_loss(
    terms: PolicyTerms, mask: Tensor, weights: Tensor, kl: Tensor | None = None, kl_coefficient: float = 0.0
) -> Tensor:
    """Scalar sum of weights * (loss + kl_coefficient * kl); masked positions cannot leak, not even a NaN."""
    losses = terms.loss if kl is None else terms.loss + kl_coefficient * kl
    return (losses.masked_fill(~mask.bool(), 0) * weights).sum()


def policy_metrics(terms: PolicyTerms, mask: Tensor) -> dict[str, Tensor]:
    """Sums over the masked tokens, to be added over micro-batches and divided by `tokens`: clipped, ratio, and the
    sum of k3 estimates of KL(old || new), r - 1 - log r."""
    keep = mask.bool()
    ratio = terms.ratio.masked_fill(~keep, 1)
    return {
        "tokens": keep.sum(),
        "clipped": (terms.clipped & keep).sum(),
        "ratio": ratio.sum() - (~keep).sum(),
        "kl_old": (ratio - 1 - ratio.log()).sum(),
    }
