"""Accuracy on held-out prompts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ..base import Incidental, Number
from .common import Sources, Stage
from .sampling import FreeSampling


class EvaluateStage(Stage, FreeSampling):
    """Accuracy of one or more models on held-out prompts: greedy, and pass@k from samples, with intervals.
    Each model's evaluation runs as soon as that model is there."""

    kind: Literal["evaluate"]
    models: tuple[str, ...] = Field(min_length=1)
    """Stages to evaluate; `base` is the recipe's model. A stage of several runs stands for those that `runs` says."""
    runs: Literal["all", "seeds", "chosen"] = Incidental("seeds")
    """Of a stage with several runs: `all`, each when it is done; `seeds`, those of the setting that goes on (without a
    sweep all); `chosen`, the run that goes on alone. No evaluation has a say in the choice."""
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
