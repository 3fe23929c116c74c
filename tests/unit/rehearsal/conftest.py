from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tulu_lite.rehearsal import models


@pytest.fixture(scope="session")
def kept_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch, kept_models: Path) -> None:
    """Tiny models are made in this process and stay random: a plan needs no more. One of a kind is made once."""

    def make_here(spec: Path, out: Path) -> None:
        from tulu_lite.rehearsal.make_model import make

        given = json.loads(spec.read_text()) | {"steps": 0}
        kind = (
            kept_models
            / f"{given['config']['model_type']}-{given['reward']}-{given['config']['max_position_embeddings']}"
        )
        if not kind.exists():
            make(given, kind)
        shutil.copytree(kind, out)

    monkeypatch.setattr(models, "run_maker", make_here)
    monkeypatch.setattr(models, "hub_answers", lambda: False)
