"""Commands as run and as shown; how a step's end is explained; nothing of a step outlives an interruption."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tulu_lite.errors import TuluLiteError
from tulu_lite.pipeline import runner
from tulu_lite.pipeline.command import launch_arguments, shown, step_command
from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.pipeline.plan import PlannedStep
from tulu_lite.pipeline.protocol import RUN_VARIABLE, SERVER_VARIABLE
from tulu_lite.pipeline.runner import Interrupted, Runner, StepFailed, tail
from tulu_lite.pipeline.show import Display
from tulu_lite.pipeline.steps import Step
from tulu_lite.recipe import AccelerateSettings, Recipe
from tulu_lite.rollout.process import is_alive, start_time

STAGES = [
    {"name": "sft", "kind": "sft", "data": "rows.jsonl", "learning_rate": 1e-3},
    {"name": "pairs", "kind": "preferences", "init": "sft", "data": "rows.jsonl", "sampling": {"max_tokens": 4}},
    {
        "name": "rl", "kind": "rlvr", "init": "sft", "data": "rows.jsonl", "validation": "v.jsonl", "seeds": [4, 5], "steps": 2,
        "sampling": {"max_tokens": 4}, "learning_rate": 1e-4, "accelerate": {"num_processes": 2, "device": "cpu"},
    },
    {"name": "test", "kind": "evaluate", "models": ["base", "rl"], "data": "rows.jsonl", "max_tokens": 4},
]  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return Recipe(name="r", model="/m", output=str(tmp_path), stages=STAGES)  # type: ignore[arg-type]


def step(recipe: Recipe, number: int, id: str, model: str = "base", seed: int = 0) -> Step:
    stage = recipe.stages[number]
    folder = Path(recipe.output) / "steps" / id.replace("/", ".") / "key"
    return Step(id, stage.kind, stage, seed, model, (), {"inputs": {"base": "b"}}, f"key-{id}", folder)


RECIPE = Path("/a folder/recipe.yaml")


def test_training_is_launched_by_accelerate_and_sampling_is_not(recipe: Recipe) -> None:
    assert shown(step_command(step(recipe, 0, "sft"), recipe, RECIPE)) == (
        "accelerate launch --num_processes 1 --num_machines 1 --dynamo_backend no --mixed_precision no --num_cpu_threads_per_process 2 "
        "-m tulu_lite.stages.sft --recipe '/a folder/recipe.yaml' --stage sft"
    )
    rl = shown(step_command(step(recipe, 2, "rl/seed-5", seed=5), recipe, RECIPE))
    assert "--num_processes 2 " in rl  # the stage's own settings, not the recipe's
    assert rl.endswith("-m tulu_lite.stages.rlvr --recipe '/a folder/recipe.yaml' --stage rl --seed 5")
    pairs = shown(step_command(step(recipe, 1, "pairs", "sft"), recipe, RECIPE))
    assert pairs == "python -m tulu_lite.stages.preferences --recipe '/a folder/recipe.yaml' --stage pairs"
    of_seed = shown(step_command(step(recipe, 3, "test/rl/seed-5", "rl/seed-5"), recipe, RECIPE))
    assert of_seed.endswith("--stage test --model rl/seed-5")
    assert shown(step_command(step(recipe, 3, "test/base"), recipe, RECIPE)).endswith(
        "--stage test --model base"
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"config_file": "/c.yaml"}, "--config_file /c.yaml"),
        ({"config_file": "/c.yaml", "num_processes": 4, "mixed_precision": "bf16"}, "--config_file /c.yaml --num_processes 4 --mixed_precision bf16"),
        ({"device": "cpu", "threads": 3}, "--num_processes 1 --num_machines 1 --dynamo_backend no --mixed_precision no --num_cpu_threads_per_process 3 --cpu"),
        ({"num_processes": 2}, "--num_processes 2 --num_machines 1 --dynamo_backend no --mixed_precision no --num_cpu_threads_per_process 2 --multi_gpu"),
        ({"config_file": "/c.yaml", "extra_args": ["--main_process_port", "0"]}, "--config_file /c.yaml --main_process_port 0"),
    ],
)  # fmt: skip
def test_arguments_of_accelerate_launch(settings: dict[str, Any], expected: str) -> None:
    assert shlex.join(launch_arguments(AccelerateSettings(**settings))) == expected


def test_what_is_shown_is_what_runs(recipe: Recipe) -> None:
    command = step_command(step(recipe, 0, "sft"), recipe, RECIPE)
    typed = shlex.split(shown(command))
    assert typed[0] == "accelerate"
    assert typed[1:] == command[3:]
    accelerate = Path(sys.executable).parent / "accelerate"
    assert accelerate.exists()
    assert "accelerate_cli" in accelerate.read_text()  # the script calls the module that we call


def test_tail_reads_the_end_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    assert tail(file, 3) == []
    file.write_text("")
    assert tail(file, 3) == []
    file.write_bytes(b"x" * 100_000 + b"\n\xff broken\nlast")
    assert tail(file, 2) == ["\ufffd broken", "last"]
    assert len(tail(file, 3)[0]) < 20_000


@pytest.fixture
def make(recipe: Recipe, tmp_path: Path) -> Callable[[], Runner]:
    console = Console(file=io.StringIO(), width=200)
    return lambda: Runner(recipe, tmp_path / "recipe.yaml", Ledger(tmp_path), Display(console))


@pytest.mark.parametrize("code", [2, 1])  # accelerate launch makes 1 of every code
def test_what_a_step_said_of_its_fault_is_passed_on(
    make: Callable[[], Runner], recipe: Recipe, code: int
) -> None:
    sft = step(recipe, 0, "sft")
    sft.folder.mkdir(parents=True)
    (sft.folder / "error.json").write_text(
        json.dumps({"what": "the disk is full", "why": "so", "cure": "free some"})
    )
    with pytest.raises(StepFailed) as caught:
        make()._explain(sft, code)
    assert caught.value.what == "step sft failed: the disk is full"
    assert caught.value.why == "so"
    assert caught.value.cure == f"free some\n  log:  {sft.log}"


@pytest.mark.parametrize(
    ("code", "said"), [(-9, "killed by signal 9 (SIGKILL)"), (3, "exit code 3"), (2, "exit code 2")]
)
def test_an_end_without_a_word_shows_the_last_of_the_log(
    make: Callable[[], Runner], recipe: Recipe, code: int, said: str
) -> None:
    sft = step(recipe, 0, "sft")
    sft.folder.mkdir(parents=True)
    sft.log.write_text("\n".join(f"line {i}" for i in range(40)))
    made = make()
    made.ledger.start_step(sft, [])
    with pytest.raises(StepFailed) as caught:
        made._explain(sft, code)
    assert said in caught.value.what
    assert "line 39" in caught.value.why
    assert "line 27" not in caught.value.why
    assert str(sft.log) in caught.value.cure
    found = made.ledger.step(sft.key)
    assert found is not None
    assert (found["status"], said in found["error"]) == ("failed", True)


def test_a_kill_behind_the_launcher_is_named_and_its_traceback_left_out(
    make: Callable[[], Runner], recipe: Recipe
) -> None:
    sft = step(recipe, 0, "sft")
    sft.folder.mkdir(parents=True)
    launch = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import os; os.kill(os.getpid(), 9)'], check=True)"
    launched = subprocess.run([sys.executable, "-c", launch], capture_output=True, text=True, timeout=60)
    sft.log.write_text("12/40 steps, loss 0.5\n" + launched.stderr)
    with pytest.raises(StepFailed) as caught:
        make()._explain(sft, launched.returncode)
    assert caught.value.what == "step sft failed: its process was killed by signal 9 (SIGKILL)"
    assert caught.value.why.splitlines()[1:] == ["      12/40 steps, loss 0.5"]


def test_a_port_in_use_is_told_before_the_first_step_runs(
    make: Callable[[], Runner], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make()
    monkeypatch.setattr(Runner, "_process", lambda *_: pytest.fail("a step was run"))
    plan = [
        PlannedStep(step(recipe, 0, "sft"), "run", "new", None),
        PlannedStep(step(recipe, 0, "more"), "run", "new", None),
        PlannedStep(step(recipe, 0, "third"), "run", "new", None),
        PlannedStep(step(recipe, 3, "test/third", "third"), "run", "new", None),
    ]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        made.recipe = recipe.model_copy(update={"server": recipe.server.model_copy(update={"port": port})})
        with pytest.raises(TuluLiteError, match=f"server.port: port {port}"):
            made.do(plan)


# A step that has a child of its own and takes no notice of SIGTERM.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"], stdout=subprocess.PIPE)
child.stdout.read(1)
with open(sys.argv[1] + ".new", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(60)
"""


