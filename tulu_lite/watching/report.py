"""What a report says of the curves, spikes and warnings of a run's training steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from .panels import PANELS
from .plots import Curve, plot_stage
from .terminal import safe_line
from .watch import SPIKES, WARNINGS, counted, read_lines


def write_curves(run: str, output: Path, steps: Sequence[Any]) -> dict[str, Path]:
    """output/curves/<stage>.png of each training stage that has logged something, with all its runs: {stage: file}."""
    files: dict[str, Path] = {}
    for stage in dict.fromkeys(step.stage.name for step in steps if step.kind in PANELS):
        runs = [_curve(step) for step in steps if step.kind in PANELS and step.stage.name == stage]
        logged = [curve for curve in runs if curve.rows]
        kind = next(step.kind for step in steps if step.kind in PANELS and step.stage.name == stage)
        file = output / "curves" / f"{stage}.png"
        if logged and plot_stage(f"{run}: {stage}", kind, logged, file):
            files[stage] = file
    return files


def _curve(step: Any) -> Curve:
    label = step.id.removeprefix(f"{step.stage.name}/")
    spikes = tuple(dict.fromkeys(row["step"] for row in read_lines(step.folder / SPIKES)))
    rows = [row for row in read_lines(step.folder / "metrics.jsonl") if row["step"] > 0]
    return Curve(label.replace("seed-", "seed "), getattr(step, "setting", "") or "", rows, spikes)


def watched(steps: Sequence[Any]) -> list[tuple[str, int, str]]:
    """(step id, spikes, what was warned of and when it began) of each step with any."""
    found = []
    for step in steps:
        if step.kind not in PANELS:
            continue
        spikes = read_lines(step.folder / SPIKES)
        began = read_lines(step.folder / WARNINGS)
        if spikes or began:
            told = [f"step {row['step']}, {row['name'].replace('_', ' ')}: {row['what']}" for row in began]
            told += [row["what"] for row in sorted(spikes, key=lambda row: -row["deviation"])[:2]]
            found.append((step.id, len(spikes), safe_line("; ".join(told))))
    return found


def watched_table(steps: Sequence[Any]) -> Table | None:
    """Spikes and warnings of the run, for the terminal; None where there were none."""
    rows = watched(steps)
    if not rows:
        return None
    table = Table(title="spikes and warnings", title_justify="left", pad_edge=False, box=box.SIMPLE_HEAD)
    table.add_column("step", no_wrap=True)
    table.add_column("spikes", justify="right")
    table.add_column("what was seen", overflow="fold")
    for id, spikes, told in rows:
        table.add_row(id, str(spikes), escape(told))
    return table


def watched_markdown(steps: Sequence[Any], curves: dict[str, Path], output: Path) -> str:
    """The sections `Spikes and warnings` and `Curves` of report.md; empty where there is nothing to say."""
    parts = []
    rows = watched(steps)
    if rows:
        lines = ["## Spikes and warnings", "", "| step | spikes | what was seen |", "| --- | --- | --- |"]
        lines += [f"| {id} | {spikes} | {told.replace('|', chr(92) + '|')} |" for id, spikes, told in rows]
        parts.append("\n".join(lines))
    if curves:
        images = [f"![{stage}]({file.relative_to(output)})" for stage, file in curves.items()]
        parts.append("\n".join(["## Curves", "", *images]))
    return "".join(f"\n{part}\n" for part in parts)


__all__ = ["counted", "watched", "watched_markdown", "watched_table", "write_curves"]
