"""tulu-lite runs: the runs and steps of an output folder, as its ledger knows them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .opening import check_ran, finite, open_recipe

Run = Annotated[
    Path, typer.Argument(help="The recipe's YAML file, or its output folder.", show_default=False)
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Overrides that the run was started with.", show_default=False)
]


def runs(
    run: Run,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """List the runs and steps of a recipe's output folder, from its ledger."""
    from ..pipeline.ledger import Ledger

    recipe = open_recipe(run, overrides or [])
    check_ran(recipe, run)
    output = Path(recipe.output)
    ledger = Ledger(output)
    known, steps = ledger.runs(), [step_row(row) for row in ledger.steps()]
    if as_json:
        data = {"output": str(output), "runs": known, "steps": steps}
        sys.stdout.write(json.dumps(finite(data), indent=1) + "\n")
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(runs_table(known))
    console.print(steps_table(steps, output))


def step_row(row: dict[str, Any]) -> dict[str, Any]:
    """What the ledger knows of a step, with why it was stopped early and what it was warned of."""
    from ..watching.watch import counted

    summary = json.loads(row["summary"]) if row["summary"] else None
    kept = ("id", "key", "kind", "seed", "status", "attempts", "started", "ended", "error", "run", "folder")
    return {name: row[name] for name in kept} | {
        "summary": summary,
        "stopped_early": (summary or {}).get("stopped_early"),
        "warned": counted(Path(row["folder"])),
    }


def runs_table(rows: list[dict[str, Any]]) -> Table:
    table = Table("run", "started", "minutes", "status", title="Runs", title_justify="left", pad_edge=False)
    for row in rows:
        minutes = f"{((row['ended'] or time.time()) - row['started']) / 60:.1f}"
        if row["status"] == "killed" and not row["ended"]:
            minutes = ""  # by a version that did not note when
        table.add_row(str(row["id"]), _when(row["started"]), minutes, row["status"])
    return table


def steps_table(rows: list[dict[str, Any]], output: Path) -> Table:
    """Nothing in it is cut: the runs of a sweep differ at the end of their names."""
    table = Table(title=f"Steps, in {escape(str(output))}", title_justify="left", pad_edge=False)
    table.add_column("step", overflow="fold", min_width=24)
    table.add_column("status", overflow="fold", min_width=14)
    table.add_column("attempts", justify="right")
    table.add_column("started", no_wrap=True)
    table.add_column("minutes", justify="right")
    table.add_column("folder", overflow="fold", min_width=24)
    for row in rows:
        minutes = f"{(row['ended'] - row['started']) / 60:.1f}" if row["ended"] else ""
        status = "stopped early" if row["stopped_early"] and row["status"] == "done" else row["status"]
        status += f": {row['error']}" if row["error"] else ""
        status += f"; {row['warned']}" if row["warned"] else ""
        folder = Path(row["folder"])
        shown = folder.relative_to(output) if folder.is_relative_to(output) else folder
        table.add_row(
            escape(row["id"]), escape(status), str(row["attempts"]), _when(row["started"]), minutes,
            escape(str(shown)),
        )  # fmt: skip
    return table


def _when(stamp: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(stamp))
