"""tulu-lite replay: one optimiser step done again, sample by sample."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import TuluLiteError
from .opening import finite, open_run, pick_step

if TYPE_CHECKING:
    from ..doctor.replay import Replay

KINDS = ("sft", "dpo", "reward", "rlvr")

Run = Annotated[
    Path, typer.Argument(help="The recipe's YAML file, or its output folder.", show_default=False)
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Overrides that the run was started with.", show_default=False)
]


def replay(
    run: Run,
    overrides: Overrides = None,
    step: Annotated[
        int, typer.Option("--step", min=1, help="The optimiser step (rlvr: the batch) to do again.")
    ] = ...,  # type: ignore[assignment]
    stage: Annotated[
        str | None, typer.Option(help="The stage, where several train.", show_default=False)
    ] = None,
    run_name: Annotated[
        str | None,
        typer.Option("--run", help="Which run of a stage with several, such as seed-2.", show_default=False),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Short for the run of this seed.", show_default=False)
    ] = None,
    top: Annotated[
        int, typer.Option("-n", "--top", min=1, help="Samples to show, largest gradient first.")
    ] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Do one step of a training stage again, changing nothing, and tell each sample's loss and gradient: who blew it up.

    Loads the newest save before the step, does the steps in between again, and checks that the step comes out as it was
    logged. An rlvr step is trained on from its recorded samples; no server is started.
    """
    recipe, steps = open_run(run, overrides or [])
    chosen = pick_step(steps, KINDS, stage, run_name, seed)
    if not chosen.folder.exists():
        raise TuluLiteError(
            f"{chosen.id} has not been run with these settings: there is no {chosen.folder}",
            why="a replay needs the very settings, data and models of the run",
            cure="name the output folder, which holds the recipe as it ran; give the overrides that it was started with",
        )
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    told = Console(stderr=True, highlight=False)
    _quiet_threads(recipe, chosen)
    by_id = {one.id: one for one in steps}

    def say(text: str) -> None:
        told.print(f"[dim]{escape(text)}[/dim]", soft_wrap=True)

    if chosen.kind == "rlvr":
        from ..doctor.replay_rlvr import replay_rlvr

        found = replay_rlvr(recipe, by_id, chosen, step, say)
    else:
        from ..doctor.replay import replay as replay_step

        found = replay_step(recipe, by_id, chosen, step, say)
    if as_json:
        sys.stdout.write(json.dumps(to_json(found), indent=1) + "\n")
    else:
        show(console, found, top)
    raise typer.Exit(1 if found.reproduced is False else 0)


def _quiet_threads(recipe: Any, step: Any) -> None:
    """As many threads as the step had, before torch is imported: on a CPU its last bits depend on them."""
    threads = str((step.stage.accelerate or recipe.accelerate).threads)
    os.environ |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}


def show(console: Console, found: Replay, top: int) -> None:
    """The samples, largest gradient norm first, and whether the step came out as it was logged."""
    table = Table(
        title=f"{found.step_id}, step {found.step}, from {found.started_from}: each sample's part in it",
        title_justify="left", pad_edge=False, box=box.SIMPLE_HEAD,
    )  # fmt: skip
    more = list(dict.fromkeys(name for sample in found.samples for name in sample.what))
    table.add_column("sample", overflow="fold")
    for name in ("loss", "part of the loss", "tokens", "learnt", "gradient norm", "pull", *more):
        table.add_column(name, justify="right", no_wrap=True)
    ranked = sorted(found.samples, key=lambda sample: _last_if_finite(sample.grad_norm))
    for sample in ranked[:top]:
        table.add_row(
            escape(_near(sample.where)), _number(sample.each), _number(sample.loss), str(sample.tokens), str(sample.loss_tokens),
            _number(sample.grad_norm), f"{sample.pull:+.1%}" if math.isfinite(sample.pull) else "", *(_text(sample.what.get(name)) for name in more),
        )  # fmt: skip
    console.print(table)
    if len(ranked) > top:
        console.print(f"{len(ranked) - top} more samples with smaller gradients (-n {len(ranked)} shows all)")
    for note in found.notes:
        console.print(f"[yellow]note: {escape(note)}[/yellow]", soft_wrap=True)
    for line in verdict(found):
        console.print(line, soft_wrap=True)


def verdict(found: Replay) -> list[str]:
    """Whether the step came out as it was logged, in rich's markup."""
    if found.failure:
        return [f"[red]the step fails:[/red] {escape(found.failure)}"]
    if not found.logged:
        shown = ", ".join(
            f"{name} {value:.6g}" for name, value in found.replayed.items() if name in found.gaps()
        )
        return [f"this step was not logged, so there is nothing to compare with; it gives {shown}"]
    lines = []
    for name, gap in found.gaps().items():
        if math.isnan(gap):
            continue
        how = "the same bits" if gap == 0 else f"{gap:.1e} apart"
        lines.append(f"{name}: logged {found.logged[name]:.8g}, now {found.replayed[name]:.8g}: {how}")
    if found.reproduced:
        return [*lines, "[green]the step is reproduced[/green]"]
    return [
        *lines,
        "[red]the step is NOT reproduced[/red]: the data, the code or the machine is another than when it ran",
    ]


def to_json(found: Replay) -> dict[str, Any]:
    data = {**found.__dict__, "samples": [sample.__dict__ for sample in found.samples]}
    return finite(data | {"gaps": found.gaps(), "reproduced": found.reproduced})


def _last_if_finite(norm: float) -> tuple[bool, float]:
    """Sorts norms that are no numbers first, then the largest."""
    return (math.isfinite(norm), -norm if math.isfinite(norm) else 0.0)


def _near(where: str) -> str:
    """A place with its path relative to this folder where it lies in it."""
    here = f"{Path.cwd()}/"
    return where.removeprefix(here)


def _number(value: float) -> str:
    return f"{value:.4g}"


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else escape(str(value))
