"""data/make_model.py makes a folder that transformers loads, with a tokenizer that round-trips any text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

SCRIPT = Path(__file__).parents[3] / "data" / "make_model.py"


def make(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    rows = [{"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}."} for i in range(50)]
    rows.append({"question": "one\u2028line\x85", "answer": "of JSON"})
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    command = [
        sys.executable,
        str(SCRIPT),
        "--text",
        str(tmp_path / "rows.jsonl"),
        "--out",
        str(tmp_path / "m"),
    ]
    sizes = ["--vocabulary", "300", "--hidden", "32", "--layers", "1", "--context", "64", "--threads", "1"]
    return subprocess.run([*command, *sizes, *arguments], capture_output=True, text=True, timeout=240)


def test_a_tiny_model_is_made(tmp_path: Path) -> None:
    made = make(tmp_path, "--fields", "question", "answer", "--steps", "2", "--rows", "2", "--length", "16")
    assert made.returncode == 0, made.stderr
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    text = "What is 12 and 12? é漢\n\n  two  spaces"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert [tokenizer.decode([i]) for i in tokenizer("47", add_special_tokens=False)["input_ids"]] == [
        "4",
        "7",
    ]
    assert {"config.json", "model.safetensors", "TRAINING.json"} <= {
        path.name for path in (tmp_path / "m").iterdir()
    }


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    made = make(tmp_path, "--fields", "question", "solution")
    assert made.returncode != 0
    assert "rows.jsonl:1: no field 'solution'" in made.stderr


@pytest.mark.parametrize("hidden", ["33"])
def test_a_hidden_size_that_heads_do_not_divide(tmp_path: Path, hidden: str) -> None:
    made = make(tmp_path, "--fields", "question", "--hidden", hidden)
    assert made.returncode == 2
    assert "multiple of 32" in made.stderr
