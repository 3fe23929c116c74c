"""Our side of benchmarks/rlvr.py: models and prompts, recipes, servers, and rlvr runs whose steps are timed."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from tulu_lite.pipeline.expand import expand
from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.pipeline.protocol import SERVER_VARIABLE, SHARED_VARIABLE, read_metrics
from tulu_lite.pipeline.steps import Step
from tulu_lite.recipe import load_recipe
from tulu_lite.recipe.server import ServerSettings
from tulu_lite.rollout.fleet import open_servers
from tulu_lite.stages.metrics import MetricsLog

ROOT = Path(__file__).resolve().parents[1]
NEVER = ("<unk>", 3)  # a token that the model never samples
# runs are forks of this process, and a fork of one that has a pool of threads hangs in its own
torch.set_num_threads(1)
RUN_SECONDS = 280.0  # that one run may take
READY_SECONDS = 180.0
PARTS = ("sample_s", "verify_s", "train_s", "push_s")  # what a step is for; the rest is overhead


@dataclass(frozen=True)
class Work:
    """What one step does."""

    rows: int  # prompts
    group: int  # responses of each
    max_tokens: int


# Models and prompts


def ending_with(model: Path, out: Path, token: str | None) -> Path:
    """The same weights with another end token: None: one that is never sampled, so that every response is as long as it
    may be; a character that is sampled now and then: lengths with a long tail."""
    shutil.copytree(model, out, dirs_exist_ok=True)
    vocabulary = json.loads((out / "tokenizer.json").read_text())["model"]["vocab"]
    ends = [NEVER[1]] if token is None else [NEVER[1], vocabulary[token]]
    for file, name, value in (
        ("tokenizer_config.json", "eos_token", NEVER[0]),
        ("config.json", "eos_token_id", NEVER[1]),
        ("generation_config.json", "eos_token_id", ends),
    ):
        settings = json.loads((out / file).read_text())
        (out / file).write_text(json.dumps(settings | {name: value}, indent=1))
    return out


def deeper(model: Path, out: Path, times: int) -> tuple[Path, int]:
    """(a model of `times` as many layers that computes the very same function, its parameters). The layers that are new
    add nothing: their output projections are 0."""
    shutil.copytree(model, out, dirs_exist_ok=True)
    config = json.loads((model / "config.json").read_text())
    weights = load_file(model / "model.safetensors")
    layers = config["num_hidden_layers"]
    first = {name.split("layers.0.")[1]: value for name, value in weights.items() if "layers.0." in name}
    for layer in range(layers, layers * times):
        for name, value in first.items():
            silent = name.startswith(("self_attn.o_proj", "mlp.down_proj"))
            weights[f"model.layers.{layer}.{name}"] = torch.zeros_like(value) if silent else value.clone()
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers * times}, indent=1))
    return out, sum(value.numel() for value in weights.values())


def write_prompts(out: Path, count: int = 384) -> Path:
    """Prompts of the quickstart, judged by the reward that both sides share."""
    rows = [
        json.loads(line)
        for line in (ROOT / "data" / "quickstart" / "prompts.jsonl").read_bytes().splitlines()[:count]
    ]
    out.write_text(
        "".join(
            json.dumps({"id": row["id"], "prompt": row["prompt"], "verifier": "digits", "reference": None})
            + "\n"
            for row in rows
        )
    )
    return out


# Recipes and runs


def recipe_of(
    folder: Path,
    name: str,
    model: Path,
    work: Work,
    *,
    steps: int,
    seeds: int,
    threads: int,
    processes: int = 1,
    more: dict[str, Any] | None = None,
) -> list[Step]:
    """One rlvr stage, a run for each seed; its validation and its saves come after its last step. The learning rate is
    so small that the lengths of responses stay what they are."""
    stage = {
        "name": name, "kind": "rlvr", "init": "base", "seeds": list(range(1, seeds + 1)), "data": str(folder / "prompts.jsonl"),
        "validation": str(folder / "validation.jsonl"), "steps": steps, "prompts_per_step": work.rows,
        "samples_per_prompt": work.group, "sampling": {"temperature": 1.0, "max_tokens": work.max_tokens},
        "learning_rate": 1e-6, "warmup_ratio": 0.0, "kl_coefficient": 0.0, "validate_every_steps": steps,
        "save_every_steps": steps, "micro_batch_tokens": 2048,
        "accelerate": {"num_processes": processes, "threads": threads, "device": "cpu"},
    } | (more or {})  # fmt: skip
    recipe = {
        "name": name,
        "model": str(model),
        "output": str(folder / "runs" / name),
        "verifiers": {
            "digits": f"{Path(__file__).with_name('rlvr_reward.py')}:digit_share",
            "number_and_form": {"all_of": ["number", "ifeval"]},
        },
        "verifier_workers": 1,
        "server": {"max_model_len": 256, "kv_cache_mb": 256, "device": "cpu"},
        "stages": [stage],
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    shutil.rmtree(folder / "runs" / name, ignore_errors=True)  # nothing that was timed before counts
    loaded = load_recipe(file)
    return [step for step in expand(loaded, Ledger(Path(loaded.output))) if step.kind == "rlvr"]


@contextmanager
def serving(folder: Path, model: Path, *, replicas: int, loras: int = 0) -> Iterator[Path]:
    """A server on the model; gives its state file. Its start is in no figure."""
    settings = ServerSettings(
        device="cpu", max_model_len=256, kv_cache_mb=256, replicas=replicas, max_loras=loras, max_lora_rank=8,
        canary_interval_s=600,
    )  # fmt: skip
    where = folder / "server"
    with open_servers(settings, model, where, where / "log.txt") as server:
        server.wait_ready(READY_SECONDS)
        yield server.state_file


def train(
    folder: Path, steps: list[Step], state_file: Path, *, at_once: int = 1
) -> list[list[dict[str, Any]]]:
    """The metrics of each run, a row a step, with `at`: seconds at its end. Raises SystemExit when one fails.

    A run's processes are forks of this one, which has imported what a stage imports.
    """
    os.environ[SERVER_VARIABLE] = str(state_file)
    os.environ[SHARED_VARIABLE] = str(at_once)
    importlib.import_module("tulu_lite.stages.rlvr")
    waiting: list[Step] = list(steps)
    running: dict[int, tuple[Step, float]] = {}  # by process
    while waiting or running:
        while waiting and len({step.id for step, _ in running.values()}) < at_once:
            step = waiting.pop(0)
            running |= {pid: (step, time.monotonic()) for pid in _start(folder, step)}
        for pid, (step, began) in list(running.items()):
            if time.monotonic() - began > RUN_SECONDS:
                print(f"{step.id} took more than {RUN_SECONDS:.0f} s", flush=True)
                os.kill(pid, 9)
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del running[pid]
                if status:
                    log = (step.folder / "log.txt").read_text()
                    raise SystemExit(f"{step.id} failed; the end of its log:\n{log[-3000:]}")
        time.sleep(0.05)
    return [read_metrics(step.folder / "metrics.jsonl") for step in steps]


def _start(folder: Path, step: Step) -> list[int]:
    """Start a run's processes as a launcher does; their ids."""
    count = step.stage.accelerate.num_processes  # type: ignore[union-attr]
    return [_fork(folder, step, place) for place in places_of(count)]


