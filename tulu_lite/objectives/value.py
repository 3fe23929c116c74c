"""The value model's loss in PPO. B responses, T positions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .advantages import variance


class ValueTerms(NamedTuple):
    """Per-token terms, both [B, T]; nothing is masked yet."""

    loss: Tensor
    clipped: Tensor  # bool: the clipped error is the larger one here, so this token has no gradient


def value_losses(new: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> ValueTerms:
    """1/2 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2), or 1/2 (V - R)^2 without a clip.

    Schulman et al. 2017's squared error (arXiv:1707.06347, eq. 9), clipped as in their code (Huang et al. 2022, "The 37
    implementation details of PPO", no. 9) and in Tülu 3 (arXiv:2411.15124). new: [B, T] with gradient; old, returns:
    [B, T] constants, the values before the first update on a batch and the targets of `generalised_advantages`.
    """
    free = (new - returns).square()
    if clip is None:
        return ValueTerms(free / 2, torch.zeros_like(free, dtype=torch.bool))
    bounded = (old + (new - old).clamp(-clip, clip) - returns).square()
    return ValueTerms(torch.maximum(free, bounded) / 2, (bounded > free).detach())


def explained_variance(returns: Tensor, errors: Tensor) -> Tensor:
    """1 - Var(R - V) / Var(R), from [3] `advantages.moments` of returns and of R - V over all tokens; 0 without variance.

    1: the values say all; 0: no more than a constant would; negative: worse.
    """

    spread = variance(returns)
    return torch.where(spread > 0, 1 - variance(errors) / torch.where(spread > 0, spread, 1), 0)
