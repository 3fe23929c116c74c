"""Direct preference optimisation: a classification loss on pairs, against a frozen reference."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def sequence_logprob(logprobs: Tensor, mask: Tensor, length_normalised: bool) -> Tensor:
    """[B] log pi(y|x): the sum over each row's masked tokens; length-normalised, their mean.

    logprobs: [B, T] natural log. mask: [B, T], 1 on the response's tokens. A row without tokens has 0.
    """
    total = (logprobs * mask).sum(-1)
    return total / mask.sum(-1).clamp(min=1) if length_normalised else total


def dpo_losses(
    chosen_B: Tensor,
    rejected_B: Tensor,
    reference_chosen_B: Tensor,
    reference_rejected_B: Tensor,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """-log sigmoid(m) and m, both [B], with m = beta (log pi/pi_ref of chosen - log pi/pi_ref of rejected).

    Rafailov et al. 2023 (arXiv:2305.18290), eq. 7. With all four from `sequence_logprob(..., length_normalised=True)`
    it is length-normalised DPO: Tülu 3 (arXiv:2411.15124), eq. 6. The margin m is the difference of the implicit
    rewards, detached; it is positive where the policy prefers the chosen response more than the reference does.
    """
    margin_B = beta * ((chosen_B - reference_chosen_B) - (rejected_B - reference_rejected_B))
    return -F.logsigmoid(margin_B), margin_B.detach()
