"""Advantages from the scores of a group of responses to the same prompt. P prompts, G responses each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

AdvantageKind = Literal["grpo", "dr_grpo", "rloo"]


def score_tensors(scores: Sequence[Sequence[float | None]]) -> tuple[Tensor, Tensor]:
    """Scores of P groups of G responses -> values [P, G] float64 and scored [P, G] bool; None is not scored, value 0."""
    values = torch.tensor(
        [[0.0 if score is None else score for score in group] for group in scores], dtype=torch.float64
    )
    scored = torch.tensor([[score is not None for score in group] for group in scores], dtype=torch.bool)
    return values, scored


def has_signal(scores: Tensor, scored: Tensor) -> Tensor:
    """[P] bool: whether the scored responses of a group differ at all, so that some advantage is not zero."""
    highest = scores.masked_fill(~scored, -torch.inf).amax(-1)
    lowest = scores.masked_fill(~scored, torch.inf).amin(-1)
    return highest > lowest  # no scored response: -inf > inf is False


def group_advantages(scores: Tensor, scored: Tensor, kind: AdvantageKind) -> Tensor:
    """[P, G] advantages of scores [P, G] float; scored [P, G] bool says which scores are there.

    grpo: (r - mean) / std, std with divisor G (Shao et al. 2024, arXiv:2402.03300, sec. 4.1.2).
    dr_grpo: r - mean (Liu et al. 2025, arXiv:2503.20783). rloo: r - mean of the others (Ahmadian et al. 2024,
    arXiv:2402.14740, eq. 7).
    A response without a score takes no part in its group's statistics and has advantage 0. A group whose scores
    are all the same has advantage 0 exactly: rounding of the mean is not signal.
    """
    if kind not in ("grpo", "dr_grpo", "rloo"):
        raise ValueError(f"there is no advantage {kind!r}; it is grpo, dr_grpo or rloo")
    keep = scored.to(scores.dtype)
    count = keep.sum(-1, keepdim=True).clamp(min=1)  # [P, 1]
    mean = (scores.masked_fill(~scored, 0) * keep).sum(-1, keepdim=True) / count
    centred = (scores - mean).masked_fill(~scored, 0)
    signal = has_signal(scores, scored)[:, None]
    if kind == "grpo":
        std = (centred.square().sum(-1, keepdim=True) / count).sqrt()
        centred = centred / torch.where(signal, std, 1)
    elif kind == "rloo":
        centred = centred * count / (count - 1).clamp(min=1)  # n/(n-1) (r - mean) = r - mean of the others
    return torch.where(signal, centred, 0)
