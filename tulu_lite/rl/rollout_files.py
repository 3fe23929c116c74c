"""The files of a rollouts folder: which steps it has. No torch, and nothing of what is in them."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import TuluLiteError

NAME = re.compile(r"step-(\d+)(?:\.part-(\d+))?\.jsonl(?:\.gz)?")


def parts_of(folder: Path) -> dict[int, list[Path]]:
    """The files of each step in a rollouts folder, by step."""
    found: dict[int, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if named := NAME.fullmatch(path.name):
            found.setdefault(int(named[1]), []).append(path)
    return dict(sorted(found.items()))


def check_steps(folder: Path, steps: int) -> None:
    """Raise TuluLiteError where one of the steps 1 to `steps` was not recorded in a rollouts folder."""
    parts = parts_of(folder)
    if not parts:
        raise TuluLiteError(
            f"replay: {folder} holds no rollouts (no step-000001.jsonl or the like)",
            cure="name the rollouts/ folder of an rlvr step",
        )
    missing = next((step for step in range(1, steps + 1) if step not in parts), None)
    if missing is not None:
        raise TuluLiteError(
            f"replay: {folder} has no rollouts of step {missing}, and the stage has {steps} steps",
            why=f"it has those of {len(parts)} steps, {min(parts)} to {max(parts)}",
            cure="set `steps` to what was recorded; a run keeps its rollouts up to keep_rollouts_mb",
        )
