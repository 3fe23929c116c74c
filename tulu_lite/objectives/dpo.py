"""Direct preference optimisation: a classification loss on pairs, against a frozen reference."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class DpoTerms(NamedTuple):
    """What DPO says about each pair; all [B]."""

    loss: Tensor
    chosen_reward: Tensor  # implicit reward, beta (log pi - log pi_ref), detached
    rejected_reward: Tensor
    correct: Tensor  # 1.0 where the chosen reward is the larger; a tie is not correct


def dpo_terms(
    policy: Tensor, reference: Tensor, tokens: Tensor, *, beta: float, length_normalised: bool
) -> DpoTerms:
    """-log sigmoid(beta d_chosen - beta d_rejected) with d = log pi(y|x) - log pi_ref(y|x).

    Rafailov et al. 2023 (arXiv:2305.18290), eq. 7; length-normalised, each d is divided by the response's
    number of tokens: Tülu 3 (arXiv:2411.15124), eq. 6.

    policy, reference: [2, B] sums of the response tokens' natural logprobs, row 0 chosen and row 1 rejected.
    tokens: [2, B] number of response tokens, at least 1 each.
    """
    difference = policy - reference.to(policy.dtype)  # [2, B]
    if length_normalised:
        difference = difference / tokens.to(policy.dtype)
    rewards = beta * difference
    chosen, rejected = rewards[0], rewards[1]
    with torch.no_grad():
        correct = (chosen > rejected).to(policy.dtype)
    return DpoTerms(-F.logsigmoid(chosen - rejected), chosen.detach(), rejected.detach(), correct)
