"""Two runs of one stage at the same time on one real server, by turns and by places, and one of them let go on: the same
bits as alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.pipeline.protocol import read_validation

sys.path.insert(0, str(Path(__file__).parent))
from project import DATA, Project, assert_nothing_lives, hashes, rows

SHORT, LONG = "rlvr/steps=2/seed-1", "rlvr/steps=4/seed-1"
RECIPE: dict[str, Any] = {
    "name": "runs",
    "model": str(DATA / "base"),
    "output": "./out",
    "verifiers": {"number_and_form": {"all_of": ["number", "ifeval"]}},
    "verifier_workers": 1,
    "server": {"max_model_len": 160, "kv_cache_mb": 64},
    "accelerate": {"threads": 1},
    "stages": [
        {
            "name": "rlvr", "kind": "rlvr", "init": "base", "sweep": {"steps": [2, 4]}, "seeds": [1], "at_once": 2,
            "extend": [{"run": "steps=2/seed-1", "steps": 2}], "data": rows("prompts", 16),
            "validation": rows("validation", 12), "prompts_per_step": 4, "samples_per_prompt": 4,
            "sampling": {"max_tokens": 24}, "learning_rate": 1e-4, "warmup_ratio": 0, "kl_coefficient": 0,
        },
        {
            "name": "adapters", "kind": "rlvr", "init": "base", "steps": 2, "seeds": [1, 2], "at_once": 2, "lora": {"rank": 4},
            "data": rows("prompts", 16), "validation": rows("validation", 12), "prompts_per_step": 4,
            "samples_per_prompt": 4, "sampling": {"max_tokens": 24}, "learning_rate": 1e-4, "kl_coefficient": 0,
        },
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project(tmp_path_factory.mktemp("runs"), RECIPE)
    assert made.done(made.run()) == 0, made.log()[-3000:]
    assert_nothing_lives(made)
    return made


def test_both_train_at_the_same_time_and_are_compared(project: Project) -> None:
    steps = project.steps()
    one, two = (Ledger(project.out).step(steps[id].key) for id in (SHORT, LONG))
    assert one is not None and two is not None
    assert max(one["started"], two["started"]) < min(one["ended"], two["ended"])
    assert all(len(read_validation(steps[id].folder / "validation.jsonl")) == 12 for id in (SHORT, LONG))
    assert list(steps["rlvr"].outcome["summary"]["candidates"]) == [SHORT, LONG, f"{SHORT}+2"]
    assert "runs of rlvr: validation accuracy in %" in project.log()
    told = json.loads((project.out / "runs.json").read_text())
    assert [row["run"] for row in told] == [
        "steps=2/seed-1", "steps=4/seed-1", "steps=2/seed-1+2",
        "seed-1", "seed-2",
    ]  # fmt: skip
    assert [row["chosen"] for row in told].count(True) == 2


def test_a_run_let_go_on_is_bit_equal_to_one_that_was_so_long_from_the_start(project: Project) -> None:
    """Both took turns on the server with each other for a while; the longer part of one was alone there."""
    made = hashes(project)
    assert made[f"{SHORT}+2"] == made[LONG] != made[SHORT]
    rates = [
        Ledger(project.out).metrics(project.steps()[id].key, "learning_rate") for id in (LONG, f"{SHORT}+2")
    ]
    assert rates[0][2:] == rates[1]


def test_adapters_at_once_take_places_on_the_server(project: Project) -> None:
    """With two runs on a CPU there is one: whoever samples, the other trains meanwhile or waits."""
    lease = project.out / "server" / "places" / "lease"
    # each run asks for one at each of two steps and for its validation
    assert json.loads((lease / "next").read_text())["next"] == 1 + 2 * 3
    assert not list(lease.glob("[0-9]*.json"))
    steps = [step for step in project.steps().values() if step.id.startswith("adapters/")]
    waits = [wait for step in steps for _, wait in Ledger(project.out).metrics(step.key, "wait_s")]
    assert len(waits) == 2 * 2
    assert max(waits) > 0.1
