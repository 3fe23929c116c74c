"""Rows as they stand in files and on the hub: JSON, JSONL and parquet, one at a time.

A broken line goes to `bad` where the caller gives it, which may raise or count it; by default it is raised.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import TuluLiteError, first_line
from ..recipe import DataSource
from .bad import BadRow

Bad = Callable[[BadRow, str, int], None]  # what is wrong, the file, the line
_BLANK = re.compile(r"[ \t\n\r]*")
_BLOCK = 1 << 20  # characters read at once of a .json list


def raise_(error: BadRow, file: str, line: int) -> None:
    raise error


def data_files(entry: DataSource) -> list[Path]:
    """The files that the entry's paths name: patterns in the order of their names, no file twice.

    Raises TuluLiteError when a pattern fits nothing. A path that is no pattern need not exist.
    """
    found: dict[Path, None] = {}
    for path in entry.paths:
        if not glob.has_magic(path) or Path(path).exists():
            found[Path(path)] = None
            continue
        fitting = sorted(glob.glob(path, recursive=True))
        if not fitting:
            raise TuluLiteError(
                f"no data file fits the pattern {path}",
                cure="check the path; relative paths are relative to the recipe file",
            )
        found |= dict.fromkeys(map(Path, fitting))
    return list(found)


def read_file(path: Path, streaming: bool = False, bad: Bad = raise_) -> Iterator[tuple[int, Any]]:
    """(line or row from 1, data) of each row. Raises TuluLiteError for a file that is missing or broken."""
    try:
        if path.suffix == ".parquet":
            yield from _read_parquet(path)
        elif path.suffix == ".json":
            yield from _stream_json(path) if streaming else _read_json(path)
        else:
            yield from read_jsonl(path, bad)
    except FileNotFoundError:
        raise TuluLiteError(
            f"there is no data file {path}",
            cure="check the path; relative paths are relative to the recipe file",
        ) from None
    except OSError as error:
        raise TuluLiteError(f"cannot read the data file {path}: {error.strerror or error}") from None


def read_jsonl(path: Path, bad: Bad = raise_) -> Iterator[tuple[int, Any]]:
    """(line from 1, data) of each line that is not blank. Raises OSError; TuluLiteError for a broken line."""
    with path.open("rb") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                data = _parse_json(text, path, line)
            except BadRow as error:
                bad(error, str(path), line)
                continue
            yield line, data


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    content = path.read_bytes()
    if not content.strip():
        return
    data = _parse_json(content, path, None)
    if not isinstance(data, list):
        raise _no_list(path, "an object" if isinstance(data, dict) else "something else")
    yield from enumerate(data, start=1)


def _no_list(path: Path, held: str) -> TuluLiteError:
    return TuluLiteError(
        f"{path}: a .json data file holds a list of objects, but this one holds {held}",
        cure="put the rows in a list [...], or name the file .jsonl if it has one object a line",
    )


def _stream_json(path: Path) -> Iterator[tuple[int, Any]]:
    """The items of a list, without the whole of it in memory: no more than its longest item and a block."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8-sig") as file:
        try:
            text = file.read(_BLOCK).lstrip()
            if not text:
                return
            if not text.startswith("["):
                raise _no_list(path, "an object" if text.startswith("{") else "something else")
            at, row, wanted = 1, 0, _BLOCK
            while True:
                at = _BLANK.match(text, at).end()  # type: ignore[union-attr]
                if text.startswith("]", at) and not (text[at + 1 :] + file.read()).strip():
                    return
                comma = row > 0 and text.startswith(",", at)
                start = _BLANK.match(text, at + comma).end()  # type: ignore[union-attr]
                try:
                    if row and not comma:
                        raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
                    data, end = decoder.raw_decode(text, start)
                    after = _BLANK.match(text, end).end()  # type: ignore[union-attr]
                    if text[after : after + 1] not in (",", "]"):  # a number may go on in the next block
                        raise json.JSONDecodeError("Expecting ',' delimiter", text, after)
                except json.JSONDecodeError as error:
                    more = file.read(wanted)
                    wanted *= 2  # an item of many blocks is parsed again few times
                    if not more:
                        raise TuluLiteError(
                            f"{path}: row {row + 1} is not valid JSON: {error.msg}",
                            cure="mend the file at that place",
                        ) from None
                    text, at = text[at:] + more, 0
                    continue
                row, at, wanted = row + 1, after, _BLOCK
                yield row, data
        except UnicodeDecodeError as error:
            raise TuluLiteError(
                f"{path}: this is not UTF-8 text (byte {error.start})", cure="save the file as UTF-8"
            ) from None
        except RecursionError:
            raise TuluLiteError(f"{path}: JSON nested too deeply to be data rows") from None


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
        raise BadRow(
            "broken JSON", f"{where}: this is not valid JSON: {error.msg} at column {error.colno}", cure=hint
        ) from None
    except UnicodeDecodeError as error:
        where = f"{path}:{line}" if line is not None else str(path)
        raise BadRow(
            "broken Unicode",
            f"{where}: this is not UTF-8 text (byte {error.start})",
            cure="save the file as UTF-8",
        ) from None
    except RecursionError:
        where = f"{path}:{line}" if line is not None else str(path)
        raise BadRow("broken JSON", f"{where}: JSON nested too deeply to be data rows") from None


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            line = 0
            for batch in file.iter_batches(batch_size=1024):
                for data in batch.to_pylist():
                    line += 1
                    yield line, data
    except pyarrow.ArrowException as error:
        raise TuluLiteError(f"{path} is not a parquet file that can be read: {first_line(error)}") from None


def read_hub(entry: DataSource) -> Iterator[tuple[int, Any]]:
    """(row from 1, data) of a hub data set; streamed where the entry says so."""
    assert entry.hub is not None
    import datasets

    how: dict[str, Any] = {"split": entry.split, "revision": entry.revision}
    if entry.streaming:
        how["streaming"] = True
    try:
        table = datasets.load_dataset(entry.hub, entry.config, **how)
        yield from enumerate(table, start=1)
    except Exception as error:  # datasets, huggingface_hub, requests and pyarrow errors of many kinds
        raise TuluLiteError(
            f"cannot load the hub data set {entry.hub} (config {entry.config}, split {entry.split}): "
            f"{first_line(error)}",
            cure="check the id, `config`, `split` and the network; or download the file and name it with "
            "`path:`",
        ) from None
