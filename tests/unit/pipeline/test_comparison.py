"""The runs of a stage beside one another, of made-up validations against values by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tulu_lite.pipeline.comparison import (
    RunRow,
    compared,
    comparison_json,
    comparison_markdown,
    comparison_tables,
    figure,
    plot_comparison,
    positions,
)
from tulu_lite.pipeline.expand import expand
from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.pipeline.protocol import write_validation
from tulu_lite.pipeline.report import write_report
from tulu_lite.pipeline.select import choice_result
from tulu_lite.pipeline.steps import Step
from tulu_lite.recipe import Recipe
from tulu_lite.statistics import proportion

ITEMS = [f"v{n}" for n in range(20)]


def make(tmp_path: Path, **changes: Any) -> tuple[Recipe, dict[str, Step]]:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    rows = tmp_path / "r.jsonl"
    rows.write_text("{}\n")
    stage = {
        "name": "rl", "kind": "rlvr", "init": "base", "data": str(rows), "validation": str(rows), "seeds": [1, 2], "steps": 2,
        "sampling": {"max_tokens": 4}, "learning_rate": 1e-4, **changes,
    }  # fmt: skip
    recipe = Recipe(name="tiny", model=str(model), output=str(tmp_path / "out"), stages=[stage])  # type: ignore[list-item]
    return recipe, {step.id: step for step in expand(recipe, Ledger(Path(recipe.output)))}


def finish(step: Step, right: int, metric: str = "accuracy", **more: Any) -> None:
    """A run whose first `right` items of 20 are right."""
    step.folder.mkdir(parents=True)
    write_validation(
        step.folder / "validation.jsonl", {item: float(n < right) for n, item in enumerate(ITEMS)}
    )
    better = "lower" if metric == "loss" else "higher"
    told = {"metric": metric, "value": right / 20, "better": better}
    step.result_file.write_text(json.dumps({"model": "model", "summary": {"validation": told, **more}}))


def choose(steps: dict[str, Step], id: str = "rl") -> None:
    result = choice_result(steps[id], [steps[name] for name in steps[id].inputs])
    steps[id].folder.mkdir(parents=True, exist_ok=True)
    steps[id].result_file.write_text(json.dumps(result))


def test_runs_with_intervals_and_paired_differences(tmp_path: Path) -> None:
    _, steps = make(tmp_path, seeds=[1, 2, 3])
    assert compared(list(steps.values())) == []
    finish(steps["rl/seed-1"], 12)
    (first,) = compared(list(steps.values()))  # as far as they are done
    assert (first.run, first.chosen, first.behind) == ("seed-1", False, None)
    finish(steps["rl/seed-2"], 16)
    finish(steps["rl/seed-3"], 6, stopped_early="far behind")
    choose(steps)
    one, two, three = compared(list(steps.values()))
    assert [row.chosen for row in (one, two, three)] == [False, True, False]
    assert one.value == proportion(12, 20)
    assert two.behind is None
    assert one.behind is not None and three.behind is not None
    assert (one.behind.value, one.behind.n) == (pytest.approx(-0.2), 20)
    assert -0.45 < one.behind.low < -0.2 < one.behind.high <= 0.0
    assert three.behind.high < 0
    assert three.stopped == "far behind"


def test_settings_of_a_sweep_have_a_line_for_their_mean_over_seeds(tmp_path: Path) -> None:
    recipe, steps = make(tmp_path, sweep={"kl_coefficient": [0.01, 0.1]})
    for name, right in (("0.01/seed-1", 18), ("0.01/seed-2", 2), ("0.1/seed-1", 12), ("0.1/seed-2", 14)):
        finish(steps[f"rl/kl_coefficient={name}"], right)
    choose(steps)
    rows = {row.run: row for row in compared(list(steps.values()))}
    assert rows["kl_coefficient=0.1/seed-2"].chosen
    low, high = rows["kl_coefficient=0.01 (mean)"], rows["kl_coefficient=0.1 (mean)"]
    assert (low.value.value, high.value.value) == (0.5, pytest.approx(0.65))
    assert (high.chosen, high.behind) == (True, None)
    assert low.behind is not None
    assert low.behind.value == pytest.approx(-0.15)
    assert positions([row for row in rows.values() if not row.mean]) == ([0.01, 0.01, 0.1, 0.1], None)
    path = tmp_path / "runs.png"
    assert plot_comparison(recipe.name, list(rows.values()), path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_what_was_let_go_on_longer_is_a_line_and_not_in_the_mean(tmp_path: Path) -> None:
    _, steps = make(
        tmp_path,
        sweep={"kl_coefficient": [0.01, 0.1]},
        extend=[{"run": "kl_coefficient=0.1/seed-2", "steps": 5}],
    )
    for name, right in (
        ("0.01/seed-1", 8),
        ("0.01/seed-2", 2),
        ("0.1/seed-1", 12),
        ("0.1/seed-2", 14),
        ("0.1/seed-2+5", 20),
    ):
        finish(steps[f"rl/kl_coefficient={name}"], right)
    choose(steps)
    rows = {row.run: row for row in compared(list(steps.values()))}
    assert rows["kl_coefficient=0.1/seed-2+5"].chosen
    assert rows["kl_coefficient=0.1 (mean)"].value.value == pytest.approx(0.65)


def test_runs_without_a_number_to_sort_by_stand_side_by_side(tmp_path: Path) -> None:
    recipe, steps = make(tmp_path)
    finish(steps["rl/seed-1"], 12)
    finish(steps["rl/seed-2"], 12)
    choose(steps)
    rows = compared(list(steps.values()))
    assert positions(rows) == ([0.0, 1.0], ["seed-1", "seed-2"])
    assert [row.chosen for row in rows] == [True, False]  # of equals the first
    assert plot_comparison(recipe.name, rows, tmp_path / "runs.png")
    assert not plot_comparison(recipe.name, [], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_figure_is_in_percent_for_an_accuracy_alone(tmp_path: Path) -> None:
    _, steps = make(tmp_path)
    finish(steps["rl/seed-1"], 10, metric="loss")
    finish(steps["rl/seed-2"], 12, metric="loss")
    choose(steps)
    one, two = compared(list(steps.values()))
    assert one.chosen  # the lower loss
    assert figure(one, one.value) == "0.5 [0.2993, 0.7007]"
    assert figure(two, two.behind, signed=True).startswith("+0.1 [")
    assert figure(two, None) == ""


def test_the_report_holds_the_table_the_json_and_the_picture(tmp_path: Path) -> None:
    recipe, steps = make(tmp_path)
    finish(steps["rl/seed-1"], 10)
    finish(steps["rl/seed-2"], 15, stopped_early="why | so")
    choose(steps)
    rows, files = write_report(recipe, list(steps.values()))
    assert rows == []  # nothing was evaluated
    text = files["table"].read_text()
    assert "Runs of rl: validation accuracy in %, higher is better" in text
    assert "| seed-1 * | 50.0 [29.9, 70.1] |  |  |" in text
    assert json.loads((tmp_path / "out" / "runs.json").read_text()) == comparison_json(
        compared(list(steps.values()))
    )
    assert files["runs compared"].exists()
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    (table,) = comparison_tables(compared(list(steps.values())))
    console.print(table)
    assert "seed-1 *" in console.export_text()
    assert "stopped early: why / so |" in comparison_markdown(compared(list(steps.values())))
    assert comparison_markdown([]) == ""


def test_a_stage_of_one_run_is_compared_with_nothing(tmp_path: Path) -> None:
    _, steps = make(tmp_path, seeds=[1])
    finish(steps["rl/seed-1"], 10)
    choose(steps)
    assert compared(list(steps.values())) == []


def test_every_line_knows_its_metric(tmp_path: Path) -> None:
    _, steps = make(tmp_path)
    finish(steps["rl/seed-1"], 10)
    (row,) = compared(list(steps.values()))
    assert isinstance(row, RunRow)
    assert (row.metric, row.better, row.setting, row.mean) == ("accuracy", "higher", "", False)
