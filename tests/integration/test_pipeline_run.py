"""A whole small recipe on the real engine: once unbroken, once killed again and again; both give the same bits."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tulu_lite.pipeline.ledger import Ledger

sys.path.insert(0, str(Path(__file__).parent))
from project import (
    DATA,
    GONE_S,
    Project,
    assert_nothing_lives,
    has_saved,
    hashes,
    of_the_stage,
    rows,
    wait_for,
)

SAMPLING = {"temperature": 1.0, "max_tokens": 40}
RECIPE: dict[str, Any] = {
    "name": "small",
    "model": str(DATA / "base"),
    "output": "./out",
    "verifiers": {"number_and_form": {"all_of": ["number", "ifeval"]}},
    "verifier_workers": 1,
    "server": {"max_model_len": 160, "kv_cache_mb": 64},
    "accelerate": {"threads": 1},
    "stages": [
        {
            "name": "sft", "kind": "sft", "data": rows("sft", 96), "batch_size": 8, "max_length": 160, "learning_rate": 2e-3,
            "save_every_steps": 1,
        },
        {"name": "preferences", "kind": "preferences", "init": "sft", "data": rows("preferences", 32), "sampling": SAMPLING},
        {
            "name": "dpo", "kind": "dpo", "init": "sft", "data": {"stage": "preferences"}, "batch_size": 4, "max_length": 160,
            "learning_rate": 1e-4,
        },
        {
            "name": "rlvr", "kind": "rlvr", "init": "dpo", "seeds": [1, 2], "data": rows("prompts", 64),
            "validation": rows("validation", 24), "steps": 3, "prompts_per_step": 6, "samples_per_prompt": 4, "sampling": SAMPLING,
            "learning_rate": 1e-4, "save_every_steps": 1,
        },
        {"name": "test", "kind": "evaluate", "models": ["dpo", "rlvr"], "data": rows("test", 24), "max_tokens": 40},
    ],
}  # fmt: skip
STEPS = [
    "sft",
    "preferences",
    "dpo",
    "test/dpo",
    "rlvr/seed-1",
    "test/rlvr/seed-1",
    "rlvr/seed-2",
    "test/rlvr/seed-2",
    "rlvr",
]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("unbroken"), RECIPE)
    process = project.run()
    code = project.done(process)
    assert code == 0, project.log()[-3000:]
    assert_nothing_lives(project)
    return project


def test_a_run_makes_what_it_promises(unbroken: Project) -> None:
    log = unbroken.log()
    assert "greedy accuracy in %" in log
    assert "goes on: validation accuracy" in log
    steps = unbroken.steps()
    assert list(steps) == STEPS
    assert all(step.done for step in steps.values())
    assert (unbroken.out / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [row["model"] for row in unbroken.report()] == ["dpo", "rlvr/seed-1", "rlvr/seed-2", "rlvr (mean)"]
    assert sum(row["chosen"] for row in unbroken.report()) == 1
    assert "| test | dpo |" in (unbroken.out / "report.md").read_text()
    assert (unbroken.out / "recipe.yaml").exists()
    pairs = (steps["preferences"].folder / "pairs.jsonl").read_text().splitlines()
    assert steps["dpo"].result is not None
    assert steps["dpo"].result["summary"]["pairs"] == len(pairs) >= 4


def test_the_ledger_knows_every_step_its_inputs_and_metrics(unbroken: Project) -> None:
    ledger, steps = Ledger(unbroken.out), unbroken.steps()
    known = {row["id"]: row for row in ledger.steps()}
    assert {id: (row["status"], row["attempts"]) for id, row in known.items()} == dict.fromkeys(
        STEPS, ("done", 1)
    )
    assert [row["status"] for row in ledger.runs()] == ["done"]

    def inputs(id: str) -> set[tuple[str, str]]:
        return {(row["input"], row["role"]) for row in ledger.lineage(steps[id].key)}

    assert inputs("sft") == {(steps["sft"].identity["inputs"]["base"], "model")}
    assert inputs("dpo") == {(steps["sft"].key, "model"), (steps["preferences"].key, "rows")}
    assert inputs("test/rlvr/seed-2") == {(steps["rlvr/seed-2"].key, "model")}
    assert inputs("rlvr") == {(steps[f"rlvr/seed-{seed}"].key, "candidate") for seed in (1, 2)}
    assert [step for step, _ in ledger.metrics(steps["sft"].key, "loss")] == list(range(1, 13))
    for seed in (1, 2):
        key = steps[f"rlvr/seed-{seed}"].key
        assert len(ledger.metrics(key, "reward")) == 3
        assert (
            max(gap for _, gap in ledger.metrics(key, "logprob_gap_max")) < 1e-3
        )  # sampler and trainer are one model
        assert [step for step, _ in ledger.metrics(key, "validation_accuracy")] == [3]
        assert next(row["step"] for row in ledger.checkpoints(key)) == -1  # the export
    first = ledger.metrics(steps["rlvr/seed-1"].key, "ratio")[0][1]
    assert first == pytest.approx(1.0, abs=1e-4)


def test_the_same_command_again_does_nothing(unbroken: Project) -> None:
    before = {id: step.result_file.stat().st_mtime_ns for id, step in unbroken.steps().items()}
    reported, length = unbroken.report(), len(unbroken.log())
    began = time.monotonic()
    process = unbroken.run()
    seen = set()
    while process.poll() is None and time.monotonic() < began + 120:
        seen |= set(unbroken.processes("tulu_lite.stages")) | set(unbroken.processes("tulu_lite.rollout"))
        time.sleep(0.02)
    assert unbroken.done(process) == 0
    assert seen == set()  # no step and no server was started
    again = unbroken.log()[length:]
    assert again.count("done before") == len(STEPS)
    assert "greedy accuracy in %" in again
    assert {id: step.result_file.stat().st_mtime_ns for id, step in unbroken.steps().items()} == before
    assert unbroken.report() == reported
    with sqlite3.connect(unbroken.out / "ledger.sqlite") as db:
        assert db.execute("SELECT max(attempts) FROM steps").fetchone() == (1,)


def test_killed_anywhere_and_started_again_it_comes_to_the_same_bits(
    unbroken: Project, tmp_path: Path
) -> None:
    project = Project(tmp_path / "killed", RECIPE)

    # the command, while the first step's process imports torch
    process = project.run()
    wait_for(lambda: of_the_stage(project, "sft"), "sft to start", process=process)
    process.kill()
    process.wait(GONE_S)
    assert_nothing_lives(project)
    assert not project.steps()["sft"].done

    # the command, while sft trains
    process = project.run()
    wait_for(has_saved(project, "sft", 2), "a save of sft", process=process)
    process.kill()
    process.wait(GONE_S)
    assert_nothing_lives(project)
    assert not project.steps()["sft"].done

    # the training process of a seed
    process = project.run()
    wait_for(has_saved(project, "rlvr/seed-1", 1), "a save of rlvr", process=process)
    (trainer,) = of_the_stage(project, "rlvr")
    os.kill(trainer, signal.SIGKILL)
    assert project.done(process) == 2
    assert "step rlvr/seed-1 failed: its process was killed by signal 9 (SIGKILL)" in project.log()
    assert "Traceback" not in project.log()
    assert_nothing_lives(project)
    attempts = {row["id"]: row["attempts"] for row in Ledger(project.out).steps()}
    assert attempts["sft"] in (2, 3)  # the first kill may come before the step was opened
    assert (attempts["preferences"], attempts["rlvr/seed-1"]) == (1, 1)

    # the engine, while the other seed trains
    process = project.run()
    wait_for(has_saved(project, "rlvr/seed-2", 1), "a save of rlvr", process=process)
    engine = (
        project.processes("tulu_lite.rollout.launch")[-1]
        if not project.processes("EngineCore")
        else project.processes("EngineCore")[-1]
    )
    os.kill(engine, signal.SIGKILL)
    code = project.done(process)
    if code != 0:  # it may be survived, or not; then the same command goes on
        code = project.done(project.run())
    assert code == 0, project.log()[-3000:]
    assert_nothing_lives(project)

    assert hashes(project) == hashes(unbroken)
    assert project.report() == unbroken.report()
    statuses = [row["status"] for row in Ledger(project.out).runs()]
    assert statuses[:3] == ["killed", "killed", "failed"]
    assert statuses[-1] == "done"


def test_standard_dpo_and_lora_share_what_is_done(unbroken: Project) -> None:
    length = len(unbroken.log())
    overrides = [
        "stages.dpo.length_normalised=false", "stages.dpo.beta=0.1", "stages.rlvr.seeds=[7]", "stages.rlvr.lora={rank: 4}",
        "stages.rlvr.steps=2", "stages.rlvr.learning_rate=0.001", "stages.rlvr.updates_per_step=2", "stages.test.models=[rlvr]",
    ]  # fmt: skip
    assert unbroken.done(unbroken.run(*overrides)) == 0, unbroken.log()[-3000:]
    assert_nothing_lives(unbroken)
    assert len(re.findall(r"(sft|preferences): done before", unbroken.log()[length:])) == 2
    steps = unbroken.steps(*overrides)
    dpo = Ledger(unbroken.out).metrics(steps["dpo"].key, "loss")
    assert dpo[0][1] == pytest.approx(0.693147, abs=1e-5)  # ln 2: the policy is the reference
    result = steps["rlvr/seed-7"].result
    assert result is not None
    model = steps["rlvr/seed-7"].folder / result["model"]
    assert (model / "model.safetensors").exists()
    assert (model / "adapter" / "adapter_model.safetensors").exists()
    gaps = Ledger(unbroken.out).metrics(steps["rlvr/seed-7"].key, "logprob_gap_mean")
    assert steps["rlvr"].done
    assert len(gaps) == 2


def test_a_stage_run_by_hand_with_the_printed_command(unbroken: Project, tmp_path: Path) -> None:
    printed = re.search(r"\$ (accelerate launch .*--stage sft)$", unbroken.log(), re.MULTILINE)
    assert printed is not None
    by_hand = Project(tmp_path / "by-hand", RECIPE)
    process = by_hand.start(*shlex.split(printed[1]), "--set", f"output={by_hand.out}")
    assert by_hand.done(process) == 0, by_hand.log()[-3000:]
    assert_nothing_lives(by_hand)
    assert hashes(by_hand)["sft"] == hashes(unbroken)["sft"]
    assert "12/12 steps" in by_hand.log()
