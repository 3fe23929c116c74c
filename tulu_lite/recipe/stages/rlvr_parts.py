"""The parts of an rlvr stage that have settings of their own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..base import Number, Settings


class ValueSettings(Settings):
    """The value model of PPO (`advantage: gae`) and its generalised advantages (arXiv:1506.02438)."""

    init: str = "policy"
    """What it starts from: `policy` (the stage's own initial model with a new head, whose values are all 0), a `reward`
    stage, or the folder of a reward model (Tülu 3)."""
    learning_rate: Annotated[Number, Field(gt=0, lt=1)] | None = None
    """Its own peak learning rate; by default the policy's. Schedule and warm-up are the policy's."""
    coefficient: Number = Field(0.1, gt=0)
    """Weight of its loss. Its optimiser is its own, so this counts only where gradients are clipped (`max_grad_norm`)."""
    clip: Annotated[Number, Field(gt=0)] | None = 0.2
    """A value may move this far from what it was before the batch; null: as far as it likes."""
    warmup_steps: int = Field(0, ge=0)
    """Steps at the beginning in which the value model alone is trained."""
    gamma: Number = Field(1.0, gt=0, le=1)
    """Discount of later rewards, for each token."""
    gae_lambda: Number = Field(0.95, ge=0, le=1)
    """0: advantages rest on the next value alone; 1: on the whole return, less the value."""


class MismatchSettings(Settings):
    """Correction for a sampler that is not quite the trainer's policy (other types, kernels, older weights):
    each token's loss is multiplied with w = pi_trainer / pi_sampler before the first update on the batch."""

    how: Literal["truncate", "mask"] = "truncate"
    """truncate: min(w, high), truncated importance sampling. mask: w between low and high, 0 elsewhere."""
    level: Literal["token", "sequence"] = "token"
    """Whether w is the token's or the whole response's."""
    low: Number = Field(0.5, ge=0)
    """The least w that `mask` keeps."""
    high: Number = Field(2.0, ge=1)
    """The largest w."""

    @model_validator(mode="after")
    def _around_one(self) -> MismatchSettings:
        if self.low > 1:
            raise ValueError(
                f"mismatch.low is {self.low:g}, but where sampler and trainer agree w is 1; lower it"
            )
        return self


class OverlongSettings(Settings):
    """What long responses cost (DAPO, Yu et al. 2025, arXiv:2503.14476, sec. 3.4)."""

    buffer_tokens: int | None = Field(None, ge=1)
    """The last so many tokens of the budget cost up to `penalty`, in proportion (eq. 13); null: nothing."""
    penalty: Number = Field(1.0, gt=0)
    """Taken off the reward of a response that fills its budget."""
    mask: bool = False
    """Responses that were cut off teach nothing; they still count in their group's mean."""

    @model_validator(mode="after")
    def _does_something(self) -> OverlongSettings:
        if self.buffer_tokens is None and not self.mask:
            raise ValueError(
                "overlong costs nothing as it is: set buffer_tokens (the last so many tokens of the budget cost up to "
                "`penalty`), or mask: true"
            )
        return self


class RefillSettings(Settings):
    """Prompts whose group has no signal (all rewards the same) are replaced by others before anything is learnt
    (dynamic sampling: DAPO, arXiv:2503.14476, sec. 3.2)."""

    max_rounds: int = Field(2, ge=1, le=64)
    """How often a place of the batch is filled again; after that its last group is kept, with advantage 0."""


class CurriculumSettings(Settings):
    """Prompts by their measured pass rate: what is too easy or too hard now is drawn less often."""

    low: Number = Field(0.0, ge=0, le=1)
    """Prompts whose pass rate so far is at most this are too hard for now."""
    high: Number = Field(1.0, ge=0, le=1)
    """Prompts whose pass rate so far is at least this are too easy."""
    keep: Number = Field(0.25, ge=0, le=1)
    """The chance that such a prompt is drawn all the same when its turn comes, so that it is measured again."""
    window: int = Field(2, ge=1)
    """Groups that the pass rate of a prompt is taken over: its newest."""

    @model_validator(mode="after")
    def _in_order(self) -> CurriculumSettings:
        if self.low >= self.high:
            raise ValueError(
                f"curriculum.low {self.low:g} is not below curriculum.high {self.high:g}, so every prompt would be too "
                "hard or too easy"
            )
        return self
