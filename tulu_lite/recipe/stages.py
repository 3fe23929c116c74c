"""The stage kinds. A stage names what it starts from (`init`) by stage name; `base` is the recipe's own model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from .base import Incidental, Later, Number, Settings
from .data import DataSource
from .training import TrainingSettings


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, (str, dict)) else value


_Short = str | DataSource  # as it may be written in YAML
Sources = Annotated[
    tuple[DataSource, ...],
    BeforeValidator(_as_list, json_schema_input_type=_Short | list[_Short]),
    Field(min_length=1),
]
StageName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,40}$")]


class Stage(Settings):
    """What every stage has."""

    name: StageName
    """How other stages and the command line refer to this stage: lower case, digits, - and _."""


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


class SftStage(Stage, TrainingSettings):
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
    max_length: int = Field(4096, ge=8)
    """Tokens of the longest conversation that is kept."""
    too_long: Literal["drop", "error"] = "drop"
    """What happens to longer ones: dropped and counted, or an error before training."""
    loss: Literal["token_mean", "token_sum"] = "token_mean"
    """Mean over the step's loss tokens on all processes, or their sum (Tülu 3)."""
    seed: int | None = None
    """Order of the data; by default the recipe's seed."""


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


class EvaluateStage(Stage, FreeSampling):
    """Accuracy of one or more models on held-out prompts: greedy, and pass@k from samples, with intervals.
    Each model's evaluation runs as soon as that model is there."""

    kind: Literal["evaluate"]
    models: tuple[str, ...] = Field(min_length=1)
    """Stages to evaluate; `base` is the recipe's model. An rlvr stage stands for each of its seeds."""
    data: Sources
    """Prompts with a verifier and a reference that no stage trained on."""
    max_tokens: int = Field(ge=1)
    """Response budget in tokens."""
    samples_per_prompt: int = Field(0, ge=0)
    """Responses sampled for each prompt, besides the greedy one, for sampled accuracy and pass@k; 0: none."""
    temperature: Number = Field(1.0, gt=0, le=10)
    """Temperature of those samples, which top_p and the other settings that bend or cut the distribution go with. Of
    these the penalties alone change the greedy response too."""
    pass_at: tuple[int, ...] = ()
    """The k of pass@k (Chen et al. 2021, arXiv:2107.03374, eq. 1), each at most samples_per_prompt."""
    max_error_share: Number = Field(0.1, ge=0, le=1)
    """The stage fails when verifiers fail on more than this share of responses."""
    seed: int | None = None
    """Seed of the samples; by default the recipe's seed."""

    @model_validator(mode="after")
    def _enough_samples(self) -> EvaluateStage:
        too_many = [k for k in self.pass_at if not 1 <= k <= self.samples_per_prompt]
        if too_many:
            raise ValueError(
                f"pass_at {too_many} needs at least as many samples_per_prompt, which is {self.samples_per_prompt}; raise it"
            )
        return self


AnyStage = Annotated[
    SftStage | PreferencesStage | DpoStage | RlvrStage | EvaluateStage, Field(discriminator="kind")
]
