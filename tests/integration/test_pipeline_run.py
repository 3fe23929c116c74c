"""A whole small recipe on the real engine: once unbroken, once killed again and again; both give the same bits.

Processes are told apart from all others by a variable in their environment, which every process of a run inherits.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tulu_lite.pipeline.expand import expand
from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.pipeline.steps import Step
from tulu_lite.recipe import load_recipe
from tulu_lite.rollout.process import PREFIX

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data" / "quickstart"
BIN = Path(sys.executable).parent
MARK = "TULU_LITE_TEST_RUN"
SLOW_S = 400.0  # for what takes a minute on two quiet cores
GONE_S = 10.0


def rows(name: str, limit: int) -> dict[str, Any]:
    return {"path": str(DATA / f"{name}.jsonl"), "limit": limit}


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


@dataclass
class Project:
    """A folder with the recipe and its output, and the processes that were started on it."""

    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    commands: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.recipe.write_text(yaml.safe_dump(RECIPE, sort_keys=False))

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command of this project; its output goes to run.log."""
        with (self.folder / "run.log").open("a") as log:
            process = subprocess.Popen(
                [*arguments], stdout=log, stderr=subprocess.STDOUT, text=True, cwd=self.folder,
                env={**os.environ, MARK: self.mark, "PATH": f"{BIN}:{os.environ['PATH']}"},
            )  # fmt: skip
        self.commands.append(process.pid)
        return process

    def run(self, *overrides: str) -> subprocess.Popen[str]:
        return self.start("tulu-lite", "run", str(self.recipe), *overrides)

    def log(self) -> str:
        return (self.folder / "run.log").read_text()

    def done(self, process: subprocess.Popen[str]) -> int:
        try:
            return process.wait(SLOW_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(self.log()[-3000:]) from None

    def processes(self, *words: str) -> list[int]:
        """Living processes of this project whose command line has all the words."""
        found = []
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            try:
                mine = f"{MARK}={self.mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(
                    b"\0"
                )
                line = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
                dead = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
            except OSError:
                continue
            if mine and not dead and all(word in line for word in words):
                found.append(pid)
        return sorted(found)

    def leftovers(self) -> list[Path]:
        """Private folders of this project's commands."""
        left = []
        for folder in [*Path("/dev/shm").glob(f"{PREFIX}*"), *Path("/tmp").glob(f"{PREFIX}*")]:
            try:
                if json.loads((folder / "owner.json").read_text())["pid"] in self.commands:
                    left.append(folder)
            except (OSError, ValueError):
                continue
        return left

    def steps(self, *overrides: str) -> dict[str, Step]:
        recipe = load_recipe(self.recipe, overrides)
        return {step.id: step for step in expand(recipe, Ledger(self.out))}

    def report(self) -> Any:
        return json.loads((self.out / "report.json").read_text())


def wait_for(
    what: Callable[[], Any], why: str, seconds: float = SLOW_S, process: subprocess.Popen[str] | None = None
) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"waited in vain for {why}"
        assert process is None or process.poll() is None, f"the run ended before {why}"
        time.sleep(0.01)
    return found


def assert_nothing_lives(project: Project) -> None:
    wait_for(
        lambda: not project.processes() and not project.leftovers(),
        f"an end of {project.processes()} {project.leftovers()}",
        GONE_S,
    )


def hashes(project: Project) -> dict[str, str]:
    """sha256 of each step's exported weights."""
    found = {}
    for id, step in project.steps().items():
        if step.result is not None and "model" in step.result:
            weights = step.folder / step.result["model"] / "model.safetensors"
            found[id] = hashlib.sha256(weights.read_bytes()).hexdigest()
    return found


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("unbroken"))
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


def has_saved(project: Project, id: str, step: int) -> Callable[[], bool]:
    folder = project.steps()[id].folder / "checkpoints"
    return lambda: any(int(path.name[5:]) >= step for path in folder.glob("step-??????"))


def of_the_stage(project: Project, kind: str) -> list[int]:
    """Processes that run the stage itself, without `accelerate launch`."""
    return [
        pid
        for pid in project.processes(f"tulu_lite.stages.{kind}")
        if "accelerate" not in Path(f"/proc/{pid}/cmdline").read_text()
    ]


def test_killed_anywhere_and_started_again_it_comes_to_the_same_bits(
    unbroken: Project, tmp_path: Path
) -> None:
    project = Project(tmp_path / "killed")

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
    by_hand = Project(tmp_path / "by-hand")
    process = by_hand.start(*shlex.split(printed[1]), "--set", f"output={by_hand.out}")
    assert by_hand.done(process) == 0, by_hand.log()[-3000:]
    assert_nothing_lives(by_hand)
    assert hashes(by_hand)["sft"] == hashes(unbroken)["sft"]
    assert "12/12 steps" in by_hand.log()
