"""The ledger: one SQLite file in the output folder that knows every run, step, checkpoint, metric and input.

It describes; what decides whether a step is done is the step folder's own result.json, which is renamed
into place last. So a ledger that was lost or torn loses history, never work.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import TuluLiteError
from .signs import killed, last_sign, this_process

if TYPE_CHECKING:
    from .steps import Step

SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    id INTEGER PRIMARY KEY, name TEXT, recipe TEXT, version TEXT, pid INTEGER,
    started REAL, ended REAL, status TEXT);
CREATE TABLE IF NOT EXISTS processes (
    run INTEGER PRIMARY KEY, host TEXT, space TEXT, process_started INTEGER);
CREATE TABLE IF NOT EXISTS steps (
    key TEXT PRIMARY KEY, id TEXT, kind TEXT, seed INTEGER, identity TEXT, folder TEXT, status TEXT,
    attempts INTEGER DEFAULT 0, started REAL, ended REAL, error TEXT, summary TEXT, run INTEGER);
CREATE INDEX IF NOT EXISTS steps_by_id ON steps (id, started);
CREATE TABLE IF NOT EXISTS lineage (key TEXT, input TEXT, role TEXT, PRIMARY KEY (key, input, role));
CREATE TABLE IF NOT EXISTS checkpoints (key TEXT, step INTEGER, path TEXT, created REAL, PRIMARY KEY (key, path));
CREATE TABLE IF NOT EXISTS metrics (key TEXT, step INTEGER, name TEXT, value REAL, PRIMARY KEY (key, step, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS hashes (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, sha256 TEXT);
CREATE TABLE IF NOT EXISTS sizes (key TEXT PRIMARY KEY, size TEXT);
"""


RUN_FIELDS = ("id", "name", "version", "pid", "started", "ended", "status")


