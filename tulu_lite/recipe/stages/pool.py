"""Stages that sample from a pool of models and judge what they sample."""

from __future__ import annotations

from pydantic import Field, model_validator

from ..base import Later, Number
from ..data import DataSource
from .common import Sources, Stage
from .sampling import PreferenceSamplingSettings


class PoolStage(Stage):
    """Samples of one model or several, judged by each prompt's verifier."""

    init: str | None = None
    """The stage (or `base`) whose model samples. Instead of it: `models`."""
    models: tuple[str, ...] = Later(())
    """The pool: stages, `base`, model folders or hub ids (`name@revision` pins one), which sample in turn on the one
    server. The samples of a prompt are spread evenly; where that does not come out even, the first model has one more,
    and of the others a seeded choice for each prompt (Tülu 3 draws four models for each prompt this way). A model of
    another vocabulary is asked by its own chat template, and its text goes through the recipe's."""
    data: Sources
    """Prompts with a verifier and a reference."""
    samples_per_prompt: int = Field(4, ge=1)
    """Responses drawn for each prompt, of all models together."""
    sampling: PreferenceSamplingSettings
    """Temperature, response budget, and what cuts or bends the distribution."""
    max_error_share: Number = Field(0.1, ge=0, le=1)
    """The stage stops when verifiers fail on more than this share of responses (an error is never a score)."""
    seed: int | None = None
    """Seed of the samples and choices; by default the recipe's seed."""

    @model_validator(mode="after")
    def _one_pool(self) -> PoolStage:
        if (self.init is None) == (not self.models):
            raise ValueError(
                "a stage that samples names either `init` (one stage) or `models` (a pool); "
                + ("write `init: sft` or `models: [sft, base]`" if self.init is None else "leave one out")
            )
        twice = [name for name in self.models if self.models.count(name) > 1]
        if twice:
            raise ValueError(f"models names {twice[0]!r} twice; each samples its share once, so remove one")
        return self

    @property
    def prompt_parts(self) -> tuple[tuple[DataSource, ...], ...]:
        """The sources of all prompts that are sampled, in parts that are kept apart."""
        return (self.data,)

    @property
    def pool(self) -> tuple[str, ...]:
        """The names of all models that sample, in order."""
        return self.models or (str(self.init),)


def is_stage_name(name: str) -> bool:
    """Whether a model of a pool is meant as a stage's: folders and hub ids have a slash or begin with a dot or ~."""
    return "/" not in name and not name.startswith((".", "~"))


def split_revision(name: str) -> tuple[str, str | None]:
    """A hub id and its revision, of `owner/name@revision`; a folder as it is."""
    if name.startswith("/"):
        return name, None
    model, at, revision = name.partition("@")
    return model, revision if at else None
