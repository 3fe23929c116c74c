"""Reward models: numbers such that the better of two responses has the higher one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bradley_terry_losses(
    chosen_B: Tensor, rejected_B: Tensor, margin_B: Tensor | float = 0.0, centring: float = 0.0
) -> Tensor:
    """[B]: -log sigmoid(r+ - r- - m) + c (r+ + r-)^2.

    Bradley & Terry 1952, as Ouyang et al. 2022 (arXiv:2203.02155), eq. 1, of one pair. margin_B: m, by how much the
    rewards of a pair should differ at least (Llama 2, arXiv:2307.09288, eq. 2); a number, or one a pair. centring: c,
    which holds the rewards around 0, on which the first term has no say (Eisenstein et al. 2023, arXiv:2312.09244:
    c = 0.01).
    """
    losses_B = -F.logsigmoid(chosen_B - rejected_B - margin_B)
    return losses_B + centring * (chosen_B + rejected_B).square() if centring else losses_B
