"""Estimators of the KL divergence from samples (Schulman 2020, "Approximating KL Divergence")."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

KlEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(new: Tensor, reference: Tensor, estimator: KlEstimator) -> Tensor:
    """Per-token estimate of KL(policy || reference) for tokens that the policy sampled; any shape, same shape out.

    new, reference: natural logs. With d = log pi - log pi_ref (Schulman's -log r):  k1 = d (unbiased, high variance),
    k2 = d^2 / 2 (biased, low variance),  k3 = exp(-d) - 1 + d (unbiased, never negative).

    As a term of a loss, only the estimate itself is differentiated: the gradient of k1 is then grad log pi, whose
    mean over the policy's own samples is zero, so k1 measures but does not hold the policy back; the gradient of
    k2 has the mean grad KL; that of k3 the mean grad KL(reference || policy).
    """
    difference = new - reference
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    if estimator == "k3":
        return torch.expm1(-difference) + difference
    raise ValueError(f"there is no KL estimator {estimator!r}; it is k1, k2 or k3")


def kl_loss(new: Tensor, reference: Tensor, estimator: KlEstimator) -> Tensor:
    """Per-token KL term of a loss: the estimate's value, with a gradient that holds the policy back.

    k2 and k3 are differentiated as they are. k1 has the gradient of k2, d grad log pi, which is the score-function
    gradient of its mean (differentiating k1 itself gives zero on average): KL(policy || reference) without bias.
    """
    estimate = kl_estimate(new, reference, estimator)
    if estimator != "k1":
        return estimate
    slope = kl_estimate(new, reference, "k2")
    return estimate.detach() + slope - slope.detach()
