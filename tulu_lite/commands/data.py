"""tulu-lite data: a stage's rows as the model sees them, and what became of all of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from ..errors import TuluLiteError

if TYPE_CHECKING:
    from ..datasets.chat import ChatTemplate
    from ..datasets.report import DataReport
    from ..recipe import Recipe

app = typer.Typer(help="A stage's rows: as the model sees them, counted, and what was dropped.")
RecipeFile = Annotated[Path, typer.Argument(help="The recipe's YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Overrides of fields, such as seed=7.", show_default=False)
]
Stage = Annotated[
    str | None,
    typer.Option("--stage", help="The stage whose rows are meant; needed where several read rows."),
]
Field = Annotated[str, typer.Option(help="Which of its rows: data, or validation.")]
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


@app.command()
def show(
    recipe: RecipeFile,
    overrides: Overrides = None,
    stage: Stage = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Rows at most, spread over an epoch.")] = 5,
    source: Annotated[str | None, typer.Option(help="Rows of this source alone.", show_default=False)] = None,
    field: Field = "data",
    dropped: Annotated[bool, typer.Option("--dropped", help="The rows that are not used, and why.")] = False,
) -> None:
    """Print rows as the model sees them: every token, special ones visible, what is learnt in green."""
    from ..datasets.show import LEGEND, coloured, dropped_rows, sides, spread

    template, rows, report = _load(recipe, overrides or [], stage, field)
    if dropped:
        for text in list(dropped_rows(r for r in report.rows_dropped if source in (None, r.source)))[:n]:
            console.print(text, soft_wrap=True)
        for note in report.notes():
            console.print(Text(note, style="dim"), soft_wrap=True)
        return
    chosen = range(len(rows)) if source is None else _of_source(rows, source, report)
    for place in spread(len(chosen), n):
        item = rows[chosen[place]]
        for name, token_ids, learnt in sides(item):
            head = Text(f"{_where(item)}  ", style="bold").append(item.source)
            head.append(f"  {name}" if name else "").append(
                f"  {' '.join(getattr(item, 'tags', ()))}".rstrip()
            )
            head.append(
                f"  {len(token_ids)} tokens, {sum(learnt)} learnt"
                if any(learnt)
                else f"  {len(token_ids)} tokens"
            )
            console.print(head, soft_wrap=True)
            console.print(
                coloured(template, token_ids, learnt, marks=not console.is_terminal), soft_wrap=True
            )
        if hasattr(item, "reference"):
            console.print(Text(f"verifier {item.verifier}, reference {item.reference!r}", style="dim"))
        console.print()
    console.print(f"[dim]{LEGEND}[/dim]")


@app.command()
def report(
    recipe: RecipeFile,
    overrides: Overrides = None,
    stage: Stage = None,
    field: Field = "data",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Count an epoch's tokens by source and by tag, and the rows that were dropped by source and reason."""
    from ..datasets.show import dropped_table, tally_table

    _, _, found = _load(recipe, overrides or [], stage, field)
    if as_json:
        sys.stdout.write(json.dumps(found.to_json(), indent=1, ensure_ascii=False) + "\n")
        return
    console.print(
        f"{found.kept:,} rows, {found.tokens:,} tokens, {found.loss_tokens:,} of them learnt, in an epoch; "
        f"{found.distinct:,} different rows can be used."
    )
    console.print(tally_table("By source", "source", found.sources))
    if found.tags:
        console.print(tally_table("By tag (a row may have several)", "tag", found.tags))
    if found.dropped:
        console.print(dropped_table(found))
    for note in found.notes()[len(found.dropped) :]:
        console.print(Text(note, style="yellow"), soft_wrap=True)


def _of_source(rows: Sequence[Any], source: str, report: DataReport) -> list[int]:
    prepared = getattr(rows, "prepared", None)
    if prepared is None:
        found = [i for i, row in enumerate(rows) if row.source == source]
    else:  # without reading a token
        names = prepared.store.meta["sources"]
        number = names.index(source) if source in names else -1
        found = (prepared.store.groups()[prepared.indices, 0] == number).nonzero()[0].tolist()
    if not found:
        raise TuluLiteError(
            f"no row is of source {source!r}", cure=f"there are {', '.join(report.sources) or 'none'}"
        )
    return found


def _where(item: Any) -> str:
    return f"{item.file}:{item.line}" if getattr(item, "file", "") else getattr(item, "id", "")


def _load(
    file: Path, overrides: Sequence[str], name: str | None, field: str
) -> tuple[ChatTemplate, Sequence[Any], DataReport]:
    from ..datasets.chat import ChatTemplate, load_tokenizer
    from ..datasets.conversations import load_conversations
    from ..datasets.pairs import load_pairs
    from ..datasets.prompts import report_prompts
    from ..judging import also_judged_by, row_check
    from ..pipeline.fingerprint import token_cache
    from ..pipeline.ledger import Ledger
    from ..recipe import PairStage, SftStage, load_recipe

    recipe = load_recipe(file, overrides)
    stage = _stage(recipe, name)
    sources = getattr(stage, field, ()) if field in ("data", "validation") else ()
    if not sources:
        raise TuluLiteError(f"stage {stage.name} has no rows of `{field}`", cure="use --field data")
    template = ChatTemplate.load(
        recipe.chat_template, load_tokenizer(recipe.model, recipe.revision), recipe.model
    )
    template.check()
    ledger = Ledger(Path(recipe.output))
    if isinstance(stage, (SftStage, PairStage)):
        load: Callable[..., Any] = load_conversations if isinstance(stage, SftStage) else load_pairs
        rows, found = load(
            stage, template, seed=recipe.seed, stage_rows=_rows_of(recipe, ledger),
            cache=token_cache(recipe, ledger), sources=None if field == "data" else sources,
        )  # fmt: skip
        return template, rows, found
    check = row_check(recipe, f"stage {stage.name}", *also_judged_by(stage))
    rules = (stage if field == "data" else stage.without_mix()).checking(check)
    return template, *report_prompts(sources, template, seed=recipe.seed, max_prompt_tokens=None, rules=rules)


def _stage(recipe: Recipe, name: str | None) -> Any:
    known = [stage for stage in recipe.stages if getattr(stage, "data", ())]
    named = [stage for stage in known if name in (None, stage.name)]
    if len(named) == 1:
        return named[0]
    raise TuluLiteError(
        f"there is no stage {name!r} that reads rows" if name else "several stages read rows",
        cure=f"say --stage {' | '.join(stage.name for stage in known)}",
    )


def _rows_of(recipe: Recipe, ledger: Any) -> Callable[[str], Path]:
    """The file of the rows that an earlier stage made."""
    from ..pipeline.expand import expand

    def rows_of(name: str) -> Path:
        step = {step.id: step for step in expand(recipe, ledger)}[name]
        if not step.done:
            raise TuluLiteError(f"stage {name} is not done, so there are no rows of it", cure="run it first")
        return step.folder / step.outcome["rows"]

    return rows_of
