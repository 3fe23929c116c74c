"""tulu-lite rollouts: the samples of an rlvr step, with their verdicts, to be read."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ..errors import TuluLiteError

if TYPE_CHECKING:
    from ..pipeline.steps import Step

Run = Annotated[
    Path, typer.Argument(help="The recipe's YAML file, or its output folder.", show_default=False)
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Overrides that the run was started with.", show_default=False)
]


def rollouts(
    run: Run,
    overrides: Overrides = None,
    step: Annotated[
        int | None,
        typer.Option("--step", min=1, help="The batch; by default the last one kept.", show_default=False),
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="The rlvr stage, where there are several.", show_default=False)
    ] = None,
    run_name: Annotated[
        str | None,
        typer.Option("--run", help="Which run of a stage with several, such as seed-2.", show_default=False),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Short for the run of this seed.", show_default=False)
    ] = None,
    verdict: Annotated[
        str | None,
        typer.Option(
            help="correct, partial, incorrect, unverifiable, error, unjudged, or unfinished.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[str | None, typer.Option(help="Of this data source alone.", show_default=False)] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Of the prompt whose id begins so.", show_default=False)
    ] = None,
    count: Annotated[
        int, typer.Option("-n", min=1, help="How many samples (with --side-by-side: prompts).")
    ] = 5,
    beside: Annotated[
        str | None,
        typer.Option(
            "--side-by-side", help="Steps such as 1,50: the same prompts at each.", show_default=False
        ),
    ] = None,
    longest: Annotated[int, typer.Option("--chars", min=1, help="Characters of each text.")] = 2000,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the rows as they were kept, as JSON lines.")
    ] = False,
) -> None:
    """Show samples that an rlvr stage learnt from, with their verdicts. Text is printed with escape codes made visible."""
    from ..pipeline.history import owner, runs_before
    from ..pipeline.ledger import Ledger
    from ..watching.samples import VERDICTS, chosen_rows, sample_view, summary_line
    from ..watching.samples import side_by_side as side_view
    from .opening import open_run, pick_step, with_folder

    if verdict is not None and verdict not in VERDICTS:
        raise TuluLiteError(f"there is no verdict {verdict!r}", cure=f"it is one of {', '.join(VERDICTS)}")
    recipe, steps = open_run(run, overrides or [])
    ledger = Ledger(Path(recipe.output))
    chosen, note = with_folder(pick_step(steps, ("rlvr",), stage, run_name, seed), ledger)
    by_id = {one.id: one for one in steps} | {chosen.id: chosen}
    for before in runs_before(chosen, by_id):
        with suppress(TuluLiteError):  # its own samples may be there all the same
            by_id[before.id] = with_folder(before, ledger)[0]
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    if note:
        Console(stderr=True, highlight=False).print(f"[yellow]{escape(note)}[/yellow]", soft_wrap=True)
    folder = chosen.folder / "rollouts"
    if beside is not None:
        numbers = wanted_steps(beside)
        by_step = {number: rows_of(chosen, by_id, number) for number in numbers}
        picked = {
            number: chosen_rows(rows, verdict=verdict, source=source, prompt=prompt, count=len(rows))
            for number, rows in by_step.items()
        }
        views = side_view(picked, longest, console.width, count)
        if not views:
            raise TuluLiteError(
                f"no prompt is in all of the steps {beside} (with this filter)",
                why="a prompt comes again once all prompts of the data were taken",
                cure=_steps_in_common(chosen, by_id, numbers[0]),
            )
        for view in views:
            console.print(view)
        return
    number = last_kept(folder, chosen.id) if step is None else step
    rows = rows_of(chosen, by_id, number)
    picked_rows = chosen_rows(rows, verdict=verdict, source=source, prompt=prompt, count=count)
    if as_json:
        for row in picked_rows:
            sys.stdout.write(json.dumps(row) + "\n")
        return
    did = owner(chosen, by_id, number).id
    console.print(f"{did}, step {number}: {summary_line(rows)}", markup=False, soft_wrap=True)
    for row in picked_rows:
        console.print(sample_view(row, longest))
    if not picked_rows:
        console.print("none of them fits the filter")


def wanted_steps(text: str) -> list[int]:
    """1,50 -> [1, 50]. Raises TuluLiteError."""
    parts = [part.strip() for part in text.split(",")]
    if (
        len(parts) < 2
        or not all(part.isdecimal() and int(part) for part in parts)
        or len(set(parts)) < len(parts)
    ):
        raise TuluLiteError(f"--side-by-side {text}: write two or more different steps, such as 1,50")
    return [int(part) for part in parts]


def rows_of(step: Step, steps: Mapping[str, Step], number: int) -> list[dict[str, Any]]:
    """The rows of a step of training, of the run or of one that it goes on from. Raises TuluLiteError where they are not
    kept, with what is true of that step."""
    from ..pipeline.history import check_has, owner
    from ..rl.recorded import read_rows
    from ..rl.rollout_files import parts_of

    did = owner(step, steps, number)
    folder = did.folder / "rollouts"
    kept = parts_of(folder)
    if number in kept:
        return read_rows(kept[number][0])
    check_has(did, number)
    raise TuluLiteError(
        f"the samples of {did.id}, step {number}, are not kept",
        why=f"kept are the steps {ranges(list(kept))}" if kept else f"there are none in {folder}",
        cure="samples of old steps go when their folder is full (keep_rollouts_mb says how much is kept)",
    )


def last_kept(folder: Path, what: str) -> int:
    from ..rl.rollout_files import parts_of

    kept = parts_of(folder)
    if not kept:
        raise TuluLiteError(
            f"no samples of {what} are kept: there are none in {folder}", cure="run the stage first"
        )
    return max(kept)


def ranges(numbers: list[int]) -> str:
    """[1, 2, 3, 7] -> 1-3, 7"""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in spans)


def _steps_in_common(step: Step, steps: Mapping[str, Step], number: int) -> str:
    """Which kept steps, those of the runs before included, have a prompt of this step."""
    from ..pipeline.history import runs_before
    from ..rl.recorded import read_rows
    from ..rl.rollout_files import parts_of

    ids = {row["prompt_id"] for row in rows_of(step, steps, number)}
    kept = {
        other: paths[0]
        for run in (*runs_before(step, steps), step)
        for other, paths in parts_of(run.folder / "rollouts").items()
    }
    same = [
        other for other, path in kept.items()
        if other != number and any(row["prompt_id"] in ids for row in read_rows(path))
    ]  # fmt: skip
    return (
        f"prompts of step {number} are in the steps {ranges(same)}"
        if same
        else f"no other kept step has a prompt of step {number}"
    )
