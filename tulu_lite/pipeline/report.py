"""What a run came to: a table of stages by metrics with 95 % intervals, and a plot of the learning curves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from ..files import atomic_file, json_lines, write_atomic, write_json
from ..recipe import BASE, AnyStage, Recipe
from ..statistics import Estimate, difference, seeds_mean
from ..watching.report import watched_markdown, write_curves
from .comparison import compared, comparison_json, comparison_markdown, plot_comparison
from .protocol import read_metrics
from .steps import Step


@dataclass(frozen=True)
class Row:
    """One line of the table: a model on one evaluate stage."""

    evaluation: str
    model: str
    chosen: bool
    accuracy: Estimate
    gain: Estimate | None  # over the model it came from, paired by prompt
    gain_over: str
    by_source: dict[str, float]
    others: dict[str, Estimate]  # sampled accuracy, pass@k


def report_rows(recipe: Recipe, steps: list[Step]) -> list[Row]:
    """The table's lines, as far as the evaluations are done. A stage of several seeds has a line for their mean."""
    known = {step.id: step for step in steps}
    rows: list[Row] = []
    for evaluation in dict.fromkeys(step.stage.name for step in steps if step.kind == "evaluate"):
        done = {
            step.model: step
            for step in steps
            if step.kind == "evaluate" and step.stage.name == evaluation and step.done
        }
        marks = {model: _marks(step) for model, step in done.items()}
        for model, step in done.items():
            rows.append(_row(evaluation, model, step, known, marks))
        for stage in recipe.stages:
            for setting, ids in _seeds(stage, steps).items():
                if all(id in done for id in ids):
                    name = f"{stage.name}/{setting}" if setting else stage.name
                    rows.append(_mean_row(evaluation, name, ids, known, marks))
    order = {id: number for number, id in enumerate([BASE, *known])}
    return sorted(rows, key=lambda row: (row.evaluation, _order(row.model, order)))


def _order(model: str, order: dict[str, int]) -> int:
    """A mean comes after the last of what it is of."""
    name = model.removesuffix(" (mean)")
    return max((number for id, number in order.items() if id == name or id.startswith(f"{name}/")), default=0)


def _seeds(stage: AnyStage, steps: list[Step]) -> dict[str, list[str]]:
    """The runs of each setting of a stage that has several seeds, those that went on longer apart."""
    by_setting: dict[str, list[str]] = {}
    for step in steps:
        if step.stage.name == stage.name and step.trains and step.extends is None:
            by_setting.setdefault(step.setting, []).append(step.id)
    return {setting: ids for setting, ids in by_setting.items() if len(ids) > 1}


def _marks(step: Step) -> dict[str, float]:
    """Full marks (1) or not (0) of the greedy response, by prompt id. A response without a score is left out."""
    marks = {}
    for row in json_lines((step.folder / step.outcome["rows"]).read_bytes()):
        if row["kind"] == "greedy" and row["verdict"] and row["verdict"]["score"] is not None:
            marks[row["prompt_id"]] = float(row["verdict"]["score"] >= 1)
    return marks


def _row(
    evaluation: str, model: str, step: Step, known: dict[str, Step], marks: dict[str, dict[str, float]]
) -> Row:
    summary = step.summary
    before = _before(model, known, marks)
    gain = _paired([marks[model]], [marks[before]]) if before else None
    chosen = any(
        other.kind == "select" and other.done and other.summary["chosen"] == model for other in known.values()
    )
    others = {
        name: Estimate(**value)
        for name, value in summary.items()
        if name == "sampled_accuracy" or (name.startswith("pass@") and name != "pass@1")
    }
    by_source = {source: figures["accuracy"]["value"] for source, figures in summary["by_source"].items()}
    return Row(
        evaluation, model, chosen, Estimate(**summary["accuracy"]), gain, before or "", by_source, others
    )


