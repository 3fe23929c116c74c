"""What the runner and a step's process say to each other, through files in the step's folder and the exit code."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import write_atomic

SERVER_VARIABLE = "TULU_LITE_SERVER"  # the run's server.json, set by the runner for the processes it starts
SHARED_VARIABLE = "TULU_LITE_SHARED"  # how many runs sample from the same server at the same time
RUN_VARIABLE = "TULU_LITE_RUN"  # the run's process as pid:start time, set likewise
USER_ERROR = 2  # exit code: error.json says what to mend


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line torn by a kill is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def write_validation(path: Path, values: Mapping[str, float | None]) -> None:
    """validation.jsonl: {"id", "value"} of each held-out item, whole or not at all. None: it has no score."""
    lines = [
        json.dumps({"id": id, "value": None if value is None or math.isnan(value) else float(value)})
        for id, value in values.items()
    ]
    write_atomic(path, "".join(line + "\n" for line in lines))


def read_validation(path: Path) -> dict[str, float]:
    """The values of a validation.jsonl by item's id, without those that have none; {} where there is no such file."""
    return {str(row["id"]): float(row["value"]) for row in read_metrics(path) if row["value"] is not None}


def validation_file(folder: Path, step: int) -> Path:
    """Where a step's folder holds the values of one of its validations; the one that counts is validation.jsonl too."""
    return folder / "validation" / f"step-{step:06d}.jsonl"


def progress_text(state: dict[str, Any]) -> str:
    """12/40 steps, 1.3 steps/s, 0:21 left, loss 0.512"""
    parts = [f"{state['done']}/{state['total']} {state['unit']}"]
    if state["rate"]:
        parts.append(f"{state['rate']:.3g} {state['unit']}/s")
        left = (state["total"] - state["done"]) / state["rate"]
        parts.append(f"{int(left) // 60}:{int(left) % 60:02d} left")
    parts += [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in state["shown"].items()
    ]
    return ", ".join(parts)
