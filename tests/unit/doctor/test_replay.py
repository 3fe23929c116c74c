"""A step done again: the same bits, each sample's part against the definition, and nothing of the run changed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tulu_lite.datasets.batching import step_indices
from tulu_lite.doctor import replay as replay_module
from tulu_lite.doctor.replay import Replay, newest_save, relative_gap, replay
from tulu_lite.errors import TuluLiteError
from tulu_lite.pipeline.expand import expand
from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.pipeline.steps import Step
from tulu_lite.recipe import Recipe, load_recipe
from tulu_lite.stages import dpo, sft
from tulu_lite.stages.context import StepContext
from tulu_lite.training import loop

BASE = Path(__file__).parents[3] / "data" / "quickstart" / "base"
BAD = step_indices(12, 4, 2, 0, 6)[0]  # a row of the last step
GARBAGE = "zq xj 9#? vv kk" * 2


@pytest.fixture(autouse=True, scope="module")
def _torch_as_before() -> Iterator[None]:
    threads, exact = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(exact)


def opened(folder: Path) -> tuple[Recipe, dict[str, Step]]:
    recipe = load_recipe(folder / "recipe.yaml")
    return recipe, {step.id: step for step in expand(recipe, Ledger(Path(recipe.output)))}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sft and a dpo stage that ran in this process: 6 and 3 updates of 4 items, saved after every second."""
    folder = tmp_path_factory.mktemp("run")
    rows = [{"prompt": f"What is {i} + {i}?", "completion": f"It is {2 * i}."} for i in range(12)]
    rows[BAD] = {"prompt": "What is 1 + 1?", "completion": GARBAGE}
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [
        {"prompt": f"What is {i} + {i}?", "chosen": f"{2 * i}", "rejected": f"{2 * i + 1}"} for i in range(12)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    shared = {"learning_rate": 1e-3, "batch_size": 4, "save_every_steps": 2, "max_length": 64}
    stages = [
        {"name": "sft", "kind": "sft", "data": "rows.jsonl", "epochs": 2, **shared},
        {"name": "dpo", "kind": "dpo", "init": "sft", "data": "pairs.jsonl", **shared},
    ]
    recipe = {
        "name": "tiny", "model": str(BASE), "output": "out", "chat_template": "tulu", "stages": stages,
        "accelerate": {"device": "cpu", "threads": 1},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for id, stage in (("sft", sft), ("dpo", dpo)):
        loaded, steps = opened(folder)
        steps[id].folder.mkdir(parents=True)
        ctx = StepContext(
            loaded, steps[id].stage, steps[id], steps, Ledger(Path(loaded.output)), is_main=True
        )
        stage.train(ctx)
    return folder


def state_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "ledger" not in path.name
    }


def do(run: Path, id: str, number: int) -> Replay:
    recipe, steps = opened(run)
    return replay(recipe, steps, steps[id], number, lambda _: None)


@pytest.fixture(scope="module")
def done(run: Path) -> dict[str, tuple[Replay, bool]]:
    """The last step of each stage done again, and whether the run's files stayed as they were."""
    found = {}
    for id, number in (("sft", 6), ("dpo", 3)):
        before = state_of(run)
        found[id] = (do(run, id, number), state_of(run) == before)
    return found


@pytest.mark.parametrize(("id", "start", "again"), [("sft", "step-000004", 1), ("dpo", "step-000002", 0)])
def test_a_step_is_done_again_to_the_same_bits_and_changes_nothing(
    done: dict[str, tuple[Replay, bool]], id: str, start: str, again: int
) -> None:
    found, unchanged = done[id]
    assert unchanged
    assert (found.started_from, found.again, found.failure) == (start, again, "")
    assert found.gaps() == {"loss": 0.0, "grad_norm": 0.0} and found.reproduced


@pytest.mark.parametrize("id", ["sft", "dpo"])
def test_the_samples_parts_make_up_the_step(done: dict[str, tuple[Replay, bool]], id: str) -> None:
    found, _ = done[id]
    assert len(found.samples) == 4
    assert sum(sample.loss for sample in found.samples) == pytest.approx(found.logged["loss"], rel=1e-5)
    assert sum(sample.pull for sample in found.samples) == pytest.approx(1.0, rel=1e-5)
    # g = sum of g_i, so |g|^2 = sum of g_i . g, and each pull is at most |g_i| / |g| (Cauchy-Schwarz)
    assert all(abs(s.pull) <= s.grad_norm / found.logged["grad_norm"] * (1 + 1e-4) for s in found.samples)
    weights = [sample.loss_tokens if id == "sft" else 1 for sample in found.samples]
    mean = sum(sample.each * weight for sample, weight in zip(found.samples, weights, strict=True)) / sum(
        weights
    )
    assert mean == pytest.approx(found.logged["loss"], rel=1e-5)


def test_the_row_that_blew_it_up_is_named(run: Path, done: dict[str, tuple[Replay, bool]]) -> None:
    worst = max(done["sft"][0].samples, key=lambda sample: sample.grad_norm)
    assert worst.where == f"{run / 'rows.jsonl'}:{BAD + 1}"
    assert worst.pull > 0.5


def test_without_a_save_before_it_begins_with_the_initial_model(run: Path) -> None:
    found = do(run, "dpo", 1)  # the saves are of steps 2 and 3
    assert (found.started_from, found.again) == ("the initial model", 0)
    assert found.reproduced
    assert all(sample.where.startswith(str(run / "pairs.jsonl:")) for sample in found.samples)


def test_a_step_that_comes_out_otherwise_is_not_reproduced(done: dict[str, tuple[Replay, bool]]) -> None:
    found = replace(done["dpo"][0])
    found.logged = found.logged | {"grad_norm": found.logged["grad_norm"] * 1.01}
    assert found.reproduced is False
    found.logged = {}
    assert found.reproduced is None


def test_there_is_no_such_step(run: Path) -> None:
    with pytest.raises(TuluLiteError, match="dpo has no step 4"):
        do(run, "dpo", 4)


def test_a_step_that_fails_shows_its_samples_all_the_same(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = loop.Training.update

    def broken(self: Any, step: int, batch: Any, lengths: Any, loss_over: Any) -> Any:
        def bad(items: Any) -> torch.Tensor:
            return loss_over(batch)(items) * (math.nan if any(item.line == BAD + 1 for item in items) else 1)

        return update(self, step, batch, lengths, lambda _: bad)

    monkeypatch.setattr(loop.Training, "update", broken)
    found = do(run, "sft", 6)
    assert "the loss is nan" in found.failure and f"rows.jsonl:{BAD + 1} by itself" in found.failure
    assert [math.isnan(s.loss) for s in found.samples] == [
        s.where.endswith(f":{BAD + 1}") for s in found.samples
    ]


def test_gaps() -> None:
    assert relative_gap(2.0, 2.0) == 0 and relative_gap(math.nan, math.nan) == 0
    assert relative_gap(2.0, 1.0) == 0.5
    assert relative_gap(1e-9, -1e-9) == pytest.approx(2e-7)
    assert math.isnan(relative_gap(None, 1.0))


def test_the_newest_save_before(tmp_path: Path) -> None:
    for name in ("step-000002", "step-000010", "step-000004", "step-x"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-000003").write_text("no folder")
    assert newest_save(tmp_path, 9) == tmp_path / "step-000004"
    assert newest_save(tmp_path, 1) is None
    assert newest_save(tmp_path / "nowhere", 9) is None


def test_a_scratch_folder_shows_one_save_and_copies_no_file(run: Path, tmp_path: Path) -> None:
    _, steps = opened(run)
    step = steps["dpo"]
    start = newest_save(step.folder / "checkpoints", 2)
    shown = replay_module.scratch_step(step, tmp_path, start)
    assert [path.name for path in (shown.folder / "checkpoints").iterdir()] == ["step-000002"]
    files = [path for path in shown.folder.rglob("*") if not path.is_dir()]
    assert files and all(path.is_symlink() for path in files)
    assert not any(path.is_symlink() for path in shown.folder.rglob("*") if path.is_dir())
    assert not (shown.folder / "metrics.jsonl").exists() and not (shown.folder / "result.json").exists()
