"""Preference pairs from the policy and other models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..base import Number
from .pool import PoolStage


class PreferencesStage(PoolStage):
    """Preference pairs: several samples a prompt, of the policy alone or of a pool of models with it among them,
    judged by the prompt's verifier (Tülu 3, arXiv:2411.15124, section 5.2)."""

    kind: Literal["preferences"]
    samples_per_prompt: int = Field(4, ge=2)
    """Responses drawn for each prompt, of all models together."""
    pairs_per_prompt: int = Field(1, ge=1)
    """Pairs made from one prompt's responses at most; no response text is in two pairs as the same side."""
    rejected: Literal["random_lower", "lowest"] = "random_lower"
    """Which response loses to the best: a random one of lower score (Tülu 3), or one of the lowest."""
    min_margin: Number = Field(0.0, ge=0)
    """Least difference of score between chosen and rejected; 0: any difference."""
