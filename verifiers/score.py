"""Judge a file of responses, streaming, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from verifiers.base import Sample, Verdict
from verifiers.errors import VerifierError
from verifiers.pool import VerifierPool
from verifiers.spec import Spec, build, canonical

CHUNK = 4096  # rows read and judged at a time; verdicts are written as they come
FLUSH_S, SYNC_S = 0.2, 2.0  # between writes that survive a kill, and a power cut

Progress = Callable[["Summary"], None]


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
            _text(row.get(self.prompt)),
            row.get(self.finished) is None or bool(row[self.finished]),
            {key: value for key, value in row.items() if key not in used},
        )


@dataclass(slots=True)
class Summary:
    """What a run of `score_file` did, so far."""

    out: Path
    rows: int = 0
    resumed: int = 0
    of: int = 0  # rows there are
    seconds: float = 0.0
    total: float = 0.0
    scored: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    first_error: str = ""  # of the rows without a score

    @property
    def rate(self) -> float:
        """Rows a second of this run."""
        return (self.rows - self.resumed) / self.seconds if self.seconds else 0.0

    @property
    def left_s(self) -> float | None:
        return (self.of - self.rows) / self.rate if self.rate else None

    def add(self, verdict: Verdict) -> None:
        self.rows += 1
        self.statuses[str(verdict.status)] += 1
        if verdict.score is not None:
            self.scored += 1
            self.total += verdict.score
        elif not self.first_error:
            self.first_error = f"row {self.rows}: {verdict.reason}"

    def text(self) -> str:
        mean = f"{self.total / self.scored:.4f}" if self.scored else "none"
        counts = ", ".join(f"{count} {status}" for status, count in sorted(self.statuses.items()))
        resumed = f" ({self.resumed} of them before)" if self.resumed else ""
        judged = (
            f"{self.rows} rows{resumed} in {self.seconds:.1f} s, {self.rate:,.0f} a second: "
            f"mean score {mean} of {self.scored} scored"
        )
        error = f"\nfirst without a score: {self.first_error}" if self.first_error else ""
        return f"{judged}; {counts}{error}\n{self.out}"


def score_file(
    source: Path,
    out: Path,
    spec: Spec,
    columns: Columns,
    pool: VerifierPool,
    progress: Progress = lambda summary: None,
) -> Summary:
    """Write one verdict a line to `out`, in the rows' order; `out` appears when all are there.

    Until then verdicts are appended to `out` + ".partial" as they come, and a later run goes on from there, also
    after a kill, if rows, spec and verifier are the same. Raises VerifierError.
    """
    if out.exists():
        raise VerifierError(f"{out} exists already", cure="Remove it, or choose another --out.")
    if not source.is_file():
        raise VerifierError(f"{source} does not exist")
    identity = f"{canonical(spec)}\0{build(spec, pool.base_dir).version}"
    partial = out.with_name(out.name + ".partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        file = partial.open("a", encoding="utf-8")
    except OSError as fault:
        raise VerifierError(f"{out} cannot be written: {fault}") from fault
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            raise VerifierError(f"{partial} is being written by another run") from fault
        summary = Summary(out, of=sum(1 for _ in _numbered(source)))
        done = _resume(partial, source, identity, summary)
        writer = _Writer(file, identity, summary, progress)
        rows = islice(_numbered(source), done, None)
        while chunk := list(islice(rows, CHUNK)):
            items = [
                (spec, columns.sample(_row(line, n, source), f"{source}, line {n}")) for n, line in chunk
            ]
            writer.expect([line for _, line in chunk])
            pool.verify(items, on_result=writer.take)
        writer.sync()
        os.replace(partial, out)
    return summary


class _Writer:
    """Writes verdicts in the rows' order, each as soon as all before it are there."""

    def __init__(self, file: IO[str], identity: str, summary: Summary, progress: Progress) -> None:
        self._file, self._identity, self._summary, self._progress = file, identity, summary, progress
        self._lines: list[str] = []
        self._early: dict[int, Verdict] = {}
        self._next = 0
        self._start = self._synced = self._flushed = time.monotonic()

    def expect(self, lines: list[str]) -> None:
        self._lines, self._next = lines, 0

    def take(self, index: int, verdict: Verdict) -> None:
        self._early[index] = verdict
        while self._next in self._early:
            ready = self._early.pop(self._next)
            key = _key(self._identity, self._lines[self._next])
            self._file.write(json.dumps({"key": key, **ready.to_json()}) + "\n")
            self._summary.add(ready)
            self._next += 1
        now = time.monotonic()
        self._summary.seconds = now - self._start
        if now - self._synced > SYNC_S:
            self.sync()
        elif now - self._flushed > FLUSH_S:
            self._flushed = now
            self._file.flush()
        self._progress(self._summary)

    def sync(self) -> None:
        self._file.flush()
        with contextlib.suppress(OSError):  # not a file that can be synced
            os.fsync(self._file.fileno())
        self._synced = time.monotonic()


def _numbered(source: Path) -> Iterator[tuple[int, str]]:
    with source.open(encoding="utf-8-sig") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line.strip()
        except UnicodeDecodeError as fault:
            raise VerifierError(f"{source} is not UTF-8: {fault}") from fault


def _row(line: str, number: int, source: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as fault:
        raise VerifierError(f"{source}, line {number}: not JSON: {fault}") from fault
    if not isinstance(row, dict):
        raise VerifierError(f"{source}, line {number}: a row must be a mapping, got {type(row).__name__}")
    return row


def _text(prompt: Any) -> str:
    """A prompt as text; of a list of messages what they say."""
    if isinstance(prompt, list) and all(
        isinstance(m, dict) and isinstance(m.get("content"), str) for m in prompt
    ):
        return "\n".join(message["content"] for message in prompt)
    return str(prompt or "")


def _key(identity: str, line: str) -> str:
    return hashlib.sha256(f"{identity}\0{line}".encode()).hexdigest()[:16]


def _resume(partial: Path, source: Path, identity: str, summary: Summary) -> int:
    """How many rows `partial` already holds; a line cut off by a crash is removed."""
    whole = 0
    rows = _numbered(source)
    with partial.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            try:
                written = json.loads(line)
                _, row = next(rows)
                same = written.pop("key") == _key(identity, row)
                verdict = Verdict.from_json(written)
            except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
                same = False
            if not same:
                raise VerifierError(
                    f"{partial} was made from other rows or another verifier.",
                    cure="Remove it to start again.",
                )
            summary.add(verdict)
            whole += len(line)
    os.truncate(partial, whole)
    summary.resumed = summary.rows
    return summary.rows
