"""Kills a stage's process at random moments and runs it again until it is done, as often as it takes for so many kills.

A process of its own imports torch once and forks a child for each try, so that a try costs what the stage itself
costs. It never runs an operation of torch itself: its children would inherit threads that are not there.

    outcome = killed_at_random("tulu_lite.stages.sft", ["--recipe", "r.yaml", "--stage", "sft"], folder, kills=20, seed=0)
    assert outcome.kills == 20 and outcome.differences == []
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 60  # that one try may take
COMPARED_METRICS = ("loss", "grad_norm", "learning_rate", "validation_loss", "validation_accuracy")


@dataclass(frozen=True)
class Outcome:
    kills: int
    resumed: int  # tries that began with a save of an earlier one
    finished: int  # runs from the beginning to the end, the unbroken one aside
    differences: list[str]  # between those and the unbroken one


def killed_at_random(
    module: str, arguments: Sequence[str], folder: Path, *, kills: int, seed: int
) -> Outcome:
    """folder: the step's own, which each run fills from nothing. Raises AssertionError when a try fails by itself."""
    command = [sys.executable, __file__, module, str(folder), str(kills), str(seed), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS * 5)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return Outcome(**json.loads(done.stdout.splitlines()[-1]))


def bits(folder: Path) -> dict[str, Any]:
    """What a run left that must not depend on kills: weights to the byte, metrics, validations."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    metrics = [
        {name: row[name] for name in ("step", *COMPARED_METRICS) if name in row}
        for row in map(json.loads, lines)
    ]
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for pattern in ("model/*.safetensors", "validation/*.jsonl", "validation.jsonl")
        for path in sorted(folder.glob(pattern))
    }
    return {"metrics.jsonl": metrics, **files}


class Zygote:
    def __init__(self, module: str, folder: Path, arguments: Sequence[str]) -> None:
        self.main = importlib.import_module(module).main
        self.folder, self.arguments = folder, [module, *arguments]
        self.imported = folder.parent / "imported.txt"

    def learn(self) -> None:
        """Import what the stage imports as it runs, so that no further child has to."""
        for name in self.imported.read_text().splitlines():
            if name not in sys.modules:
                with contextlib.suppress(Exception):
                    importlib.import_module(name)

    def start(self) -> int:
        """A child that runs the stage; its process id."""
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            log = os.open(self.folder.parent / "tries.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.argv = list(self.arguments)
            self.main()
            self.imported.write_text("\n".join(sys.modules))
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        finally:
            os._exit(code)

    def wait(self, child: int, seconds: float) -> bool:
        """Whether it ended well within this time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                log = (self.folder.parent / "tries.log").read_text()[-3000:]
                assert os.waitstatus_to_exitcode(status) == 0, log
                return True
            time.sleep(0.002)
        return False

    def kill(self, child: int) -> None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def rehearse(zygote: Zygote, folder: Path, kills: int, seed: int) -> Outcome:
    draw = random.Random(seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    assert zygote.wait(zygote.start(), SECONDS), "the unbroken run takes too long"
    zygote.learn()
    unbroken = bits(folder)
    shutil.rmtree(folder)
    began = time.monotonic()
    assert zygote.wait(zygote.start(), SECONDS), "the second run takes too long"
    whole = time.monotonic() - began
    differences = [f"unbroken again: {name}" for name in unbroken if bits(folder).get(name) != unbroken[name]]
    shutil.rmtree(folder)
    made = resumed = finished = 0
    while made < kills or finished == 0:
        resumed += any((folder / "checkpoints").glob("step-*")) if folder.exists() else False
        child = zygote.start()
        patience = draw.uniform(0.0, whole) if made < kills else SECONDS
        if not zygote.wait(child, patience):
            assert made < kills, "a run after the last kill takes too long"
            zygote.kill(child)
            made += 1
            continue
        finished += 1
        found = bits(folder)
        differences += [
            f"run {finished}: {name}"
            for name in unbroken.keys() | found.keys()
            if found.get(name) != unbroken.get(name)
        ]
        shutil.rmtree(folder)
    return Outcome(made, resumed, finished, differences)


if __name__ == "__main__":
    module_, folder_, kills_, seed_, *rest = sys.argv[1:]
    outcome = rehearse(Zygote(module_, Path(folder_), rest), Path(folder_), int(kills_), int(seed_))
    print(json.dumps(vars(outcome)))
