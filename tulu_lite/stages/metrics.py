"""The figures that a step logs as it goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..files import write_atomic
from ..pipeline.protocol import read_metrics
from ..watching.watch import Places, Watch


class MetricsLog:
    """metrics.jsonl: one line of numbers for each optimiser step (or whatever `step` counts in the stage).

    watch: what looks at each line for spikes and warnings, and copies it to the recipe's sinks.
    """

    def __init__(self, path: Path, active: bool = True, watch: Watch | None = None) -> None:
        self.path, self.active, self.watch = path, active, watch

    def resume(self, step: int) -> None:
        """Forget what was logged after `step`: it is about to be done again."""
        if not self.active:
            return
        logged = self.rows()
        kept = [row for row in logged if row["step"] <= step]
        if self.path.exists():
            write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        if self.watch is not None:
            self.watch.resume(kept, logged[-1]["step"] if logged else 0)

    def log(self, step: int, /, places: Places | None = None, **values: float) -> None:
        """places: gives the places (file:line, or prompt ids) of the step's batch, asked for when it is a spike."""
        if self.active:
            row = values if self.watch is None else self.watch.row(step, values, places)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **row}) + "\n")

    def close(self) -> None:
        if self.watch is not None:
            self.watch.close()

    def rows(self) -> list[dict[str, Any]]:
        return read_metrics(self.path)

    def total(self, name: str) -> float:
        """The sum of a figure over all steps."""
        return sum(row.get(name, 0) for row in self.rows())
