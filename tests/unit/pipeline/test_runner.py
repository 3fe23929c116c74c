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
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tulu_lite.errors import TuluLiteError
from tulu_lite.pipeline import processes, runner
from tulu_lite.pipeline.command import launch_arguments, shown, step_command
from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.pipeline.plan import PlannedStep
from tulu_lite.pipeline.processes import StepFailed, StepProcess, explain, tail
from tulu_lite.pipeline.protocol import RUN_VARIABLE, SERVER_VARIABLE, SHARED_VARIABLE
from tulu_lite.pipeline.runner import Interrupted, Runner, together
from tulu_lite.pipeline.show import Display
from tulu_lite.pipeline.steps import Step
from tulu_lite.recipe import AccelerateSettings, Recipe
from tulu_lite.recipe.placement import Placement
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
        ({"num_processes": 2, "device": "cpu", "threads": 1}, "--num_processes 2 --num_machines 1 --dynamo_backend no --mixed_precision no --num_cpu_threads_per_process 1 --multi_gpu"),
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
def test_what_a_step_said_of_its_fault_is_passed_on(recipe: Recipe, code: int) -> None:
    sft = step(recipe, 0, "sft")
    sft.folder.mkdir(parents=True)
    (sft.folder / "error.json").write_text(
        json.dumps({"what": "the disk is full", "why": "so", "cure": "free some"})
    )
    failure = explain(sft, code)
    assert failure.what == "step sft failed: the disk is full"
    assert failure.why == "so"
    assert failure.cure == f"free some\n  log:  {sft.log}"


@pytest.mark.parametrize(
    ("code", "said"), [(-9, "killed by signal 9 (SIGKILL)"), (3, "exit code 3"), (2, "exit code 2")]
)
def test_an_end_without_a_word_shows_the_last_of_the_log(recipe: Recipe, code: int, said: str) -> None:
    sft = step(recipe, 0, "sft")
    sft.folder.mkdir(parents=True)
    sft.log.write_text("\n".join(f"line {i}" for i in range(40)))
    failure = explain(sft, code)
    assert said in failure.what
    assert "line 39" in failure.why
    assert "line 27" not in failure.why
    assert str(sft.log) in failure.cure


def test_a_kill_behind_the_launcher_is_named_and_its_traceback_left_out(recipe: Recipe) -> None:
    sft = step(recipe, 0, "sft")
    sft.folder.mkdir(parents=True)
    launch = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import os; os.kill(os.getpid(), 9)'], check=True)"
    launched = subprocess.run([sys.executable, "-c", launch], capture_output=True, text=True, timeout=60)
    sft.log.write_text("12/40 steps, loss 0.5\n" + launched.stderr)
    failure = explain(sft, launched.returncode)
    assert failure.what == "step sft failed: its process was killed by signal 9 (SIGKILL)"
    assert failure.why.splitlines()[1:] == ["      12/40 steps, loss 0.5"]


FAILS = "import sys; print('12/40 steps', flush=True); sys.exit(7)"
KILLED = "import os; print('12/40 steps', flush=True); os.kill(os.getpid(), 9)"


@pytest.mark.parametrize(
    ("program", "said", "processes"),
    [(FAILS, "ended with exit code 7", 1), (FAILS, "ended with exit code 7", 2), (KILLED, "signal 9", 2)],
)
def test_a_stages_last_words_are_shown_not_its_launchers(
    recipe: Recipe, tmp_path: Path, program: str, said: str, processes: int
) -> None:
    sft = step(recipe, 0, "sft")
    script = tmp_path / "script.py"
    script.write_text(program)
    settings = AccelerateSettings(device="cpu", num_processes=processes)
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    process = StepProcess(
        sft, [*launch, *launch_arguments(settings, alone=False), str(script)], dict(os.environ)
    )
    failure = explain(sft, process.process.wait(timeout=120))
    assert said in failure.what
    assert "12/40 steps" in failure.why
    assert "Traceback" not in failure.why


def test_what_an_earlier_launcher_said_is_not_taken_for_this_ones(recipe: Recipe) -> None:
    sft = step(recipe, 0, "sft")
    sft.folder.mkdir(parents=True)
    earlier = "Traceback (most recent call last):\nCommand 'a' returned non-zero exit status 3.\n"
    sft.log.write_text(earlier + "\n$ accelerate launch\nusage: accelerate\n")
    assert explain(sft, 2).what.endswith("exit code 2")