class Ledger:
    """Access to <output>/ledger.sqlite. Every call opens, commits and closes: several processes write to it."""

    def __init__(self, output: Path) -> None:
        self.path = output / "ledger.sqlite"

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=30)
            try:
                connection.executescript(SCHEMA)
                with connection:
                    yield connection
            finally:
                connection.close()
        except sqlite3.DatabaseError as error:
            cure = (
                "free space on the disk"
                if "full" in str(error)
                else "see that the folder is writable; if the file is damaged, move it away: done steps stay done"
            )
            raise TuluLiteError(f"cannot use the ledger {self.path}: {error}", cure=cure) from None
        except OSError as error:
            raise TuluLiteError(
                f"cannot write the output folder {self.path.parent}: {error.strerror}",
                cure="set `output` to a folder that can be written",
            ) from None

    # Runs

    def start_run(self, name: str, recipe: str, version: str) -> int:
        """Note a run of this process. Only one runs at a time: those that are still noted as running were killed."""
        steps = self._recorded_steps()
        before = [run for run in self._recorded_runs() if run["status"] == "running"]
        with self._open() as db:
            for run in before:
                mine = [step for step in steps if step["run"] == run["id"]]
                ended = last_sign(run["started"], mine)
                db.execute("UPDATE runs SET status = 'killed', ended = ? WHERE id = ?", (ended, run["id"]))
            db.executemany(
                "UPDATE steps SET status = 'killed', ended = ? WHERE key = ?",
                [
                    (last_sign(step["started"], [step]), step["key"])
                    for step in steps
                    if step["status"] == "running" and step["run"] is not None
                ],
            )
            cursor = db.execute(
                "INSERT INTO runs (name, recipe, version, pid, started, status) VALUES (?, ?, ?, ?, ?, 'running')",
                (name, recipe, version, os.getpid(), time.time()),
            )
            run_id = int(cursor.lastrowid or 0)
            who = this_process()
            db.execute(
                "INSERT INTO processes VALUES (?, ?, ?, ?)",
                (run_id, who["host"], who["space"], who["process_started"]),
            )
            return run_id

    def end_run(self, run: int, status: str) -> None:
        with self._open() as db:
            db.execute("UPDATE runs SET status = ?, ended = ? WHERE id = ?", (status, time.time(), run))

    def runs(self) -> list[dict[str, Any]]:
        """All runs, first to last. One whose process is gone is told as killed, ended when it last wrote something."""
        found = []
        for run in self._recorded_runs():
            if killed(run):
                mine = [step for step in self._recorded_steps() if step["run"] == run["id"]]
                run |= {"status": "killed", "ended": last_sign(run["started"], mine)}
            found.append({name: run[name] for name in RUN_FIELDS})
        return found

    def _recorded_runs(self) -> list[dict[str, Any]]:
        """As they were noted, with what tells their processes from others (None in a ledger of an older version)."""
        return self._rows(
            f"SELECT {', '.join(RUN_FIELDS)}, host, space, process_started "
            "FROM runs LEFT JOIN processes ON run = id ORDER BY id"
        )

    # Steps

    def start_step(self, step: Step, origins: Iterable[tuple[str, str]]) -> None:
        """origins: (key, role) of what the step is made from."""
        with self._open() as db:
            run = db.execute("SELECT max(id) FROM runs WHERE status = 'running'").fetchone()[0]
            db.execute(
                "INSERT INTO steps (key, id, kind, seed, identity, folder, status, attempts, started, run) "
                "VALUES (?, ?, ?, ?, ?, ?, 'running', 1, ?, ?) ON CONFLICT (key) DO UPDATE SET "
                "status = 'running', attempts = attempts + 1, error = NULL, ended = NULL, run = excluded.run",
                (
                    step.key,
                    step.id,
                    step.kind,
                    step.seed,
                    json.dumps(step.identity),
                    str(step.folder),
                    time.time(),
                    run,
                ),
            )
            db.executemany(
                "INSERT OR IGNORE INTO lineage VALUES (?, ?, ?)", [(step.key, *origin) for origin in origins]
            )

    def end_step(
        self, key: str, status: str, *, error: str | None = None, summary: dict[str, Any] | None = None
    ) -> None:
        with self._open() as db:
            db.execute(
                "UPDATE steps SET status = ?, ended = ?, error = ?, summary = ? WHERE key = ?",
                (status, time.time(), error, json.dumps(summary) if summary is not None else None, key),
            )

    def step(self, key: str) -> dict[str, Any] | None:
        rows = self._rows("SELECT * FROM steps WHERE key = ?", key)
        return rows[0] if rows else None

    def last_identity(self, id: str, other_than: str) -> dict[str, Any] | None:
        """What decided the latest step of this id under another key: to say what has changed since."""
        rows = self._rows(
            "SELECT identity FROM steps WHERE id = ? AND key != ? ORDER BY started DESC LIMIT 1",
            id,
            other_than,
        )
        return json.loads(rows[0]["identity"]) if rows else None

    def steps(self) -> list[dict[str, Any]]:
        """All steps by their start; those of a run whose process is gone as killed, like the run."""
        gone = {run["id"] for run in self._recorded_runs() if killed(run)}
        found = self._recorded_steps()
        for step in found:
            if step["status"] == "running" and step["run"] in gone:
                step |= {"status": "killed", "ended": last_sign(step["started"], [step])}
        return found

    def _recorded_steps(self) -> list[dict[str, Any]]:
        return self._rows("SELECT * FROM steps ORDER BY started")

    def lineage(self, key: str) -> list[dict[str, Any]]:
        return self._rows("SELECT input, role FROM lineage WHERE key = ? ORDER BY role, input", key)

    # Checkpoints and metrics

    def add_checkpoint(self, key: str, step: int, path: str) -> None:
        with self._open() as db:
            db.execute(
                "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?)", (key, step, path, time.time())
            )

    def checkpoints(self, key: str) -> list[dict[str, Any]]:
        return self._rows("SELECT step, path, created FROM checkpoints WHERE key = ? ORDER BY step", key)

    def set_metrics(self, key: str, rows: Iterable[tuple[int, str, float]]) -> None:
        """Replace all metrics of a step by these (optimiser step, name, value)."""
        with self._open() as db:
            db.execute("DELETE FROM metrics WHERE key = ?", (key,))
            db.executemany(
                "INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?)", [(key, *row) for row in rows]
            )

    def metrics(self, key: str, name: str) -> list[tuple[int, float]]:
        rows = self._rows(
            "SELECT step, value FROM metrics WHERE key = ? AND name = ? ORDER BY step", key, name
        )
        return [(row["step"], row["value"]) for row in rows]

    # Caches

    def cached_hash(self, path: str, size: int, mtime_ns: int) -> str | None:
        rows = self._rows(
            "SELECT sha256 FROM hashes WHERE path = ? AND size = ? AND mtime_ns = ?", path, size, mtime_ns
        )
        return rows[0]["sha256"] if rows else None

    def cache_hash(self, path: str, size: int, mtime_ns: int, sha256: str) -> None:
        with self._open() as db:
            db.execute("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?)", (path, size, mtime_ns, sha256))

    def cached_size(self, key: str) -> dict[str, Any] | None:
        rows = self._rows("SELECT size FROM sizes WHERE key = ?", key)
        return json.loads(rows[0]["size"]) if rows else None

    def cache_size(self, key: str, size: dict[str, Any]) -> None:
        with self._open() as db:
            db.execute("INSERT OR REPLACE INTO sizes VALUES (?, ?)", (key, json.dumps(size)))

    def _rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self._open() as db:
            cursor = db.execute(sql, values)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
