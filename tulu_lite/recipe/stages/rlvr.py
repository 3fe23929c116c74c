"""Reinforcement learning with verifiable rewards."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..base import Incidental, Number
from ..training import TrainingSettings
from .common import Sources, Stage
from .sampling import TrainingSamplingSettings


class RlvrStage(Stage, TrainingSettings):
    """Reinforcement learning with verifiable rewards by a group-relative policy gradient
    (GRPO, Shao et al. 2024, arXiv:2402.03300), once for each seed; the best seed goes on."""

    kind: Literal["rlvr"]
    init: str
    """The stage whose model is trained, and which is the reference of the KL term."""
    data: Sources
    """Prompts with a verifier and a reference."""
    validation: Sources
    """Prompts that are never trained on, by which the best seed is chosen."""
    seeds: tuple[int, ...] = Field((1, 2, 3), min_length=1)
    """One run each; RL is unstable, so several are the normal case."""
    steps: int = Field(ge=1)
    """Batches of prompts that are sampled, verified and learnt from."""
    prompts_per_step: int = Field(48, ge=1)
    """Prompts of one step."""
    samples_per_prompt: int = Field(16, ge=2)
    """Responses of one prompt: the group."""
    sampling: TrainingSamplingSettings
    """Temperature and response budget."""
    updates_per_step: int = Field(1, ge=1, le=16)
    """Optimiser steps made from one batch of responses, each over an equal share of its prompts."""
    advantage: Literal["grpo", "dr_grpo", "rloo"] = "grpo"
    """grpo: (reward - mean) / std of the group. dr_grpo: reward - mean (arXiv:2503.20783).
    rloo: reward - mean of the others (arXiv:2402.14740)."""
    aggregation: Literal["token", "sequence"] = "token"
    """token: mean over all response tokens of the step. sequence: mean over responses of their token means."""
    clip: tuple[float, float] = (0.2, 0.2)
    """The ratio to the sampling policy is clipped to [1 - low, 1 + high]."""
    kl_coefficient: Number = Field(0.01, ge=0)
    """Weight of the KL term to the reference in the loss; 0: no reference is loaded."""
    kl_estimator: Literal["k2", "k3"] = "k3"
    """Estimator of the KL divergence in the loss (Schulman 2020, "Approximating KL Divergence"). k1 is not offered: as
    a loss its gradient on the policy's own samples is zero on average, so it would hold nothing back."""
    reward_scale: Number = Field(1.0, gt=0)
    """A verdict's score in [0, 1] times this is the reward."""
    unfinished_reward: Number | None = None
    """Reward of a response that reached its budget with no end token; by default what the verifier says."""
    max_error_share: Number = Field(0.1, ge=0, le=1)
    """The stage stops when verifiers fail on more than this share of a step's responses."""
    max_logprob_gap: Annotated[Number, Field(gt=0)] | None = 0.1
    """The stage stops when the mean |log p_trainer - log p_sampler| of a fresh batch exceeds this: sampler and
    trainer then no longer run the same model. Logged each step as logprob_gap_mean; null: logged, and no limit."""
    preflight_logprob_gap: Annotated[Number, Field(gt=0)] | Literal["auto"] | None = Incidental("auto")
    """The same figure, measured on the first batch before anything is trained: above this the stage stops and says
    the likely cause. auto: 0.001 where server and trainer both compute in float32, else 0.05. null: no check."""
    validate_every_steps: int = Field(10, ge=1)
    """Steps between greedy validations; the last step is always validated."""
    select: Literal["last", "best"] = "last"
    """Which validation of a seed counts when seeds are compared: that of its last step, whose weights go on, or
    the best one, whose weights go on instead."""
    schedule: Literal["linear", "cosine", "constant"] = "constant"
    """Learning rate after the warm-up; published RLVR recipes keep it constant."""
    save_every_steps: int = Incidental(10, ge=1)
    """Steps between saves from which a killed run goes on."""

    @model_validator(mode="after")
    def _consistent(self) -> RlvrStage:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(
                f"seeds {list(self.seeds)} holds one twice; two runs of one seed give the same bits, so remove it"
            )
        if self.prompts_per_step % self.updates_per_step:
            raise ValueError(
                f"prompts_per_step {self.prompts_per_step} cannot be split into updates_per_step {self.updates_per_step} "
                "equal parts; choose a multiple"
            )
        if not 0 < self.clip[0] < 1 or self.clip[1] <= 0:
            raise ValueError(f"clip is [low, high] with 0 < low < 1 and high > 0, not {list(self.clip)}")
        if self.lora is not None and self.lora.dropout:
            raise ValueError(
                "lora.dropout makes the trainer's policy another than the sampler's; set it to 0 in rlvr"
            )
        return self
