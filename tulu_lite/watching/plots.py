"""The curves of a stage in one picture: all its runs, the mean of its seeds with a band, readable in a README.

A run is a thin line; where a stage has several seeds, the thick line is their mean and the band goes from the lowest to
the highest of them. Curves of more than 60 points are running medians over a fortieth of the steps, with the raw values of
a single run pale behind. Colours are Okabe and Ito's, which the colour-blind tell apart too, and lines differ in dash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic_file
from .panels import Panel, shown_panels
from .series import is_number

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
COLUMNS, WIDTH, HEIGHT, DPI = 3, 4.3, 3.1, 110  # inches a panel
SMOOTHED_FROM, SMOOTHED_PARTS = 60, 40
LOG_RANGE = 30.0  # a panel of scale `auto` is logarithmic where its values span more than this


@dataclass(frozen=True)
class Curve:
    """One run of a stage: its label in the legend, the sweep's setting it belongs to, and its rows of metrics."""

    label: str
    group: str
    rows: Sequence[Mapping[str, Any]]
    spikes: Sequence[int] = field(default_factory=tuple)  # steps with one


def plot_stage(title: str, kind: str, runs: Sequence[Curve], path: Path) -> bool:
    """Write the stage's picture (PNG). False, and nothing written, where nothing of the kind was logged."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = {name for run in runs for row in run.rows for name in row}
    panels = shown_panels(kind, names)
    if not panels:
        return False
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    with pyplot.rc_context(STYLE):
        figure, grid = pyplot.subplots(
            lines,
            columns,
            figsize=(WIDTH * columns, HEIGHT * lines + 0.7),
            squeeze=False,
            layout="constrained",
        )
        axes = list(grid.flat)
        for axis, (panel, metrics) in zip(axes, panels, strict=False):
            _draw(axis, panel, metrics, runs)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold")
        _legend_of_runs(figure, runs)
        with atomic_file(path) as file:
            figure.savefig(file, format="png", dpi=DPI)
        pyplot.close(figure)
    return True


STYLE: Any = {
    "font.size": 10.5, "axes.titlesize": 11.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.labelsize": 10, "xtick.labelsize": 9.5, "ytick.labelsize": 9.5, "legend.fontsize": 9.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "axes.formatter.limits": (-3, 5), "axes.formatter.useoffset": False,
}  # fmt: skip


def _draw(axis: Any, panel: Panel, metrics: list[str], runs: Sequence[Curve]) -> None:
    axis.set_title(panel.title)
    axis.set_xlabel("step")
    axis.set_ylabel(panel.unit)
    axis.xaxis.get_major_locator().set_params(integer=True)
    steps = [row["step"] for run in runs for row in run.rows] or [1]
    margin = max(0.02 * (max(steps) - min(steps)), 0.5)
    axis.set_xlim(
        min(steps) - margin, max(steps) + margin
    )  # the same in all panels, also where little was logged
    if panel.stacked:
        _draw_times(axis, metrics, runs)
        return
    several = len(metrics) > 1
    lowest = []
    for number, metric in enumerate(metrics):
        label = panel.names.get(metric, metric.rpartition("/")[2].replace("_", " ")) if several else None
        lowest += _draw_metric(axis, panel, metric, runs, number if several else None, label)
    _set_scale(axis, panel, lowest)
    if panel.title == "Gradient norm":
        _mark_spikes(axis, runs)
    if panel.growth:
        _growth_axis(axis, runs, metrics[0])
    if several:
        _legend_below(axis, len(metrics))


def _draw_metric(
    axis: Any, panel: Panel, metric: str, runs: Sequence[Curve], number: int | None, label: str | None
) -> list[float]:
    """Lines of one metric; its values, as drawn. number: its place among the panel's metrics, None for the only one.

    Where a panel has several metrics the colour tells these apart and seeds are only their mean and band; else the
    colour tells runs apart."""
    scale = 100.0 if panel.share else 1.0
    drawn: list[float] = []
    groups = list(dict.fromkeys(run.group for run in runs))
    for place, group in enumerate(groups):
        members = [run for run in runs if run.group == group]
        lines = [line for run in members if (line := _line(run.rows, metric, scale)) is not None]
        if not lines:
            continue
        drawn += [value for _, values in lines for value in values.tolist()]
        style = {
            "linestyle": DASHES[place % len(DASHES)],
            "marker": "o" if panel.markers else None,
            "markersize": 4,
        }
        if number is not None:
            if len(groups) == 1 and number >= len(COLOURS):  # more metrics than colours
                style["linestyle"] = DASHES[number // len(COLOURS) % len(DASHES)]
            _mean_and_band(axis, lines, COLOURS[number % len(COLOURS)], style, label if place == 0 else None)
        elif len(groups) > 1:
            _mean_and_band(axis, lines, COLOURS[place % len(COLOURS)], style, None)
        else:
            _each_and_mean(axis, members, metric, panel, style)
    return drawn


def _each_and_mean(
    axis: Any, runs: Sequence[Curve], metric: str, panel: Panel, style: dict[str, Any]
) -> None:
    """One group: each run in its colour, and their mean in black with a band where there are several."""
    lines = []
    for number, run in enumerate(runs):
        line = _line(run.rows, metric, 100.0 if panel.share else 1.0)
        if line is None:
            continue
        lines.append(line)
        colour = COLOURS[number % len(COLOURS)]
        steps, values = line
        smooth = _smooth(values) if panel.smooth else values
        alone = len(runs) == 1
        if alone and smooth is not values:
            axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        dash = {**style, "linestyle": "-" if alone else DASHES[number % len(DASHES)]}
        axis.plot(
            steps, smooth, color=colour, alpha=1.0 if alone else 0.75, linewidth=1.8 if alone else 1.1, **dash
        )
    if len(lines) > 1:
        _mean_and_band(axis, lines, "#444444", {"linestyle": "-"}, None)


def _mean_and_band(
    axis: Any,
    lines: Sequence[tuple[np.ndarray, np.ndarray]],
    colour: str,
    style: dict[str, Any],
    label: str | None,
) -> None:
    steps = sorted(set.intersection(*(set(steps.tolist()) for steps, _ in lines)))
    if not steps:
        return
    values = np.array(
        [_smooth(own)[np.searchsorted(own_steps, steps)] for own_steps, own in lines]
    )  # [lines, steps]
    axis.plot(steps, values.mean(0), color=colour, linewidth=2.2, label=label, **style)
    if len(lines) > 1:
        axis.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)


def _line(
    rows: Sequence[Mapping[str, Any]], metric: str, scale: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps and values of a metric where it is a finite number."""
    points = [(row["step"], row[metric] * scale) for row in rows if is_number(row.get(metric))]
    points = [point for point in points if np.isfinite(point[1])]
    return (
        (np.array([p[0] for p in points]), np.array([p[1] for p in points], dtype=float)) if points else None
    )


