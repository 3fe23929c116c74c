"""The story openings are what their generator makes, and validation shares none with training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

STORIES = Path(__file__).parents[3] / "data" / "stories"


def test_the_generator_remakes_the_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, STORIES / "generate.py", "--out", tmp_path], check=True, timeout=60)
    for name in ("prompts.jsonl", "validation.jsonl"):
        assert (tmp_path / name).read_bytes() == (STORIES / name).read_bytes()


def test_validation_is_apart() -> None:
    prompts, validation = (
        {json.loads(line)["prompt"] for line in (STORIES / f"{name}.jsonl").read_text().splitlines()}
        for name in ("prompts", "validation")
    )
    assert prompts
    assert validation
    assert not prompts & validation
