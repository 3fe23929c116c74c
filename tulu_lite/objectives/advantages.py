"""Advantages: from the rewards of a group of responses to the same prompt, or by a value model along a response.

P prompts, G responses each; B responses, T positions.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .signal import differ

AdvantageKind = Literal["grpo", "dr_grpo", "rloo", "reinforce"]


def has_signal(rewards: Tensor) -> Tensor:
    """[P] bool: whether the scored responses of a group differ by more than rounding, so that some advantage is not zero.

    rewards: [P, G], NaN where there is no score.
    """
    missing = rewards.isnan()
    highest = rewards.masked_fill(missing, -torch.inf).amax(-1)
    lowest = rewards.masked_fill(missing, torch.inf).amin(-1)
    return differ(lowest, highest)


def group_advantages(rewards: Tensor, kind: AdvantageKind, penalty: Tensor | None = None) -> Tensor:
    """[P, G] advantages of rewards [P, G] (float64; NaN: no score), less a penalty [P, G] such as the KL term's.

    grpo: (r - mean) / std, std that of the population (divisor G, not G - 1; Shao et al. 2024, arXiv:2402.03300,
    sec. 4.1.2), with nothing added to it, so that the scale of the rewards does not matter. It is the std of the rewards
    without the penalty, and 1 where these are all the same: divided by its own std the smallest penalty would become a
    whole advantage, whatever its coefficient.
    dr_grpo: r - mean (Liu et al. 2025, arXiv:2503.20783). rloo: r - mean of the others (Ahmadian et al. 2024,
    arXiv:2402.14740, eq. 7). reinforce: r itself (Williams 1992); normalised over the batch by `normalised`, it is
    REINFORCE++ (Hu et al. 2025, arXiv:2501.03262).
    A response without a score takes no part in its group's statistics and has advantage 0. Of the first three, a
    group whose scores are all the same has advantage 0 exactly, since the rounding of a mean is not signal; so has a
    single score.
    """
    if kind not in ("grpo", "dr_grpo", "rloo", "reinforce"):
        raise ValueError(f"there is no advantage {kind!r}; it is grpo, dr_grpo, rloo or reinforce")
    scored = ~rewards.isnan()
    plain, rewards = rewards, rewards if penalty is None else rewards - penalty
    if kind == "reinforce":
        return rewards.nan_to_num()
    count = scored.sum(-1, keepdim=True).clamp(min=1)  # [P, 1]
    centred = _centred(rewards, count)
    signal = has_signal(rewards)[:, None]
    if kind == "grpo":
        std = (_centred(plain, count).square().sum(-1, keepdim=True) / count).sqrt()
        centred = centred / torch.where(has_signal(plain)[:, None], std, 1)
    elif kind == "rloo":
        centred = centred * count / (count - 1).clamp(min=1)  # n/(n-1) (r - mean) = r - mean of the others
    return torch.where(signal, centred, 0)


def _centred(rewards: Tensor, count: Tensor) -> Tensor:
    """[P, G]: r - mean over the scored responses, of which there are count [P, 1]; 0 without a score."""
    mean = rewards.nan_to_num().sum(-1, keepdim=True) / count
    return (rewards - mean).masked_fill(rewards.isnan(), 0)


def token_rewards(final: Tensor, mask: Tensor, penalty: Tensor | None = None) -> Tensor:
    """[B, T] rewards of single tokens: the response's at its last token, less `penalty` at every one.

    final: [B]. mask: [B, T], 1 on the response's tokens. penalty: [B, T], such as beta (log pi - log pi_ref), the KL
    penalty in the reward (Ziegler et al. 2019, arXiv:1909.08593, eq. 2; Tülu 3, arXiv:2411.15124, sec. 6.1).
    """
    places = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask.bool(), places, -1).amax(-1, keepdim=True)  # [B, 1]; -1: no token
    rewards = torch.where(places == last, final[:, None], 0).to(final.dtype)
    return rewards if penalty is None else rewards - penalty * mask


def generalised_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """(advantages, returns), both [B, T], 0 outside of the mask; returns = advantages + values, the value's targets.

    Schulman et al. 2015 (arXiv:1506.02438), eq. 16: A_t = delta_t + gamma lam A_{t+1} with
    delta_t = r_t + gamma V_{t+1} - V_t, where V and A after a row's last token are 0: a response ends its episode,
    also one that was cut off. rewards, values: [B, T]; values[t] is of the state before token t. mask: [B, T], 1 on
    the response's tokens, which lie side by side.
    """
    advantages = torch.zeros_like(values)
    ahead = value_ahead = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        inside = mask[:, t].bool()
        delta = rewards[:, t] + gamma * value_ahead - values[:, t]
        ahead = torch.where(inside, delta + gamma * lam * ahead, 0)
        value_ahead = torch.where(inside, values[:, t], 0)
        advantages[:, t] = ahead
    return advantages, (advantages + values) * mask


def moments(values: Tensor, weights: Tensor) -> Tensor:
    """[3]: sum of weights, of weighted values, of weighted squares (float64). Those of parts add up to those of all."""
    values, weights = values.double(), weights.double()
    return torch.stack([weights.sum(), (values * weights).sum(), (values.square() * weights).sum()])


def variance(total: Tensor) -> Tensor:
    """[]: that of the population, from the sum of `moments` over all its parts; 0 where it is nothing but rounding."""
    count = total[0].clamp(min=1)
    square = total[2] / count
    spread = square - (total[1] / count).square()
    return torch.where(spread <= 1e-12 * square, 0, spread)


def normalised(values: Tensor, total: Tensor) -> Tensor:
    """(values - mean) / std, std that of the population; `total` is the sum of `moments` over all parts of a step.

    Advantage whitening of PPO (Huang et al. 2022, "The 37 implementation details of PPO", no. 7) and of REINFORCE++
    (arXiv:2501.03262, eq. 15). Where all values are the same they become 0.
    """
    mean, spread = total[1] / total[0].clamp(min=1), variance(total)
    flat = spread == 0
    return torch.where(flat, 0, (values - mean) / torch.where(flat, 1, spread).sqrt()).to(values.dtype)
