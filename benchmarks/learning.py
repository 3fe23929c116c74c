"""Does each objective learn? Five seeds of each on the quickstart's task from its DPO model, with 95 % intervals.

    python benchmarks/learning.py [--folder DIR] [--seeds 5] [--steps 10] [--at-once 2] [--only grpo,ppo]

All runs share one server by turns: while one trains another samples. A run that is done is not done again, and one that
was killed goes on: start the same command once more. Results go to benchmarks/results/learning.json and learning.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tulu_lite.pipeline.expand import expand  # noqa: E402
from tulu_lite.pipeline.ledger import Ledger  # noqa: E402
from tulu_lite.pipeline.protocol import SERVER_VARIABLE, SHARED_VARIABLE, read_validation  # noqa: E402
from tulu_lite.pipeline.steps import Step  # noqa: E402
from tulu_lite.recipe import load_recipe  # noqa: E402
from tulu_lite.recipe.server import ServerSettings  # noqa: E402
from tulu_lite.rollout.server import RolloutServer  # noqa: E402
from tulu_lite.statistics import Estimate, difference, seeds_mean  # noqa: E402

DATA = ROOT / "data" / "quickstart"
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
METHODS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo": {"advantage": "dr_grpo", "aggregation": "constant"},
    "rloo": {"advantage": "rloo"},
    "ppo": {
        "advantage": "gae", "kl_in": "reward", "kl_estimator": "k1", "updates_per_step": 2,
        "value": {"gae_lambda": 1.0, "learning_rate": 1e-3, "warmup_steps": 1},
    },
    "gspo": {"loss": "gspo", "aggregation": "sequence", "clip": [3e-4, 4e-4], "updates_per_step": 2},
    "grpo_one_behind": {"rhythm": "one_behind"},
}  # fmt: skip
RUN_SECONDS = 1800.0  # that one run may take


def prepare(folder: Path) -> Step:
    """The quickstart's DPO model and its evaluation, by `tulu-lite run`; the step of the evaluation."""
    recipe = yaml.safe_load(QUICKSTART.read_text())
    stages = [stage for stage in recipe["stages"] if stage["kind"] in ("sft", "preferences", "dpo")]
    test = {"name": "start", "kind": "evaluate", "models": ["dpo"], "data": "../data/quickstart/test.jsonl", "max_tokens": 64}  # fmt: skip
    recipe |= {"name": "learning-start", "output": str(folder / "start"), "stages": [*stages, test]}
    text = yaml.safe_dump(recipe, sort_keys=False).replace("../data/", f"{ROOT / 'data'}/")
    file = folder / "start.yaml"
    file.write_text(text)
    subprocess.run([sys.executable, "-m", "tulu_lite.cli", "run", str(file)], check=True, cwd=ROOT)
    return steps_of(file)["start/dpo"]


def steps_of(file: Path) -> dict[str, Step]:
    recipe = load_recipe(file)
    return {step.id: step for step in expand(recipe, Ledger(Path(recipe.output)))}


