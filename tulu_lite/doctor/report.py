"""The parity report: on the screen, as JSON, as a plot."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..files import write_json
from .figures import QUANTILES
from .parity import Report
from .plot import plot_parity


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write parity.json and parity.png; returns the files."""
    files = [folder / "parity.json"]
    write_json(files[0], report.to_json())
    if report.server is not None:
        plot_parity(report, folder / "parity.png")
        files.append(folder / "parity.png")
    return files


def print_report(console: Console, report: Report, files: list[Path]) -> None:
    console.print(_types(report))
    if report.rows[0].gap is not None:
        console.print(_places(report))
    if report.diagnosis is not None and report.diagnosis.trials:
        console.print(_suppositions(report))
    console.print(report.verdict(), style="green" if report.ok else "red", markup=False, soft_wrap=True)
    cause = report.diagnosis.cause if report.diagnosis else None
    if cause is not None and cause.cure:
        console.print(f"  cure: {cause.cure}", markup=False, soft_wrap=True)
    console.print(f"[dim]{', '.join(str(file) for file in files)}[/dim]", soft_wrap=True)


def _types(report: Report) -> Table:
    names = [f"{quantile:.1%} below" for quantile in QUANTILES]
    table = Table(
        "server", "trainer", "tokens", "mean", *names, "max", "KL k1", "KL k3", "",
        title="|log p server - log p trainer| by type", title_justify="left", pad_edge=False,
    )  # fmt: skip
    for row in report.rows:
        if row.gap is None:
            table.add_row(row.server_dtype, row.trainer_dtype, row.error.splitlines()[0][:60])
            continue
        gap = row.gap
        figures = [gap.mean, *gap.quantiles, gap.max, gap.k1, gap.k3]
        mark = "[green]agrees[/]" if row.ok else "[red]too far[/]"
        table.add_row(
            row.server_dtype, row.trainer_dtype, str(gap.tokens), *(f"{value:.2g}" for value in figures), mark
        )
    return table


def _places(report: Report) -> Table:
    gap = report.rows[0].gap
    assert gap is not None
    table = Table(
        "places",
        "tokens",
        "mean",
        "max",
        title="By place in the sequence",
        title_justify="left",
        pad_edge=False,
    )
    for bucket in gap.buckets:
        table.add_row(
            f"{bucket.first}-{bucket.last}", str(bucket.tokens), f"{bucket.mean:.2g}", f"{bucket.max:.2g}"
        )
    return table


def _suppositions(report: Report) -> Table:
    assert report.diagnosis is not None
    mean = report.diagnosis.gap.mean
    table = Table(
        "supposed", "", "mean gap left", "of the gap", title="What was supposed, and what it leaves",
        title_justify="left", pad_edge=False,
    )  # fmt: skip
    for trial in report.diagnosis.trials:
        share = f"{trial.left / mean:.0%}" if mean else ""
        table.add_row(trial.cause, trial.supposed, "known" if trial.certain else f"{trial.left:.2g}", share)
    return table