def _mean_row(
    evaluation: str,
    name: str,
    ids: list[str],
    known: dict[str, Step],
    marks: dict[str, dict[str, float]],
) -> Row:
    each = [marks[id] for id in ids]
    prompts = sorted(set.intersection(*(set(one) for one in each)))
    accuracy = seeds_mean([[one[prompt] for prompt in prompts] for one in each])
    before = _before(ids[0], known, marks)
    gain = _paired(each, [marks[before]]) if before else None
    summaries = [known[f"{evaluation}/{id}"].summary for id in ids]
    sources = summaries[0]["by_source"]
    by_source = {
        source: sum(s["by_source"][source]["accuracy"]["value"] for s in summaries) / len(ids)
        for source in sources
    }
    return Row(evaluation, f"{name} (mean)", False, accuracy, gain, before or "", by_source, {})


def _before(model: str, known: dict[str, Step], marks: dict[str, dict[str, float]]) -> str | None:
    """The nearest earlier model that was evaluated too."""
    while model in known:
        model = known[model].model
        if model in marks:
            return model
    return None


def _paired(after: list[dict[str, float]], before: list[dict[str, float]]) -> Estimate | None:
    """The gain on the prompts that both sides have a score for; None when there are none."""
    prompts = sorted(set.intersection(*(set(one) for one in [*after, *before])))
    if not prompts:
        return None
    return difference(
        [[one[p] for p in prompts] for one in after], [[one[p] for p in prompts] for one in before]
    )


def report_tables(recipe: Recipe, rows: list[Row]) -> list[Table]:
    """For the terminal: accuracy with intervals, and by source. `*` marks the run that goes on."""
    several = len({row.evaluation for row in rows}) > 1
    others = list(dict.fromkeys(name for row in rows for name in row.others))
    sources = list(dict.fromkeys(source for row in rows for source in row.by_source))
    main = _table(f"{recipe.name}: greedy accuracy in %, with 95 % intervals (* the run that goes on)")
    for name in [*(["on"] if several else []), "model", "accuracy", "gain", "over", *others]:
        main.add_column(
            name.replace("_", " "),
            no_wrap=name not in ("model", "over"),  # names of a sweep's runs are long
            overflow="fold",
            justify="left" if name in ("on", "model", "over") else "right",
        )
    parts = _table("accuracy in % by source")
    for name in [*(["on"] if several else []), "model", *sources]:
        parts.add_column(
            name, no_wrap=len(sources) < 12, justify="left" if name in ("on", "model") else "right"
        )
    for row in rows:
        head = [*([row.evaluation] if several else []), f"{row.model} *" if row.chosen else row.model]
        style = "bold" if row.chosen or row.model.endswith("(mean)") else None
        figures = [row.others[name].percent() if name in row.others else "" for name in others]
        main.add_row(*head, row.accuracy.percent(), gain_text(row), row.gain_over, *figures, style=style)
        parts.add_row(
            *head,
            *(f"{100 * row.by_source[name]:.0f}" if name in row.by_source else "" for name in sources),
            style=style,
        )
    return [main, parts] if len(sources) > 1 else [main]


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", pad_edge=False, box=box.SIMPLE_HEAD)


def gain_text(row: Row) -> str:
    if row.gain is None:
        return ""
    return f"{100 * row.gain.value:+.1f} [{100 * row.gain.low:+.1f}, {100 * row.gain.high:+.1f}]"


