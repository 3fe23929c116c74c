"""Training by two processes on a CPU, as a recipe asks for: what one process learns, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
from project import DATA, Project, assert_nothing_lives, has_saved, of_the_stage, rows, wait_for

SFT: dict[str, Any] = {
    "kind": "sft", "init": "base", "data": rows("sft", 64), "batch_size": 16, "max_length": 256, "learning_rate": 1e-3,
    "save_every_steps": 1,
}  # fmt: skip
TWO = {"accelerate": {"num_processes": 2, "threads": 1, "device": "cpu"}}
RECIPE: dict[str, Any] = {
    "name": "processes",
    "model": str(DATA / "base"),
    "output": "./out",
    "accelerate": {"threads": 1},
    "stages": [{"name": "one", **SFT}, {"name": "two", **SFT, **TWO}],
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Run to its end, with the run killed while two processes trained."""
    made = Project(tmp_path_factory.mktemp("processes"), RECIPE)
    process = made.run()
    wait_for(has_saved(made, "two", 1), "a save by two processes", process=process)
    trained = of_the_stage(made, "sft")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(trained) == 2
    assert_nothing_lives(made)
    assert made.done(made.run()) == 0, made.log()[-3000:]
    assert_nothing_lives(made)
    return made


def test_two_processes_learn_what_one_learns(project: Project) -> None:
    steps = project.steps()
    one, two = (
        load_file(steps[name].folder / str(steps[name].result["model"]) / "model.safetensors")
        for name in ("one", "two")
    )
    base = load_file(DATA / "base" / "model.safetensors")
    moved = max((one[name].float() - base[name].float()).abs().max() for name in one)
    apart = max((one[name].float() - two[name].float()).abs().max() for name in one)
    assert moved > 1e-3 and apart < moved / 50
    assert all(torch.isfinite(value).all() for value in two.values())


def test_its_command_starts_both_by_hand_too(project: Project) -> None:
    assert "--multi_gpu -m tulu_lite.stages.sft" in project.log().replace("\n", " ")
