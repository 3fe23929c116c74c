"""Watches one step's metrics while they are logged: spikes with their batch, warnings, sinks.

In the step's folder: spikes.jsonl (a line for each spike, with the places of the batch's rows) and warnings.jsonl (a
line for each time a warning begins). Both, like metrics.jsonl, lose what was written after the save that a killed run
goes on from, and get the same lines again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import write_atomic
from ..recipe.watching import WarningSettings
from .series import History
from .sinks import Sinks
from .spikes import SpikeWatch
from .terminal import safe_line
from .warnings import LOOKED_AT, warnings_of

SPIKES, WARNINGS = "spikes.jsonl", "warnings.jsonl"
KEPT_NOTES = 4  # spikes and warnings that are handed to the display at once

Places = Callable[[], Sequence[str]]


class Watch:
    """Spikes, warnings and sinks of one step; to be used by the process that logs alone."""

    def __init__(self, folder: Path, settings: WarningSettings, sinks: Sinks) -> None:
        self.folder, self.settings, self.sinks = folder, settings, sinks
        self.spikes = SpikeWatch(settings)
        self.history = History()
        self.active: set[str] = set()
        self.notes: list[str] = []  # the last spikes and warnings, as the display shows them

    def resume(self, kept: Sequence[Mapping[str, Any]], logged_to: int) -> None:
        """Be as after the kept rows. logged_to: the last step that was logged before, also if not kept."""
        last = kept[-1]["step"] if kept else 0
        for file in (SPIKES, WARNINGS):
            path = self.folder / file
            text = "".join(json.dumps(row) + "\n" for row in read_lines(path) if row["step"] <= last)
            if path.exists() and text != path.read_text(encoding="utf-8"):
                write_atomic(path, text)
        self.spikes, self.history = SpikeWatch(self.settings), History()
        for row in kept:
            self.spikes.look(row["step"], row)
            self.history.add(row, LOOKED_AT)
        self.active = {warned.name for warned in warnings_of(self.history, self.settings)}
        self.sinks.resume(kept, logged_to)

    def row(self, step: int, values: Mapping[str, Any], places: Places | None) -> dict[str, Any]:
        """The step's values with what is logged beside them. places: of the batch's rows, asked for a spike alone."""
        spikes, figures = self.spikes.look(step, values)
        row = {**values, **figures}
        for spike in spikes:
            batch = list(places()) if places is not None else []
            self._keep(SPIKES, {"step": step, **spike.__dict__, "what": spike.text(), "batch": batch})
            self._note(f"spike: {spike.text()}" + (f"; batch: {_shortened(batch)}" if batch else ""))
        self.history.add({"step": step, **row}, LOOKED_AT)
        found = warnings_of(self.history, self.settings)
        for warned in found:
            if warned.name not in self.active:
                self._keep(WARNINGS, {"step": step, **warned.__dict__})
                self._note(f"warning, {warned.name.replace('_', ' ')}: {warned.what}")
        self.active = {warned.name for warned in found}
        if found:
            row["warnings"] = len(found)
        self.sinks.log(step, row)
        return row

    def close(self) -> None:
        self.sinks.close()

    def _keep(self, file: str, row: dict[str, Any]) -> None:
        with (self.folder / file).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")

    def _note(self, text: str) -> None:
        text = safe_line(text)  # names of sources come from the data
        print(text, flush=True)
        self.notes = [*self.notes, text][-KEPT_NOTES:]


def counted(folder: Path) -> str:
    """2 spikes, warnings: kl runaway, truncation. Empty where there was nothing."""
    spikes = len(read_lines(folder / SPIKES))
    names = dict.fromkeys(row["name"].replace("_", " ") for row in read_lines(folder / WARNINGS))
    parts = [f"{spikes} spike{'s' if spikes > 1 else ''}"] if spikes else []
    return ", ".join([*parts, *([f"warned of {', '.join(names)}"] if names else [])])


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file; a last line torn by a kill is left out, as is what is no object with a step."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _shortened(places: Sequence[str], shown: int = 8) -> str:
    more = f" and {len(places) - shown} more (spikes.jsonl)" if len(places) > shown else ""
    return ", ".join(places[:shown]) + more
