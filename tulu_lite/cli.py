"""The command line: tulu-lite run | plan | report | extend | runs | schema | serve | data | replay | rollouts | doctor."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .commands import data as data_command
from .commands import extend as extend_command
from .commands import replay as replay_command
from .commands import rollouts as rollouts_command
from .commands import runs as runs_command
from .errors import TuluLiteError
from .files import write_atomic

app = typer.Typer(
    name="tulu-lite",
    help="Post-training from one recipe file: SFT, on-policy preferences, DPO, RLVR over several seeds, evaluation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
RecipeFile = Annotated[Path, typer.Argument(help="The recipe's YAML file.", show_default=False)]
RunPlace = Annotated[
    Path, typer.Argument(help="The recipe's YAML file, or its output folder.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Overrides of fields, such as seed=7 stages.sft.epochs=3 'stages.rlvr.seeds=[4,5,6]'.",
        show_default=False,
    ),
]


Rehearse = Annotated[
    bool,
    typer.Option(
        "--rehearse",
        help="The same recipe in minutes on a CPU: tiny models, few rows, few steps; to <output>-rehearsal.",
    ),
]


def _loaded(recipe: Path, overrides: list[str] | None, rehearsed: bool):  # type: ignore[no-untyped-def]
    from .recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    if not rehearsed:
        return loaded
    from .rehearsal import rehearse

    return rehearse(loaded, lambda line: console.print(f"[dim]{escape(line)}[/dim]", soft_wrap=True))


@app.command()
def run(recipe: RecipeFile, overrides: Overrides = None, rehearse: Rehearse = False) -> None:
    """Run a recipe; what is done already is not done again."""
    from .commands.running import run_and_show

    run_and_show(_loaded(recipe, overrides, rehearse), console)


@app.command()
def plan(recipe: RecipeFile, overrides: Overrides = None, rehearse: Rehearse = False) -> None:
    """Show each step with its size, what is done, and what would run and why. Spends nothing."""
    from .pipeline.plan import make_plan
    from .pipeline.show import plan_notes, plan_table

    loaded = _loaded(recipe, overrides, rehearse)
    planned = make_plan(loaded)
    console.print(plan_table(loaded, planned))
    for note in plan_notes(planned):
        console.print(f"[dim]{note}[/dim]", soft_wrap=True)
    waiting = [step for step in planned if step.state != "done"]
    tokens = sum(step.size.tokens for step in waiting if step.size)
    console.print(
        f"{len(planned) - len(waiting)} of {len(planned)} steps are done; the rest is at most {tokens:,} tokens."
    )


@app.command()
def report(run: RunPlace, overrides: Overrides = None) -> None:
    """Show the results so far: tables with intervals, runs compared, the learning curves, where everything lies."""
    from .commands.opening import check_ran, open_recipe
    from .commands.running import show_report
    from .pipeline.expand import expand
    from .pipeline.ledger import Ledger

    loaded = open_recipe(run, overrides or [])
    check_ran(loaded, run)
    show_report(loaded, expand(loaded, Ledger(Path(loaded.output))), console)


@app.command()
def schema(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it to this file.")] = None,
) -> None:
    """Print the JSON schema of a recipe, for editors."""
    from .recipe import recipe_schema

    text = json.dumps(recipe_schema(), indent=1) + "\n"
    if output is None:
        sys.stdout.write(text)
    else:
        write_atomic(output, text)


@app.command()
def serve(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="The recipe's YAML file; with --status also a server's folder.", show_default=False
        ),
    ],
    overrides: Overrides = None,
    status: Annotated[
        bool, typer.Option("--status", help="Tell how the recipe's server does instead, and how to ask it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --status: as JSON.")] = False,
) -> None:
    """Start the recipe's rollout server alone, on the recipe's model, until Ctrl-C. It speaks OpenAI's API."""
    from .pipeline.models import local_model
    from .pipeline.placing import this_machine
    from .recipe import load_recipe, serving
    from .recipe.placement import asks_for_devices, place
    from .rollout import serve as by_hand
    from .rollout.status import show, status_of_folder

    if status:
        folder = recipe if recipe.is_dir() else Path(load_recipe(recipe, overrides or []).output) / "server"
        told = status_of_folder(folder)
        if as_json:
            sys.stdout.write(json.dumps(told, indent=1) + "\n")
        else:
            console.print(show(told))
        raise typer.Exit(0 if told["answers"] else 1)
    loaded = load_recipe(recipe, overrides or [])
    if asks_for_devices(loaded.server):
        place(loaded.server, this_machine(), trains=False)  # or say what this machine lacks
    by_hand.serve(local_model(loaded), serving(loaded), Path(loaded.output) / "server", recipe=loaded)


app.add_typer(data_command.app, name="data")
app.command("extend")(extend_command.extend)
app.command("replay")(replay_command.replay)
app.command("rollouts")(rollouts_command.rollouts)
app.command("runs")(runs_command.runs)

doctor = typer.Typer(help="What is wrong, and what it probably comes from.", invoke_without_command=True)
app.add_typer(doctor, name="doctor")


@doctor.callback()
def doctor_environment(context: typer.Context) -> None:
    """Look at what this machine has of what a run needs; `doctor parity` compares sampler and trainer."""
    if context.invoked_subcommand is not None:
        return
    from .doctor.environment import environment

    table = Table("what", "found", "", title="This machine", title_justify="left", pad_edge=False)
    checks = environment(Path.cwd())
    colours = {"ok": "green", "note": "yellow", "bad": "red"}
    for check in checks:
        mark = f"[{colours[check.state]}]{check.state}[/]"
        table.add_row(check.name, check.found, f"{mark} {check.advice}".rstrip())
    console.print(table)
    raise typer.Exit(1 if any(check.state == "bad" for check in checks) else 0)


@doctor.command("parity")
def doctor_parity(
    recipe: RecipeFile,
    overrides: Overrides = None,
    model: Annotated[
        str | None, typer.Option(help="A model folder instead of the recipe's own.", show_default=False)
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            help="Types of the server, each tried; the verdict is about the first.", show_default=False
        ),
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="The folder or URL of a server that runs, instead of one of its own.")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts of the recipe that are sampled.")] = 16,
    samples: Annotated[int, typer.Option(min=1, help="Responses to each.")] = 4,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a response at most.")] = 128,
    thorough: Annotated[
        bool, typer.Option(help="Try every supposition, even when one explains all.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Compare the log-probabilities of sampled tokens, server against trainer; where they differ, say why."""
    from .doctor.parity import Ask, parity
    from .doctor.report import print_report, write_report
    from .recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    say = (lambda _: None) if as_json else (lambda text: console.print(f"[dim]{text}[/dim]", soft_wrap=True))
    found = parity(
        loaded, model=model, dtypes=dtype or (), server=server, ask=Ask(prompts, samples, max_tokens),
        thorough=thorough, say=say,
    )  # fmt: skip
    files = write_report(found, Path(loaded.output) / "doctor")
    if as_json:
        sys.stdout.write(json.dumps(found.to_json(), indent=1) + "\n")
    else:
        print_report(console, found, files)
    raise typer.Exit(0 if found.ok else 1)


def main() -> None:
    """Entry point: errors that a user can mend are shown without a traceback."""
    try:
        app()
    except TuluLiteError as error:
        Console(stderr=True, highlight=False).print(
            "\n".join(error.lines()), style="red", markup=False, soft_wrap=True
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
