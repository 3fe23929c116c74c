"""What benchmarks/training.py measures with: the model, rows of skewed lengths, and children that train on them.

Each child is a process of its own and prints one JSON line. Ours is the stage itself, as a run starts it, with a clock
at each optimiser step; the peer's is benchmarks/training_peer.py under --peer-python; both get the same token ids.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "data" / "quickstart" / "base"
SECONDS = 1800


@dataclass(frozen=True)
class Setting:
    """What both sides train: rows (or pairs) of one epoch, in batches, on so many threads."""

    rows: int
    batch_size: int
    threads: int
    learning_rate: float = 1e-4
    max_tokens: int = 240


def child(command: list[str], setting: Setting) -> dict[str, Any]:
    """The JSON line that it ends with."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(setting.threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{(done.stdout + done.stderr)[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


# Rows


def joined_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows of skewed lengths: 1 to 8 of the quickstart's demonstrations joined, half of the rows a single one."""
    lines = [json.loads(line) for line in (ROOT / "data/quickstart/sft.jsonl").read_bytes().splitlines()]
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        many = 1
        while many < 8 and draw.random() < 0.5:
            many += 1
        chosen = draw.sample(lines, many)
        prompt, completion = (
            " ".join(line["messages"][turn]["content"] for line in chosen) for turn in (0, 1)
        )
        other = " ".join(draw.choice(lines)["messages"][1]["content"] for _ in range(draw.randint(1, many)))
        rows.append({"prompt": prompt, "completion": completion, "chosen": completion, "rejected": other})
    return rows


def make_world(folder: Path, setting: Setting, vocabulary: int | None = None) -> None:
    """folder/model, folder/rows.jsonl. vocabulary: of a random model with so many tokens, else the quickstart's base."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in joined_rows(setting.rows)))
    if (folder / "model").exists():
        return
    shutil.copytree(BASE, folder / "model")
    if vocabulary is not None:
        code = (
            "import sys, torch; from transformers import LlamaConfig, LlamaForCausalLM; torch.manual_seed(0);"
            f"c = LlamaConfig.from_pretrained({str(BASE)!r}, vocab_size={vocabulary});"
            f"LlamaForCausalLM(c).save_pretrained({str(folder / 'model')!r})"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=SECONDS)


def write_recipe(folder: Path, kind: str, setting: Setting, **fields: Any) -> Path:
    stage = {
        "name": kind, "kind": kind, "init": "base", "data": "rows.jsonl", "learning_rate": setting.learning_rate,
        "batch_size": setting.batch_size, "max_length": setting.max_tokens, "warmup_ratio": 0.0,
        "schedule": "constant", "save_every_steps": 100000, "seed": 0, **fields,
    }  # fmt: skip
    recipe = {
        "name": "benchmark", "model": "./model", "output": "./out", "chat_template": "tulu",
        "accelerate": {"device": "cpu", "threads": setting.threads}, "stages": [stage],
    }  # fmt: skip
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def ours(folder: Path, kind: str, setting: Setting, mode: str = "stage", **fields: Any) -> dict[str, Any]:
    """The stage's own process (mode: stage), or a bare loop on ready tensors (bare)."""
    recipe = write_recipe(folder, kind, setting, **fields)
    shutil.rmtree(folder / "out", ignore_errors=True)
    script = Path(__file__).parent / "training_ours.py"
    # -P: benchmarks/verifiers.py must not hide the package
    return child([sys.executable, "-P", str(script), mode, kind, str(recipe)], setting)


def peer(
    python: str, folder: Path, kind: str, setting: Setting, mode: str, golden: bool = False
) -> dict[str, Any]:
    """TRL's trainer on the token ids that ours wrote beside the recipe (ours must have run before)."""
    script = Path(__file__).parent / "training_peer.py"
    options = {
        "folder": str(folder), "kind": kind, "mode": mode, "batch_size": setting.batch_size,
        "learning_rate": setting.learning_rate, "threads": setting.threads, "max_tokens": setting.max_tokens, "golden": golden,
    }  # fmt: skip
    return child([python, str(script), json.dumps(options)], setting)
