"""A recipe run to its end, and what it came to: what `run`, `report` and `extend` share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ..pipeline.steps import Step
    from ..recipe import Recipe


def run_and_show(recipe: Recipe, console: Console) -> None:
    """Do what is not done of the recipe, then show the report. An interruption ends the command with code 130."""
    from ..pipeline.runner import Interrupted
    from ..pipeline.runner import run as run_recipe
    from ..pipeline.show import Display

    display = Display(console)
    started = time.monotonic()
    try:
        steps = run_recipe(recipe, display)
    except Interrupted:
        console.print(
            "[yellow]Interrupted.[/yellow] What was saved is kept; run the same command again to go on."
        )
        raise typer.Exit(130) from None
    finally:
        display.close()
    show_report(recipe, steps, console)
    seconds = int(time.monotonic() - started)
    console.print(f"Done in {seconds // 60}:{seconds % 60:02d} min.")


def show_report(recipe: Recipe, steps: Sequence[Step], console: Console) -> None:
    """The tables of the evaluations and of the runs compared, and where everything lies; written to files too."""
    from ..pipeline.comparison import compared, comparison_tables
    from ..pipeline.report import report_tables, write_report
    from ..watching.report import watched_table

    rows, files = write_report(recipe, list(steps))
    console.print()
    for table in [*(report_tables(recipe, rows) if rows else []), *comparison_tables(compared(steps))]:
        console.print(table)
    if (seen := watched_table(steps)) is not None:
        console.print(seen)
    models = Table(
        title="Where everything lies", title_justify="left", show_header=False, pad_edge=False, box=None
    )
    models.add_column(no_wrap=True)
    models.add_column(overflow="fold")
    for what, path in files.items():
        models.add_row(what, str(path))
    for step in steps:
        result = step.result
        if result is not None and "model" in result:
            models.add_row(f"model of {step.id}", str((step.folder / result["model"]).resolve()))
    models.add_row("ledger", str(Path(recipe.output) / "ledger.sqlite"))
    models.add_row("recipe as it ran", str(Path(recipe.output) / "recipe.yaml"))
    console.print(models)
