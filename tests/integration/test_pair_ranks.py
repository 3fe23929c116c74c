"""DPO and reward stages on two processes are those on one: the same losses, gradients, ranks of held-out pairs, weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tulu_lite.pipeline.expand import expand
from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.pipeline.protocol import read_metrics
from tulu_lite.pipeline.steps import Step
from tulu_lite.recipe import load_recipe

sys.path.insert(0, str(Path(__file__).parent))
from ranks import run_ranks

BASE = Path(__file__).parents[2] / "data" / "quickstart" / "base"
WORKER = Path(__file__).parent / "pair_rank_worker.py"


def pair(number: int) -> dict[str, str]:
    return {
        "prompt": f"Reverse {number * 7919}.",
        "chosen": "8-7=1, " * (number % 5) + f"so {number}.",
        "rejected": f"Easy, {number}.",
    }


def run(root: Path, world: int) -> dict[str, Step]:
    folder = root / f"world-{world}"
    folder.mkdir()
    for name, numbers in (("pairs", range(10, 31)), ("held", range(50, 57))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(pair(i)) + "\n" for i in numbers))
    common = {
        "init": "base", "data": "pairs.jsonl", "validation": "held.jsonl", "learning_rate": 1e-4, "batch_size": 7,
        "max_length": 120, "micro_batch_tokens": 300, "warmup_ratio": 0.0,
    }  # fmt: skip
    stages = [{"name": kind, "kind": kind, **common} for kind in ("dpo", "reward")]
    recipe = {
        "name": "ranks", "model": str(BASE), "output": "./out", "chat_template": "tulu",
        "accelerate": {"device": "cpu", "threads": 1, "num_processes": world}, "stages": stages,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run_ranks(WORKER, str(folder / "recipe.yaml"), world=world)
    loaded = load_recipe(folder / "recipe.yaml")
    return {step.id: step for step in expand(loaded, Ledger(Path(loaded.output)))}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Step]]:
    root = tmp_path_factory.mktemp("ranks")
    return [run(root, world) for world in (1, 2)]


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_two_processes_are_one(worlds: list[dict[str, Step]], kind: str) -> None:
    one, two = (steps[kind] for steps in worlds)
    logged: list[list[dict[str, Any]]] = [read_metrics(step.folder / "metrics.jsonl") for step in (one, two)]
    assert len(logged[0]) == len(logged[1]) == 3
    for single, double in zip(*logged, strict=True):
        for name in ("loss", "grad_norm", "margin", "learning_rate", "tokens"):
            assert double[name] == pytest.approx(single[name], rel=1e-5, abs=1e-5), (name, single, double)
    assert (one.folder / "validation.jsonl").read_text() == (two.folder / "validation.jsonl").read_text()
    weights = [load_file(step.folder / "model" / "model.safetensors") for step in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-5, rtol=0)
