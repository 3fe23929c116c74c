"""Which step the options name, and the commands that look at one: rollouts, replay. No torch."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from tulu_lite.cli import app
from tulu_lite.commands.opening import open_run, pick_step, with_folder
from tulu_lite.commands.replay import show, to_json, verdict
from tulu_lite.commands.rollouts import ranges, wanted_steps
from tulu_lite.errors import TuluLiteError
from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.pipeline.steps import Step
from tulu_lite.records import Prompt, Rollout, RolloutGroup
from tulu_lite.rl.recorded import RolloutLog, rollout_rows
from verifiers.base import error, scored

ROWS = [
    {"prompt": f"what is {i}?", "completion": str(i), "reference": str(i), "verifier": "number"}
    for i in range(4)
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    stages = [
        {"name": "sft", "kind": "sft", "data": "rows.jsonl", "learning_rate": 1e-3},
        {
            "name": "rl", "kind": "rlvr", "init": "sft", "data": "rows.jsonl", "validation": "rows.jsonl", "seeds": [4, 5],
            "steps": 9, "sampling": {"max_tokens": 4}, "learning_rate": 1e-4,
        },
    ]  # fmt: skip
    recipe = {"name": "tiny", "model": "./model", "output": "./out", "stages": stages}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def steps_of(project: Path) -> list[Step]:
    return open_run(project / "recipe.yaml")[1]


def step_of(project: Path, id: str) -> Step:
    return next(step for step in steps_of(project) if step.id == id)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120"})


# Which step


def test_a_run_is_its_recipe_or_its_output_folder(project: Path) -> None:
    recipe, steps = open_run(project / "recipe.yaml", ["seed=3"])
    assert recipe.seed == 3 and [step.id for step in steps if step.kind == "sft"] == ["sft"]
    with pytest.raises(TuluLiteError, match="is no output folder"):
        open_run(project / "model")
    (project / "out").mkdir(exist_ok=True)
    (project / "out" / "recipe.yaml").write_text(
        (project / "recipe.yaml")
        .read_text()
        .replace("./", f"{project}/")
        .replace("rows.jsonl", f"{project}/rows.jsonl")
    )
    assert [step.key for step in open_run(project / "out")[1]] == [step.key for step in steps_of(project)]


@pytest.mark.parametrize(
    ("options", "id"),
    [
        ({"stage": "sft"}, "sft"),
        ({"stage": "rl", "seed": 5}, "rl/seed-5"),
        ({"seed": 4}, "rl/seed-4"),
        ({"run": "seed-5"}, "rl/seed-5"),
        ({"stage": "rl/seed-4"}, "rl/seed-4"),
    ],
)
def test_the_step_that_options_name(project: Path, options: dict[str, Any], id: str) -> None:
    given = {"stage": None, "run": None, "seed": None} | options
    assert pick_step(steps_of(project), ("sft", "rlvr"), **given).id == id


@pytest.mark.parametrize(
    ("options", "kinds", "said"),
    [
        ({}, ("sft", "rlvr"), "names more than one step.*sft | rl/seed-4 | rl/seed-5"),
        ({"stage": "rl"}, ("rlvr",), "--stage rl names more than one step.*rl/seed-4 | rl/seed-5"),
        ({"stage": "dpo"}, ("sft",), "there is no step --stage dpo here.*it has sft"),
        ({"seed": 9}, ("rlvr",), "--seed 9"),
        ({}, ("dpo", "reward"), "the recipe has no dpo, reward stage"),
    ],
)
def test_options_that_name_none_or_several(
    project: Path, options: dict[str, Any], kinds: tuple[str, ...], said: str
) -> None:
    given = {"stage": None, "run": None, "seed": None} | options
    with pytest.raises(TuluLiteError, match=said):
        pick_step(steps_of(project), kinds, **given)


def test_a_step_that_ran_with_other_settings_is_shown_and_said(project: Path) -> None:
    step = step_of(project, "rl/seed-4")
    ledger = Ledger(project / "out")
    with pytest.raises(TuluLiteError, match="rl/seed-4 has not been run"):
        with_folder(step, ledger)
    other = replace(step, folder=step.folder.with_name("older"), key="older")
    other.folder.mkdir(parents=True)
    ledger.start_step(other, [])
    found, note = with_folder(step, ledger)
    assert found.folder == other.folder and "not run with the recipe as it is now" in note
    step.folder.mkdir()
    assert with_folder(step, ledger) == (step, "")


# Rollouts


def keep(
    project: Path,
    number: int,
    texts: dict[str, list[tuple[str, float | None]]],
    folder: Path | None = None,
) -> None:
    folder = folder or step_of(project, "rl/seed-4").folder
    groups = {}
    for place, (prompt, said) in enumerate(texts.items()):
        rollouts = [
            Rollout(
                (5, 2), (-1.0, -1.0), (0, 0), "stop", text, error("broke") if score is None else scored(score)
            )
            for text, score in said
        ]
        groups[place] = RolloutGroup(
            Prompt(prompt, "", (1,), "numbers", "number", "7", f"ask {prompt}"), tuple(rollouts)
        )
    log = RolloutLog(folder / "rollouts", 64)
    log.put(number, rollout_rows(groups))
    log.close()
    (folder / "metrics.jsonl").write_text(f'{{"step": {number}}}\n')


@pytest.fixture
def sampled(project: Path) -> Path:
    keep(project, 1, {"p1": [("one", 0.0), ("\x1b[31mred\x1b[0m", 1.0)], "p2": [("two", None)]})
    keep(project, 2, {"p3": [("three", 1.0)]})
    keep(project, 7, {"p1": [("seven", 1.0)], "p4": [("four", 0.0)]})
    return project


def test_samples_of_a_step(sampled: Path) -> None:
    done = run("rollouts", str(sampled / "recipe.yaml"), "--seed", "4", "--step", "1")
    assert done.exit_code == 0, done.output
    assert (
        "rl/seed-4, step 1: 3 samples of 2 prompts: 1 correct, 1 incorrect, 1 error; sources numbers 3"
        in done.output
    )
    assert "\x1b[31m" not in done.output and "\\x1b[31mred" in done.output
    assert (
        done.output.index("one") < done.output.index("two") < done.output.index("red")
    )  # each prompt's first sample first


def test_the_last_step_and_a_filter(sampled: Path) -> None:
    done = run("rollouts", str(sampled / "recipe.yaml"), "--seed", "4", "--verdict", "correct")
    assert "step 7" in done.output and "seven" in done.output and "four" not in done.output
    done = run("rollouts", str(sampled / "recipe.yaml"), "--seed", "4", "--source", "nowhere")
    assert "none of them fits the filter" in done.output


def test_rows_as_they_were_kept(sampled: Path) -> None:
    done = run("rollouts", str(sampled / "recipe.yaml"), "--seed", "4", "--step", "7", "--json", "-n", "1")
    assert json.loads(done.stdout)["response"] == "seven"


def test_side_by_side(sampled: Path) -> None:
    done = run("rollouts", str(sampled / "recipe.yaml"), "--seed", "4", "--side-by-side", "1,7")
    assert done.exit_code == 0, done.output
    assert any("one" in line and "seven" in line for line in done.output.splitlines())
    assert "four" not in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--step", "3"], "step 3, are not kept.*steps 1-2, 7"),
        (
            ["--side-by-side", "1,2"],
            r"no prompt is in all of the steps 1,2.*prompts of step 1 are in the steps 7",
        ),
        (["--side-by-side", "1"], "write two or more different steps"),
        (["--verdict", "right"], "there is no verdict 'right'.*it is one of correct"),
    ],
)
def test_what_cannot_be_shown(sampled: Path, arguments: list[str], said: str) -> None:
    done = run("rollouts", str(sampled / "recipe.yaml"), "--seed", "4", *arguments)
    assert isinstance(done.exception, TuluLiteError)
    with pytest.raises(TuluLiteError, match=said):
        raise done.exception


def extended(project: Path, summary: dict[str, Any]) -> Step:
    """rl/seed-4 is done, with the samples of step 2 of 9; rl/seed-4+3 goes on from there, with those of step 11."""
    recipe = yaml.safe_load((project / "recipe.yaml").read_text())
    recipe["stages"][1]["extend"] = [{"run": "seed-4", "steps": 3}]
    (project / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    first, longer = step_of(project, "rl/seed-4"), step_of(project, "rl/seed-4+3")
    keep(project, 2, {"p1": [("two", 0.0)]}, first.folder)
    keep(project, 11, {"p1": [("eleven", 1.0)]}, longer.folder)
    (first.folder / "metrics.jsonl").write_text('{"step": 9}\n')
    first.result_file.write_text(json.dumps({"summary": summary}))
    return longer


def test_steps_before_an_extension_are_those_of_the_run_before(project: Path) -> None:
    extended(project, {})
    of = ["rollouts", str(project / "recipe.yaml"), "--run", "seed-4+3"]
    done = run(*of, "--side-by-side", "2,11")
    assert done.exit_code == 0, done.output
    assert any("two" in line and "eleven" in line for line in done.output.splitlines())
    assert "rl/seed-4, step 2: 1 samples" in run(*of, "--step", "2").output
    assert "rl/seed-4+3, step 11: 1 samples" in run(*of).output
    missing = run(*of, "--step", "5").exception
    assert "samples of rl/seed-4, step 5, are not kept" in str(missing)


@pytest.mark.parametrize(
    ("summary", "number", "said"),
    [
        ({}, "30", "rl/seed-4 has no step 30 it has 9 steps"),
        ({"stopped_early": "far behind"}, "10", "rl/seed-4 has no step 10 it was stopped early at step 9: far behind"),
        (None, "10", "rl/seed-4 has no step 10 it has 9 steps"),
    ],
)  # fmt: skip
def test_a_step_that_never_was_is_told_so(
    project: Path, summary: dict[str, Any] | None, number: str, said: str
) -> None:
    extended(project, summary or {})
    if summary is None:
        step_of(project, "rl/seed-4").result_file.unlink()
    done = run("rollouts", str(project / "recipe.yaml"), "--run", "seed-4", "--step", number)
    assert said in str(done.exception)


def test_a_step_that_a_run_has_not_done_yet_is_told_so(sampled: Path) -> None:
    done = run("rollouts", str(sampled / "recipe.yaml"), "--seed", "4", "--step", "8")
    assert "rl/seed-4 has not done step 8: it is at step 7 of 9" in str(done.exception)


def test_a_step_without_samples(project: Path) -> None:
    step_of(project, "rl/seed-4").folder.mkdir(parents=True)
    done = run("rollouts", str(project / "recipe.yaml"), "--seed", "4")
    assert (
        isinstance(done.exception, TuluLiteError)
        and "no samples of rl/seed-4 are kept" in done.exception.what
    )


def test_steps_in_words() -> None:
    assert ranges([1, 2, 3, 7]) == "1-3, 7" and ranges([]) == "" and ranges([4]) == "4"
    assert wanted_steps("1, 50") == [1, 50]
    for wrong in ("1", "", "1,1", "1,x", "0,1", "-1,2", "²,1"):
        with pytest.raises(TuluLiteError):
            wanted_steps(wrong)


# Replay


def found(**changes: Any) -> Any:
    """A replay's result, as the command shows it."""
    what = {"advantage": 0.5}
    samples = [
        SimpleNamespace(where=f"rows.jsonl:{i}", loss=0.1 * i, each=1.0 * i, tokens=9, loss_tokens=4, grad_norm=norm, pull=pull, what=what)
        for i, norm, pull in ((1, 0.5, 0.25), (2, 7.0, 0.75), (3, math.nan, math.nan))
    ]  # fmt: skip
    values = {
        "step_id": "sft", "step": 8, "started_from": "step-000004", "again": 3, "samples": samples, "failure": "", "notes": ["one [process]"],
        "replayed": {"loss": 2.0, "grad_norm": 3.0}, "logged": {"loss": 2.0, "grad_norm": 3.0}, "reproduced": True,
    } | changes  # fmt: skip
    result = SimpleNamespace(**values)
    result.gaps = lambda: {"loss": 0.0, "grad_norm": 1e-6}
    return result


