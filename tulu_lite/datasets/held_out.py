"""Pairs that are never trained on, by which a stage that learns from pairs is measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import TuluLiteError
from ..recipe import PairStage
from .cache import TokenCache
from .chat import ChatTemplate
from .pairs import PairExample, load_pairs


def held_out_pairs(
    stage: PairStage,
    template: ChatTemplate,
    trained: Sequence[PairExample],
    *,
    seed: int,
    stage_rows: Callable[[str], Path] | None,
    cache: TokenCache | None = None,
) -> dict[str, PairExample]:
    """The pairs of the stage's `validation` by id, which follows from their tokens alone; none where it names none.

    Raises TuluLiteError as load_pairs, and for a prompt that is trained on too.
    """
    if not stage.validation:
        return {}
    pairs, _ = load_pairs(
        stage, template, seed=seed, stage_rows=stage_rows, cache=cache, sources=stage.validation
    )
    both = {pair.prompt_ids for pair in trained} & {pair.prompt_ids for pair in pairs}
    if both:
        raise TuluLiteError(
            f"stage {stage.name}: {len(both)} prompts are in its data and in its validation",
            why="accuracy on what was trained on says nothing",
            cure="split the rows by `share: [0, 0.9]` and `share: [0.9, 1]`, which goes by the prompt's hash",
        )
    return {pair_id(pair): pair for pair in pairs}


def pair_id(pair: PairExample) -> str:
    """16 hexadecimal digits of a hash of the pair's tokens."""
    return hashlib.sha256(repr((pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)).encode()).hexdigest()[
        :16
    ]
