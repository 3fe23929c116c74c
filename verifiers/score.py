"""Judge a file of responses, streaming, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from verifiers.base import Sample, Verdict
from verifiers.errors import VerifierError
from verifiers.pool import VerifierPool
from verifiers.spec import Spec, canonical

CHUNK = 512  # rows judged, then written


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a row hold what. Only the response must be there."""

    response: str = "response"
    reference: str = "reference"
    prompt: str = "prompt"
    finished: str = "finished"

    def sample(self, row: dict[str, Any], where: str) -> Sample:
        """Raises VerifierError when the response is missing or no text."""
        if not isinstance(row.get(self.response), str):
            raise VerifierError(
                f"{where}: the column {self.response!r} is missing or no text.",
                cure=f"The row has {', '.join(map(str, row))}; name the column with --response.",
            )
        used = {self.response, self.reference, self.prompt, self.finished}
        return Sample(
            row[self.response],
            row.get(self.reference),
            str(row.get(self.prompt) or ""),
            bool(row.get(self.finished, True)),
            {key: value for key, value in row.items() if key not in used},
        )


@dataclass(slots=True)
class Summary:
    """What a run of `score_file` did."""

    out: Path
    rows: int = 0
    resumed: int = 0
    seconds: float = 0.0
    total: float = 0.0
    scored: int = 0
    statuses: Counter[str] = field(default_factory=Counter)

    def add(self, verdict: Verdict) -> None:
        self.rows += 1
        self.statuses[str(verdict.status)] += 1
        if verdict.score is not None:
            self.scored += 1
            self.total += verdict.score

    def text(self) -> str:
        mean = f"{self.total / self.scored:.4f}" if self.scored else "none"
        counts = ", ".join(f"{count} {status}" for status, count in sorted(self.statuses.items()))
        resumed = f" ({self.resumed} of them before)" if self.resumed else ""
        judged = (
            f"{self.rows} rows{resumed} in {self.seconds:.1f} s: mean score {mean} of {self.scored} scored"
        )
        return f"{judged}; {counts}\n{self.out}"


def score_file(source: Path, out: Path, spec: Spec, columns: Columns, pool: VerifierPool) -> Summary:
    """Write one verdict a line to `out`, in the rows' order; `out` appears when all are there.

    Until then verdicts are appended to `out` + ".partial", which a later run continues if it was made from
    the same rows and spec. Raises VerifierError.
    """
    if out.exists():
        raise VerifierError(f"{out} exists already", cure="Remove it, or choose another --out.")
    if not source.is_file():
        raise VerifierError(f"{source} does not exist")
    partial = out.with_name(out.name + ".partial")
    summary, start = Summary(out), time.monotonic()
    done = _resume(partial, source, spec, summary)
    rows = islice(_numbered(source), done, None)
    out.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("a", encoding="utf-8") as file:
        while chunk := list(islice(rows, CHUNK)):
            items = [
                (spec, columns.sample(_row(line, n, source), f"{source}, line {n}")) for n, line in chunk
            ]
            for (_, line), verdict in zip(chunk, pool.verify(items), strict=True):
                file.write(json.dumps({"key": _key(spec, line), **verdict.to_json()}) + "\n")
                summary.add(verdict)
            file.flush()
            os.fsync(file.fileno())
    os.replace(partial, out)
    summary.seconds = time.monotonic() - start
    return summary


def _numbered(source: Path) -> Iterator[tuple[int, str]]:
    with source.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, line.strip()


def _row(line: str, number: int, source: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as fault:
        raise VerifierError(f"{source}, line {number}: not JSON: {fault}") from fault
    if not isinstance(row, dict):
        raise VerifierError(f"{source}, line {number}: a row must be a mapping, got {type(row).__name__}")
    return row


def _key(spec: Spec, line: str) -> str:
    return hashlib.sha256(f"{canonical(spec)}\0{line}".encode()).hexdigest()[:16]


def _resume(partial: Path, source: Path, spec: Spec, summary: Summary) -> int:
    """How many rows `partial` already holds; a line cut off by a crash is removed."""
    if not partial.exists():
        return 0
    whole = 0
    rows = _numbered(source)
    with partial.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            written = json.loads(line)
            number_and_row = next(rows, None)
            if number_and_row is None or written.pop("key") != _key(spec, number_and_row[1]):
                raise VerifierError(
                    f"{partial} was made from other rows or another verifier.",
                    cure="Remove it to start again.",
                )
            summary.add(Verdict.from_json(written))
            whole += len(line)
    os.truncate(partial, whole)
    summary.resumed = summary.rows
    return summary.rows
