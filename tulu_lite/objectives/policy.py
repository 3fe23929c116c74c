"""The policy gradient's token losses, how they are weighted, and what corrects for a sampler that is another policy.

B responses, T positions. `ratio` is pi(y_t) / pi_old(y_t). Where both log-probabilities are 0 (masked positions) the
ratio is 1 and everything is finite.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Aggregation = Literal["token", "sequence", "constant"]
PolicyLoss = Literal["clipped", "gspo", "cispo"]


class Surrogate(NamedTuple):
    """Per-token terms, all [B, T]; nothing is masked yet."""

    loss: Tensor
    clipped: (
        Tensor  # bool: a clip is active here (in cispo it bounds the weight; elsewhere there is no gradient)
    )
    ratio: Tensor  # with its gradient; in gspo the sequence's, the same on all of its tokens


def clipped_surrogate(
    new: Tensor,
    old: Tensor,
    advantage: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Surrogate:
    """-min(r A, clip(r, 1 - low, 1 + high) A) with r = pi / pi_old; where A < 0 at most -c A with a dual clip c.

    Schulman et al. 2017 (arXiv:1707.06347), eq. 7; with the two bounds apart, Yu et al. 2025 (arXiv:2503.14476), eq. 8;
    the dual clip c > 1 of Ye et al. 2019 (arXiv:1912.09729), eq. 5, bounds the loss of a bad token that has become
    likely. new: [B, T] log-probabilities with gradient. old: [B, T] a constant. advantage: [B, 1] or [B, T].
    """
    return _clipped(torch.exp(new - old.detach()), advantage, clip_low, clip_high, dual_clip)


def gspo_surrogate(
    new: Tensor, old: Tensor, advantage: Tensor, mask: Tensor, clip_low: float, clip_high: float
) -> Surrogate:
    """The same with the sequence's ratio s = (pi(y) / pi_old(y))^(1/|y|) on each of its tokens.

    Zheng et al. 2025 (GSPO, arXiv:2507.18071), eq. 5 to 7. Weighted by `sequence` it is their objective. mask: [B, T].
    """
    tokens = mask.sum(-1, keepdim=True).clamp(min=1)
    mean = ((new - old.detach()) * mask).sum(-1, keepdim=True) / tokens  # [B, 1]
    ratio = torch.exp(mean).expand_as(new)
    return _clipped(ratio, advantage, clip_low, clip_high, None)


def cispo_surrogate(
    new: Tensor, old: Tensor, advantage: Tensor, clip_low: float, clip_high: float
) -> Surrogate:
    """-sg(clip(r, 1 - low, 1 + high)) A log pi: the weight is clipped, and every token keeps its gradient.

    MiniMax 2025 (CISPO, arXiv:2506.13585), eq. 4 and 5; low = 1 leaves the ratio without a lower bound, as theirs.
    """
    ratio = torch.exp(new - old.detach())
    weight = ratio.detach().clamp(1 - clip_low, 1 + clip_high)
    return Surrogate(-weight * advantage * new, weight != ratio.detach(), ratio)


def _clipped(
    ratio: Tensor, advantage: Tensor, clip_low: float, clip_high: float, dual_clip: float | None
) -> Surrogate:
    free = ratio * advantage
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
    gain, clipped = torch.minimum(free, bounded), bounded < free
    if dual_clip is not None:
        floor = torch.where(advantage < 0, dual_clip * advantage, -torch.inf).expand_as(gain)
        gain, clipped = torch.maximum(gain, floor), clipped | (floor > gain)
    return Surrogate(-gain, clipped.detach(), ratio)


def aggregation_weights(
    mask: Tensor, aggregation: Aggregation, tokens: float, responses: float, constant: float = 1.0
) -> Tensor:
    """[B, T] weights of the token losses, from counts of the whole step, so that the parts of a step add up to it.

    mask: [B, T], 1 on the response tokens that count. tokens, responses: how many the whole step has. token: mask /
    tokens, the mean over tokens (DAPO, arXiv:2503.14476, eq. 8). sequence: mask / (row's tokens * responses), the mean
    over responses of their token means (GRPO, arXiv:2402.03300, eq. 3). constant: mask / (constant * responses), with
    the response budget for the constant, so that a token weighs the same in long and short responses (Dr. GRPO,
    arXiv:2503.20783, sec. 3.2). The first two sum to 1 over the step. A row without tokens has weight 0.
    """
    if aggregation == "token":
        return mask / tokens
    if aggregation == "sequence":
        return mask / (mask.sum(-1, keepdim=True).clamp(min=1) * responses)
    if aggregation == "constant":
        return mask / (constant * responses)
    raise ValueError(f"there is no aggregation {aggregation!r}; it is token, sequence or constant")


def mismatch_weights(
    trainer: Tensor,
    sampler: Tensor,
    mask: Tensor,
    how: Literal["truncate", "mask"],
    level: Literal["token", "sequence"],
    low: float,
    high: float,
) -> Tensor:
    """[B, T] constants that a token's loss is multiplied with, since the sampler is not quite the trainer's policy.

    w = pi_trainer / pi_sampler, of the token or of the whole response, both before the first update on the batch.
    truncate: min(w, high), truncated importance sampling (Ionides 2008; Yao et al. 2025, "Your efficient RL framework
    secretly brings you off-policy RL training"). mask: w between low and high and 0 elsewhere, so that what the two
    disagree on teaches nothing. trainer, sampler, mask: [B, T].
    """
    difference = (trainer - sampler).detach() * mask
    if level == "sequence":
        difference = difference.sum(-1, keepdim=True).expand_as(difference)
    weight = difference.clamp(max=80.0).exp()  # float32 ends at exp(88)
    if how == "truncate":
        return weight.clamp(max=high)
    return torch.where((weight >= low) & (weight <= high), weight, 0)
