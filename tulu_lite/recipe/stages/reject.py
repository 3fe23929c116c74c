"""Rejection sampling: responses that passed their verifiers, as rows to fine-tune on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..base import Number
from ..data import DataSource
from .common import MoreSources
from .pool import PoolStage


class RejectStage(PoolStage):
    """Rejection sampling, or best-of-n: n samples a prompt, verifiers choose, and the chosen become rows that an sft
    stage reads by `data: {stage: ...}`, token ids as they were sampled (DeepSeek-R1, section 2.3.3; Llama 2,
    arXiv:2307.09288, section 3.2.2)."""

    kind: Literal["reject"]
    samples_per_prompt: int = Field(16, ge=1)
    """Responses drawn for each prompt, of all models together."""
    min_score: Annotated[Number, Field(ge=0, le=1)] | None = 1.0
    """Responses of a lower score are rejected. null: none is, and `choose: best` alone decides (best-of-n)."""
    keep_per_prompt: int = Field(1, ge=1)
    """Responses of one prompt that are kept at most."""
    choose: Literal["best", "shortest", "random"] = "random"
    """Which of the right ones: those of the highest score, those of the fewest tokens, or a seeded choice; ties by a
    seeded choice too."""
    rank_by: str | None = None
    """A further verifier (a reward model, a judge: a name as in a data source's `verifier`) whose score decides what is
    best among those that passed. By default the prompt's own verifier."""
    keep_unfinished: bool = False
    """Keep responses that were cut at their budget too: what is learnt from them is not to stop there."""
    near_duplicates: Annotated[Number, Field(gt=0, le=1)] | None = 0.8
    """A response is dropped when the Jaccard similarity of its runs of five words to those of one that was kept for the
    same prompt reaches this; null: only equal texts count as duplicates."""
    general: MoreSources = ()
    """Conversations of other kinds that are mixed in as they stand (rows with messages, or with prompt and completion),
    so that the model keeps what they teach."""
    general_prompts: MoreSources = ()
    """Prompts that are sampled and judged as those of `data`, and count as general: with a judge or a reward model as
    their verifier, say."""
    general_share: Number = Field(0.25, gt=0, lt=1)
    """Of all rows written, the share that is general, where there are such: DeepSeek-R1 (section 2.3.3) mixes three
    parts of reasoning with one of the rest. Of the side with too many rows a seeded choice is kept."""

    @model_validator(mode="after")
    def _ranked(self) -> RejectStage:
        if self.rank_by is not None and self.choose != "best":
            raise ValueError(
                f"rank_by says what is best, but choose is {self.choose}: set `choose: best`, or leave rank_by out"
            )
        if self.min_score is None and self.choose != "best":
            raise ValueError(
                f"min_score null rejects nothing, and choose {self.choose} looks at no score: nothing would choose; "
                "set `choose: best` or a min_score"
            )
        return self

    @property
    def prompt_parts(self) -> tuple[tuple[DataSource, ...], ...]:
        """The sources of all prompts that are sampled: those of `data`, then the general ones."""
        return (self.data, self.general_prompts) if self.general_prompts else (self.data,)
