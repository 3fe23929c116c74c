"""A stage's rows, tokenized and mixed: the store of all usable rows, which of them an epoch has, and the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..recipe import DataSettings, DataSource, Mix, identity
from .cache import TokenCache, sha256_of
from .chat import ChatTemplate
from .mixing import mixed
from .readers import data_files
from .report import DataReport, Dropped
from .rows import Item, Kind, usable
from .store import Place, Store, StoreWriter

_AMOUNTS = ("repeat", "count", "fraction", "weight", "max_repeat")  # of a source: how much of it, not what
FORMAT = 1  # raised when the same rows and settings give other tokens


@dataclass(frozen=True)
class Plan:
    """What a store is made of. kind_name and settings: what of the stage decides its tokens."""

    entries: Sequence[DataSource]
    kind_name: str
    kind: Kind
    weights: tuple[int, ...]  # how often each part of a row counts as tokens of an epoch
    rules: DataSettings
    template: ChatTemplate
    seed: int
    settings: dict[str, Any]
    max_length: int | None = None
    too_long: str = "drop"
    stage_rows: Callable[[str], Path] | None = None
    sampled: Callable[[DataSource], Iterable[Item]] | None = None


@dataclass(frozen=True)
class Prepared:
    """store: every usable row once. indices: int64 [n] the rows of an epoch, in order. files: by their numbers."""

    store: Store
    indices: np.ndarray
    files: list[str]
    report: DataReport

    def where(self, row: int) -> tuple[str, int]:
        place = self.store.place(row)
        return self.files[place.file], place.line


def prepare(plan: Plan, mix: Mix, cache: TokenCache | None = None) -> Prepared:
    """Tokenize the rows, or find them tokenized in the cache, and choose an epoch's.

    Raises TuluLiteError for bad rows where the rules say so, and for a mix that cannot be made.
    """
    files = _files(plan)
    if cache is None:
        writer = StoreWriter(None, len(plan.weights))
        store = writer.finish(_build(plan, files, writer))
    else:
        what = _identity(plan, cache.file_hash)
        store = cache.store(what, len(plan.weights), lambda writer: _build(plan, files, writer))
    first = np.cumsum([0, *store.meta["rows_of"]])
    parts = [
        first[number] + indices
        for number, indices in mixed(plan.entries, store.meta["rows_of"], mix, plan.seed)
    ]
    indices = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    return Prepared(store, indices, files, _report(plan, store, indices, files))


def _build(plan: Plan, files: list[str], writer: StoreWriter) -> dict[str, Any]:
    """Add the usable rows; returns the rows of each source and what was dropped."""
    report, rows_of = DataReport(), [0] * len(plan.entries)
    number_of = {file: number for number, file in enumerate(files)}
    unknown_id = plan.template.unknown_id
    made = usable(
        plan.entries, plan.kind, plan.rules, report, seed=plan.seed, max_length=plan.max_length,
        too_long=plan.too_long, sampled=plan.sampled,
    )  # fmt: skip
    for number, item, encoded in made:
        unknown = 0
        if unknown_id is not None and item.encoded is None:
            unknown = sum(list(part).count(unknown_id) for part in encoded.parts)
        writer.add(encoded, Place(item.source, number_of[item.file], item.line, item.tags), unknown)
        rows_of[number] += 1
    return {
        "rows_of": rows_of,
        "dropped": [[*asdict(row).values()] for row in _by_number(report.rows_dropped, number_of)],
        "dropped_of": {source: dict(reasons) for source, reasons in report.dropped_of.items()},
    }


def _by_number(rows: Sequence[Dropped], number_of: dict[str, int]) -> list[Dropped]:
    """The same rows with their files' numbers instead of names, which may change while the content does not."""
    return [
        Dropped(row.reason, row.source, str(number_of.get(row.file, row.file)), row.line, row.why, row.text)
        for row in rows
    ]


def _report(plan: Plan, store: Store, indices: np.ndarray, files: list[str]) -> DataReport:
    report = DataReport(distinct=len(store), loses_characters=plan.template.loses_characters)
    for reason, source, file, line, why, text in store.meta["dropped"]:
        name = files[int(file)] if file.isdecimal() else file
        report.rows_dropped.append(Dropped(reason, source, name, line, why, text))
    for source, reasons in store.meta["dropped_of"].items():
        for reason, count in reasons.items():
            report.dropped[reason] += count
            report.dropped_of.setdefault(source, type(report.dropped)())[reason] += count
    for row in store.rows_with_unknown().tolist():
        place = store.place(row)
        report.see_unknown(place.source, store.unknown(row), f"{files[place.file]}:{place.line}")
    tokens = store.lengths()[indices] @ np.array(plan.weights, dtype=np.int64)
    learnt = store.learnt_counts()[indices]
    groups, of = np.unique(store.groups()[indices], axis=0, return_inverse=True)
    for number, (source, tags) in enumerate(groups.tolist()):
        mine = of.reshape(-1) == number
        report.keep(
            store.meta["sources"][source], int(tokens[mine].sum()), int(learnt[mine].sum()),
            store.meta["tags"][tags], int(mine.sum()),
        )  # fmt: skip
    return report


def _files(plan: Plan) -> list[str]:
    """The files, hub ids and stages' rows of all sources, each once."""
    found: dict[str, None] = {}
    for entry in plan.entries:
        if entry.stage is not None:
            names = [str(plan.stage_rows(entry.stage))] if plan.stage_rows is not None else []
        else:
            names = [entry.hub] if entry.hub is not None else [str(path) for path in data_files(entry)]
        found |= dict.fromkeys(names)
    return list(found)


def _identity(plan: Plan, file_hash: Callable[[Path], str]) -> dict[str, Any]:
    """What decides the store's content, as plain data; files by name and content."""
    filters = identity(plan.rules.filters)
    if plan.rules.filters.decontaminate is not None:
        against = plan.rules.filters.decontaminate.against
        filters["decontaminate"]["against"] = [_source_identity(entry, plan, file_hash) for entry in against]
    chooses = any(entry.limit is not None and not entry.streaming for entry in plan.entries)
    return {
        "format": FORMAT,
        "kind": plan.kind_name,
        "sources": [_source_identity(entry, plan, file_hash) for entry in plan.entries],
        "filters": filters,
        "bad_rows": plan.rules.bad_rows,
        "seed": plan.seed if chooses else None,
        "max_length": plan.max_length,
        "too_long": plan.too_long,
        "template": plan.template.identity,
        **plan.settings,
    }


def _source_identity(entry: DataSource, plan: Plan, file_hash: Callable[[Path], str]) -> dict[str, Any]:
    what = {name: value for name, value in identity(entry).items() if name not in _AMOUNTS}
    what.pop("stage")
    if entry.path is not None:
        what["path"] = [{"file": path.name, "content": file_hash(path)} for path in data_files(entry)]
    if entry.stage is not None and plan.stage_rows is not None:
        what["rows"] = sha256_of(plan.stage_rows(entry.stage))
    return what


class Rows(Sequence[Any]):
    """The rows of an epoch, each read from the store when it is asked for.

    lengths: int64 [n, parts] tokens of each part, without reading the rows. sampled rows are as they were.
    """

    def __init__(self, prepared: Prepared, make: Callable[[Prepared, int], Any]) -> None:
        self.prepared, self._make = prepared, make

    @property
    def lengths(self) -> np.ndarray:
        return self.prepared.store.lengths()[self.prepared.indices]

    def __len__(self) -> int:
        return len(self.prepared.indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._make(self.prepared, int(self.prepared.indices[index]))
