"""A save holds value model, refreshed reference and begun batches; what a kill left without a policy does not count."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from tulu_lite.errors import TuluLiteError
from tulu_lite.recipe.training import AccelerateSettings
from tulu_lite.records import RolloutGroup
from tulu_lite.rl.collect import Collected
from tulu_lite.rl.critic import Critic
from tulu_lite.rl.learner import Learner
from tulu_lite.rl.reference import Reference, check_vocabulary
from tulu_lite.rl.saves import load_all, pending_batches, save_all
from tulu_lite.training.accelerator import make_accelerator
from tulu_lite.training.model import load_model
from tulu_lite.training.optim import make_optimizer

FIELDS = {"advantage": "gae", "reference_refresh_steps": 2, "kl_coefficient": 0.1}


@pytest.fixture(scope="module")
def accelerator() -> Iterator[Any]:
    AcceleratorState._reset_state(True)
    yield make_accelerator(AccelerateSettings(device="cpu", threads=1), seed=0)
    AcceleratorState._reset_state(True)


@pytest.fixture
def learner_of(accelerator: Any, tiny: Path, stage_of: Any) -> Callable[..., Learner]:
    def make(**fields: Any) -> Learner:
        stage = stage_of(**(FIELDS | fields))
        model = load_model(tiny, "cpu", lora=stage.lora)
        optimizer, rate = make_optimizer(model, stage, 8)
        learner = Learner(stage, accelerator, model, optimizer, rate, 0, 1)
        learner.reference = Reference(model, stage, str(tiny), None, torch.device("cpu"))
        if stage.critic is not None:
            learner.critic = Critic(str(tiny), stage, accelerator, 8)
        return learner

    return make


def logprobs(learner: Learner) -> torch.Tensor:
    ids = torch.tensor([[1, 5, 9, 11, 4]])
    assert learner.reference is not None
    with torch.no_grad(), learner.reference(learner.model) as frozen:
        return learner._logprobs(frozen, ids, torch.ones_like(ids), torch.ones(1, 4))


def groups(group_of: Any) -> dict[int, RolloutGroup]:
    return {place: group_of(place, 1, 0, 1) for place in range(4)}


def state(step: int, learner: Learner) -> dict[str, Any]:
    assert learner.reference is not None
    return {"step": step, "reference": learner.reference.refreshed}


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_what_follows_a_resume_is_what_would_have_followed(
    lora: Any, tmp_path: Path, learner_of: Any, group_of: Any
) -> None:
    data = groups(group_of)
    learner = learner_of(lora=lora)
    first = logprobs(learner)
    for step in (1, 2, 3):
        learner.learn(data, step, fresh=False)
        assert learner.reference.refresh(learner.model, step) == (step == 2)
    assert not torch.allclose(logprobs(learner), first, atol=1e-3)  # the reference is the policy of step 2
    save_all(tmp_path, 3, learner, state(3, learner), [], 2)
    wanted, _ = learner.learn(data, 4, fresh=False)
    resumed = learner_of(lora=lora)
    found = load_all(tmp_path, resumed)
    assert found == ({"step": 3, "reference": 2}, [])
    resumed.state = {"updates": 3, "critic_updates": 3, "skips": 0}
    got, _ = resumed.learn(data, 4, fresh=False)
    assert got == wanted


def test_a_kill_between_the_parts_of_a_save(tmp_path: Path, learner_of: Any, group_of: Any) -> None:
    data = groups(group_of)
    learner = learner_of()
    learner.learn(data, 1, fresh=False)
    save_all(tmp_path, 1, learner, state(1, learner), [], 2)
    wanted = [parameter.clone() for parameter in learner.critic.model.parameters()]
    learner.learn(data, 2, fresh=False)
    save_all(tmp_path, 2, learner, state(2, learner), [], 2)
    shutil.rmtree(tmp_path / "checkpoints" / "step-000002")  # killed before the policy was written
    resumed = learner_of()
    found = load_all(tmp_path, resumed)
    assert found is not None
    assert found[0]["step"] == 1
    assert all(map(torch.equal, resumed.critic.model.parameters(), wanted))
    assert not (tmp_path / "critic" / "step-000002").exists()
    shutil.rmtree(tmp_path / "critic")
    with pytest.raises(TuluLiteError, match="no value model"):
        load_all(tmp_path, learner_of())
    assert load_all(tmp_path / "none", learner_of()) is None


def test_begun_batches_are_kept_and_shared_out_anew(tmp_path: Path, learner_of: Any, group_of: Any) -> None:
    made = groups(group_of)
    prompts = {place: group.prompt for place, group in made.items()}
    begun = Collected(5, prompts, {place: made[place] for place in (0, 1, 3)}, [("p0", 0.5, 3)], refilled=2)
    learner = learner_of(advantage="grpo")
    save_all(tmp_path, 4, learner, state(4, learner), [begun], 2)
    found = load_all(tmp_path, learner)
    assert found is not None
    by_id = {prompt.id: prompt for prompt in prompts.values()}
    (alone,) = pending_batches(found[1], by_id, 0, 1)
    assert (alone.step, alone.prompts, alone.groups, alone.tried, alone.refilled) == (5, prompts, begun.groups, begun.tried, 2)  # fmt: skip
    (second,) = pending_batches(found[1], by_id, 1, 2)
    assert second.taken == set(by_id)  # what other processes have too
    assert (sorted(second.prompts), sorted(second.groups), second.tried) == ([1, 3], [1, 3], [])


def test_a_reference_with_other_tokens_is_refused(tiny: Path) -> None:
    with pytest.raises(TuluLiteError, match="vocabulary of 64 tokens, and the policy one of 32"):
        check_vocabulary(str(tiny), "reference", None, {"vocab_size": 64}, {"vocab_size": 32})
    check_vocabulary(str(tiny), "reference", None, {"vocab_size": 32}, {"vocab_size": 32})


def test_as_many_saves_are_kept_as_the_recipe_says(tmp_path: Path, learner_of: Any, group_of: Any) -> None:
    learner = learner_of()
    prompts = {place: group.prompt for place, group in groups(group_of).items()}
    for step in (1, 2, 3, 4):
        save_all(tmp_path, step, learner, state(step, learner), [Collected(step + 1, prompts)], 3)
    for part in ("checkpoints", "critic", "beside"):
        assert len(list((tmp_path / part).glob("step-*"))) == 3
