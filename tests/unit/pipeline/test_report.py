"""The report of made-up results against values by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tulu_lite.pipeline.expand import expand
from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.pipeline.report import Row, gain_text, markdown, report_rows, report_tables, write_report
from tulu_lite.pipeline.steps import Step
from tulu_lite.recipe import Recipe
from tulu_lite.statistics import proportion

RLVR = {
    "name": "rl", "kind": "rlvr", "init": "sft", "data": "/r.jsonl", "validation": "/r.jsonl", "seeds": [1, 2], "steps": 2,
    "sampling": {"max_tokens": 4}, "learning_rate": 1e-4,
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "r.jsonl").write_text("{}\n")
    rows = str(tmp_path / "r.jsonl")
    stages: list[dict[str, Any]] = [
        {"name": "sft", "kind": "sft", "data": rows, "learning_rate": 1e-3},
        {**RLVR, "data": rows, "validation": rows},
        {"name": "test", "kind": "evaluate", "models": ["base", "rl"], "data": rows, "max_tokens": 4},
    ]
    return Recipe(name="tiny", model=str(model), output=str(tmp_path / "out"), stages=stages)  # type: ignore[arg-type]


@pytest.fixture
def steps(recipe: Recipe) -> dict[str, Step]:
    return {step.id: step for step in expand(recipe, Ledger(Path(recipe.output)))}


def evaluated(step: Step, marks: dict[str, float | None], **others: Any) -> None:
    """Write an evaluation's result: greedy scores by prompt; prompts a* are of source add, others of sub."""
    step.folder.mkdir(parents=True)
    lines = [{"kind": "greedy", "prompt_id": id, "verdict": {"score": score}} for id, score in marks.items()]
    lines.append(
        {"kind": "sampled", "prompt_id": "a1", "verdict": {"score": 1.0}}
    )  # not greedy: has no say here
    lines.append({"kind": "greedy", "prompt_id": "x", "verdict": None})
    (step.folder / "responses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def accuracy(chosen: dict[str, float | None]) -> dict[str, Any]:
        known = [score for score in chosen.values() if score is not None]
        return proportion(sum(score >= 1 for score in known), len(known)).to_json()

    parts = {"add": "a", "sub": "s"}
    by_source = {
        name: {"accuracy": accuracy({i: m for i, m in marks.items() if i[0] == letter})}
        for name, letter in parts.items()
    }
    summary = {"accuracy": accuracy(marks), "by_source": by_source, **others}
    step.result_file.write_text(json.dumps({"rows": "responses.jsonl", "summary": summary}))


BASE = {"a1": 0.0, "a2": 0.0, "s1": 1.0, "s2": 0.0}
SEED_1 = {"a1": 1.0, "a2": 0.0, "s1": 1.0, "s2": 0.5}
SEED_2 = {"a1": 1.0, "a2": 1.0, "s1": 1.0, "s2": None}


def finish(steps: dict[str, Step]) -> None:
    evaluated(steps["test/base"], BASE)
    evaluated(steps["test/rl/seed-1"], SEED_1, **{"pass@2": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 4}})
    evaluated(steps["test/rl/seed-2"], SEED_2)
    chosen = steps["rl"]
    chosen.folder.mkdir(parents=True)
    chosen.result_file.write_text(json.dumps({"model": "m", "summary": {"chosen": "rl/seed-2"}}))


def by_model(recipe: Recipe, steps: dict[str, Step]) -> dict[str, Row]:
    rows = report_rows(recipe, list(steps.values()))
    return {row.model: row for row in rows}


def test_rows_in_order_with_the_chosen_seed_and_the_mean(recipe: Recipe, steps: dict[str, Step]) -> None:
    assert report_rows(recipe, list(steps.values())) == []
    finish(steps)
    rows = by_model(recipe, steps)
    assert list(rows) == ["base", "rl/seed-1", "rl/seed-2", "rl (mean)"]
    assert [row.chosen for row in rows.values()] == [False, False, True, False]
    assert [row.accuracy.value for row in rows.values()] == [0.25, 0.5, 1.0, pytest.approx((2 / 3 + 1) / 2)]
    assert rows["rl (mean)"].accuracy.n == 3  # prompts that both seeds have a score for
    assert rows["rl (mean)"].by_source == {"add": 0.75, "sub": 0.75}
    assert rows["rl/seed-1"].by_source == {"add": 0.5, "sub": 0.5}