def test_the_worst_comes_first_and_what_is_no_number_before_it() -> None:
    console = Console(record=True, width=140, color_system=None)
    show(console, found(), top=2)
    text = console.export_text()
    assert text.index("rows.jsonl:3") < text.index("rows.jsonl:2") and "rows.jsonl:1" not in text
    assert (
        "+75.0%" in text
        and "advantage" in text
        and "1 more samples" in text
        and "note: one [process]" in text
    )
    assert (
        "loss: logged 2, now 2: the same bits" in text
        and "1.0e-06 apart" in text
        and "the step is reproduced" in text
    )


def test_the_verdict_of_a_replay() -> None:
    assert "NOT reproduced" in verdict(found(reproduced=False))[-1]
    assert verdict(found(failure="the loss is nan")) == ["[red]the step fails:[/red] the loss is nan"]
    assert verdict(found(logged={})) == [
        "this step was not logged, so there is nothing to compare with; it gives loss 2, grad_norm 3"
    ]


def test_a_replay_as_json_has_no_nan() -> None:
    data = json.loads(
        json.dumps(
            to_json(
                SimpleNamespace(
                    **{k: v for k, v in found().__dict__.items() if k != "gaps"},
                    gaps=lambda: {"loss": math.nan},
                )
            ),
            allow_nan=False,
        )
    )
    assert data["samples"][2]["grad_norm"] == "nan" and data["gaps"] == {"loss": "nan"}


