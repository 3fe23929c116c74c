"""Advantages from the rewards of a group of responses to the same prompt. P prompts, G responses each."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

AdvantageKind = Literal["grpo", "dr_grpo", "rloo"]


def has_signal(rewards: Tensor) -> Tensor:
    """[P] bool: whether the scored responses of a group differ at all, so that some advantage is not zero.

    rewards: [P, G], NaN where there is no score.
    """
    missing = rewards.isnan()
    highest = rewards.masked_fill(missing, -torch.inf).amax(-1)
    lowest = rewards.masked_fill(missing, torch.inf).amin(-1)
    return highest > lowest  # no scored response: -inf > inf is False


def group_advantages(rewards: Tensor, kind: AdvantageKind) -> Tensor:
    """[P, G] advantages of rewards [P, G] (float64; NaN: no score).

    grpo: (r - mean) / std, std that of the population (divisor G, not G - 1; Shao et al. 2024, arXiv:2402.03300,
    sec. 4.1.2), with nothing added to it, so that the scale of the rewards does not matter.
    dr_grpo: r - mean (Liu et al. 2025, arXiv:2503.20783). rloo: r - mean of the others (Ahmadian et al. 2024,
    arXiv:2402.14740, eq. 7).
    A response without a score takes no part in its group's statistics and has advantage 0. A group whose scores
    are all the same has advantage 0 exactly, since the rounding of a mean is not signal; so has a single score.
    """
    if kind not in ("grpo", "dr_grpo", "rloo"):
        raise ValueError(f"there is no advantage {kind!r}; it is grpo, dr_grpo or rloo")
    scored = ~rewards.isnan()
    count = scored.sum(-1, keepdim=True).clamp(min=1)  # [P, 1]
    mean = rewards.nan_to_num().sum(-1, keepdim=True) / count
    centred = (rewards - mean).masked_fill(~scored, 0)
    signal = has_signal(rewards)[:, None]
    if kind == "grpo":
        std = (centred.square().sum(-1, keepdim=True) / count).sqrt()
        centred = centred / torch.where(signal, std, 1)
    elif kind == "rloo":
        centred = centred * count / (count - 1).clamp(min=1)  # n/(n-1) (r - mean) = r - mean of the others
    return torch.where(signal, centred, 0)