def test_a_response_may_hold_any_line_separator(recipe: Recipe, steps: dict[str, Step]) -> None:
    finish(steps)
    rows = steps["test/base"].folder / "responses.jsonl"
    told = {
        "kind": "greedy",
        "prompt_id": "a1",
        "verdict": {"score": 1.0},
        "response": "\u2028 \u2029 \x85 \ud800",
    }
    line = json.dumps(told, ensure_ascii=False) + "\n"  # as an evaluate stage writes it
    rows.write_bytes(rows.read_bytes() + line.encode("utf-8", "surrogatepass"))
    gain = by_model(recipe, steps)["rl/seed-1"].gain
    assert gain is not None
    assert gain.value == 0.0  # the later line of a1 counts


def test_gains_are_paired_by_prompt_over_the_nearest_evaluated_model(
    recipe: Recipe, steps: dict[str, Step]
) -> None:
    finish(steps)
    rows = by_model(recipe, steps)
    assert rows["base"].gain is None
    first, second = rows["rl/seed-1"].gain, rows["rl/seed-2"].gain
    assert first is not None
    assert second is not None
    assert (rows["rl/seed-1"].gain_over, first.value, first.n) == ("base", 0.25, 4)  # sft was not evaluated
    # s2 has no score under seed 2, so base counts there over a1, a2, s1 alone: 3/3 - 1/3, not 1 - 1/4
    assert (second.value, second.n) == (pytest.approx(2 / 3), 3)
    assert first.low <= first.value <= first.high


def test_no_mean_of_seeds_that_are_not_all_there(recipe: Recipe, steps: dict[str, Step]) -> None:
    evaluated(steps["test/rl/seed-1"], SEED_1)
    rows = by_model(recipe, steps)
    assert list(rows) == ["rl/seed-1"]
    assert rows["rl/seed-1"].gain is None
    assert not rows["rl/seed-1"].chosen


def test_markdown_and_tables_say_the_same(recipe: Recipe, steps: dict[str, Step]) -> None:
    finish(steps)
    rows = report_rows(recipe, list(steps.values()))
    lines = markdown(recipe, rows).splitlines()
    assert lines[0] == "# tiny"
    assert lines[4] == "| on | model | accuracy | gain | over | pass@2 | add | sub |"
    assert lines[6] == "| test | base | 25.0 [4.6, 69.9] |  |  |  | 0 | 50 |"  # Wilson's interval of 1 in 4
    assert lines[7].startswith("| test | rl/seed-1 | 50.0 [15.0, 85.0] | +25.0 [")
    assert lines[7].endswith("| base | 50.0 [40.0, 60.0] | 50 | 50 |")
    assert lines[8].startswith("| test | rl/seed-2 * | 100.0 [43.9, 100.0] | +66.7 [")
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in report_tables(recipe, rows):
        console.print(table)
    text = console.export_text()
    for words in ("rl/seed-2 *", "100.0 [43.9, 100.0]", "rl (mean)", gain_text(rows[1]), "by source"):
        assert words in text


def test_the_files_are_written(recipe: Recipe, steps: dict[str, Step]) -> None:
    rows, files = write_report(recipe, list(steps.values()))
    assert (rows, files) == ([], {})  # nothing yet, and no empty files
    finish(steps)
    for seed in (1, 2):
        folder = steps[f"rl/seed-{seed}"].folder
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(
            '{"step": 1, "reward": 0.1}\n{"step": 2, "reward": 0.4, "validation_accuracy": 0.3}\n{"st'
        )
    steps["sft"].folder.mkdir(parents=True)
    (steps["sft"].folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    rows, files = write_report(recipe, list(steps.values()))
    assert len(rows) == 4
    assert files["learning curves"].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    data = json.loads((Path(recipe.output) / "report.json").read_text())
    assert [(row["model"], row["chosen"]) for row in data] == [
        ("base", False),
        ("rl/seed-1", False),
        ("rl/seed-2", True),
        ("rl (mean)", False),
    ]
    assert data[0]["accuracy"]["value"] == 0.25
    assert data[0]["gain"] is None
    assert not list(Path(recipe.output).glob(".*.tmp"))


def test_a_gain_over_no_common_prompt_is_none() -> None:
    from tulu_lite.pipeline.report import _paired

    assert _paired([{"a": 1.0}], [{"b": 0.0}]) is None
