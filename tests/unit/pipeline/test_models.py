"""The recipe's model from the hub: what is told when it cannot be had, and that an interruption stays one."""

from __future__ import annotations

import os
import signal
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tulu_lite.errors import TuluLiteError
from tulu_lite.pipeline import models, runner
from tulu_lite.pipeline.runner import Interrupted
from tulu_lite.recipe import Recipe

EVALUATE = {"name": "test", "kind": "evaluate", "models": ["base"], "data": "/a.jsonl", "max_tokens": 4}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return Recipe(name="r", model="org/m", output=str(tmp_path), stages=[EVALUATE])  # type: ignore[arg-type, list-item]


def the_hub_does(monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = hub.hf_hub_download = act  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)


@pytest.mark.parametrize("get", [models.local_model, models.model_config])
@pytest.mark.parametrize(("error", "told"), [(OSError(), "OSError"), (ValueError("no\nlonger"), "no")])
def test_why_the_hub_gave_no_model_is_told_in_a_line(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, get: Any, error: Exception, told: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    the_hub_does(monkeypatch, fail)
    with pytest.raises(TuluLiteError) as raised:
        get(recipe)
    assert raised.value.what == f"cannot download the model org/m from the hub: {told}"


@pytest.mark.parametrize("get", [models.local_model, models.model_config])
def test_a_signal_while_the_model_is_downloaded_ends_the_run(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, get: Any
) -> None:
    the_hub_does(monkeypatch, lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    with runner._stop_signals(), pytest.raises(Interrupted):
        get(recipe)
