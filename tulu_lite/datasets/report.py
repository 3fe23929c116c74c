"""What became of a stage's rows: tokens by source and tag, and what was dropped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import TuluLiteError
from ..files import write_json

PLACES = 5  # places of a reason that are named
KEPT = 200  # dropped rows of a reason that are kept to be shown


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that is not used."""

    reason: str
    source: str
    file: str
    line: int
    why: str = ""  # what exactly, of this row
    text: str = ""  # how the row begins

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass
class Tally:
    """Rows and tokens of one source or tag, in an epoch."""

    rows: int = 0
    tokens: int = 0
    loss_tokens: int = 0


@dataclass
class DataReport:
    """Counts of rows and tokens of one epoch: rows that are in it twice count twice."""

    kept: int = 0
    tokens: int = 0
    loss_tokens: int = 0  # the tokens that are learnt: those with a loss (sft), those of both responses (dpo)
    distinct: int = 0  # usable rows, each counted once, in the epoch or not
    by_source: Counter[str] = field(default_factory=Counter)  # source -> rows kept
    sources: dict[str, Tally] = field(default_factory=dict)
    tags: dict[str, Tally] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> rows
    dropped_of: dict[str, Counter[str]] = field(default_factory=dict)  # source -> reason -> rows
    rows_dropped: list[Dropped] = field(default_factory=list)  # the first of each reason
    unknown: Counter[str] = field(default_factory=Counter)  # source -> unknown tokens, each row counted once
    unknown_at: list[str] = field(default_factory=list)  # the first rows that have some
    loses_characters: bool = False  # the tokenizer leaves out what it does not know

    def keep(
        self, source: str, tokens: int, loss_tokens: int, tags: Iterable[str] = (), rows: int = 1
    ) -> None:
        """Count rows of one source and the same tags; tokens: of all of them together."""
        self.kept += rows
        self.tokens += tokens
        self.loss_tokens += loss_tokens
        self.by_source[source] += rows
        for group, names in ((self.sources, (source,)), (self.tags, tags)):
            for name in names:
                tally = group.setdefault(name, Tally())
                tally.rows += rows
                tally.tokens += tokens
                tally.loss_tokens += loss_tokens

    def drop(self, row: Dropped) -> None:
        self.dropped[row.reason] += 1
        self.dropped_of.setdefault(row.source, Counter())[row.reason] += 1
        if self.dropped[row.reason] <= KEPT:
            self.rows_dropped.append(row)

    def see_unknown(self, source: str, tokens: int, where: str) -> None:
        """Count the tokens of a row that stand for characters outside the vocabulary."""
        if tokens:
            self.unknown[source] += tokens
            if len(self.unknown_at) < PLACES:
                self.unknown_at.append(where)

    def require_rows(self, stage: str) -> None:
        """Raises TuluLiteError when nothing is left to train on."""
        if not self.kept:
            raise TuluLiteError(
                f"stage {stage}: all rows were dropped",
                why="; ".join(self.notes()),
                cure="raise max_length, or use other data",
            )

    def places(self, reason: str) -> list[str]:
        """Where the first rows stand that were dropped for it."""
        return [row.where for row in self.rows_dropped if row.reason == reason][:PLACES]

    def notes(self) -> list[str]:
        """One line for each reason that rows were dropped for, and one for characters that the vocabulary lacks."""
        rows = (self.distinct or self.kept) + self.dropped.total()
        notes = []
        for reason, count in self.dropped.items():
            places = self.places(reason)[:3]
            named = f" ({', '.join(places)}{', ...' if count > len(places) else ''})" if places else ""
            notes.append(f"{count} of {rows} rows dropped: {reason}{named}")
        if self.unknown:
            of = ", ".join(f"{source} {count}" for source, count in self.unknown.items())
            notes.append(
                f"{self.unknown.total()} tokens stand for characters that the vocabulary lacks: {of} "
                f"(first at {', '.join(self.unknown_at)})"
            )
        if self.loses_characters:
            notes.append(
                "the tokenizer leaves out characters that its vocabulary lacks, with no token for them"
            )
        return notes

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        counted = {name: dict(value) for name, value in vars(self).items() if isinstance(value, Counter)}
        by_source = {name: dict(reasons) for name, reasons in self.dropped_of.items()}
        data = asdict(replace(self, **counted, dropped_of=by_source))  # type: ignore[arg-type]  # asdict breaks counters
        for row in data["rows_dropped"]:
            row.pop("text")
        return data

    def write(self, folder: Path) -> Path:
        """data_report.json, beside what the step makes of the rows."""
        path = folder / "data_report.json"
        write_json(path, self.to_json())
        return path
