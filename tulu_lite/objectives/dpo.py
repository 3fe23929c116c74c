"""Direct preference optimisation: losses on pairs of responses, most of them against a frozen reference.

B pairs, T tokens. log pi is the log-probability of a whole response (or its mean over tokens), and

    h = (log pi/ref of the chosen response) - (log pi/ref of the rejected one)
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Objective = Literal["dpo", "ipo", "robust", "hinge", "simpo"]
REFERENCE_FREE = ("simpo",)
SMOOTHED = ("dpo", "robust", "simpo")  # those for which label smoothing has a meaning


def sequence_logprob(logprobs: Tensor, mask: Tensor, length_normalised: bool) -> Tensor:
    """[B] log pi(y|x): the sum over each row's masked tokens; length-normalised, their mean.

    logprobs: [B, T] natural log. mask: [B, T], 1 on the response's tokens. A row without tokens has 0.
    """
    total = (logprobs * mask).sum(-1)
    return total / mask.sum(-1).clamp(min=1) if length_normalised else total


def preference_losses(
    objective: Objective,
    advantage_B: Tensor,
    beta: float,
    *,
    label_smoothing: float = 0.0,
    gamma: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Losses and margins, both [B], of one objective.

    advantage_B: h, or for simpo the difference of the mean log-probabilities themselves. label_smoothing: epsilon, the
    share of pairs that are thought to be labelled the wrong way round. The margin beta h is the difference of the
    implicit rewards, detached: it is positive where the policy prefers the chosen response more than the reference does.

    dpo     -(1 - eps) log sigmoid(beta h) - eps log sigmoid(-beta h)     arXiv:2305.18290, eq. 7; with eps, cDPO
    ipo     (h - 1 / (2 beta))^2, where beta is their tau                 arXiv:2310.12036, eq. 17
    robust  (-(1 - eps) log sigmoid(beta h) + eps log sigmoid(-beta h)) / (1 - 2 eps)    arXiv:2403.00409
    hinge   max(0, 1 - beta h): SLiC's rank loss, on ratios to the reference             arXiv:2305.10425, 2309.06657
    simpo   -log sigmoid(beta d - gamma) (with eps as dpo), d the difference of means    arXiv:2405.14734, eq. 6
    """
    margin_B = beta * advantage_B
    if objective == "ipo":
        return (advantage_B - 1 / (2 * beta)).square(), margin_B.detach()
    if objective == "hinge":
        return F.relu(1 - margin_B), margin_B.detach()
    right_B, wrong_B = F.logsigmoid(margin_B - gamma), F.logsigmoid(gamma - margin_B)
    if objective == "robust":
        losses_B = (-(1 - label_smoothing) * right_B + label_smoothing * wrong_B) / (1 - 2 * label_smoothing)
    elif label_smoothing:
        losses_B = -(1 - label_smoothing) * right_B - label_smoothing * wrong_B
    else:
        losses_B = -right_B
    return losses_B, margin_B.detach()


def dpo_losses(
    chosen_B: Tensor,
    rejected_B: Tensor,
    reference_chosen_B: Tensor,
    reference_rejected_B: Tensor,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """Plain DPO's losses and margins [B] from the four log-probabilities.

    With all four from `sequence_logprob(..., length_normalised=True)` it is length-normalised DPO: Tülu 3
    (arXiv:2411.15124), eq. 6.
    """
    advantage_B = (chosen_B - reference_chosen_B) - (rejected_B - reference_rejected_B)
    return preference_losses("dpo", advantage_B, beta)
