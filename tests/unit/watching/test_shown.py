"""Spikes and warnings where people see them, and `watch` and `warnings` as fields of a recipe."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from tulu_lite.errors import TuluLiteError
from tulu_lite.pipeline.expand import expand
from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.pipeline.plan import make_plan
from tulu_lite.pipeline.show import Display
from tulu_lite.pipeline.steps import Step
from tulu_lite.recipe import dump_recipe, load_recipe


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    recipe = {
        "name": "tiny", "model": "./model", "output": "./out",
        "stages": [{"name": "sft", "kind": "sft", "data": "rows.jsonl", "learning_rate": 1e-3}],
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path / "recipe.yaml"


def step_of(file: Path, *overrides: str) -> Step:
    recipe = load_recipe(file, overrides)
    return next(step for step in expand(recipe, Ledger(Path(recipe.output))) if step.kind == "sft")


def test_a_run_shows_each_note_once_and_what_there_was_at_the_end(file: Path) -> None:
    step = step_of(file)
    step.folder.mkdir(parents=True)
    console = Console(file=io.StringIO(), width=100, color_system=None)
    display = Display(console)
    display.started(1, 1, step, "python")
    state: dict[str, Any] = {
        "done": 3,
        "total": 9,
        "unit": "steps",
        "rate": None,
        "shown": {},
        "notes": ["spike: step 3: loss [x]"],
    }
    for _ in range(3):
        display.progress({step.id: state})
    display.progress({step.id: state | {"notes": ["spike: step 3: loss [x]", "warning, truncation: much"]}})
    (step.folder / "spikes.jsonl").write_text(json.dumps({"step": 3}) + "\n")
    (step.folder / "warnings.jsonl").write_text(json.dumps({"step": 4, "name": "kl_runaway"}) + "\n")
    display.ended(1, 1, step, 2.0)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("spike: step 3: loss [x]") == 1 and text.count("warning, truncation: much") == 1
    assert "1 spike, warned of kl runaway" in text


def test_a_run_that_was_stopped_early_is_said_to_be(file: Path) -> None:
    step = step_of(file)
    step.folder.mkdir(parents=True)
    step.result_file.write_text(json.dumps({"summary": {"step": 2, "stopped_early": "behind [far]"}}))
    console = Console(
        file=io.StringIO(), width=100, force_terminal=True, color_system="standard", highlight=False
    )
    Display(console).ended(1, 1, step, 2.0)
    assert "\x1b[33m  stopped early: behind [far]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_sink_that_is_not_installed_is_said_by_the_plan(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(file, ["watch=[wandb]"])
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "wandb" else there(name, *more)
    )
    with pytest.raises(TuluLiteError, match="watch: wandb is asked for, but not installed"):
        make_plan(recipe, sizes=False)


def test_watching_decides_no_result(file: Path) -> None:
    watched = step_of(file, "watch=[tensorboard,wandb]", "warnings.spike_mads=3", "warnings.kl=null")
    assert watched.key == step_of(file).key


def test_the_fields_come_back_from_the_recipe_as_it_ran(file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(
        file, ["watch=[tensorboard]", "warnings={length_growth: 2.5, truncated_share: null}"]
    )
    (tmp_path / "ran.yaml").write_text(dump_recipe(recipe))
    again = load_recipe(tmp_path / "ran.yaml")
    assert again.watch == ("tensorboard",)
    assert (again.warnings.length_growth, again.warnings.truncated_share) == (2.5, None)
    for wrong in ("watch=[mlflow]", "warnings.spike_window=3", "warnings.spikes=1", "warnings.kl=-1"):
        with pytest.raises(TuluLiteError, match="warnings|watch"):
            load_recipe(file, [wrong])
