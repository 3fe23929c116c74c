"""On-policy preference pairs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..base import Number
from .common import Sources, Stage
from .sampling import PreferenceSamplingSettings


class PreferencesStage(Stage):
    """On-policy preference pairs: several samples a prompt, judged by the prompt's verifier."""

    kind: Literal["preferences"]
    init: str
    """The stage whose model samples."""
    data: Sources
    """Prompts with a verifier and a reference."""
    samples_per_prompt: int = Field(4, ge=2)
    """Responses drawn for each prompt."""
    sampling: PreferenceSamplingSettings
    """Temperature, response budget, and what cuts or bends the distribution."""
    pairs_per_prompt: int = Field(1, ge=1)
    """Pairs made from one prompt's responses at most; no response text is in two pairs as the same side."""
    rejected: Literal["random_lower", "lowest"] = "random_lower"
    """Which response loses to the best: a random one of lower score (Tülu 3), or one of the lowest."""
    min_margin: Number = Field(0.0, ge=0)
    """Least difference of score between chosen and rejected; 0: any difference."""
    max_error_share: Number = Field(0.1, ge=0, le=1)
    """The stage stops when verifiers fail on more than this share of responses (an error is never a score)."""
    seed: int | None = None
    """Seed of the samples and choices; by default the recipe's seed."""