def write_recipe(folder: Path, model: Path, seeds: int, steps: int, only: list[str]) -> Path:
    """One rlvr stage for each method; greedy accuracy on the test prompts counts once, at the end."""
    common = {
        "kind": "rlvr", "init": "base", "seeds": list(range(1, seeds + 1)), "data": str(DATA / "prompts.jsonl"),
        "validation": str(DATA / "test.jsonl"), "steps": steps, "prompts_per_step": 16, "samples_per_prompt": 8,
        "sampling": {"temperature": 1.0, "max_tokens": 64}, "learning_rate": 2e-4, "warmup_ratio": 0.1, "betas": [0.9, 0.95],
        "kl_coefficient": 0.01, "validate_every_steps": steps, "save_every_steps": max(1, steps // 2),
    }  # fmt: skip
    quickstart = yaml.safe_load(QUICKSTART.read_text())
    recipe = {
        "name": "learning",
        "model": str(model),
        "output": str(folder / "runs"),
        "verifiers": quickstart["verifiers"],
        "verifier_workers": 1,
        "accelerate": {"threads": 1},
        "server": quickstart["server"],
        "stages": [{"name": name, **common, **METHODS[name]} for name in only],
    }
    file = folder / "learning.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return file


def train(file: Path, server: RolloutServer, at_once: int) -> None:
    """All runs that are not done, `at_once` at a time. Each is a fork of this process, which has imported torch."""
    os.environ[SERVER_VARIABLE] = str(server.state_file)
    os.environ[SHARED_VARIABLE] = str(at_once)
    stage_main = importlib.import_module("tulu_lite.stages.rlvr").main
    waiting = [step for step in steps_of(file).values() if step.kind == "rlvr" and not step.done]
    # seeds outermost: after a part of the time there is a part of every method
    waiting.sort(key=lambda step: step.seed)
    running: dict[int, tuple[Step, float]] = {}
    failed: list[str] = []
    total = len(waiting)
    while waiting or running:
        while waiting and len(running) < at_once:
            step = waiting.pop(0)
            running[fork(stage_main, file, step)] = (step, time.monotonic())
        ended, status = os.waitpid(-1, os.WNOHANG)
        if not ended:
            time.sleep(0.05)
            for pid, (step, began) in running.items():
                if time.monotonic() - began > RUN_SECONDS:
                    os.kill(pid, 9)
                    failed.append(f"{step.id} took too long")
            continue
        if ended not in running:
            continue
        step, began = running.pop(ended)
        if os.waitstatus_to_exitcode(status) != 0:
            failed.append(f"{step.id}: see {step.folder}/log.txt")
        left = total - len(waiting) - len(running)
        print(f"[{left}/{total}] {step.id}: {time.monotonic() - began:.0f} s", flush=True)
    if failed:
        raise SystemExit("some runs failed:\n" + "\n".join(failed))


def fork(stage_main: Any, file: Path, step: Step) -> int:
    """Start a run; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        step.folder.mkdir(parents=True, exist_ok=True)
        log = os.open(step.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = ["rlvr", "--recipe", str(file), "--stage", step.stage.name, "--seed", str(step.seed)]
        stage_main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
        if not isinstance(error.code, int):
            print(error, flush=True)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def start_scores(evaluation: Step) -> dict[str, float]:
    """Greedy marks of the start, by prompt."""
    rows = map(json.loads, (evaluation.folder / evaluation.outcome["rows"]).read_bytes().splitlines())
    return {row["prompt_id"]: float(row["verdict"]["score"] == 1.0) for row in rows}


def compare(file: Path, before: dict[str, float]) -> dict[str, Any]:
    """Of each method: accuracy over its seeds, the gain over the start, and (for one behind) the distance to on-policy."""
    runs: dict[str, list[Step]] = {}
    for step in steps_of(file).values():
        if step.kind == "rlvr" and step.done:
            runs.setdefault(step.stage.name, []).append(step)
    ids = sorted(before)
    start = [[before[id] for id in ids]]
    scores = {name: [[read_validation(step.folder / "validation.jsonl")[id] for id in ids] for step in steps] for name, steps in runs.items()}  # fmt: skip
    found: dict[str, Any] = {"start": seeds_mean(start).to_json(), "methods": {}}
    for name, of_seeds in scores.items():
        gain = difference(of_seeds, start)
        seconds = [step.outcome["seconds"] for step in runs[name]]
        found["methods"][name] = {
            "seeds": len(of_seeds),
            "of_seeds": [sum(values) / len(values) for values in of_seeds],
            "accuracy": seeds_mean(of_seeds).to_json(),
            "gain": gain.to_json(),
            "learns": gain.low > 0,
            "seconds": sorted(seconds)[len(seconds) // 2],
        }
    if {"grpo", "grpo_one_behind"} <= scores.keys():
        apart = difference(scores["grpo_one_behind"], scores["grpo"])
        found["one_behind_less_on_policy"] = apart.to_json() | {"same": apart.low <= 0 <= apart.high}
    return found


def table(found: dict[str, Any], steps: int) -> str:
    def percent(one: dict[str, Any], sign: str = "") -> str:
        estimate = Estimate(**{name: one[name] for name in ("value", "low", "high", "n")})
        return " ".join(
            [
                f"{100 * estimate.value:{sign}.1f}",
                f"[{100 * estimate.low:{sign}.1f}, {100 * estimate.high:{sign}.1f}]",
            ]
        )

    lines = [
        "# Learning",
        "",
        f"Greedy accuracy in % on the quickstart's {found['start']['n']} test prompts after {steps} steps of 16 prompts x 8",
        "samples from its DPO model; 95 % intervals over prompts and seeds, gains paired by prompt. Made by",
        "`python benchmarks/learning.py`.",
        "",
        "| method | seeds | accuracy | gain over the start | each seed | seconds a run |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| start (DPO) | | {percent(found['start'])} | | | |",
    ]
    for name, one in found["methods"].items():
        each = ", ".join(f"{100 * value:.1f}" for value in one["of_seeds"])
        lines.append(
            f"| {name} | {one['seeds']} | {percent(one['accuracy'])} | {percent(one['gain'], '+')} | {each} | {one['seconds']:.0f} |"
        )
    apart = found.get("one_behind_less_on_policy")
    if apart is not None:
        same = "the interval holds 0" if apart["same"] else "the interval excludes 0"
        lines += ["", f"GRPO one step behind less GRPO on-policy: {percent(apart, '+')}; {same}."]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "learning", help="where the runs lie")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--at-once", type=int, default=2, help="runs that train at the same time")
    parser.add_argument("--only", default=",".join(METHODS), help="methods, by comma")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    given = parser.parse_args()
    only = [name for name in given.only.split(",") if name]
    if unknown := set(only) - METHODS.keys():
        parser.error(f"no such method: {', '.join(sorted(unknown))}; there are {', '.join(METHODS)}")
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    evaluation = prepare(folder)
    start = steps_of(folder / "start.yaml")["dpo"]
    model = start.folder / start.outcome["model"]
    file = write_recipe(folder, model, given.seeds, given.steps, only)
    if not all(step.done for step in steps_of(file).values() if step.kind == "rlvr"):
        settings = ServerSettings(max_model_len=160, kv_cache_mb=256, max_restarts=20)
        server = RolloutServer(settings, model, folder / "server", folder / "server" / "log.txt")
        server.start()
        try:
            server.wait_ready()
            train(file, server, given.at_once)
        finally:
            server.stop()
    found = compare(file, start_scores(evaluation))
    found |= {"steps": given.steps}
    text = table(found, given.steps)
    print(text)
    if given.seeds >= 5 and len(only) == len(METHODS):
        given.results.mkdir(parents=True, exist_ok=True)
        (given.results / "learning.json").write_text(json.dumps(found, indent=1) + "\n")
        (given.results / "learning.md").write_text(text)


if __name__ == "__main__":
    main()
