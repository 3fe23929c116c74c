"""Replies kept on disk, in one SQLite file that several processes share.

A reply is kept once it was read; an outage or an unreadable reply never is. What goes wrong with the file while
judging costs money and no verdict: the question is asked again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

from verifiers.errors import SpecError

BUSY_S = 5.0  # waited for another process's write
_TABLE = "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL, model TEXT NOT NULL, at REAL NOT NULL)"


def key_of(*what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


class Memory:
    """Replies by key. Raises SpecError when the file cannot be used as one at all."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self.faults = 0
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with self._lock:
                self._open()
        except (OSError, sqlite3.Error) as fault:
            raise SpecError(
                f"the judge's cache {file} cannot be used: {fault}",
                cure='Name another file with `cache`, or give `cache: ""` to keep nothing.',
            ) from fault

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = sqlite3.connect(
                self._file, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
            connection.execute(_TABLE)
            self._connection = connection
        return self._connection

    def get(self, key: str) -> str | None:
        with self._lock:
            try:
                row = self._open().execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
            except sqlite3.Error:
                self._failed()
                return None
        return None if row is None else str(row[0])

    def put(self, key: str, reply: str, model: str) -> None:
        with self._lock:
            try:
                self._open().execute(
                    "INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?)", (key, reply, model, time.time())
                )
            except sqlite3.Error:
                self._failed()

    def _failed(self) -> None:
        self.faults += 1
        self._close()

    def _close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def close(self) -> None:
        with self._lock:
            self._close()
