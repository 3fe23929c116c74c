"""Rows of a recipe's data sources, and the part of them that each source's `share` and `limit` keep."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from ..errors import TuluLiteError
from ..recipe import DataSource
from . import formats
from .bad import BadRow
from .placeholders import look_up, render
from .readers import Bad, data_files, raise_, read_file, read_hub, read_jsonl

__all__ = ["Row", "iterate_rows", "load_rows", "prompt_key", "read_jsonl", "select", "unit_hash"]

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Row:
    """One object of a source, and where it stands."""

    data: dict[str, Any]
    source: str  # the name under which metrics are shown
    file: str  # path, or hub id
    line: int  # counted from 1; in .json and parquet files, and on the hub: the row's number
    entry: DataSource

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def tags(self) -> tuple[str, ...]:
        """column=value of each of the entry's tags that the row has; a list gives one for each of its values."""
        found: list[str] = []
        for column in self.entry.tags:
            value = look_up(self.data, column, None)
            values = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
            found += [
                f"{column}={item if isinstance(item, str) else json.dumps(item, default=str)}"
                for item in values
            ]
        return tuple(found)


def load_rows(sources: Sequence[DataSource], *, seed: int) -> list[Row]:
    """All rows of the sources in order, after each one's share, limit and repeat (in this order).

    Raises TuluLiteError for a file that is missing, empty or broken, and for rows that are no objects.
    """
    return [row for entry in sources for row in [*iterate_rows(entry, seed=seed)] * entry.repeat]


def iterate_rows(entry: DataSource, *, seed: int, bad: Bad = raise_) -> Iterator[Row]:
    """The source's rows in order, after its share and limit. With `streaming` they are never all in memory.

    bad: told of each broken row. Raises TuluLiteError for a file that is missing or empty, or when none is left.
    """
    if entry.stage is not None:
        raise TuluLiteError(
            f"the rows of stage {entry.stage!r} cannot be read here",
            why="a preferences stage makes pairs of sampled token ids, which only a dpo stage can use",
            cure="name a file or a hub data set",
        )
    if not entry.streaming:
        yield from _limited(list(_in_share(entry, bad)), entry, seed)
    else:
        yield from islice(_in_share(entry, bad), entry.limit)


def _in_share(entry: DataSource, bad: Bad) -> Iterator[Row]:
    if entry.share is None:
        yield from _read(entry, bad)
        return
    low, high = entry.share
    kept = 0
    for row in _read(entry, bad):
        try:
            key = prompt_key(row)
        except BadRow as error:
            bad(error, row.file, row.line)
            continue
        if low <= unit_hash(key) < high:
            kept += 1
            yield row
    if not kept:
        raise _empty_share(entry)


def select(items: list[Item], entry: DataSource, seed: int, key: Callable[[Item], str]) -> list[Item]:
    """What `share`, `limit` and `repeat` leave of a source's items; key gives the text that is hashed."""
    if entry.share is not None:
        low, high = entry.share
        items = [item for item in items if low <= unit_hash(key(item)) < high]
        if not items:
            raise _empty_share(entry)
    return _limited(items, entry, seed) * entry.repeat


def _empty_share(entry: DataSource) -> TuluLiteError:
    return TuluLiteError(
        f"{entry.label}: no row falls in share {list(entry.share or ())}", cure="widen the share"
    )


def _limited(items: list[Item], entry: DataSource, seed: int) -> list[Item]:
    if entry.limit is None or entry.limit >= len(items):
        return items
    kept = random.Random(f"{seed}:limit").sample(range(len(items)), entry.limit)
    return [items[i] for i in sorted(kept)]


def unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone: the first 53 bits of its SHA-256."""
    return (
        int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 11
    ) / 2**53


def prompt_key(row: Row) -> str:
    """The text by whose hash a row is on one side of a split: its prompt.

    A conversation counts without its last assistant turn; one that is then a single user turn counts as that
    turn's text, so that a row with messages and a row with the same prompt as text fall on the same side.
    """
    messages = formats.prompt(row.data, row.entry, row.where)
    if messages is None:
        return render(row.entry.prompt, row.data, row.where)
    if (
        isinstance(messages, list)
        and len(messages) == 1
        and isinstance(messages[0], dict)
        and isinstance(messages[0].get("content"), str)
    ):
        return messages[0]["content"]
    return json.dumps(messages, ensure_ascii=False, sort_keys=True, default=str)


def _read(entry: DataSource, bad: Bad) -> Iterator[Row]:
    if entry.hub is not None:
        yield from _as_rows(read_hub(entry), entry, entry.hub, entry.hub, bad)
        return
    for path in data_files(entry):
        yield from _as_rows(read_file(path, entry.streaming, bad), entry, path.stem, str(path), bad)


def _as_rows(
    numbered: Iterator[tuple[int, Any]], entry: DataSource, name: str, file: str, bad: Bad
) -> Iterator[Row]:
    line = 0
    for line, data in numbered:
        if not isinstance(data, dict):
            error = BadRow(
                "no object",
                f'{file}:{line}: a row is an object such as {{"prompt": "..."}}, but this one is '
                f"{json.dumps(data, default=str)[:60]}",
                cure="write one object with named fields for each row",
            )
            bad(error, file, line)
            continue
        own = data.get("source")
        said = render(entry.source, data, f"{file}:{line}") if entry.source else ""
        yield Row(data, said or (own if isinstance(own, str) and own else name), file, line, entry)
    if not line:
        raise TuluLiteError(
            f"{file} has no rows", cure="check that it was written whole, or remove it from the recipe"
        )
