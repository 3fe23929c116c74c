"""The runs of a stage beside one another: validation with intervals, paired with the run that goes on, and a picture.

Every interval is of the same held-out items for all runs; none of an evaluate stage's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from ..files import atomic_file
from ..recipe.runs import swept_number
from ..statistics import Estimate, difference, of_values, paired, seeds_mean
from .protocol import read_validation
from .steps import Step


@dataclass(frozen=True)
class RunRow:
    """One line: a run, or the mean of a setting over its seeds."""

    stage: str
    run: str  # seed-2, kl_coefficient=0.05/seed-2, kl_coefficient=0.05 (mean)
    setting: str
    metric: str
    better: str
    value: Estimate
    behind: (
        Estimate | None
    )  # this minus the run (or setting) that goes on, paired by item; None for that one itself
    chosen: bool
    stopped: str  # why it was stopped early
    mean: bool = False


def compared(steps: Sequence[Step]) -> list[RunRow]:
    """A line for each run that is done of each stage with several, and for each setting with several seeds."""
    rows: list[RunRow] = []
    for choice in (step for step in steps if step.kind == "select"):
        known = {step.id: step for step in steps}
        runs = [known[id] for id in choice.inputs if known[id].done and "validation" in known[id].summary]
        if len(choice.inputs) > 1 and runs and choice.id == choice.stage.name:
            rows += _of_stage(choice, runs)
    return rows


def _of_stage(choice: Step, runs: Sequence[Step]) -> list[RunRow]:
    result = choice.result
    chosen = next((run for run in runs if result is not None and result["summary"]["chosen"] == run.id), None)
    values = {run.id: read_validation(run.folder / "validation.jsonl") for run in runs}
    rows = [_row(run, chosen, values) for run in runs]
    settings = list(dict.fromkeys(run.setting for run in runs))
    seeds = {name: [r for r in runs if r.setting == name and r.extends is None] for name in settings}
    if len(settings) > 1 and any(len(each) > 1 for each in seeds.values()):
        best = seeds[chosen.setting] if chosen is not None else []
        rows += [_mean_row(each, best, values) for each in seeds.values() if len(each) > 1]
    return rows


def _row(run: Step, chosen: Step | None, values: dict[str, dict[str, float]]) -> RunRow:
    told = run.summary["validation"]
    interval = of_values(list(values[run.id].values()))
    value = float(told["value"])
    behind = paired(values[run.id], values[chosen.id]) if chosen is not None and chosen is not run else None
    return RunRow(
        run.stage.name,
        run.id.partition("/")[2],
        run.setting,
        told["metric"],
        told["better"],
        Estimate(value, interval.low, interval.high, interval.n),
        behind,
        chosen is run,
        str(run.summary.get("stopped_early", "")),
    )


def _mean_row(seeds: Sequence[Step], best: Sequence[Step], values: dict[str, dict[str, float]]) -> RunRow:
    """A setting's mean over its seeds; intervals resample seeds and items (statistics.seeds_mean, difference)."""
    first, told = seeds[0], seeds[0].summary["validation"]
    items = sorted(set.intersection(*(set(values[run.id]) for run in (*seeds, *best))))
    own = [[values[run.id][item] for item in items] for run in seeds]
    theirs = [[values[run.id][item] for item in items] for run in best]
    chosen = bool(best) and best[0].setting == first.setting
    return RunRow(
        first.stage.name,
        f"{first.setting} (mean)",
        first.setting,
        told["metric"],
        told["better"],
        seeds_mean(own) if items else Estimate(math.nan, math.nan, math.nan, 0),
        difference(own, theirs) if items and theirs and not chosen else None,
        chosen,
        "",
        mean=True,
    )


# As text


def figure(row: RunRow, estimate: Estimate | None, signed: bool = False) -> str:
    """46.2 [41.4, 51.1], in % for an accuracy; with a sign for a difference."""
    if estimate is None:
        return ""
    scale, digits = (100.0, ".1f") if row.metric == "accuracy" else (1.0, ".4g")
    sign = "+" if signed else ""
    parts = [format(scale * part, sign + digits) for part in (estimate.value, estimate.low, estimate.high)]
    return f"{parts[0]} [{parts[1]}, {parts[2]}]"


def _title(row: RunRow) -> str:
    unit = " in %" if row.metric == "accuracy" else ""
    return f"runs of {row.stage}: validation {row.metric}{unit}, {row.better} is better, 95 % intervals (* goes on)"


def _cells(row: RunRow) -> list[str]:
    note = f"stopped early: {row.stopped}" if row.stopped else ""
    name = f"{row.run} *" if row.chosen else row.run
    return [name, figure(row, row.value), figure(row, row.behind, signed=True), note]