def markdown(recipe: Recipe, rows: list[Row]) -> str:
    """The same as a Markdown file."""
    if not rows:
        return f"# {recipe.name}\n"
    sources = list(dict.fromkeys(source for row in rows for source in row.by_source))
    others = list(dict.fromkeys(name for row in rows for name in row.others))
    head = ["on", "model", "accuracy", "gain", "over", *(name.replace("_", " ") for name in others), *sources]
    lines = [
        f"# {recipe.name}",
        "",
        "Greedy accuracy in % with 95 % intervals; * marks the run that goes on.",
        "",
    ]
    lines += [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in rows:
        cells = [
            row.evaluation,
            f"{row.model}{' *' if row.chosen else ''}",
            row.accuracy.percent(),
            gain_text(row),
            row.gain_over,
        ]
        cells += [row.others[name].percent() if name in row.others else "" for name in others]
        cells += [
            f"{100 * row.by_source[source]:.0f}" if source in row.by_source else "" for source in sources
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot_curves(recipe: Recipe, steps: list[Step], path: Path) -> bool:
    """Draw each rlvr stage's reward and validation accuracy by step, a line for each seed, and the losses of
    supervised stages. False when there is nothing to draw yet."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = _panels(steps)
    if not panels:
        return False
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(5 * len(panels), 4), squeeze=False, layout="constrained"
    )
    for axis, (title, lines) in zip(axes[0], panels, strict=True):
        for label, points, style in lines:
            axis.plot(*zip(*points, strict=True), style, label=label, linewidth=1.5, markersize=4)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_title(title)
        axis.set_xlabel("optimiser step" if "loss" in title else "step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.suptitle(recipe.name)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)
    pyplot.close(figure)
    return True


Line = tuple[str, list[tuple[int, float]], str]


def _panels(steps: list[Step]) -> list[tuple[str, list[Line]]]:
    panels: list[tuple[str, list[Line]]] = []
    for stage in dict.fromkeys(step.stage.name for step in steps if step.kind == "rlvr"):
        runs = [step for step in steps if step.kind == "rlvr" and step.stage.name == stage]
        for metric, style in (("reward", "-"), ("validation_accuracy", "o-")):
            lines = [
                (run.id.partition("/")[2].replace("seed-", "seed "), points, style)
                for run in runs
                if (points := _points(run, metric))
            ]
            if lines:
                panels.append((f"{stage}: {metric.replace('_', ' ')}", lines))
    for step in steps:
        if step.kind in ("sft", "dpo", "reward") and (points := _points(step, "loss")):
            panels.insert(
                0 if step.kind == "sft" else len(panels) and 1, (f"{step.id}: loss", [(step.id, points, "-")])
            )
    return panels


def _points(step: Step, metric: str) -> list[tuple[int, float]]:
    return [
        (row["step"], row[metric]) for row in read_metrics(step.folder / "metrics.jsonl") if metric in row
    ]


def write_report(recipe: Recipe, steps: list[Step]) -> tuple[list[Row], dict[str, Any]]:
    """Write report.md, report.json, runs.json (the runs of each stage compared), their picture runs.png, curves.png and
    curves/<stage>.png into the output folder, as far as there is something to tell; returns the rows and the files'
    paths."""
    output = Path(recipe.output)
    rows = report_rows(recipe, steps)
    curves = write_curves(recipe.name, output, steps)
    files: dict[str, Any] = {f"curves of {stage}": file for stage, file in curves.items()}
    runs = compared(steps)
    if rows or runs:
        parts = [markdown(recipe, rows), comparison_markdown(runs), watched_markdown(steps, curves, output)]
        write_atomic(output / "report.md", "".join(parts))
        files["table"] = output / "report.md"
    if runs:
        write_json(output / "runs.json", comparison_json(runs))
        if plot_comparison(recipe.name, runs, output / "runs.png"):
            files["runs compared"] = output / "runs.png"
    if rows:
        data = [
            {
                **row.__dict__,
                "accuracy": row.accuracy.to_json(),
                "gain": row.gain and row.gain.to_json(),
                "others": {k: v.to_json() for k, v in row.others.items()},
            }
            for row in rows
        ]
        write_atomic(output / "report.json", json.dumps(data, indent=1) + "\n")
    if plot_curves(recipe, steps, output / "curves.png"):
        files["learning curves"] = output / "curves.png"
    return rows, files


__all__ = ["Row", "plot_curves", "report_rows", "report_tables", "write_report"]
