from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from tulu_lite.errors import TuluLiteError
from tulu_lite.recipe.training import TrainingSettings
from tulu_lite.training import folders, saver
from tulu_lite.training.checkpoint import load_latest, load_weights
from tulu_lite.training.model import load_model
from tulu_lite.training.optim import make_optimizer
from tulu_lite.training.saver import BEST, Saver

Folder = Callable[..., Path]


@pytest.fixture
def parts(accelerator: Accelerator, llama_folder: Folder) -> dict[str, Any]:
    model = load_model(llama_folder(), accelerator.device)
    optimizer, _ = make_optimizer(model, TrainingSettings(learning_rate=1e-2), 10)
    model, optimizer = accelerator.prepare(model, optimizer)
    return {"model": model, "optimizer": optimizer}


def change(parts: dict[str, Any], value: float) -> None:
    with torch.no_grad():
        for parameter in parts["model"].parameters():
            parameter.fill_(value)


def first(parts: dict[str, Any]) -> float:
    return next(parts["model"].parameters()).flatten()[0].item()


def test_a_save_holds_what_was_there_when_it_began(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, str]] = []
    go = threading.Event()
    write = saver.write_snapshot

    def slow(*arguments: Any) -> None:
        assert go.wait(10)
        write(*arguments)

    monkeypatch.setattr(saver, "write_snapshot", slow)
    saves = Saver(tmp_path, 2, lambda step, path: told.append((step, path.name)))
    change(parts, 1.0)
    saves.save(1, **parts, state={"step": 1})
    change(parts, 2.0)  # training goes on
    saves.check()
    assert told == []
    go.set()
    saves.wait()
    assert told == [(1, "step-000001")]
    assert load_latest(tmp_path, **parts) == {"step": 1}
    assert first(parts) == 1.0


def test_newest_and_best_are_kept(parts: dict[str, Any], tmp_path: Path) -> None:
    saves = Saver(tmp_path, 2, lambda *_: None)
    for step in (1, 2, 3, 4):
        change(parts, float(step))
        saves.save(step, **parts, state={"step": step})
        if step == 2:
            saves.save(step, **parts, state={"step": step, "value": 0.5}, name=BEST)
    saves.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == [BEST, "step-000003", "step-000004"]
    assert load_weights(tmp_path / BEST, parts["model"]) == {"step": 2, "value": 0.5}
    assert first(parts) == 2.0
    assert load_weights(tmp_path / "step-000009", parts["model"]) is None
    assert first(parts) == 2.0


def test_a_full_disk_is_told_at_the_next_step(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves = Saver(tmp_path, 2, lambda *_: None)
    change(parts, 1.0)
    saves.save(1, **parts, state={"step": 1})
    saves.wait()

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(folders, "save_file", full)
    saves.save(2, **parts, state={"step": 2})
    assert saves._thread is not None
    saves._thread.join()
    with pytest.raises(TuluLiteError, match="disk is full") as raised:
        saves.check()
    assert isinstance(raised.value.__cause__, OSError)
    assert raised.value.__cause__.errno == errno.ENOSPC
    saves.check()  # once
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    change(parts, 9.0)
    assert load_latest(tmp_path, **parts) == {"step": 1}
    assert first(parts) == 1.0
    saves.save(3, **parts, state={"step": 3})
    with pytest.raises(TuluLiteError, match="disk is full"):
        saves.wait()


def test_what_a_kill_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-000007.x.tmp").mkdir()
    (tmp_path / "step-000006").mkdir()
    Saver(tmp_path, 2, lambda *_: None).clean()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000006"]