HEAD = ["run", "validation", "against the one that goes on", ""]


def comparison_tables(rows: Sequence[RunRow]) -> list[Table]:
    """For the terminal: a table for each stage."""
    tables = []
    for stage in dict.fromkeys(row.stage for row in rows):
        own = [row for row in rows if row.stage == stage]
        table = Table(title=_title(own[0]), title_justify="left", pad_edge=False, box=box.SIMPLE_HEAD)
        for number, name in enumerate(HEAD):
            side: Any = "left" if number in (0, 3) else "right"
            table.add_column(name, no_wrap=number in (1, 2), overflow="fold", justify=side)
        for row in own:
            table.add_row(*(escape(cell) for cell in _cells(row)), style="bold" if row.chosen else None)
        tables.append(table)
    return tables


def comparison_markdown(rows: Sequence[RunRow]) -> str:
    """The same as a part of a Markdown file; empty where nothing was compared."""
    lines: list[str] = []
    for stage in dict.fromkeys(row.stage for row in rows):
        own = [row for row in rows if row.stage == stage]
        lines += ["", _title(own[0])[0].upper() + _title(own[0])[1:] + ".", ""]
        lines += [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}"]
        lines += [f"| {' | '.join(cell.replace('|', '/') for cell in _cells(row))} |" for row in own]
    return "\n".join(lines) + "\n" if lines else ""


def comparison_json(rows: Sequence[RunRow]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


# As a picture


def plot_comparison(name: str, rows: Sequence[RunRow], path: Path) -> bool:
    """Validation by setting: a panel for each stage, a point with its interval for each run, the mean of a setting's
    seeds as a line, a star on the run that goes on. False, and nothing written, where nothing was compared."""
    if not rows:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    stages = list(dict.fromkeys(row.stage for row in rows))
    widths = [max(4.0, 0.5 * sum(row.stage == stage for row in rows)) for stage in stages]
    shape: dict[str, Any] = {"squeeze": False, "layout": "constrained", "width_ratios": widths}
    picture, axes = pyplot.subplots(1, len(stages), figsize=(sum(widths), 4), **shape)
    for axis, stage in zip(axes[0], stages, strict=True):
        _draw(axis, [row for row in rows if row.stage == stage])
    picture.suptitle(name)
    with atomic_file(path) as file:
        picture.savefig(file, format="png", dpi=120)
    pyplot.close(picture)
    return True


def _draw(axis: Any, rows: Sequence[RunRow]) -> None:
    runs = [row for row in rows if not row.mean]
    places, ticks = positions(runs)
    scale = 100.0 if rows[0].metric == "accuracy" else 1.0
    for row, place in zip(runs, places, strict=True):
        middle, low, high = (scale * part for part in (row.value.value, row.value.low, row.value.high))
        colour = "#D55E00" if row.chosen else "#999999" if row.stopped else "#0072B2"
        axis.vlines(place, low, high, color=colour, linewidth=1, alpha=0.6)
        axis.plot(
            [place], [middle], "*" if row.chosen else "o", color=colour, markersize=12 if row.chosen else 5
        )
    means: dict[float, list[float]] = {}
    for row, place in zip(runs, places, strict=True):
        means.setdefault(place, []).append(scale * row.value.value)
    if len(means) > 1 and ticks is None:
        axis.plot(
            sorted(means), [sum(means[x]) / len(means[x]) for x in sorted(means)], color="#0072B2", alpha=0.5
        )
    if ticks is None:
        axis.set_xlabel(runs[0].setting.partition("=")[0])
        if min(means) > 0 and max(means) / min(means) >= 10:
            axis.set_xscale("log")
        axis.set_xticks(sorted(means), [f"{place:g}" for place in sorted(means)])
        axis.minorticks_off()
    else:
        axis.set_xticks(range(len(ticks)), ticks, rotation=30, ha="right", fontsize="small")
    axis.set_title(f"{rows[0].stage}: validation {rows[0].metric}{' in %' if scale == 100 else ''}")
    axis.grid(alpha=0.3)


def positions(runs: Sequence[RunRow]) -> tuple[list[float], list[str] | None]:
    """Where each run lies on the x axis: at its value where one number was swept; else beside one another, with labels."""
    numbers = [swept_number(row.setting) for row in runs]
    if len({number for number in numbers if number is not None}) > 1 and None not in numbers:
        return [float(number) for number in numbers if number is not None], None
    labels = [row.run for row in runs]
    return [float(place) for place in range(len(labels))], labels
