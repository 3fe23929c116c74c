"""The way of every row: read, taken apart into turns, filtered, tokenized in batches; what is dropped is counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import TuluLiteError
from ..recipe import DataSettings, DataSource, RowFilters
from .bad import BadRow
from .decontamination import Contamination, EvaluationPrompt
from .duplicates import ExactDuplicates, NearDuplicates
from .report import DataReport, Dropped
from .sources import Row, iterate_rows
from .store import Encoded
from .turns import Message, prompt_turns

CHUNK = 1024  # rows that are tokenized at once
_SHOWN = 2000  # characters of a dropped row that are kept


@dataclass(slots=True)
class Item:
    """A row on its way. users, text: its user turns and all its text, for filters."""

    source: str
    file: str
    line: int
    tags: tuple[str, ...] = ()
    users: Sequence[str] = ()
    text: str = ""
    turns: Any = None  # what is to be tokenized
    encoded: Encoded | None = None  # where it is sampled tokens already
    row: Row | None = None

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Kind:
    """What rows become: conversations, pairs or prompts."""

    turns: Callable[[Row], Any]  # raises TuluLiteError for a row that is none
    messages: Callable[[Any], Sequence[Message]]  # all turns of it
    encode: Callable[[Sequence[Item]], list[Encoded]]  # raises TuluLiteError naming a row
    length: Callable[[Encoded], int]  # tokens that count against limits
    refuse: Callable[[Encoded], str | None] = field(default=lambda _: None)  # why it is not used


def usable(
    entries: Sequence[DataSource], kind: Kind, rules: DataSettings, report: DataReport, *, seed: int,
    max_length: int | None = None, too_long: str = "drop", sampled: Callable[[DataSource], Iterable[Item]] | None = None,
) -> Iterator[tuple[int, Item, Encoded]]:  # fmt: skip
    """(number of the source, row, its tokens) of each row that can be used, in order; the others go into the report.

    sampled: the rows of a source that names a stage. Raises TuluLiteError for a bad row or one that is too long, where
    the rules say so.
    """
    way = _Way(kind, rules, report, seed, max_length, too_long)
    for number, entry in enumerate(entries):
        items = iter(sampled(entry)) if entry.stage and sampled is not None else way.parsed(entry)
        while chunk := list(islice(items, CHUNK)):
            kept = [item for item in chunk if way.passes_text(item, entry)]
            for item, encoded in way.encoded(kept):
                if way.passes_tokens(item, encoded, entry):
                    yield number, item, encoded


class _Way:
    def __init__(
        self, kind: Kind, rules: DataSettings, report: DataReport, seed: int, max_length: int | None, too_long: str
    ) -> None:  # fmt: skip
        self.kind, self.rules, self.report, self.seed = kind, rules, report, seed
        self.max_length, self.too_long = max_length, too_long
        filters = rules.filters
        self.exact = ExactDuplicates() if filters.duplicates != "keep" else None
        self.near = NearDuplicates(filters.near_similarity) if filters.duplicates == "near" else None
        self.contamination = None
        if filters.decontaminate is not None:
            against = filters.decontaminate
            self.contamination = Contamination(
                evaluation_prompts(against.against, seed), against.ngram, against.overlap
            )

    def parsed(self, entry: DataSource) -> Iterator[Item]:
        def broken(error: BadRow, file: str, line: int) -> None:
            name = entry.source or (entry.hub if entry.hub is not None else Path(file).stem)
            self._bad(error, Item(name, file, line))

        for row in iterate_rows(entry, seed=self.seed, bad=broken):
            item = Item(row.source, row.file, row.line, row.tags, row=row)
            try:
                item.turns = self.kind.turns(row)
            except BadRow as error:
                self._bad(error, item)
                continue
            messages = self.kind.messages(item.turns)
            item.users = [turn["content"] for turn in messages if turn["role"] == "user"]
            item.text = "\n".join(turn["content"] for turn in messages)
            yield item

    def passes_text(self, item: Item, entry: DataSource) -> bool:
        """Language, duplicates, and overlap with evaluation sets."""
        languages = _row_filters(entry, self.rules).languages
        if languages:
            from verifiers.constraints.detection import detect

            found = detect(item.text[:5000])
            if found is not None and not {found, found.partition("-")[0]} & set(languages):
                return self._drop(f"not in {', '.join(languages)}", item, f"it is in {found}")
        if self.contamination is not None:
            match = self.contamination.match(item.users)
            if match is not None:
                return self._drop("overlaps an evaluation set", item, f"with {match}")
        for seen, reason in ((self.exact, "a duplicate"), (self.near, "nearly a duplicate")):
            before = seen.first(item.text, item.where) if seen is not None else None
            if before is not None:
                return self._drop(reason, item, f"of {before}")
        return True

    def encoded(self, items: Sequence[Item]) -> list[tuple[Item, Encoded]]:
        """The rows with their tokens: all at once, or one by one where one of them cannot be tokenized."""
        waiting = [item for item in items if item.encoded is None]
        try:
            made = dict(zip(map(id, waiting), self.kind.encode(waiting), strict=True)) if waiting else {}
        except BadRow:
            made = {}
            for item in waiting:
                try:
                    (made[id(item)],) = self.kind.encode([item])
                except BadRow as error:
                    self._bad(error, item)
        return [
            (item, encoded)
            for item in items
            if (encoded := item.encoded if item.encoded is not None else made.get(id(item))) is not None
        ]

    def passes_tokens(self, item: Item, encoded: Encoded, entry: DataSource) -> bool:
        """Length, and what the kind refuses."""
        refused = self.kind.refuse(encoded)
        if refused is not None:
            return self._drop(refused, item)
        length, filters = self.kind.length(encoded), _row_filters(entry, self.rules)
        if self.max_length is not None and length > self.max_length:
            if self.too_long == "error":
                raise TuluLiteError(
                    f"{item.where}: {length} tokens are more than max_length {self.max_length}",
                    cure="raise max_length, set `too_long: drop`, or remove the row",
                )
            return self._drop(f"longer than {self.max_length} tokens", item, f"{length} tokens")
        if length < filters.min_tokens:
            return self._drop(f"shorter than {filters.min_tokens} tokens", item, f"{length} tokens")
        if filters.max_tokens is not None and length > filters.max_tokens:
            return self._drop(f"longer than {filters.max_tokens} tokens", item, f"{length} tokens")
        return True

    def _bad(self, error: BadRow, item: Item) -> None:
        if self.rules.bad_rows == "stop":
            cure = f"{error.cure}; " if error.cure else ""
            if "bad_rows" not in cure:
                cure += "`bad_rows: drop` leaves such rows out"
            what = error.what if item.where in error.what else f"{item.where}: {error.what}"
            raise BadRow(error.reason, what, error.why, cure.removesuffix("; ")) from None
        self._drop(error.reason, item, error.what.removeprefix(f"{item.where}: "))

    def _drop(self, reason: str, item: Item, why: str = "") -> bool:
        text = (
            json.dumps(item.row.data, ensure_ascii=False, default=str) if item.row is not None else item.text
        )
        text = text[:_SHOWN].encode("utf-8", "backslashreplace").decode()
        self.report.drop(Dropped(reason, item.source, item.file, item.line, why, text))
        return False


def _row_filters(entry: DataSource, rules: DataSettings) -> RowFilters:
    return rules.filters if entry.filters is None else entry.filters


def evaluation_prompts(entries: Sequence[DataSource], seed: int) -> list[EvaluationPrompt]:
    """The user turns of evaluation sets. Raises TuluLiteError for a row without any."""
    return [
        EvaluationPrompt(turn["content"], row.where)
        for entry in entries
        for row in iterate_rows(entry, seed=seed)
        for turn in prompt_turns(row)
        if turn["role"] == "user"
    ]
