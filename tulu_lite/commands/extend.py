"""tulu-lite extend: runs that are done go on for more steps, from their exact state."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ..errors import TuluLiteError

if TYPE_CHECKING:
    from ..pipeline.steps import Step
    from ..recipe import Recipe
    from ..recipe.stages import Extension

RunArgument = Annotated[
    Path, typer.Argument(help="The recipe's YAML file, or its output folder.", show_default=False)
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Overrides that the run was started with.", show_default=False)
]


def extend(
    run: RunArgument,
    overrides: Overrides = None,
    steps: Annotated[str, typer.Option("--steps", help="How many more, such as +200.")] = ...,  # type: ignore[assignment]
    stage: Annotated[
        str | None, typer.Option(help="The rlvr stage, where there are several.", show_default=False)
    ] = None,
    seed: Annotated[
        str, typer.Option(help="Which runs: best (the one that goes on), a seed, or all.")
    ] = "best",
    run_name: Annotated[
        str | None,
        typer.Option(
            "--run", help="A run by its name, such as kl_coefficient=0.05/seed-2.", show_default=False
        ),
    ] = None,
    only_record: Annotated[
        bool, typer.Option("--only-record", help="Note it for the next `tulu-lite run`, and do nothing yet.")
    ] = False,
) -> None:
    """Let runs of an rlvr stage go on longer, choose anew among all, and do again what hangs on the choice if it changed.

    They go on from their last save: weights, optimiser, random states, position in the data. It is noted in the output
    folder (extend.yaml), so that run, plan and report know it from then on.
    """
    from ..pipeline.lock import exclusive
    from ..recipe import load_recipe, record
    from .opening import open_run
    from .running import run_and_show

    recipe, known = open_run(run, overrides or [])
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    name = _stage_name(recipe, stage)
    extensions, notes = extensions_of(known, name, run_name or seed, _more(steps))
    output = Path(recipe.output)
    with exclusive(output / ".lock", f"the output folder {output}"):
        record(output, name, extensions)
    for one in extensions:
        console.print(
            f"{name}/{one.run} goes on to {one.steps} steps beyond its own, noted in {output / 'extend.yaml'}"
        )
    for note in notes:
        console.print(f"[yellow]{note}[/yellow]", soft_wrap=True)
    if not only_record:
        file = run / "recipe.yaml" if run.is_dir() else run
        run_and_show(load_recipe(file, overrides or []), console)


def extensions_of(
    steps: Sequence[Step], stage: str, which: str, more: int
) -> tuple[list[Extension], list[str]]:
    """What to record so that the runs that `which` names (best, all, a seed's number, or a run's name) go on by `more`
    steps from where they are, and what is to be said of it. Raises TuluLiteError for runs that cannot."""
    from ..recipe.stages import Extension

    by_id = {step.id: step for step in steps}
    runs = [step for step in steps if step.stage.name == stage and step.trains and step.waits_for is None]
    found, notes = [], list[str]()
    for first in _named(by_id, runs, stage, which):
        longest = first
        while (longer := next((one for one in runs if one.extends == longest.id), None)) is not None:
            longest = longer
        _check(longest)
        beyond = longest.stage.steps - first.stage.steps + more  # type: ignore[union-attr]
        found.append(Extension(run=first.id.partition("/")[2], steps=beyond))
        notes += [*_schedule_note(longest, more), *_ahead_note(longest)]
    return found, list(dict.fromkeys(notes))


def _named(by_id: dict[str, Step], runs: Sequence[Step], stage: str, which: str) -> list[Step]:
    """The runs as they were before any extension."""
    first = [run for run in runs if run.extends is None]
    choice = by_id[stage].result if stage in by_id else None
    chosen = by_id.get(choice["summary"]["chosen"]) if choice is not None else None
    if which == "best":
        if chosen is None:
            raise TuluLiteError(
                f"which run of {stage} is the best is not known yet",
                cure="run the recipe first (tulu-lite run)",
            )
        while chosen.extends is not None:
            chosen = by_id[chosen.extends]
        return [chosen]
    by_name = [run for run in first if run.id == f"{stage}/{which}"]
    if by_name:
        return by_name
    settings = {run.setting for run in first}
    if len(settings) > 1 and chosen is not None:  # of a sweep, those of the setting that goes on
        first = [run for run in first if run.setting == chosen.setting]
    named = first if which == "all" else [run for run in first if str(run.seed) == which]
    if len(named) > 1 and which != "all":
        raise TuluLiteError(
            f"seed {which} of {stage} is {len(named)} runs",
            cure=f"say which: --run {' | '.join(_names(named))}",
        )
    if not named:
        raise TuluLiteError(
            f"stage {stage} has no run {which!r}", cure=f"it has best, all, {', '.join(_names(first))}"
        )
    return named


def _check(run: Step) -> None:
    """The run can go on. Raises TuluLiteError."""
    if not run.done:
        raise TuluLiteError(
            f"{run.id} is not done, so there is nothing to go on from",
            cure="run the recipe first (tulu-lite run)",
        )
    if "stopped_early" in run.summary:
        raise TuluLiteError(
            f"{run.id} was stopped early: {run.summary['stopped_early']}",
            cure="extend another, or take stop_early out of the stage and run it again",
        )
    if not any((run.folder / "checkpoints").glob("step-*")):
        raise TuluLiteError(
            f"{run.id} left no save to go on from", f"there is none in {run.folder / 'checkpoints'}",
            "restore it, or move its folder away so that it is trained again",
        )  # fmt: skip


def _schedule_note(run: Step, more: int) -> list[str]:
    stage = run.stage
    if stage.schedule == "constant":  # type: ignore[union-attr]
        return []
    return [
        f"the schedule of {stage.name} is {stage.schedule}, not constant: the steps from now on have the learning rates "  # type: ignore[union-attr]
        f"that a run of {stage.steps + more} steps has there, so the rate rises again where the first part ended low, and "  # type: ignore[union-attr]
        "the result is not that of a run which was so long from the start"
    ]


def _ahead_note(run: Step) -> list[str]:
    stage = run.stage
    if not stage.ahead:  # type: ignore[union-attr]
        return []
    return [
        f"the rhythm of {stage.name} is {stage.rhythm}: a run's last step begins no batch for those after it, so the first "  # type: ignore[union-attr]
        "that come now are sampled from newer weights than in a run which was so long from the start"
    ]


def _names(runs: Sequence[Step]) -> list[str]:
    return [run.id.partition("/")[2] for run in runs]


def _stage_name(recipe: Recipe, stage: str | None) -> str:
    longer = [one.name for one in recipe.stages if "extend" in type(one).model_fields]
    if stage in longer:
        return str(stage)
    if stage is None and len(longer) == 1:
        return longer[0]
    asked = "" if stage is None else f" {stage!r}"
    raise TuluLiteError(
        f"there is no stage{asked} whose runs can go on"
        if not longer or stage is not None
        else "which stage?",
        cure=f"say --stage {' | '.join(longer)}" if longer else "rlvr stages count in steps, and can",
    )


def _more(text: str) -> int:
    number = text.removeprefix("+")
    if not number.isdigit() or int(number) < 1:
        raise TuluLiteError(f"--steps {text} is no number of steps", cure="write for example --steps +200")
    return int(number)