def test_a_step_that_was_not_run_so_cannot_be_replayed(project: Path) -> None:
    done = run("replay", str(project / "recipe.yaml"), "--stage", "sft", "--step", "3")
    assert (
        isinstance(done.exception, TuluLiteError)
        and "sft has not been run with these settings" in done.exception.what
    )
    assert run("replay", str(project / "recipe.yaml"), "--step", "0").exit_code == 2


# Runs


@pytest.fixture
def noted(project: Path) -> Path:
    """A ledger with a run of two settings whose names differ at their ends alone, one of them stopped early."""
    ledger, out = Ledger(project / "out"), project / "out"
    number = ledger.start_run("tiny", "", "0")
    for rate, summary in (("1e-4", {"stopped_early": "far behind"}), ("2e-4", {"loss": math.nan})):
        id = (
            f"rl/kl_coefficient=0.0125,credit=group_mean,normalisation=token_mean,learning_rate={rate}/seed-4"
        )
        step = replace(
            step_of(project, "rl/seed-4"), id=id, key=rate, folder=out / "steps" / id.replace("/", ".") / rate
        )
        ledger.start_step(step, [])
        ledger.end_step(rate, "done", summary=summary)
    ledger.end_run(number, "done")
    return project


def test_runs_are_told_apart_and_one_that_was_stopped_early_is_said_to_be(noted: Path) -> None:
    done = run("runs", str(noted / "recipe.yaml"))
    assert done.exit_code == 0, done.output
    cells = [[cell.strip() for cell in line.split("│")] for line in done.output.splitlines() if "│" in line]
    names, folders = ("".join(row[column] for row in cells if len(row) == 8) for column in (1, 6))
    for rate in ("1e-4", "2e-4"):
        assert f"learning_rate={rate}/seed-4" in names
        assert f"learning_rate={rate}.seed-4/{rate}" in folders
    assert "stopped early" in done.output and "…" not in done.output


def test_runs_as_json(noted: Path) -> None:
    data = json.loads(run("runs", str(noted / "recipe.yaml"), "--json").stdout)
    assert [one["status"] for one in data["runs"]] == ["done"]
    assert [step["stopped_early"] for step in data["steps"]] == ["far behind", None]
    assert data["steps"][1]["summary"] == {"loss": "nan"} and data["steps"][1]["folder"].startswith("/")
