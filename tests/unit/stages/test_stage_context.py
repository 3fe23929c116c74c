"""How a stage's process opens its step, reports, and fails. No torch."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tulu_lite.errors import TuluLiteError
from tulu_lite.pipeline.expand import expand
from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.pipeline.lock import exclusive
from tulu_lite.pipeline.protocol import RUN_VARIABLE, SHARED_VARIABLE, read_validation
from tulu_lite.pipeline.steps import Step
from tulu_lite.recipe import EvaluateStage, RlvrStage, SftStage, load_recipe
from tulu_lite.rollout.process import start_time
from tulu_lite.stages import context
from tulu_lite.stages.context import step_context
from tulu_lite.stages.metrics import MetricsLog

ROWS = [
    {"prompt": f"what is {i}?", "completion": str(i), "reference": str(i), "verifier": "number"}
    for i in range(8)
]


@pytest.fixture(autouse=True)
def _stay_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process does to itself on opening a step must not happen to the one that runs the tests."""
    monkeypatch.setattr(context, "die_with_parent", lambda *_: None)
    monkeypatch.setattr(context.signal, "signal", lambda *_: signal.SIG_DFL)
    monkeypatch.delenv("RANK", raising=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    rlvr = {
        "name": "rl", "kind": "rlvr", "init": "sft", "data": "rows.jsonl", "validation": "rows.jsonl", "seeds": [4, 5], "steps": 2,
        "sampling": {"max_tokens": 4}, "learning_rate": 1e-4,
    }  # fmt: skip
    stages = [
        {"name": "sft", "kind": "sft", "data": "rows.jsonl", "learning_rate": 1e-3},
        rlvr,
        {"name": "test", "kind": "evaluate", "models": ["base", "rl"], "data": "rows.jsonl", "max_tokens": 4},
    ]
    recipe = {"name": "tiny", "model": "./model", "output": "./out", "stages": stages}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def steps(project: Path) -> dict[str, Step]:
    recipe = load_recipe(project / "recipe.yaml")
    return {step.id: step for step in expand(recipe, Ledger(project / "out"))}


def row(project: Path, id: str) -> dict[str, Any]:
    found = Ledger(project / "out").step(steps(project)[id].key)
    assert found is not None
    return found


def arguments(project: Path, *more: str) -> list[str]:
    return ["--recipe", str(project / "recipe.yaml"), *more]


def refused(project: Path, stage: type, *more: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended, step_context(stage, arguments(project, *more)):
        raise AssertionError("the step was opened")
    return ended.value.code


def test_a_step_is_opened_reported_and_finished(project: Path) -> None:
    with step_context(SftStage, arguments(project, "--stage", "sft")) as ctx:
        assert (ctx.step.id, ctx.seed, ctx.is_main) == ("sft", 0, True)
        assert ctx.init_model == str(project / "model")
        assert row(project, "sft")["status"] == "running"
        ctx.metrics.log(1, loss=0.5)
        ctx.metrics.log(2, loss=0.25)
        ctx.saved(2, ctx.checkpoints / "step-000002")
        (ctx.dir / "model").mkdir()
        ctx.finish(model=ctx.dir / "model", summary={"loss": 0.25})
    step = steps(project)["sft"]
    assert step.done
    assert step.result is not None
    assert (step.result["model"], step.result["summary"], step.result["key"]) == (
        "model",
        {"loss": 0.25},
        step.key,
    )
    ledger = Ledger(project / "out")
    assert row(project, "sft")["status"] == "done"
    assert ledger.metrics(step.key, "loss") == [(1, 0.5), (2, 0.25)]
    assert [saved["step"] for saved in ledger.checkpoints(step.key)] == [-1, 2]
    assert ledger.lineage(step.key) == [{"input": step.identity["inputs"]["base"], "role": "model"}]


def test_a_done_step_is_left_alone(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = steps(project)["sft"]
    step.folder.mkdir(parents=True)
    step.result_file.write_text("{}")
    assert refused(project, SftStage, "--stage", "sft") == 0
    assert f"sft is already done: {step.folder}" in capsys.readouterr().out
    assert not (step.folder / "identity.json").exists()


@pytest.mark.parametrize(
    ("stage", "more", "said"),
    [
        (SftStage, ["--stage", "nosuch"], ["no such step as 'nosuch'", "it has sft"]),
        (
            SftStage,
            ["--stage", "rl", "--set", "stages.rl.seeds=[4]"],
            ["no such step as 'rl/seed-4'", "it has sft"],
        ),
        (RlvrStage, ["--stage", "rl"], ["has the runs seed-4, seed-5", "--run"]),
        (
            RlvrStage,
            ["--stage", "rl", "--seed", "6"],
            ["no such step as 'rl/seed-6'", "rl/seed-4, rl/seed-5"],
        ),
        (RlvrStage, ["--stage", "rl", "--seed", "4"], ["needs the result of sft", "tulu-lite run"]),
        (
            EvaluateStage,
            ["--stage", "test", "--model", "rl", "--seed", "5"],
            ["needs the result of rl/seed-5"],
        ),
        (EvaluateStage, ["--stage", "test", "--model", "sft"], ["no such step as 'test/sft'", "test/base"]),
        (SftStage, ["--stage", "sft", "--set", "stages.sft.epochs=0"], ["stages.0 (sft).epochs"]),
    ],
)
def test_what_cannot_be_opened_says_why(
    project: Path, capsys: pytest.CaptureFixture[str], stage: type, more: list[str], said: list[str]
) -> None:
    assert refused(project, stage, *more) == 2
    err = capsys.readouterr().err
    for words in said:
        assert words in err
    assert "Traceback" not in err
    assert not (project / "out" / "steps").exists()


IMPORTED = "import os, tulu_lite.stages; print('here', '{variable}' in os.environ)"


def test_a_step_whose_run_died_while_it_started_does_not_begin() -> None:
    def start(run: str) -> tuple[int, str]:
        code = IMPORTED.format(variable=RUN_VARIABLE)
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, RUN_VARIABLE: run},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout

    alive = start_time(os.getpid())
    assert alive is not None
    assert start(f"{os.getpid()}:{alive}") == (
        0,
        "here False\n",
    )  # and what the step starts has the step for a parent
    assert start(f"{os.getpid()}:{alive - 1}") == (137, "")  # the pid was used again


def test_a_step_in_use_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with exclusive(steps(project)["sft"].folder / ".lock", "a test"):
        assert refused(project, SftStage, "--stage", "sft") == 2
    assert "the step sft is in use by another process" in capsys.readouterr().err


def test_a_users_fault_leaves_its_reason_for_the_runner(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, step_context(SftStage, arguments(project, "--stage", "sft")):
        raise TuluLiteError("the disk is full", "why so", "free some")
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
    step = steps(project)["sft"]
    assert json.loads((step.folder / "error.json").read_text()) == {
        "what": "the disk is full",
        "why": "why so",
        "cure": "free some",
    }
    assert (row(project, "sft")["status"], row(project, "sft")["error"]) == ("failed", "the disk is full")
    assert not step.done
    with step_context(
        SftStage, arguments(project, "--stage", "sft")
    ) as ctx:  # again, and the old reason is gone
        assert not (ctx.dir / "error.json").exists()
        ctx.finish(summary={})
    assert (row(project, "sft")["status"], row(project, "sft")["attempts"], row(project, "sft")["error"]) == (
        "done",
        2,
        None,
    )


def test_a_fault_of_ours_shows_its_traceback(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, step_context(SftStage, arguments(project, "--stage", "sft")):
        raise ZeroDivisionError("ours")
    assert ended.value.code == 1
    assert "Traceback" in capsys.readouterr().err
    assert row(project, "sft")["error"] == "ZeroDivisionError: ours"


def test_a_stage_that_forgets_to_finish_has_failed(project: Path) -> None:
    with pytest.raises(SystemExit) as ended, step_context(SftStage, arguments(project, "--stage", "sft")):
        pass
    assert ended.value.code == 1
    assert "without a result" in row(project, "sft")["error"]


def test_other_ranks_write_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with step_context(SftStage, arguments(project, "--stage", "sft")) as ctx:
        assert not ctx.is_main
        ctx.metrics.log(1, loss=1.0)
        ctx.metrics.resume(0)
        ctx.progress(1, 2)
        ctx.finish(summary={})
    assert not steps(project)["sft"].folder.exists()


def test_metrics_after_the_save_are_forgotten(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.resume(0)  # nothing there yet
    for step in (1, 2, 3):
        log.log(step, loss=1.0 / step)
    log.resume(2)
    assert log.rows() == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]
    log.log(3, loss=9.0)
    assert [line["step"] for line in log.rows()] == [1, 2, 3]


def test_a_torn_last_line_is_dropped_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    log = MetricsLog(file)
    log.log(1, loss=0.5)
    whole = file.read_text()
    for end in range(1, len(whole)):
        file.write_text(whole + whole[:end].replace('"step": 1', '"step": 2'))
        log.resume(1)
        log.log(2, loss=0.25)
        assert log.rows() == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]


def test_progress_is_written_and_rated_from_what_this_process_did(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with step_context(SftStage, arguments(project, "--stage", "sft")) as ctx:
        ctx.progress(40, 50, loss=0.5)  # resumed at 40
        ctx.progress(50, 50, loss=0.25)
        state = json.loads((ctx.dir / "progress.json").read_text())
        assert (state["done"], state["total"], state["unit"], state["shown"]) == (
            50,
            50,
            "steps",
            {"loss": 0.25},
        )
        assert state["rate"] > 0
        ctx.finish(summary={})
    assert "50/50 steps" in capsys.readouterr().out


# A stage of several runs


def open_rl(project: Path, *more: str) -> Any:
    finish_sft(project)
    return step_context(RlvrStage, arguments(project, "--stage", "rl", *more))


def finish_sft(project: Path) -> None:
    step = steps(project)["sft"]
    step.folder.mkdir(parents=True, exist_ok=True)
    step.result_file.write_text(json.dumps({"model": "model", "summary": {}}))


def test_a_run_is_named_by_its_seed_or_its_name(project: Path) -> None:
    with open_rl(project, "--seed", "5") as ctx:
        assert (ctx.step.id, ctx.seed, ctx.total_steps, ctx.start_from) == ("rl/seed-5", 5, 2, None)
        assert ctx.adapter_name == f"rl-{ctx.step.key[:12]}"
        ctx.finish(summary={})
    with open_rl(
        project,
        "--run",
        "sampling.temperature=0.5/seed-4",
        "--set",
        "stages.rl.sweep={sampling.temperature: [0.5]}",
    ) as ctx:
        assert ctx.stage.sampling.temperature == 0.5
        assert ctx.stage.sweep is None
        ctx.finish(summary={})


def test_the_server_is_shared_when_the_runner_says_so(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value, runs in ((None, 1), ("1", 1), ("3", 3)):
        monkeypatch.delenv(SHARED_VARIABLE, raising=False)
        if value is not None:
            monkeypatch.setenv(SHARED_VARIABLE, value)
        with open_rl(project, "--seed", "4") as ctx:
            assert ctx.runs_on_server == runs
            (ctx.dir / "result.json").unlink(missing_ok=True)
            ctx.finished = True


def test_validations_are_kept_by_item_and_the_one_that_counts_is_told(project: Path) -> None:
    with open_rl(project, "--seed", "4") as ctx:
        told = ctx.validated(1, "accuracy", {"a": 1.0, "b": 0.0, "c": None})
        assert told == {"metric": "accuracy", "value": 0.5, "better": "higher"}
        assert ctx.validated(2, "accuracy", {"a": 1.0, "b": 1.0, "c": 0.0})["value"] == pytest.approx(2 / 3)
        assert math.isnan(ctx.validated(3, "accuracy", {"a": None})["value"])
        ctx.finish(summary={"validation": told, "step": 1})
    folder = steps(project)["rl/seed-4"].folder
    assert read_validation(folder / "validation.jsonl") == {"a": 1.0, "b": 0.0}
    lines = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    assert lines[2] == {"id": "c", "value": None}


def test_a_run_far_behind_another_is_told_to_end(project: Path) -> None:
    rule = ["--set", "stages.rl.stop_early={after_steps: 10, margin: 0.1}", "--set", "stages.rl.steps=40"]
    with open_rl(project, "--seed", "4", *rule) as ctx:
        for step in (5, 10, 20, 40):
            ctx.validated(step, "accuracy", {f"p{n}": float(n < 60) for n in range(100)})
            assert ctx.hopeless(step, 0.6) == ""  # nothing to compare with
        ctx.finish(summary={})
    with open_rl(project, "--seed", "5", *rule) as ctx:
        for step in (5, 10, 15, 40):
            ctx.validated(step, "accuracy", {f"p{n}": float(n < 20) for n in range(100)})
        assert ctx.hopeless(5, 0.2) == ""  # too early
        assert ctx.hopeless(15, 0.2) == ""  # the other has not validated there
        assert ctx.hopeless(40, 0.2) == ""  # the last step ends it anyway
        why = ctx.hopeless(10, 0.2)
        assert "0.2 at step 10" in why and "0.4 [" in why and "rl/seed-4" in why
        ctx.finish(summary={})
    with open_rl(project, "--seed", "5") as ctx:
        ctx.validated(1, "accuracy", {"p1": 0.0})
        assert ctx.hopeless(1, 0.0) == ""  # no rule
        ctx.finish(summary={})


def test_a_longer_run_starts_at_the_last_save_of_the_one_before(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = ["--run", "seed-4+6", "--set", "stages.rl.extend=[{run: seed-4, steps: 6}]"]
    assert refused_run(project, *longer) == 2
    assert "needs the result of rl/seed-4" in capsys.readouterr().err
    first = steps(project)["rl/seed-4"]
    first.folder.mkdir(parents=True)
    first.result_file.write_text(json.dumps({"model": "model", "summary": {}}))
    with pytest.raises(SystemExit) as ended, open_rl(project, *longer) as ctx:
        _ = ctx.start_from
    assert ended.value.code == 2
    assert "goes on from where rl/seed-4 ended, and that left no save" in capsys.readouterr().err
    for number in (1, 2):
        (first.folder / "checkpoints" / f"step-00000{number}").mkdir(parents=True)
    with open_rl(project, *longer) as ctx:
        assert ctx.start_from == first.folder / "checkpoints" / "step-000002"
        assert ctx.total_steps == 8
        assert ctx.init_model == str(steps(project)["sft"].folder / "model")
        ctx.finish(summary={})


def refused_run(project: Path, *more: str) -> int | str | None:
    finish_sft(project)
    return refused(project, RlvrStage, "--stage", "rl", *more)


def test_one_of_several_processes_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own clearing up may hang under DDP and gloo: it is passed over, whatever the exit code."""
    ended: list[int] = []
    monkeypatch.setattr(context.os, "_exit", ended.append)
    monkeypatch.setenv("WORLD_SIZE", "2")
    context._end(0, of_process=True)
    with pytest.raises(SystemExit):  # os._exit does not come back where it is not replaced
        context._end(2, of_process=True)
    assert ended == [0, 2]
    monkeypatch.setenv("WORLD_SIZE", "1")
    context._end(0, of_process=True)
    with pytest.raises(SystemExit):
        context._end(1, of_process=True)
    assert ended == [0, 2]
