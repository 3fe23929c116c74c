"""Two seeds of one stage at the same time on one real server, and one of them let go on: the same bits as alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.pipeline.protocol import read_validation

sys.path.insert(0, str(Path(__file__).parent))
from project import DATA, Project, assert_nothing_lives, hashes, rows

RL: dict[str, Any] = {
    "kind": "rlvr", "init": "base", "data": rows("prompts", 16), "validation": rows("validation", 12), "prompts_per_step": 4,
    "samples_per_prompt": 4, "sampling": {"max_tokens": 24}, "learning_rate": 1e-4, "warmup_ratio": 0, "kl_coefficient": 0,
}  # fmt: skip
RECIPE: dict[str, Any] = {
    "name": "runs",
    "model": str(DATA / "base"),
    "output": "./out",
    "verifiers": {"number_and_form": {"all_of": ["number", "ifeval"]}},
    "verifier_workers": 1,
    "server": {"max_model_len": 160, "kv_cache_mb": 64},
    "accelerate": {"threads": 1},
    "stages": [
        {"name": "rlvr", **RL, "seeds": [1, 2], "at_once": 2, "steps": 2},
        {"name": "long", **RL, "seeds": [1], "steps": 4, "save_every_steps": 4},
    ],
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project(tmp_path_factory.mktemp("runs"), RECIPE)
    assert made.done(made.run()) == 0, made.log()[-3000:]
    assert_nothing_lives(made)
    return made


def test_both_trained_at_the_same_time_and_the_better_goes_on(project: Project) -> None:
    one, two = (Ledger(project.out).step(project.steps()[f"rlvr/seed-{seed}"].key) for seed in (1, 2))
    assert one is not None and two is not None
    assert max(one["started"], two["started"]) < min(one["ended"], two["ended"])
    assert one["run"] == two["run"] == 1
    steps = project.steps()
    values = {
        seed: read_validation(steps[f"rlvr/seed-{seed}"].folder / "validation.jsonl") for seed in (1, 2)
    }
    assert all(len(each) == 12 for each in values.values())
    means = {seed: sum(each.values()) / 12 for seed, each in values.items()}
    assert steps["rlvr"].outcome["summary"]["chosen"] == f"rlvr/seed-{1 if means[1] >= means[2] else 2}"
    log = project.log()
    assert "runs of rlvr: validation accuracy in %" in log
    assert [row["chosen"] for row in json.loads((project.out / "runs.json").read_text())].count(True) == 1


def test_a_run_let_go_on_is_bit_equal_to_one_that_was_so_long_from_the_start(project: Project) -> None:
    before = project.steps()
    process = project.start(
        "tulu-lite", "extend", str(project.out), "--stage", "rlvr", "--seed", "1", "--steps", "+2"
    )
    assert project.done(process) == 0, project.log()[-3000:]
    assert_nothing_lives(project)
    after = project.steps()
    assert after["rlvr/seed-1+2"].done
    assert len(after["rlvr"].inputs) == 3
    made = hashes(project)
    # it shared the server for two steps, was let go on in another run, and comes to the same weights as alone
    assert made["rlvr/seed-1+2"] == made["long/seed-1"] != made["rlvr/seed-1"]
    assert after["rlvr/seed-1"].key == before["rlvr/seed-1"].key
    assert after["rlvr"].outcome["summary"]["candidates"].keys() == {
        "rlvr/seed-1",
        "rlvr/seed-2",
        "rlvr/seed-1+2",
    }
    assert yaml.safe_load((project.out / "extend.yaml").read_text()) == {
        "rlvr": [{"run": "seed-1", "steps": 2}]
    }
