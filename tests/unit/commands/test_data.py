"""tulu-lite data: what is printed of a stage's rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from tulu_lite.cli import app
from tulu_lite.commands import data as command
from tulu_lite.datasets.chat import ChatTemplate, load_tokenizer
from tulu_lite.datasets.show import coloured, spread
from tulu_lite.errors import TuluLiteError

BASE = str(Path(__file__).parents[3] / "data" / "quickstart" / "base")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    sft = [{"prompt": f"add {i}", "completion": "so 1 <eos>", "topic": f"t{i % 2}"} for i in range(4)]
    sft.append({"prompt": "☃", "completion": "", "topic": "t0"})
    pairs = [{"prompt": "q", "chosen": "yes", "rejected": "no"}]
    prompts = [{"prompt": "what is 2", "reference": "2", "verifier": "number"}]
    for name, rows in (("sft", sft), ("pairs", pairs), ("prompts", prompts)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rate = {"learning_rate": 1e-3}
    stages: list[dict[str, Any]] = [
        {"name": "sft", "kind": "sft", "data": {"path": "sft.jsonl", "tags": "topic", "repeat": 2}, "bad_rows": "drop", "max_length": 100, **rate},
        {"name": "dpo", "kind": "dpo", "init": "sft", "data": "pairs.jsonl", "max_length": 100, **rate},
        {"name": "test", "kind": "evaluate", "models": ["dpo"], "data": "prompts.jsonl", "max_tokens": 8},
    ]  # fmt: skip
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"name": "t", "model": BASE, "output": "./out", "stages": stages}))
    return file


def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> str:
    monkeypatch.setattr(command, "console", Console(highlight=False, width=120))
    app([str(argument) for argument in ("data", *arguments)], standalone_mode=False)
    return capsys.readouterr().out


def test_rows_as_the_model_sees_them(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = said(capsys, monkeypatch, "show", recipe, "--stage", "sft", "-n", "2")
    assert "<bos><|user|>\nadd 0\n<|assistant|>\n«so 1 <eos><eos>»" in shown
    assert "topic=t0  22 tokens, 11 learnt" in shown  # one token a character, and one a role
    assert shown.count("sft.jsonl:") == 2
    pair = said(capsys, monkeypatch, "show", recipe, "--stage", "dpo")
    assert "«yes<eos>»" in pair and "«no<eos>»" in pair and "chosen" in pair
    prompt = said(capsys, monkeypatch, "show", recipe, "--stage", "test")
    assert "verifier number, reference '2'" in prompt and "«" not in prompt.splitlines()[1]
    dropped = said(capsys, monkeypatch, "show", recipe, "--stage", "sft", "--dropped")
    assert "sft.jsonl:5  sft: an empty completion" in dropped and "☃" in dropped


def test_counts_by_source_and_tag(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = said(capsys, monkeypatch, "report", recipe, "--stage", "sft")
    assert "8 rows, 176 tokens, 88 of them learnt, in an epoch; 4 different rows can be used." in shown
    assert "topic=t1" in shown and "an empty completion" in shown
    data = json.loads(said(capsys, monkeypatch, "report", recipe, "--stage", "sft", "--json"))
    assert data["tags"] == {f"topic=t{i}": {"rows": 4, "tokens": 88, "loss_tokens": 44} for i in (0, 1)}
    assert data["dropped"] == {"an empty completion": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--stage", "none"), "there is no stage 'none' that reads rows"),
        ((), "several stages read rows"),
        (("--stage", "sft", "--source", "x"), "no row is of source 'x'"),
        (("--stage", "sft", "--field", "validation"), "has no rows of `validation`"),
    ],
)
def test_what_cannot_be_shown(recipe: Path, arguments: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(app, ["data", "show", str(recipe), *arguments])
    assert isinstance(result.exception, TuluLiteError)
    assert message in result.exception.what
    assert result.exception.cure


def test_colours() -> None:
    template = ChatTemplate.load("tulu", load_tokenizer(BASE), BASE)
    ((ids, mask),) = template.conversations(
        [[{"role": "user", "content": "☃\x1b[31m"}, {"role": "assistant", "content": "a"}]]
    )
    text = coloured(template, ids, mask)
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert styles["a"] == "green"
    assert styles["<unk><unk>"].endswith("on red")
    assert "cyan" in next(style for text, style in styles.items() if text.startswith("<bos>"))
    assert "\x1b" not in text.plain


def test_rows_are_spread_over_an_epoch() -> None:
    assert spread(3, 5) == [0, 1, 2]
    assert spread(10, 3) == [0, 3, 6]
    assert spread(0, 3) == []
