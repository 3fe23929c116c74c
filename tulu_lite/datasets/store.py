"""Tokenized rows on disk, read where they lie: arrays of all tokens, and of where each row's parts end.

A store is a folder. meta.json is written into it last, with the size and a checksum of every array, so that a store
that is not whole, or is another's, is known for one.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

FORMAT = 1
# Name of each array: its type. ids: of all parts of all rows, one after another. learnt: beside ids, whether the token
# has a loss. ends: [rows, parts] where each part ends in ids. places: [rows, 4] source, file, tags and unknown tokens.
_ARRAYS = {"ids": np.uint32, "learnt": np.bool_, "ends": np.int64, "places": np.int32, "lines": np.int64}


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row as token ids: parts that are kept apart ([prompt, chosen, rejected], or one whole conversation), and which
    tokens of them have a loss."""

    parts: tuple[Sequence[int], ...]
    learnt: Sequence[bool]  # over all parts, one after another


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row comes from."""

    source: str
    file: int  # its number among the files of all sources
    line: int
    tags: tuple[str, ...] = ()


class StoreWriter:
    """Adds rows one by one. folder: None keeps them in memory."""

    def __init__(self, folder: Path | None, parts: int) -> None:
        self.folder, self.parts = folder, parts
        self.rows = self.tokens = 0
        self._sources: dict[str, int] = {}
        self._tags: dict[tuple[str, ...], int] = {}
        self._files: dict[str, BinaryIO] = {
            name: io.BytesIO() if folder is None else (folder / f"{name}.bin").open("wb") for name in _ARRAYS
        }

    def add(self, row: Encoded, place: Place, unknown: int = 0) -> None:
        """unknown: its tokens that stand for characters outside the vocabulary."""
        ends = []
        for part in row.parts:
            self._write("ids", part)
            self.tokens += len(part)
            ends.append(self.tokens)
        self._write("learnt", row.learnt)
        self._write("ends", ends)
        source = self._sources.setdefault(place.source, len(self._sources))
        tags = self._tags.setdefault(place.tags, len(self._tags))
        self._write("places", [source, place.file, tags, unknown])
        self._write("lines", [place.line])
        self.rows += 1

    def finish(self, meta: dict[str, Any]) -> Store:
        """The store. meta: what else is to be kept with it, as plain data."""
        meta = {
            **meta,
            "format": FORMAT,
            "parts": self.parts,
            "rows": self.rows,
            "sources": list(self._sources),
            "tags": [list(tags) for tags in self._tags],
        }
        if self.folder is None:
            arrays: dict[str, np.ndarray] = {
                name: np.frombuffer(file.getvalue(), _ARRAYS[name])  # type: ignore[attr-defined]
                for name, file in self._files.items()
            }
            return Store(arrays, meta)
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        meta["arrays"] = {name: _state(self.folder / f"{name}.bin") for name in _ARRAYS}
        with (self.folder / "meta.json").open("w", encoding="utf-8") as text:
            json.dump(meta, text)
            text.flush()
            os.fsync(text.fileno())
        return open_store(self.folder)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _write(self, name: str, values: Sequence[Any]) -> None:
        self._files[name].write(np.asarray(values, dtype=_ARRAYS[name]).tobytes())


class Store:
    """Rows that can be read in any order."""

    def __init__(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        self.meta = meta
        self._ids, self._learnt = arrays["ids"], arrays["learnt"]
        self._ends = arrays["ends"].reshape(-1, meta["parts"])
        self._places, self._lines = arrays["places"].reshape(-1, 4), arrays["lines"]

    def __len__(self) -> int:
        return len(self._lines)

    def parts(self, row: int) -> list[np.ndarray]:
        """uint32 [T] of each part."""
        edges = [self._start(row), *(int(end) for end in self._ends[row])]
        return [self._ids[first:last] for first, last in pairwise(edges)]

    def learnt(self, row: int) -> np.ndarray:
        """bool [T] over all parts of the row."""
        return self._learnt[self._start(row) : int(self._ends[row, -1])]

    def place(self, row: int) -> Place:
        source, file, tags, _ = self._places[row].tolist()
        return Place(
            self.meta["sources"][source], file, int(self._lines[row]), tuple(self.meta["tags"][tags])
        )

    def unknown(self, row: int) -> int:
        return int(self._places[row, 3])

    def lengths(self) -> np.ndarray:
        """int64 [rows, parts] tokens of each part."""
        flat = self._ends.reshape(-1)
        return np.diff(flat, prepend=0).reshape(self._ends.shape)

    def learnt_counts(self) -> np.ndarray:
        """int64 [rows] tokens that have a loss."""
        starts = np.concatenate([[0], self._ends[:-1, -1]]) if len(self) else np.zeros(0, np.int64)
        return np.add.reduceat(self._learnt, starts, dtype=np.int64) if len(self) else starts

    def groups(self) -> np.ndarray:
        """int32 [rows, 2] source and tags of each row, as numbers into meta."""
        return self._places[:, [0, 2]]

    def rows_with_unknown(self) -> np.ndarray:
        return np.flatnonzero(self._places[:, 3])

    def _start(self, row: int) -> int:
        return int(self._ends[row - 1, -1]) if row else 0


def open_store(folder: Path, **wanted: Any) -> Store:
    """The store in a folder, its arrays mapped into memory.

    wanted: what meta.json must say. Raises ValueError when it is not whole or says something else, OSError when it
    cannot be read.
    """
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise ValueError(f"{folder} is no store of this version")
    for name, value in wanted.items():
        if meta.get(name) != value:
            raise ValueError(f"{folder} has another {name}")
    for name in _ARRAYS:
        if meta["arrays"].get(name) != _state(folder / f"{name}.bin"):
            raise ValueError(f"{folder}/{name}.bin is not what was written")
    arrays = {
        name: np.memmap(folder / f"{name}.bin", dtype, "r") if meta["rows"] else np.zeros(0, dtype)
        for name, dtype in _ARRAYS.items()
    }
    return Store(arrays, meta)


def _state(path: Path) -> list[Any]:
    """Size and checksum of a file."""
    import xxhash

    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            hasher.update(block)
    return [path.stat().st_size, hasher.hexdigest()]