def _smooth(values: np.ndarray) -> np.ndarray:
    """A centred running median, shorter towards the ends; few values are left as they are. Long curves have it at 400
    places, and straight lines between."""
    count = len(values)
    if count <= SMOOTHED_FROM:
        return values
    half = max(1, count // SMOOTHED_PARTS // 2)
    places = np.unique(np.linspace(0, count - 1, min(count, 400)).round().astype(int))
    medians = [np.median(values[max(0, place - half) : place + half + 1]) for place in places]
    return np.interp(np.arange(count), places, medians)


def _set_scale(axis: Any, panel: Panel, values: Sequence[float]) -> None:
    positive = [value for value in values if value > 0]
    wide = positive and max(positive) > LOG_RANGE * float(np.median(positive))
    if positive and (panel.scale == "log" or (panel.scale == "auto" and wide)):
        axis.set_yscale("log", nonpositive="mask")
    elif values and min(values) >= 0 and panel.title not in ("Loss", "Validation loss"):
        axis.set_ylim(bottom=0)
    if panel.share and values and max(values) > 60:
        axis.set_ylim(0, 102)


def _mark_spikes(axis: Any, runs: Sequence[Curve]) -> None:
    for number, run in enumerate(runs):
        norms = {row["step"]: row["grad_norm"] for row in run.rows if is_number(row.get("grad_norm"))}
        points = [(step, norms[step]) for step in run.spikes if step in norms and np.isfinite(norms[step])]
        if points:
            axis.plot(
                *zip(*points, strict=True), "v", color=COLOURS[number % len(COLOURS)], markersize=7,
                markeredgecolor="black", label="spike" if number == 0 else None, zorder=5,
            )  # fmt: skip
    if axis.get_legend_handles_labels()[0]:
        _legend_below(axis, 1)


def _growth_axis(axis: Any, runs: Sequence[Curve], metric: str) -> None:
    """On the right: the value as a multiple of the mean over runs of their first steps."""
    lines = [line for run in runs if (line := _line(run.rows, metric, 1.0)) is not None]
    first = float(np.mean([values[: max(1, len(values) // 20)].mean() for _, values in lines]))
    if first > 0:
        right = axis.secondary_yaxis("right", functions=(lambda y: y / first, lambda y: y * first))
        right.set_ylabel("× first steps")


def _draw_times(axis: Any, metrics: list[str], runs: Sequence[Curve]) -> None:
    """Seconds of a step by what they went into, stacked, mean over the runs; the largest at the bottom."""
    rows = [{row["step"]: row for row in run.rows} for run in runs if run.rows]
    steps = sorted(set.intersection(*(set(one) for one in rows)))
    parts = {
        name.removesuffix("_s"): _smooth(
            np.array([np.mean([one[step].get(name) or 0.0 for one in rows]) for step in steps])
        )
        for name in metrics
    }
    order = sorted(parts, key=lambda name: -parts[name].sum())[: len(COLOURS)]
    axis.stackplot(
        steps, [parts[name] for name in order], labels=[name.replace("_", " ") for name in order], colors=COLOURS, alpha=0.85,
        step="mid" if len(steps) < 40 else None,
    )  # fmt: skip
    axis.set_ylim(bottom=0)
    _legend_below(axis, len(order))


def _legend_below(axis: Any, entries: int) -> None:
    axis.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=min(3, entries), frameon=False, handlelength=1.6, columnspacing=1.0,
    )  # fmt: skip


def _legend_of_runs(figure: Any, runs: Sequence[Curve]) -> None:
    """Below the picture, where it covers nothing."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    groups = list(dict.fromkeys(run.group for run in runs))
    if len(runs) < 2:
        return
    handles: list[Any] = []
    if len(groups) > 1:
        for number, group in enumerate(groups):
            dash = DASHES[number % len(DASHES)]
            handles.append(
                Line2D(
                    [], [], color=COLOURS[number % len(COLOURS)], linestyle=dash, linewidth=2.2, label=group
                )
            )
    else:
        for number, run in enumerate(runs):
            dash = DASHES[number % len(DASHES)]
            handles.append(
                Line2D(
                    [],
                    [],
                    color=COLOURS[number % len(COLOURS)],
                    linestyle=dash,
                    linewidth=1.4,
                    label=run.label,
                )
            )
        handles.append(Line2D([], [], color="#444444", linewidth=2.2, label="mean"))
    if len(runs) > len(groups):
        handles.append(Patch(color="#444444", alpha=0.15, label="lowest to highest"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), frameon=False)
