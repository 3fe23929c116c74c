"""Conversations as examples of supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import TuluLiteError
from ..recipe import DataSource, SftStage
from .chat import ChatTemplate
from .report import DataReport
from .responses import read_responses, response_key
from .sources import load_rows, select
from .turns import conversation_turns


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation. token_ids, loss_mask: [T]; a token's loss is that of predicting it."""

    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    source: str
    file: str
    line: int

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"


def load_conversations(
    stage: SftStage,
    template: ChatTemplate,
    *,
    seed: int,
    stage_rows: Callable[[str], Path] | None = None,
) -> tuple[list[Example], DataReport]:
    """The stage's rows as examples, in order, and what was dropped. seed: of the choice that `limit` makes.

    Responses of a reject stage keep their token ids as they were sampled. stage_rows: the file of an earlier stage's
    rows.
    Raises TuluLiteError naming the file and line of a row that is no conversation, or is too long where the
    stage says so; and when no row is left.
    """
    report = DataReport()
    examples = []
    for entry in stage.data:
        made = _sampled(entry, template, seed, stage_rows) if entry.stage else _of_text(entry, template, seed)
        for example in made:
            length = len(example.token_ids)
            if length > stage.max_length:
                reason = f"longer than {stage.max_length} tokens"
                where = f"{example.file}:{example.line}"
                report.drop_or_raise(reason, where, length, stage.max_length, stage.too_long)
                continue
            report.keep(example.source, length, sum(example.loss_mask))
            examples.append(example)
    report.require_rows(stage.name)
    return examples, report


def _of_text(entry: DataSource, template: ChatTemplate, seed: int) -> list[Example]:
    rows = load_rows([entry], seed=seed)
    encoded = template.conversations([conversation_turns(row) for row in rows], [row.where for row in rows])
    return [
        Example(tuple(token_ids), tuple(mask), row.source, row.file, row.line)
        for row, (token_ids, mask) in zip(rows, encoded, strict=True)
    ]


def _sampled(
    entry: DataSource, template: ChatTemplate, seed: int, stage_rows: Callable[[str], Path] | None
) -> list[Example]:
    """The rows of a reject stage: token ids as they were sampled, and conversations that passed through it."""
    assert entry.stage is not None
    if stage_rows is None:
        raise TuluLiteError(
            f"the rows of stage {entry.stage!r} are not there yet", cure="run that stage first"
        )
    path = stage_rows(entry.stage)
    numbered = select(
        list(enumerate(read_responses(path), start=1)), entry, seed, lambda item: response_key(item[1])
    )
    texts = [(line, row) for line, row in numbered if row.messages]
    encoded = template.conversations(
        [[dict(turn) for turn in row.messages] for _, row in texts], [f"{path}:{line}" for line, _ in texts]
    )
    of_text = iter(encoded)
    examples = []
    for line, row in numbered:
        if row.messages:
            ids, learnt = next(of_text)
        else:
            ids = [*row.prompt_ids, *row.response_ids]
            learnt = [False] * len(row.prompt_ids) + [True] * len(row.response_ids)
        examples.append(Example(tuple(ids), tuple(learnt), entry.source or row.source, str(path), line))
    return examples
