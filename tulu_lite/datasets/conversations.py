"""Conversations as examples of supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import TuluLiteError
from ..recipe import DataSource, Mix
from .cache import TokenCache
from .chat import ChatTemplate
from .prepared import Plan, Prepared, Rows, prepare
from .report import DataReport
from .responses import ResponseRow, read_responses, response_key
from .rows import Item, Kind
from .sources import select
from .store import Encoded
from .turns import conversation_turns


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation. token_ids, loss_mask: [T]; a token's loss is that of predicting it."""

    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    source: str
    file: str
    line: int
    tags: tuple[str, ...] = ()


def load_conversations(
    stage: Any,
    template: ChatTemplate,
    *,
    seed: int,
    stage_rows: Callable[[str], Path] | None = None,
    cache: TokenCache | None = None,
    sources: Sequence[DataSource] | None = None,
) -> tuple[Sequence[Example], DataReport]:
    """The stage's rows as examples, in order, and what was dropped. seed: of the choices of `limit` and of the mix.

    Responses of a reject stage keep their token ids as they were sampled. stage_rows: the file of an earlier stage's
    rows. cache: where rows lie tokenized; they are then read as they are used. sources: instead of the stage's own
    (its validation), without its mix.
    Raises TuluLiteError naming the file and line of a row that is no conversation, or is too long, where the
    stage says so; and when no row is left.
    """
    loss_on = getattr(stage, "loss_on", "all")
    plan = Plan(
        entries=stage.data if sources is None else sources,
        kind_name="conversations",
        kind=_kind(template, loss_on),
        weights=(1,),
        rules=stage,
        template=template,
        seed=seed,
        settings={"loss_on": loss_on},
        max_length=stage.max_length,
        too_long=stage.too_long,
        stage_rows=stage_rows,
        sampled=lambda entry: _sampled(entry, seed, stage_rows),
    )
    prepared = prepare(plan, stage.mix if sources is None else Mix(), cache)
    prepared.report.require_rows(stage.name)
    return Rows(prepared, _example), prepared.report


def _kind(template: ChatTemplate, loss_on: str) -> Kind:
    def encode(items: Sequence[Item]) -> list[Encoded]:
        made = template.conversations(
            [item.turns for item in items],
            [item.where for item in items],
            last_only=loss_on == "last",
        )
        return [Encoded((ids,), mask) for ids, mask in made]

    return Kind(
        turns=conversation_turns,
        messages=lambda turns: turns,
        encode=encode,
        length=lambda encoded: len(encoded.parts[0]),
    )


def _example(prepared: Prepared, row: int) -> Example:
    (ids,), place = prepared.store.parts(row), prepared.store.place(row)
    learnt = prepared.store.learnt(row)
    return Example(
        tuple(ids.tolist()), tuple(learnt.tolist()), place.source, prepared.files[place.file], place.line, place.tags
    )  # fmt: skip


def _sampled(entry: DataSource, seed: int, stage_rows: Callable[[str], Path] | None) -> Iterator[Item]:
    """The rows of a reject stage: token ids as they were sampled, and conversations that passed through it."""
    assert entry.stage is not None
    if stage_rows is None:
        raise TuluLiteError(
            f"the rows of stage {entry.stage!r} are not there yet", cure="run that stage first"
        )
    path = stage_rows(entry.stage)
    once = entry.model_copy(update={"repeat": 1})  # an epoch's repeats are the mix's
    for line, row in select(
        list(enumerate(read_responses(path), start=1)), once, seed, lambda item: response_key(item[1])
    ):
        yield _item(row, entry, str(path), line)


def _item(row: ResponseRow, entry: DataSource, path: str, line: int) -> Item:
    item = Item(entry.source or row.source, path, line)
    if row.messages:
        item.turns = [dict(turn) for turn in row.messages]
        item.users = [turn["content"] for turn in item.turns if turn["role"] == "user"]
        item.text = "\n".join(turn["content"] for turn in item.turns)
    else:
        learnt = [False] * len(row.prompt_ids) + [True] * len(row.response_ids)
        item.encoded = Encoded(((*row.prompt_ids, *row.response_ids),), learnt)
        item.users, item.text = [row.prompt], f"{row.prompt}\n{row.response}"
    return item