def wait_for(what: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_an_interruption_ends_the_steps_whole_group(
    make: Callable[[], Runner], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = tmp_path / "pids"
    monkeypatch.setattr(runner, "GRACE_S", 0.3)
    monkeypatch.setattr(runner, "step_command", lambda *_: [sys.executable, "-c", STUBBORN, str(pids)])
    made, sft = make(), step(recipe, 0, "sft")

    def interrupt_once_running(_: object) -> None:
        if pids.exists():
            raise Interrupted

    monkeypatch.setattr(made.display, "progress", interrupt_once_running)
    with pytest.raises(Interrupted):
        made._process(1, 1, sft)
    parent, child = map(int, pids.read_text().split())
    wait_for(lambda: not is_alive(parent) and not is_alive(child))


def test_a_step_that_ends_leaves_no_child_behind(
    make: Callable[[], Runner], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = tmp_path / "pids"
    code = STUBBORN.rpartition("time.sleep(60)")[0] + "sys.exit(3)"
    monkeypatch.setattr(runner, "GRACE_S", 0.3)
    monkeypatch.setattr(runner, "step_command", lambda *_: [sys.executable, "-c", code, str(pids)])
    with pytest.raises(StepFailed, match="exit code 3"):
        make()._process(1, 1, step(recipe, 0, "sft"))
    child = int(pids.read_text().split()[1])
    wait_for(lambda: not is_alive(child))


def test_signals_to_stop_become_an_interruption() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        old = signal.getsignal(number)
        with runner._stop_signals(), pytest.raises(Interrupted):
            signal.raise_signal(number)
        assert signal.getsignal(number) is old


def test_a_steps_process_learns_which_run_it_belongs_to(make: Callable[[], Runner], recipe: Recipe) -> None:
    environment = make()._environment(step(recipe, 0, "sft"))
    assert environment[RUN_VARIABLE] == f"{os.getpid()}:{start_time(os.getpid())}"
    assert environment["OMP_NUM_THREADS"] == "2"
    assert SERVER_VARIABLE not in environment
    assert (
        make()._environment(step(recipe, 1, "pairs"))["OMP_NUM_THREADS"] == "1"
    )  # what only samples computes nothing
