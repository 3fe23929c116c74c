"""Greedy agreement: the server's most likely tokens against the trainer's, where held weights cannot be compared.

That is so for models split over GPUs and for quantised or shuffled layers. It finds layers that were missed, mixed up or
laid out wrongly; it does not find a step so small that no token's probability moves. That the bytes arrived whole is
known from their digest all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..errors import ServerError
from .control import Control

if TYPE_CHECKING:
    import torch

Tokens = tuple[int, ...]
Samples = list[tuple[Tokens, Tokens]]  # (prompt, response)
Reference = Callable[
    [Samples], "list[torch.Tensor]"
]  # the trainer's log-probabilities [T, V] at each response's tokens

PROMPTS, PROMPT_TOKENS, RESPONSE_TOKENS = 4, 12, 8
# How much less likely than its best token the trainer may find the server's: rounding decides between equals.
# Measured between server and trainer: 5e-6 at most in float32, 0.08 in bfloat16.
_TOLERANCE = {"float32": 1e-3}
_TOLERANCE_16_BIT = 0.25


def fixed_prompts(vocabulary: int) -> list[Tokens]:
    """Prompts of ordinary tokens, the same for every push."""
    span = max(1, vocabulary - 4)
    return [
        tuple(4 % vocabulary + (977 * i + 389 * j + 31 * i * j) % span for j in range(PROMPT_TOKENS))
        for i in range(PROMPTS)
    ]


def prove_by_agreement(control: Control, reference: Reference, vocabulary: int, dtype: str) -> int:
    """Have the server continue fixed prompts greedily and the trainer judge each token; returns how many agreed.

    Raises ServerError when the trainer prefers another token by more than rounding explains.
    """
    samples = [
        (prompt, tuple(control.greedy(prompt, RESPONSE_TOKENS))) for prompt in fixed_prompts(vocabulary)
    ]
    worse = disagreements(samples, reference(samples), _TOLERANCE.get(dtype, _TOLERANCE_16_BIT))
    if worse:
        raise ServerError(
            f"the rollout server's greedy tokens are not the trainer's: {len(worse)} of "
            f"{PROMPTS * RESPONSE_TOKENS} differ, the first by {worse[0]:.3g} in log-probability",
            "its weights are not those that were pushed, or it computes otherwise than the trainer does",
        )
    return PROMPTS * RESPONSE_TOKENS


def disagreements(samples: Samples, log_p: Sequence[torch.Tensor], tolerance: float) -> list[float]:
    """By how much each token that the trainer would not have chosen is less likely than its best one.

    log_p: [T, V] for each sample. NaN disagrees.
    """
    worse = []
    for (_, response), rows in zip(samples, log_p, strict=True):
        for token, row in zip(response, rows, strict=True):
            gap = float(row.max() - row[token])
            if not gap <= tolerance:
                worse.append(gap)
    return worse
