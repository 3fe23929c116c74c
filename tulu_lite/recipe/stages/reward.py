"""Reward models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..base import Number
from .pairs import PairStage


class RewardStage(PairStage):
    """A reward model: a number for a prompt with its response, trained on preference pairs by the Bradley-Terry loss
    (Ouyang et al. 2022, arXiv:2203.02155). It starts as a language model with a new head for its last token. `judges`
    serve it, and rlvr's value model can start from it; it answers no prompts itself."""

    kind: Literal["reward"]
    init: str
    """The stage (or `base`) whose model it starts from: a language model, or an earlier reward model."""
    margin: Number = Field(0.0, ge=0)
    """The chosen response's reward should be higher by this at least (Llama 2, arXiv:2307.09288, eq. 2); 0: any."""
    centring: Number = Field(0.0, ge=0)
    """Weight of the square of the two rewards' sum, which holds rewards around 0 (arXiv:2312.09244: 0.01); 0: none."""
