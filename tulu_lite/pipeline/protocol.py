"""What the runner and a step's process say to each other, through files in the step's folder and the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SERVER_VARIABLE = "TULU_LITE_SERVER"  # the run's server.json, set by the runner for the processes it starts
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
