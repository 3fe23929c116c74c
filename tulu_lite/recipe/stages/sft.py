"""Supervised fine-tuning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ..base import Later
from ..training import TrainingSettings
from .common import Sources, TrainingStage


class SftStage(TrainingStage, TrainingSettings):
    """Supervised fine-tuning: next-token loss on the assistant's tokens, end token included."""

    kind: Literal["sft"]
    init: str = "base"
    """The stage (or `base`) whose model is trained."""
    data: Sources
    """Conversations: rows with messages, or with prompt and completion."""
    epochs: int = Field(1, ge=1, le=100)
    """Passes over the data."""
    batch_size: int = Field(128, ge=1)
    """Conversations of one optimiser step, over all processes."""
    batch_tokens: int | None = Later(None, ge=1)
    """The length of a step in tokens, in place of batch_size: each step takes conversations, in the seed's order, until
    the next would make it longer than this (a longer conversation is a step by itself)."""
    validate_every_steps: int = Later(50, ge=1)
    """Optimiser steps between looks at `validation`'s conversations, by the loss on them; the last step is always looked
    at."""
    export: Literal["last", "best"] = Later("last")
    """Which weights go on: the last, or those of the validation with the lowest loss."""
    max_length: int = Field(4096, ge=8)
    """Tokens of the longest conversation that is kept."""
    too_long: Literal["drop", "error"] = "drop"
    """What happens to longer ones: dropped and counted, or an error before training."""
    loss: Literal["token_mean", "token_sum"] = "token_mean"
    """Mean over the step's loss tokens on all processes, or their sum (Tülu 3)."""
    loss_on: Literal["all", "last"] = Later("all")
    """Which of the assistant's turns have a loss: all, or the last one of each conversation."""
    seed: int | None = None
    """Order of the data; by default the recipe's seed."""

    @model_validator(mode="after")
    def _best_needs_a_validation(self) -> SftStage:
        if self.export == "best" and not self.validation:
            raise ValueError("export: best needs `validation`, rows by whose loss the best weights are known")
        return self
