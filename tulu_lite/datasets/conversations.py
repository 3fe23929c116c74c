"""Conversations as examples of supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from ..recipe import SftStage
from .chat import ChatTemplate
from .report import DataReport
from .sources import load_rows
from .turns import conversation_turns


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation. token_ids, loss_mask: [T]; a token's loss is that of predicting it."""

    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    source: str
    file: str
    line: int


def load_conversations(
    stage: SftStage, template: ChatTemplate, *, seed: int
) -> tuple[list[Example], DataReport]:
    """The stage's rows as examples, in order, and what was dropped. seed: of the choice that `limit` makes.

    Raises TuluLiteError naming the file and line of a row that is no conversation, or is too long where the
    stage says so; and when no row is left.
    """
    rows = load_rows(stage.data, seed=seed)
    places = [row.where for row in rows]
    encoded = template.conversations([conversation_turns(row) for row in rows], places)
    report = DataReport()
    examples = []
    for row, (token_ids, mask) in zip(rows, encoded, strict=True):
        if len(token_ids) > stage.max_length:
            reason = f"longer than {stage.max_length} tokens"
            report.drop_or_raise(reason, row.where, len(token_ids), stage.max_length, stage.too_long)
            continue
        report.keep(row.source, len(token_ids), sum(mask))
        examples.append(Example(tuple(token_ids), tuple(mask), row.source, row.file, row.line))
    report.require_rows(stage.name)
    return examples, report
