"""A rehearsal through the real engine: rejection sampling from a pool into SFT; and the same rows from half of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

BIN = Path(sys.executable).parent
RECIPE: dict[str, Any] = {
    "name": "r", "model": "Qwen/Qwen2.5-0.5B", "output": "./out", "chat_template": "chatml", "verifier_workers": 1,
    "stages": [
        {
            "name": "rejection", "kind": "reject", "init": "base", "samples_per_prompt": 16, "keep_per_prompt": 2,
            "data": {"hub": "openai/gsm8k", "prompt": "{question}", "reference": "answer", "verifier": "gsm8k"},
            "sampling": {"max_tokens": 512}, "general": {"hub": "allenai/tulu-3-sft-mixture", "limit": 1000},
        },
        {"name": "sft", "kind": "sft", "data": {"stage": "rejection"}, "batch_size": 64, "learning_rate": 1e-5},
    ],
}  # fmt: skip


def rehearse(folder: Path) -> str:
    done = subprocess.run(
        [BIN / "tulu-lite", "run", "recipe.yaml", "--rehearse"],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def rows(step: Path) -> list[dict[str, Any]]:
    """Without what a verdict says of its time."""
    found = [json.loads(line) for line in (step / "rows.jsonl").read_text().splitlines()]
    for row in found:
        (row["verdict"] or {}).pop("seconds", None)
    return found


def test_a_rehearsal_goes_the_whole_way_and_goes_on_to_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    said = rehearse(tmp_path)
    assert "2 hub data sets are made up" in said and "Qwen2.5-0.5B: qwen2" in said
    steps = tmp_path / "out-rehearsal" / "steps"
    (step,) = (steps / "rejection").iterdir()
    first = rows(step)
    chosen = [row for row in first if row["kind"] == "chosen"]
    general = [row for row in first if row["kind"] == "general"]
    assert len(general) == round(len(chosen) / 3) or len(chosen) == round(3 * len(general))
    assert all(row["verdict"]["score"] == 1 and row["response_ids"] for row in chosen)
    assert all(row["messages"] for row in general)
    (result,) = (steps / "sft").glob("*/result.json")
    assert json.loads(result.read_text())["summary"]["examples"] == len(first)

    kept = (step / "groups.jsonl").read_bytes()
    lines = kept.splitlines(keepends=True)
    assert len(lines) == 12
    (step / "groups.jsonl").write_bytes(
        b"".join(lines[:5]) + lines[5][:40]
    )  # killed while it wrote the sixth
    (step / "result.json").unlink()
    rehearse(tmp_path)
    assert rows(step) == first
    again = (step / "groups.jsonl").read_bytes().splitlines(keepends=True)
    assert again[:5] == lines[:5] and len(again) == 12
