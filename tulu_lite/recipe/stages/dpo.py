"""Direct preference optimisation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..base import Number
from ..training import TrainingSettings
from .common import Sources, Stage


class DpoStage(Stage, TrainingSettings):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290), length-normalised as in
    Tülu 3 (arXiv:2411.15124, eq. 6) unless told otherwise. The reference is the model it starts from."""

    kind: Literal["dpo"]
    init: str
    """The stage whose model is trained, and which is the reference."""
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
    length_normalised: bool = True
    """Divide each response's log-probability by its number of tokens (Tülu 3); false: standard DPO."""
    beta: Number = Field(5.0, gt=0)
    """Strength of the tie to the reference: 5 when length-normalised (Tülu 3), about 0.1 when not."""
    seed: int | None = None
    """Order of the pairs; by default the recipe's seed."""