def places_of(count: int) -> list[dict[str, str]]:
    """What the environment tells each process of a group of its place in it; nothing where it is alone."""
    if count == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    group = meet | {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def _fork(folder: Path, step: Step, group: dict[str, str]) -> int:
    """Start a process of a run, told its place in the run's group; its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        import sys

        os.environ.update(group)
        step.folder.mkdir(parents=True, exist_ok=True)
        log = os.open(step.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        _stamp_rows()
        file = folder / f"{step.stage.name}.yaml"
        sys.argv = ["rlvr", "--recipe", str(file), "--stage", step.stage.name, "--seed", str(step.seed)]
        importlib.import_module("tulu_lite.stages.rlvr").main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
        if not isinstance(error.code, int):
            print(error, flush=True)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _stamp_rows() -> None:
    """Have each line of this process's metrics say when it was written."""
    log = MetricsLog.log

    def stamped(self: Any, step: int, /, places: Any = None, **values: float) -> None:
        log(self, step, places, **values, at=time.time())

    MetricsLog.log = stamped  # type: ignore[method-assign]


# Figures


def counted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the first step, which warms up and compares sampler and trainer, and the last, which validates."""
    return rows[1:-1]


def seconds_between(rows: list[dict[str, Any]]) -> list[float]:
    """Of each counted step: seconds from the end of the step before to its own, saves and logs included."""
    return [later["at"] - earlier["at"] for earlier, later in zip(rows[:-2], counted(rows), strict=True)]


def shares(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What the counted steps' time went into, and `outside`: all of it but sampling, verifying, training and pushing."""
    total = sum(seconds_between(rows))
    named = {part: sum(row.get(part, 0.0) for row in counted(rows)) / total for part in PARTS}
    return named | {"outside": 1 - sum(named.values()), "step_s": total / len(counted(rows))}


def rate_together(runs: list[list[dict[str, Any]]]) -> float:
    """Steps a second of all runs, while all of them are at work: from the last one's first step to the first one's last
    but one."""
    begin = max(rows[0]["at"] for rows in runs)
    end = min(rows[-2]["at"] for rows in runs)
    rate = 0.0
    for rows in runs:
        inside = [row["at"] for row in rows if begin <= row["at"] <= end]
        if len(inside) < 2:
            raise SystemExit("the runs hardly overlapped: take more steps")
        rate += (len(inside) - 1) / (inside[-1] - inside[0])
    return rate


def rate_in_turn(runs: list[list[dict[str, Any]]]) -> float:
    """Steps a second of one run after the other; what lies between them is not counted."""
    seconds = [one for rows in runs for one in seconds_between(rows)]
    return len(seconds) / sum(seconds)
