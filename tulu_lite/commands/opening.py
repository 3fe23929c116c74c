"""What commands that look at a run need: its recipe, and the step that the options name."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import TuluLiteError
from ..pipeline.expand import expand
from ..pipeline.ledger import Ledger
from ..pipeline.steps import Step
from ..recipe import Recipe, load_recipe


def open_recipe(run: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a run. run: a recipe's file, or the output folder that it ran into.

    Raises TuluLiteError for a folder that is no output folder.
    """
    file = run / "recipe.yaml" if run.is_dir() else run
    if run.is_dir() and not file.exists():
        raise TuluLiteError(
            f"{run} is no output folder: it holds no recipe.yaml",
            cure="name the folder that the recipe's `output` names, or the recipe's file",
        )
    return load_recipe(file, overrides)


def check_ran(recipe: Recipe, run: Path) -> None:
    """Raise TuluLiteError where nothing of the recipe was run. Makes nothing. run: what the user named it by."""
    output = Path(recipe.output)
    ledger = Ledger(output)
    if not ((output / "steps").is_dir() or ledger.runs() or ledger.steps()):
        raise TuluLiteError(
            f"{recipe.name} has not been run yet: there is nothing of it in {output}",
            cure=f"run it (tulu-lite run {run}), or name the output folder, or give the overrides that it was run with",
        )


def open_run(run: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, list[Step]]:
    """As open_recipe, and all steps of the run."""
    recipe = open_recipe(run, overrides)
    return recipe, expand(recipe, Ledger(Path(recipe.output)))


def pick_step(
    steps: Sequence[Step], kinds: Collection[str], stage: str | None, run: str | None, seed: int | None
) -> Step:
    """The one step of these kinds that the options name. stage: a stage's name, or a step's id (rlvr/seed-2). run: of
    a stage with several (seed-2, learning_rate=1e-4). seed: short for a run of that seed.

    Raises TuluLiteError where there is none or more than one, with those that there are.
    """
    fitting = [step for step in steps if step.kind in kinds]
    named = [
        step
        for step in fitting
        if (stage is None or stage in (step.id, step.stage.name))
        and (run is None or step.id.partition("/")[2] == run)
        and (seed is None or step.seed == seed)
    ]
    if len(named) == 1:
        return named[0]
    known = ", ".join(step.id for step in named or fitting)
    asked = " ".join(
        f"--{name} {value}"
        for name, value in (("stage", stage), ("run", run), ("seed", seed))
        if value is not None
    )
    if named:
        raise TuluLiteError(
            f"{asked or 'this run'} names more than one step",
            cure=f"say which: --stage {known.replace(', ', ' | ')}",
        )
    raise TuluLiteError(
        f"there is no step {asked or 'to look at'} here"
        if fitting
        else f"the recipe has no {', '.join(kinds)} stage",
        cure=f"it has {known}" if fitting else "",
    )


def with_folder(step: Step, ledger: Ledger) -> tuple[Step, str]:
    """The step as it ran, and what is to be said of it: with the recipe's settings as they are now, or where these
    were never run, as it last ran with others. Raises TuluLiteError where it never ran."""
    if step.folder.exists():
        return step, ""
    ran: list[dict[str, Any]] = [
        row for row in ledger.steps() if row["id"] == step.id and Path(row["folder"]).exists()
    ]
    if not ran:
        raise TuluLiteError(
            f"{step.id} has not been run: there is no {step.folder}",
            cure="run the recipe first (tulu-lite run)",
        )
    folder = Path(ran[-1]["folder"])
    return replace(
        step, folder=folder
    ), f"{step.id} was not run with the recipe as it is now; this is {folder}"


def finite(value: Any) -> Any:
    """JSON knows no nan and no infinity: they are text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value
