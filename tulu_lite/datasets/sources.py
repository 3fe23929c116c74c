"""Rows of a recipe's data sources: local JSON, JSONL and parquet files, and hub data sets."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import TuluLiteError
from ..recipe import DataSource
from .placeholders import render

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


def load_rows(sources: Sequence[DataSource], *, seed: int) -> list[Row]:
    """All rows of the sources in order, after each one's share, limit and repeat (in this order).

    Raises TuluLiteError for a file that is missing, empty or broken, and for rows that are no objects.
    """
    rows: list[Row] = []
    for entry in sources:
        if entry.stage is not None:
            raise TuluLiteError(
                f"the rows of stage {entry.stage!r} cannot be read here",
                why="a preferences stage makes pairs of sampled token ids, which only a dpo stage can use",
                cure="name a file or a hub data set",
            )
        rows += select(_read(entry), entry, seed, prompt_key)
    return rows


def select(items: list[Item], entry: DataSource, seed: int, key: Callable[[Item], str]) -> list[Item]:
    """What `share`, `limit` and `repeat` leave of a source's items; key gives the text that is hashed."""
    label = entry.label
    if entry.share is not None:
        low, high = entry.share
        items = [item for item in items if low <= unit_hash(key(item)) < high]
        if not items:
            raise TuluLiteError(f"{label}: no row falls in share {[low, high]}", cure="widen the share")
    if entry.limit is not None and entry.limit < len(items):
        kept = random.Random(f"{seed}:limit").sample(range(len(items)), entry.limit)
        items = [items[i] for i in sorted(kept)]
    return items * entry.repeat


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
    messages = row.data.get(row.entry.messages)
    if messages is None:
        return render(row.entry.prompt, row.data, row.where)
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        if messages[-1].get("role") == "assistant":
            messages = messages[:-1]
        if (
            len(messages) == 1
            and isinstance(messages[0], dict)
            and isinstance(messages[0].get("content"), str)
        ):
            return messages[0]["content"]
    return json.dumps(messages, ensure_ascii=False, sort_keys=True, default=str)


def _read(entry: DataSource) -> list[Row]:
    if entry.hub is not None:
        name, file, numbered = entry.hub, entry.hub, _read_hub(entry)
    else:
        assert entry.path is not None
        path = Path(entry.path)
        name, file, numbered = path.stem, str(path), _read_file(path)
    rows = []
    for line, data in numbered:
        if not isinstance(data, dict):
            raise TuluLiteError(
                f'{file}:{line}: a row is an object such as {{"prompt": "..."}}, but this one is '
                f"{json.dumps(data, default=str)[:60]}",
                cure="write one object with named fields for each row",
            )
        own = data.get("source")
        rows.append(
            Row(data, entry.source or (own if isinstance(own, str) and own else name), file, line, entry)
        )
    if not rows:
        raise TuluLiteError(
            f"{file} has no rows", cure="check that it was written whole, or remove it from the recipe"
        )
    return rows


def _read_file(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        if path.suffix == ".parquet":
            yield from _read_parquet(path)
        elif path.suffix == ".json":
            yield from _read_json(path)
        else:
            yield from read_jsonl(path)
    except FileNotFoundError:
        raise TuluLiteError(
            f"there is no data file {path}",
            cure="check the path; relative paths are relative to the recipe file",
        ) from None
    except OSError as error:
        raise TuluLiteError(f"cannot read the data file {path}: {error.strerror or error}") from None


def read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """(line from 1, data) of each line that is not blank. Raises OSError; TuluLiteError for a broken line."""
    with path.open("rb") as file:
        for line, text in enumerate(file, start=1):
            if text.strip():
                yield line, _parse_json(text, path, line)


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    content = path.read_bytes()
    if not content.strip():
        return
    data = _parse_json(content, path, None)
    if not isinstance(data, list):
        raise TuluLiteError(
            f"{path}: a .json data file holds a list of objects, but this one holds "
            f"{'an object' if isinstance(data, dict) else 'something else'}",
            cure="put the rows in a list [...], or name the file .jsonl if it has one object a line",
        )
    yield from enumerate(data, start=1)


def _parse_json(text: bytes, path: Path, line: int | None) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno if line is None else line}"
        hint = (
            "in a .jsonl file each line is one whole JSON object"
            if line is not None
            else "mend the file at that place"
        )
        raise TuluLiteError(
            f"{where}: this is not valid JSON: {error.msg} at column {error.colno}", cure=hint
        ) from None
    except UnicodeDecodeError as error:
        where = f"{path}:{line}" if line is not None else str(path)
        raise TuluLiteError(
            f"{where}: this is not UTF-8 text (byte {error.start})", cure="save the file as UTF-8"
        ) from None
    except RecursionError:
        raise TuluLiteError(f"{path}: JSON nested too deeply to be data rows") from None


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            line = 0
            for batch in file.iter_batches():
                for data in batch.to_pylist():
                    line += 1
                    yield line, data
    except pyarrow.ArrowException as error:
        raise TuluLiteError(
            f"{path} is not a parquet file that can be read: {str(error).splitlines()[0]}"
        ) from None


def _read_hub(entry: DataSource) -> Iterator[tuple[int, Any]]:
    assert entry.hub is not None
    import datasets

    try:
        table = datasets.load_dataset(entry.hub, entry.config, split=entry.split, revision=entry.revision)
        yield from enumerate(table, start=1)
    except Exception as error:  # datasets, huggingface_hub, requests and pyarrow errors of many kinds
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise TuluLiteError(
            f"cannot load the hub data set {entry.hub} (config {entry.config}, split {entry.split}): "
            f"{reason}",
            cure="check the id, `config`, `split` and the network; or download the file and name it with "
            "`path:`",
        ) from None
