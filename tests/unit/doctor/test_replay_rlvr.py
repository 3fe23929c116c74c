"""A step of rlvr trained on again from its samples: the same bits, each response's part, no server, nothing changed."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tulu_lite.doctor.replay import Replay
from tulu_lite.doctor.replay_rlvr import replay_rlvr
from tulu_lite.errors import TuluLiteError
from tulu_lite.pipeline.expand import expand
from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.recipe import load_recipe
from tulu_lite.records import Prompt, Rollout, RolloutGroup
from tulu_lite.rl.recorded import RolloutLog, rollout_rows
from tulu_lite.stages.context import StepContext
from tulu_lite.stages.rlvr import Trainer
from tulu_lite.stages.sampling import Unserved
from verifiers.base import scored

BASE = Path(__file__).parents[3] / "data" / "quickstart" / "base"
PROMPTS, SAMPLES = 2, 3


@pytest.fixture(autouse=True, scope="module")
def _torch_as_before() -> Iterator[None]:
    threads, exact = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(exact)


def batch(step: int) -> dict[int, RolloutGroup]:
    """Made-up samples: no policy gave them, so ratios differ from 1."""
    drawn = random.Random(step)
    groups = {}
    for place in range(PROMPTS):
        prompt = Prompt(f"p{step}{place}", "", (1, 40 + place, 50 + step), "s", "number", "1", "question")
        rollouts = []
        for sample in range(SAMPLES):
            ids = tuple(drawn.randrange(10, 60) for _ in range(4 + sample))
            verdict = scored(float(sample == place))
            rollouts.append(Rollout(ids, (-3.0,) * len(ids), (step - 1,) * len(ids), "stop", "said", verdict))
        groups[place] = RolloutGroup(prompt, tuple(rollouts))
    return groups


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("rlvr"))


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("extended"), more=2)


def train(folder: Path, broken: bool = False, more: int = 0) -> Path:
    """An rlvr run of 4 steps with two updates each, saved after every second, that trained on recorded samples. broken:
    one response of step 3 has a log-probability that is no number. more: steps that it goes on."""
    row = {"prompt": "What is 1 + 1?", "reference": "2", "verifier": "number"}
    (folder / "rows.jsonl").write_text((json.dumps(row) + "\n") * 2)
    log = RolloutLog(folder / "given", 64)
    for step in range(1, 5 + more):
        rows = rollout_rows(batch(step))
        if broken and step == 3:
            rows[4]["logprobs"] = [math.nan, *rows[4]["logprobs"][1:]]
        log.put(step, rows)
    log.close()
    stage = {
        "name": "rl", "kind": "rlvr", "init": "base", "data": "rows.jsonl", "validation": "rows.jsonl", "seeds": [7], "steps": 4,
        "prompts_per_step": PROMPTS, "samples_per_prompt": SAMPLES, "updates_per_step": 2, "sampling": {"max_tokens": 8},
        "learning_rate": 1e-3, "kl_coefficient": 0.05, "max_logprob_gap": None, "save_every_steps": 2, "replay": str(folder / "given"),
        "extend": [{"run": "seed-7", "steps": more}] if more else [],
    }  # fmt: skip
    recipe = {
        "name": "tiny", "model": str(BASE), "output": "out", "chat_template": "tulu", "stages": [stage],
        "accelerate": {"device": "cpu", "threads": 1}, "server": {"max_model_len": 64},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    loaded, steps, id = opened(folder)
    for step in (steps[id], *([steps[f"{id}+{more}"]] if more else [])):
        step.folder.mkdir(parents=True)
        ctx = StepContext(loaded, step.stage, step, steps, Ledger(Path(loaded.output)), is_main=True)
        nobody: Any = None
        trainer = Trainer(ctx, Unserved.of(ctx), nobody)
        try:
            trainer.train()
        finally:
            trainer.close()
    for path in (folder / "given").iterdir():  # what is trained on again are the run's own records, not these
        path.write_text(path.read_text().replace("-3.0", "-2.0"))
    return folder


def opened(folder: Path) -> tuple[Any, dict[str, Any], str]:
    recipe = load_recipe(folder / "recipe.yaml")
    steps = {
        step.id: replace(step, folder=next(iter(step.folder.parent.glob("*")), step.folder))
        for step in expand(recipe, Ledger(Path(recipe.output)))
    }  # as they ran: their keys hang on the given samples, which are others by now
    return recipe, steps, next(id for id, step in steps.items() if step.kind == "rlvr")


def do(run: Path, number: int, suffix: str = "") -> Replay:
    recipe, steps, id = opened(run)
    return replay_rlvr(recipe, steps, steps[id + suffix], number, lambda _: None)


def state_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "ledger" not in path.name
    }


def test_a_step_is_trained_on_again_from_its_samples(run: Path) -> None:
    before = state_of(run)
    found = do(run, 4)
    assert state_of(run) == before
    assert (found.started_from, found.again, found.failure) == ("step-000002", 1, "")
    assert found.gaps() == {"loss": 0.0, "grad_norm": 0.0} and found.reproduced

    assert [sample.where for sample in found.samples] == [
        f"p4{place} sample {sample} (s)" for place in range(PROMPTS) for sample in range(SAMPLES)
    ]
    updates = sorted({sample.what["update"] for sample in found.samples})
    assert updates == [7, 8]  # the two of the fourth step
    parts = [[sample for sample in found.samples if sample.what["update"] == update] for update in updates]
    assert sum(s.loss for part in parts for s in part) / 2 == pytest.approx(
        found.logged["loss"], rel=1e-4, abs=1e-6
    )
    for part in parts:
        assert sum(sample.pull for sample in part) == pytest.approx(1.0, rel=1e-4)
        rewards, advantages = zip(*((s.what["reward"], s.what["advantage"]) for s in part), strict=True)
        assert sorted(rewards) == [0.0, 0.0, 1.0]
        # (r - mean) / std of 0, 0, 1: mean 1/3, std sqrt(2)/3
        assert advantages == pytest.approx([2**0.5 if r else -(2**-0.5) for r in rewards], rel=1e-5)
    tokens = sum(sample.loss_tokens for sample in found.samples)
    ratio = sum(sample.what["ratio"] * sample.loss_tokens for sample in found.samples) / tokens
    assert ratio == pytest.approx(found.logged["ratio"], rel=1e-4)
    clipped = sum(sample.what["clipped"] * sample.loss_tokens for sample in found.samples) / tokens
    assert clipped == pytest.approx(found.logged["clip_share"], abs=1e-6) and clipped > 0


def test_a_step_that_failed_has_kept_its_samples_and_the_response_is_named(tmp_path: Path) -> None:
    with pytest.raises(TuluLiteError, match="step 3: the norm of the gradient is nan"):
        train(tmp_path, broken=True)
    found = do(tmp_path, 3)
    assert found.reproduced is None and "the norm of the gradient is nan" in found.failure
    bad = [sample.where for sample in found.samples if not math.isfinite(sample.grad_norm)]
    assert bad == ["p31 sample 1 (s)"]


def test_samples_that_are_not_kept_are_missed_before_anything_is_loaded(run: Path) -> None:
    _, steps, id = opened(run)
    file = steps[id].folder / "rollouts" / "step-000003.jsonl"
    text = file.read_text()
    file.unlink()
    try:
        with pytest.raises(TuluLiteError, match="step 3, are not kept.*needs the steps 3 to 4"):
            do(run, 4)
    finally:
        file.write_text(text)


@pytest.mark.parametrize(("number", "again"), [(5, 0), (6, 1)])
def test_a_run_that_goes_on_from_another_is_replayed_from_where_that_ended(
    extended: Path, number: int, again: int
) -> None:
    before = state_of(extended)
    found = do(extended, number, "+2")
    assert state_of(extended) == before
    assert (found.started_from, found.again) == ("step-000004 of rl/seed-7", again)
    assert found.gaps() == {"loss": 0.0, "grad_norm": 0.0} and found.reproduced


@pytest.mark.parametrize(
    ("number", "suffix", "said"),
    [
        (9, "", "rl/seed-7 has no step 9 it has 4 steps"),
        (7, "+2", r"rl/seed-7\+2 has no step 7 it has 6 steps"),
        (3, "+2", r"step 3 is none of rl/seed-7\+2's own.*begins at step 5.*--stage rl/seed-7 --step 3"),
    ],
)
def test_a_step_that_the_run_never_did_is_told_as_that(
    extended: Path, number: int, suffix: str, said: str
) -> None:
    with pytest.raises(TuluLiteError, match=said):
        do(extended, number, suffix)


def test_a_run_whose_start_left_no_save_is_told_so(extended: Path) -> None:
    _, steps, id = opened(extended)
    saves = steps[id].folder / "checkpoints"
    saves.rename(saves.with_name("away"))
    try:
        with pytest.raises(TuluLiteError, match=r"goes on from where rl/seed-7 ended, and that left no save"):
            do(extended, 5, "+2")
    finally:
        saves.with_name("away").rename(saves)