def test_a_failed_command_of_a_stage_without_a_launcher_is_its_own(recipe: Recipe) -> None:
    test = step(recipe, 3, "test")
    test.folder.mkdir(parents=True)
    test.log.write_text("Traceback (most recent call last):\nCommand 'a' returned non-zero exit status 3.\n")
    failure = explain(test, 1)
    assert failure.what.endswith("exit code 1")
    assert "Command 'a'" in failure.why


def test_a_port_in_use_is_told_before_the_first_step_runs(
    make: Callable[[], Runner], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make()
    monkeypatch.setattr(Runner, "_train_or_sample", lambda *_: pytest.fail("a step was run"))
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
    monkeypatch.setattr(processes, "GRACE_S", 0.3)
    monkeypatch.setattr(runner, "step_command", lambda *_: [sys.executable, "-c", STUBBORN, str(pids)])
    made, sft = make(), step(recipe, 0, "sft")
    made.order = [sft]

    def interrupt_once_running(_: object) -> None:
        if pids.exists():
            raise Interrupted

    monkeypatch.setattr(made.display, "progress", interrupt_once_running)
    with pytest.raises(Interrupted):
        made._train_or_sample([sft])
    parent, child = map(int, pids.read_text().split())
    wait_for(lambda: not is_alive(parent) and not is_alive(child))


def test_a_step_that_ends_leaves_no_child_behind(
    make: Callable[[], Runner], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = tmp_path / "pids"
    code = STUBBORN.rpartition("time.sleep(60)")[0] + "sys.exit(3)"
    monkeypatch.setattr(processes, "GRACE_S", 0.3)
    monkeypatch.setattr(runner, "step_command", lambda *_: [sys.executable, "-c", code, str(pids)])
    made, sft = make(), step(recipe, 0, "sft")
    made.order = [sft]
    made.ledger.start_step(sft, [])
    with pytest.raises(StepFailed, match="exit code 3"):
        made._train_or_sample([sft])
    found = made.ledger.step(sft.key)
    assert found is not None
    assert (found["status"], found["error"]) == ("failed", "ended with exit code 3")
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


# Runs of one stage at the same time


def seeds(recipe: Recipe, at_once: int, count: int = 4) -> list[Step]:
    """Runs of a stage that trains so many at once."""
    stage = recipe.stages[2].model_copy(update={"at_once": at_once})
    folder = Path(recipe.output) / "steps"
    return [
        Step(
            f"rl/seed-{n}", "rlvr", stage, n, "sft", ("sft",), {}, f"key-{n}", folder / f"rl.seed-{n}" / "key"
        )
        for n in range(1, count + 1)
    ]


# Notes when it began and ended; seed 2 fails, the others write their result.
RUN = """
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
began = time.time()
(folder / "progress.json").write_text(json.dumps(dict(done=1, total=2, unit="steps", rate=2.0, shown={})))
# until two others have begun too, however long they take to start
before = time.monotonic() + 20
while len(list(folder.parent.parent.glob("*/*/progress.json"))) < 3 and time.monotonic() < before:
    time.sleep(0.01)
time.sleep(0.2)
(folder / "times").write_text(json.dumps([began, time.time(), os.environ.get("CUDA_VISIBLE_DEVICES")]))
if "seed-2" in sys.argv[1]:
    sys.exit(3)
(folder / "result.json").write_text(json.dumps(dict(model="m", summary={})))
"""


def test_as_many_runs_as_the_stage_says_train_at_once_and_one_that_fails_leaves_the_others(
    make: Callable[[], Runner], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        runner, "step_command", lambda step, *_: [sys.executable, "-c", RUN, str(step.folder)]
    )
    monkeypatch.setattr(runner, "POLL_S", 0.02)
    made, runs = make(), seeds(recipe, at_once=3)
    made.order = runs
    made.placement = Placement(server=(0,), training=(1, 2, 3, 4, 5, 6))
    shown: list[int] = []
    progress = made.display.progress
    monkeypatch.setattr(
        made.display, "progress", lambda states: (shown.append(len(states)), progress(states))
    )
    with pytest.raises(StepFailed) as caught:
        made._train_or_sample(runs)
    assert caught.value.what == "step rl/seed-2 failed: its process ended with exit code 3"
    assert "the other 3 of 4 runs ended well" in caught.value.cure
    assert [step.done for step in runs] == [True, False, True, True]
    times = [json.loads((step.folder / "times").read_text()) for step in runs]
    edges = sorted([(began, 1) for began, _, _ in times] + [(ended, -1) for _, ended, _ in times])
    running = [sum(change for _, change in edges[: i + 1]) for i in range(len(edges))]
    assert max(running) == 3
    devices = [own for _, _, own in times]
    assert sorted(devices[:3]) == ["1,2", "3,4", "5,6"]  # two processes each, GPUs of their own
    assert devices[3] in devices[:3]
    assert max(shown) == 3
    text = made.display.console.file.getvalue()  # type: ignore[attr-defined]
    assert "rl/seed-2 failed" in text
    assert not made.display.running


def test_what_trains_together_is_one_stage_and_needs_nothing_unfinished(recipe: Recipe) -> None:
    runs = seeds(recipe, at_once=2)
    longer = replace(runs[0], id="rl/seed-1+5", inputs=("sft", "rl/seed-1"))
    test = step(recipe, 3, "test/rl/seed-1", "rl/seed-1")
    assert together([*runs, longer, test]) == runs  # the longer one needs the first
    assert together([longer, test, *runs]) == [longer]
    assert together([test, *runs]) == [test]
    assert len(together(seeds(recipe, at_once=1))) == 1
    runs[1].folder.mkdir(parents=True)
    runs[1].result_file.write_text("{}")
    assert together(runs) == [runs[0], runs[2], runs[3]]


def test_a_lone_run_does_not_share_the_server(make: Callable[[], Runner], recipe: Recipe) -> None:
    made, (first, *_) = make(), seeds(recipe, at_once=2)

    class Server:
        state_file = "server.json"

    made.server = Server()  # type: ignore[assignment]
    assert made._environment(first, 0, runs=2)[SHARED_VARIABLE] == "2"
    assert made._environment(first)[SHARED_VARIABLE] == "1"
    assert made._environment(step(recipe, 0, "sft"), 0, runs=2)[SHARED_VARIABLE] == "1"


def test_an_interruption_ends_all_runs_at_once(
    make: Callable[[], Runner], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE_S", 0.3)
    runs = seeds(recipe, at_once=3, count=3)
    monkeypatch.setattr(
        runner,
        "step_command",
        lambda step, *_: [sys.executable, "-c", STUBBORN, str(tmp_path / f"pids-{step.seed}")],
    )
    made = make()
    made.order = runs

    def interrupt_once_all_run(_: object) -> None:
        if len(list(tmp_path.glob("pids-?"))) == 3:
            raise Interrupted

    monkeypatch.setattr(made.display, "progress", interrupt_once_all_run)
    with pytest.raises(Interrupted):
        made._train_or_sample(runs)
    pids = [int(pid) for file in tmp_path.glob("pids-?") for pid in file.read_text().split()]
    assert len(pids) == 6
    wait_for(lambda: not any(is_alive(pid) for pid in pids))


def test_multi_process_runs_at_once_do_not_meet_at_one_port(recipe: Recipe) -> None:
    alone, among = seeds(recipe, at_once=1)[0], seeds(recipe, at_once=2)[0]
    assert "--main_process_port" not in shown(step_command(alone, recipe, RECIPE))
    assert "--main_process_port 0 --num_processes 2" in shown(step_command(among, recipe, RECIPE))


def test_a_run_of_a_sweep_is_named_on_the_command_line(recipe: Recipe) -> None:
    run = step(recipe, 2, "rl/kl_coefficient=0.05/seed-2", seed=2)
    assert shown(step_command(run, recipe, RECIPE)).endswith("--stage rl --run kl_coefficient=0.05/seed-2")
    longer = step(recipe, 2, "rl/seed-2+200", seed=2)
    assert shown(step_command(longer, recipe, RECIPE)).endswith("--stage rl --run seed-2+200")
