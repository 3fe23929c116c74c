"""A folder with a recipe that whole runs are made in by tests, and the processes that were started on it.

Processes are told apart from all others by a variable in their environment, which every process of a run inherits.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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


@dataclass
class Project:
    """A folder with the recipe and its output, and the processes that were started on it."""

    folder: Path
    content: dict[str, Any]
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    commands: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.recipe.write_text(yaml.safe_dump(self.content, sort_keys=False))

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
