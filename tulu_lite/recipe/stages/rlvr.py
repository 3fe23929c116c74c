"""Reinforcement learning with verifiable rewards."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..base import Incidental, Later, Number
from ..training import TrainingSettings
from .common import Extension, Sources, StopEarly, TrainingStage
from .rlvr_parts import CurriculumSettings, MismatchSettings, OverlongSettings, RefillSettings, ValueSettings
from .sampling import TrainingSamplingSettings


class RlvrStage(TrainingStage, TrainingSettings):
    """Reinforcement learning with verifiable rewards, once for each seed; the best seed goes on. By a group-relative
    policy gradient (GRPO, Shao et al. 2024, arXiv:2402.03300, and its kin) or by PPO with a value model."""

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
    samples_per_prompt: int = Field(16, ge=1)
    """Responses of one prompt: the group. 1 goes with the advantages that compare none: gae, reinforce."""
    sampling: TrainingSamplingSettings
    """Temperature and response budget."""
    updates_per_step: int = Field(1, ge=1, le=16)
    """Optimiser steps made from one batch of responses, each over an equal share of its prompts."""
    epochs_per_batch: int = Later(1, ge=1, le=16)
    """Passes over one batch of responses, each of updates_per_step optimiser steps; from the second on in a new seeded
    order of the prompts. (PPO as in Tülu 3: 4.)"""
    advantage: Literal["grpo", "dr_grpo", "rloo", "reinforce", "gae"] = "grpo"
    """grpo: (reward - mean) / std of the group. dr_grpo: reward - mean (arXiv:2503.20783).
    rloo: reward - mean of the others (arXiv:2402.14740). reinforce: the reward itself; with whiten_advantages it is
    REINFORCE++ (arXiv:2501.03262). gae: PPO with the value model of `value` (arXiv:1707.06347, arXiv:1506.02438)."""
    whiten_advantages: bool | None = Later(None)
    """Advantages less their mean over all tokens of the batch, divided by their standard deviation. By default only
    with gae."""
    value: ValueSettings | None = Later(None)
    """The value model, with `advantage: gae` only."""
    loss: Literal["clipped", "gspo", "cispo"] = Later("clipped")
    """clipped: PPO's clipped ratio of each token. gspo: the same with the ratio of the whole response
    (arXiv:2507.18071; its clip is of the order of 3e-4, and aggregation: sequence is theirs). cispo: log pi weighted by
    the clipped ratio, so that every token keeps its gradient (arXiv:2506.13585)."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """token: mean over all response tokens of the step. sequence: mean over responses of their token means.
    constant: mean over responses of their token sums divided by the response budget (Dr. GRPO, arXiv:2503.20783)."""
    clip: tuple[float, float] = (0.2, 0.2)
    """The ratio to the old policy is clipped to [1 - low, 1 + high]. cispo: low 1 leaves it without a lower bound."""
    dual_clip: Annotated[Number, Field(gt=1)] | None = Later(None)
    """clipped only: where the advantage A is negative the loss is at most -c A (arXiv:1912.09729, where c is 3)."""
    old_logprobs: Literal["sampler", "trainer"] = Later("sampler")
    """Which old policy the ratio is to: the one that sampled, by the sampler's own log-probabilities, or the trainer's
    before its first update on the batch, which costs a forward pass and ignores how old the samples are (Tülu 3's PPO)."""
    mismatch: MismatchSettings | None = Later(None)
    """With old_logprobs: trainer: correction for what the sampler's policy differs from the trainer's."""
    kl_coefficient: Number = Field(0.01, ge=0)
    """Weight of the KL term to the reference; 0: no reference is loaded."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL divergence (Schulman 2020, "Approximating KL Divergence"). In the loss k1 has the gradient of
    k2: differentiating k1 itself gives zero on average, so it would hold nothing back."""
    kl_in: Literal["loss", "reward"] = Later("loss")
    """reward: the KL estimate of each token is taken off the reward (Tülu 3's PPO, with k1); group advantages are of
    the reward less the sum over the response."""
    reference: str | None = Later(None)
    """The KL term's reference: a stage, `base`, or a model's folder; by default the model that training starts from
    (with LoRA: the adapter switched off)."""
    reference_refresh_steps: int | None = Later(None, ge=1)
    """The reference becomes the policy itself every so many steps (DeepSeek-R1, arXiv:2501.12948: 400); null: never."""
    entropy_coefficient: Number = Later(0.0, ge=0)
    """Weight of the mean entropy in the loss, which rewards it."""
    rhythm: Literal["on_policy", "one_behind", "async"] = Later("on_policy")
    """on_policy: sample, then train. one_behind: while a batch is trained on, the next is sampled from the weights of
    before (Tülu 3). async: batches are sampled up to max_staleness steps ahead, and new weights reach responses in
    flight (server.weight_update: keep). Metrics tell how many steps the tokens were behind."""
    max_staleness: int = Later(1, ge=1, le=64)
    """async only: steps that the weights which sampled a token may be behind those that learn from it."""
    refill: RefillSettings | None = Later(None)
    """Replace groups without signal; null: keep them, with advantage 0."""
    curriculum: CurriculumSettings | None = Later(None)
    """Draw prompts by their measured pass rate; null: each once an epoch."""
    overlong: OverlongSettings | None = Later(None)
    """What long responses cost; null: nothing."""
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
    no_signal: Literal["warn", "stop"] = Incidental("warn")
    """What follows when for no_signal_steps in a row no group had signal, or no response ended within its budget: a
    warning, or the end of the stage. Both say what the verdicts were."""
    no_signal_steps: int = Incidental(5, ge=1)
    """See no_signal."""
    on_nan: Literal["stop", "skip"] = Later("stop")
    """What follows when a gradient is not finite: the stage stops, or the update is left out and counted
    (skipped_updates); ten in a row stop it all the same. Under DeepSpeed it always stops."""
    keep_rollouts_mb: int = Incidental(2048, ge=0)
    """MiB of samples with their verdicts that the stage keeps on disk (rollouts/); of more, the oldest steps go."""
    replay: str | None = Later(None)
    """A folder of recorded rollouts (another run's rollouts/): they are trained on instead of new samples, and no server
    is needed. All steps have to be there. Nothing is validated, so it is one run: one seed, no sweep."""
    schedule: Literal["linear", "cosine", "constant"] = "constant"
    """Learning rate after the warm-up; published RLVR recipes keep it constant."""
    save_every_steps: int = Incidental(10, ge=1)
    """Steps between saves from which a killed run goes on."""

    stop_early: StopEarly | None = Later(None)
    """When a run that is far behind the others ends; by default none does. In turn, runs are compared with those before
    them; several at once with those that have come as far."""
    extend: tuple[Extension, ...] = ()
    """Runs that go on after their last step, from their exact state; `tulu-lite extend` adds to these."""

    @model_validator(mode="after")
    def _consistent(self) -> RlvrStage:
        if self.prompts_per_step % self.updates_per_step:
            raise ValueError(
                f"prompts_per_step {self.prompts_per_step} cannot be split into updates_per_step {self.updates_per_step} "
                "equal parts; choose a multiple"
            )
        if not 0 < self.clip[0] <= 1 or self.clip[1] <= 0:
            raise ValueError(f"clip is [low, high] with 0 < low <= 1 and high > 0, not {list(self.clip)}")
        if self.lora is not None and self.lora.dropout:
            raise ValueError(
                "lora.dropout makes the trainer's policy another than the sampler's; set it to 0 in rlvr"
            )
        self._check_group()
        self._check_ppo()
        self._check_policy()
        return self

    def _check_group(self) -> None:
        if self.samples_per_prompt > 1:
            return
        if self.advantage not in ("gae", "reinforce"):
            raise ValueError(
                f"samples_per_prompt 1 leaves advantage {self.advantage} nothing to compare a response with; raise it"
            )
        if self.refill is not None:
            raise ValueError(
                "refill replaces groups whose rewards are all the same, as those of samples_per_prompt 1 always are; leave "
                "it out"
            )

    def _check_ppo(self) -> None:
        if self.value is not None and self.advantage != "gae":
            raise ValueError(
                f"value is the value model of `advantage: gae`, and advantage is {self.advantage}, which has none; "
                "leave one of the two out"
            )
        if self.value is not None and self.value.warmup_steps >= self.steps:
            raise ValueError(
                f"value.warmup_steps {self.value.warmup_steps} leaves no step of {self.steps} in which the policy is "
                "trained; lower it"
            )
        if self.reference_refresh_steps is not None and not self.kl_coefficient:
            raise ValueError(
                "reference_refresh_steps: with kl_coefficient 0 there is no reference; leave one out"
            )
        if self.reference is not None and not self.kl_coefficient:
            raise ValueError(
                "reference: with kl_coefficient 0 none is used; leave it out, or set kl_coefficient"
            )

    def _check_policy(self) -> None:
        if self.dual_clip is not None and self.loss != "clipped":
            raise ValueError(f"dual_clip belongs to `loss: clipped`, and loss is {self.loss}; leave it out")
        if self.mismatch is not None and self.old_logprobs == "sampler":
            raise ValueError(
                "mismatch: with old_logprobs: sampler the ratio is to the sampler's own policy, so the difference is in it "
                "already; set old_logprobs: trainer, or leave mismatch out"
            )
        if self.rhythm != "async" and self.max_staleness != 1:
            raise ValueError(
                f"max_staleness belongs to `rhythm: async`, and rhythm is {self.rhythm}; leave it out"
            )
        if self.overlong is not None and (self.overlong.buffer_tokens or 0) > self.sampling.max_tokens:
            raise ValueError(
                f"overlong.buffer_tokens {self.overlong.buffer_tokens} is more than sampling.max_tokens "
                f"{self.sampling.max_tokens}; it is the last part of that budget"
            )
        if self.replay is not None and (self.rhythm != "on_policy" or self.refill or self.curriculum):
            raise ValueError(
                "replay: what was recorded is trained on in its order, so rhythm, refill and curriculum have no part in it; "
                "leave them out"
            )
        if self.replay is not None and self.select == "best":
            raise ValueError("replay: nothing is validated, so there is no best step; set select: last")
        if self.replay is not None and (len(self.seeds) > 1 or self.sweep is not None):
            raise ValueError(
                "replay: nothing is validated, so several runs could not be compared; give one seed (`seeds: [1]`) and no "
                "sweep"
            )

    @property
    def critic(self) -> ValueSettings | None:
        """The value model's settings; None without one."""
        return (self.value or ValueSettings.model_validate({})) if self.advantage == "gae" else None

    @property
    def whitens(self) -> bool:
        return self.advantage == "gae" if self.whiten_advantages is None else self.whiten_advantages

    @property
    def compares_beyond_groups(self) -> bool:
        """Whether a response is compared with others than those of its group: with values, or the whole batch's mean."""
        return self.advantage == "gae" or self.whitens

    @property
    def ahead(self) -> int:
        """Steps by which sampling may run ahead of training."""
        return {"on_policy": 0, "one_behind": 1, "async": self.max_staleness}[self.rhythm]

    @property
    def updates(self) -> int:
        """Optimiser steps of one batch."""
        return self.epochs_per_batch * self.updates_per_step

    @property
    def other_models(self) -> tuple[str, ...]:
        """Names of stages, and folders, that are read besides `init`: the reference, the value model's start."""
        named = [self.reference] if self.reference is not None else []
        if self.value is not None and self.value.init != "policy":
            named.append(self.value.init)
        return tuple(named)
