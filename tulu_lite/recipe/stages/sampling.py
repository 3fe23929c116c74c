"""How responses are drawn: by temperature alone where they are learnt from, freely where they are only compared."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from ..base import Later, Number, Settings

_BENDING = ("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


class SamplingSettings(Settings):
    """How responses are drawn from the policy."""

    temperature: Number = Field(1.0, gt=0, le=10)
    """Softmax temperature. The log-probabilities kept are those at this temperature."""
    max_tokens: int = Field(ge=1)
    """Response budget in tokens; a response that reaches it is cut and counts as unfinished."""


class TrainingSamplingSettings(SamplingSettings):
    """How responses are drawn that are learnt from: by temperature alone."""

    @model_validator(mode="before")
    @classmethod
    def _true_logprobs(cls, given: Any) -> Any:
        bending = [name for name in _BENDING if isinstance(given, dict) and name in given]
        if bending:
            raise ValueError(
                f"{bending[0]} cannot be used here: what is sampled would not come from softmax(logits / temperature), "
                "which is what training computes the log-probabilities of; leave it out (evaluate and preferences stages "
                "can use it)"
            )
        return given


class FreeSampling(Settings):
    """What may bend or cut the distribution where nothing is learnt from its log-probabilities."""

    top_p: Number = Later(1.0, gt=0, le=1)
    """Nucleus sampling: only the likeliest tokens that together have this probability; 1: all."""
    top_k: int = Later(0, ge=0)
    """Only this many of the likeliest tokens; 0: all."""
    min_p: Number = Later(0.0, ge=0, le=1)
    """Only tokens at least this share as likely as the likeliest one; 0: all."""
    repetition_penalty: Number = Later(1.0, gt=0, le=2)
    """Logits of tokens that are in the prompt or were sampled are divided by this, or multiplied where negative; 1: none."""
    presence_penalty: Number = Later(0.0, ge=-2, le=2)
    """Subtracted from the logits of tokens that were sampled before."""
    frequency_penalty: Number = Later(0.0, ge=-2, le=2)
    """The same, once for each time."""

    def bending(self) -> dict[str, Any]:
        """The settings by name, for the sampler."""
        return {name: getattr(self, name) for name in _BENDING}


class PreferenceSamplingSettings(SamplingSettings, FreeSampling):
    """How responses are drawn that are only compared with one another."""
