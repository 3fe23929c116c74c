"""Supervised fine-tuning: the negative log-likelihood of the tokens that are to be learnt."""

from __future__ import annotations

from torch import Tensor


def token_loss(logprobs: Tensor, mask: Tensor, denominator: float) -> Tensor:
    """L = -(1/D) sum_t m_t log p(y_t | y_<t), a scalar.

    logprobs: [B, T] natural log, of each next token. mask: [B, T], 1 (or True) where the token is learnt.
    denominator: D of the whole optimiser step, over all micro-batches and processes (its number of loss
    tokens for a mean, 1 for a sum), so that the parts of a step add up to the loss of the step.
    """
    return -(logprobs * mask).sum() / denominator
