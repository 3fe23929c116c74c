"""The clipped policy gradient and how its token losses are weighted. B responses, T positions."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Aggregation = Literal["token", "sequence"]


class Surrogate(NamedTuple):
    """Per-token terms, all [B, T]; nothing is masked yet."""

    loss: Tensor
    clipped: Tensor  # bool: the clip is active here, so this token has no gradient
    ratio: Tensor  # pi(y_t) / pi_old(y_t), with its gradient


def clipped_surrogate(
    new: Tensor, old: Tensor, advantage: Tensor, clip_low: float, clip_high: float
) -> Surrogate:
    """-min(r A, clip(r, 1 - low, 1 + high) A) with r = pi / pi_old.

    Schulman et al. 2017 (arXiv:1707.06347), eq. 7; with the two bounds apart, Yu et al. 2025 (arXiv:2503.14476), eq. 8.
    new: [B, T] log-probabilities with gradient. old: [B, T] those of the policy that sampled, a constant.
    advantage: [B, 1] or [B, T]. Where both log-probabilities are 0 (masked positions) the ratio is 1 and all is finite.
    """
    ratio = torch.exp(new - old.detach())
    free = ratio * advantage
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
    return Surrogate(-torch.minimum(free, bounded), (bounded < free).detach(), ratio)


def aggregation_weights(mask: Tensor, aggregation: Aggregation, tokens: float, responses: float) -> Tensor:
    """[B, T] weights of the token losses; over all micro-batches and processes of a step they sum to 1.

    mask: [B, T], 1 on the response tokens that count. tokens, responses: how many the whole step has.
    token: mask / tokens, the mean over tokens (DAPO, arXiv:2503.14476, eq. 8). sequence: mask / (row's tokens *
    responses), the mean over responses of their token means (GRPO, arXiv:2402.03300, eq. 3). A row without tokens
    has weight 0.
    """
    if aggregation == "token":
        return mask / tokens
    if aggregation == "sequence":
        return mask / (mask.sum(-1, keepdim=True).clamp(min=1) * responses)
    raise ValueError(f"there is no aggregation {aggregation!r}; it is token or sequence")
