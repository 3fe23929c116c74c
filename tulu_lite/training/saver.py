"""Saves that are written while training goes on."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from .checkpoint import Snapshot, keep_newest, snapshot, step_folder, write_snapshot
from .sharding import agree, is_main

BEST = "best"  # the save of the best validation, beside the newest ones


class Saver:
    """Copies what a save holds into memory, and writes it in a thread: at most one at a time.

    A write that fails raises at the next call of `check` (on the process that writes) or of `save` and `wait` (on all).
    What was saved before is then still there. told: the step and folder of each save that is done. keep: the newest
    saves that stay.
    """

    def __init__(self, folder: Path, keep: int, told: Callable[[int, Path], None]) -> None:
        self.folder, self.keep, self.told = folder, keep, told
        self._thread: threading.Thread | None = None
        self._written: tuple[int, Path] | None = None
        self._failure: Exception | None = None

    def clean(self) -> None:
        """Remove what a killed process left half written."""
        if is_main():
            for left in self.folder.glob(".*.tmp"):
                shutil.rmtree(left, ignore_errors=True)

    def save(
        self, step: int, *, model: nn.Module, optimizer: Any, state: dict[str, Any], name: str | None = None
    ) -> None:
        """Begin to write the save of this step (or one called `name`), after the one before. Every process calls it."""
        self.wait()
        taken = snapshot(step, model=model, optimizer=optimizer, state=state, copy=True)
        if is_main():
            target = step_folder(self.folder, step) if name is None else self.folder / name
            # no daemon: a process that ends by itself, in whatever way, still finishes its save
            self._thread = threading.Thread(target=self._write, args=(step, target, taken), daemon=False)
            self._thread.start()

    def _write(self, step: int, target: Path, taken: Snapshot) -> None:
        try:
            write_snapshot(target, taken)
            keep_newest(self.folder, self.keep)
            self._written = (step, target)
        except Exception as error:
            self._failure = error

    def check(self) -> None:
        """Tell of a save that is done, raise the error of one that failed; waits for nothing."""
        if self._thread is not None and not self._thread.is_alive():
            self._end()
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure

    def wait(self) -> None:
        """Until the save that is being written is done. Every process calls it."""
        self._end()
        failure, self._failure = self._failure, None
        agree(failure)

    def _end(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._written is not None:
            self.told(*self._written)
            self._written = None
