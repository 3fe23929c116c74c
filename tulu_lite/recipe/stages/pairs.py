"""What the stages that learn from preference pairs share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ..base import Later
from ..training import TrainingSettings
from .common import Sources, TrainingStage


class PairStage(TrainingStage, TrainingSettings):
    """A stage that learns which of two responses to a prompt is the better one."""

    data: Sources
    """Pairs: an earlier preferences stage, or rows with prompt, chosen and rejected."""
    epochs: int = Field(1, ge=1, le=100)
    """Passes over the pairs."""
    batch_size: int = Field(128, ge=1)
    """Pairs of one optimiser step, over all processes."""
    max_length: int = Field(2048, ge=8)
    """Tokens of the longest prompt with response that is kept."""
    too_long: Literal["drop", "error"] = "drop"
    """What happens to longer pairs."""
    validate_every_steps: int = Later(50, ge=1)
    """Optimiser steps between looks at `validation`'s pairs, by the share of them that are ranked right; the last step
    is always looked at."""
    export: Literal["last", "best"] = Later("last")
    """The weights that go on: those of the last step, or those of the validation that ranked most pairs right."""
    seed: int | None = None
    """Order of the pairs; by default the recipe's seed."""

    @model_validator(mode="after")
    def _best_needs_a_validation(self) -> PairStage:
        if self.export == "best" and not self.validation:
            raise ValueError("export: best needs `validation`, pairs by which the best weights are known")
        return self
