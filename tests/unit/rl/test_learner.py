"""Updates on a batch: against the plain way with all logits, in any micro-batches, with every objective."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from tulu_lite.errors import TuluLiteError
from tulu_lite.recipe import RlvrStage
from tulu_lite.recipe.training import AccelerateSettings
from tulu_lite.records import Prompt, Rollout, RolloutGroup
from tulu_lite.rl.critic import Critic
from tulu_lite.rl.learner import SKIPS_IN_A_ROW, Learner
from tulu_lite.rl.reference import Reference
from tulu_lite.training.accelerator import make_accelerator
from tulu_lite.training.logprobs import token_logprobs
from tulu_lite.training.model import load_model
from tulu_lite.training.optim import NotFinite, make_optimizer
from tulu_lite.training.proof import choose_packing
from verifiers.base import error, scored

Groups = dict[int, RolloutGroup]


@pytest.fixture(scope="module")
def accelerator() -> Iterator[Any]:
    AcceleratorState._reset_state(True)
    yield make_accelerator(AccelerateSettings(device="cpu", threads=1), seed=0)
    AcceleratorState._reset_state(True)


@pytest.fixture(params=["bucket", "varlen"])
def learner_of(
    accelerator: Any, tiny: Path, request: pytest.FixtureRequest
) -> Callable[[RlvrStage], Learner]:
    def make(stage: RlvrStage) -> Learner:
        model = load_model(tiny, "cpu")
        packing, _ = choose_packing(model, request.param, "no", "tiny")
        optimizer, rate = make_optimizer(model, stage, 8)
        reference = Reference(model, stage, str(tiny), None, torch.device("cpu"))
        learner = Learner(stage, accelerator, model, optimizer, rate, 0, 1, packing)
        if stage.kl_coefficient:
            learner.reference = reference
        if stage.critic is not None:
            learner.critic = Critic(str(tiny), stage, accelerator, 8, packing=packing)
            assert learner.critic.model.packing == packing
        assert getattr(reference.frozen, "packing", None) == packing == request.param
        return learner

    return make


@pytest.fixture(scope="module")
def groups(tiny: Path) -> Groups:
    """Four prompts with three responses, told by the initial model itself; one has no score, one group no signal."""
    model = load_model(tiny, "cpu")
    generator = torch.Generator().manual_seed(3)
    scores: list[list[float | None]] = [[1, 0, 0.5], [0, None, 1], [1, 1, 1], [0, 0, 1]]
    found = {}
    for place, row in enumerate(scores):
        prompt = Prompt(f"p{place}", "", (1, 5 + place, 9), "even" if place % 2 == 0 else "odd")
        rollouts = []
        for number, score in enumerate(row):
            ids = torch.randint(3, 32, (2 + (place + 2 * number) % 5,), generator=generator).tolist()
            whole = torch.tensor([[*prompt.token_ids, *ids]])
            logprobs = token_logprobs(model, whole, torch.ones_like(whole), chunk_tokens=64)[0, 2:]
            verdict = error("broke") if score is None else scored(score)
            rollouts.append(
                Rollout(tuple(ids), tuple(logprobs.tolist()), (0,) * len(ids), "stop" if number else "length", "", verdict)
            )  # fmt: skip
        found[place] = RolloutGroup(prompt, tuple(rollouts))
    return found


def weights(model: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


OBJECTIVES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo": {"advantage": "dr_grpo", "aggregation": "constant", "kl_coefficient": 0},
    "gspo": {"loss": "gspo", "aggregation": "sequence", "kl_coefficient": 0, "updates_per_step": 2, "clip": (0.01, 0.02)},
    "cispo": {"loss": "cispo", "advantage": "reinforce", "whiten_advantages": True, "entropy_coefficient": 0.1},
    "ppo": {
        "advantage": "gae", "kl_in": "reward", "kl_estimator": "k1", "kl_coefficient": 0.05, "epochs_per_batch": 2,
        "updates_per_step": 2, "old_logprobs": "trainer", "mismatch": {}, "dual_clip": 3.0,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
def test_any_micro_batches_make_the_same_update(
    name: str, stage_of: Any, learner_of: Any, groups: Groups
) -> None:
    after, told = [], []
    for tokens in (10_000, 8):
        stage = stage_of(micro_batch_tokens=tokens, **OBJECTIVES[name])
        learner = learner_of(stage)
        before = weights(learner.model)
        figures, items = learner.learn(groups, 1, fresh=True)
        after.append(weights(learner.model) - before)
        told.append(figures)
        assert len(items) == 11
    # Adam's step hardly depends on a gradient's size, so that where that is all but zero its rounding shows
    apart = (after[0] - after[1]).abs()
    assert after[0].abs().max() > 1e-3
    assert (apart > 1e-5).float().mean() < 0.01
    assert told[0] == pytest.approx(told[1], rel=1e-3, abs=1e-6)
    assert told[0]["logprob_gap_max"] < 1e-4 or OBJECTIVES[name].get("updates_per_step")


def plain_logprobs(model: Any, rollout: Rollout, prompt: Prompt) -> torch.Tensor:
    ids = torch.tensor([[*prompt.token_ids, *rollout.token_ids]])
    logits = model.wrapped(input_ids=ids).logits[0, len(prompt.token_ids) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(rollout.token_ids)[:, None]).squeeze(-1)


def test_a_grpo_step_is_the_papers(stage_of: Any, learner_of: Any, groups: Groups) -> None:
    """The gradient of equation 3 of arXiv:2402.03300 with advantages by hand, one response at a time."""
    stage = stage_of(aggregation="sequence", kl_coefficient=0.5, max_grad_norm=1e9)
    learner = learner_of(stage)
    model = copy.deepcopy(learner.model)
    figures, _ = learner.learn(groups, 1, fresh=True)
    loss = torch.zeros(())
    half = math.sqrt(2 / 9)
    hand = {
        (0, 0): math.sqrt(1.5), (0, 1): -math.sqrt(1.5), (0, 2): 0.0, (1, 0): -1.0, (1, 2): 1.0, (2, 0): 0.0, (2, 1): 0.0,
        (2, 2): 0.0, (3, 0): -(1 / 3) / half, (3, 1): -(1 / 3) / half, (3, 2): (2 / 3) / half,
    }  # fmt: skip
    for (place, sample), advantage in hand.items():
        group = groups[place]
        new = plain_logprobs(model, group.rollouts[sample], group.prompt)
        ratio = torch.exp(new - new.detach())
        loss = (
            loss - (ratio * advantage).mean() / 11
        )  # the KL term and its gradient are 0 at the reference itself
    loss.backward()
    norm = torch.sqrt(sum((p.grad.square().sum() for p in model.parameters() if p.grad is not None), torch.zeros(())))  # fmt: skip
    assert figures["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert figures["loss"] == pytest.approx(float(loss), abs=1e-6)
    assert figures["ratio"] == pytest.approx(1, abs=1e-6)
    assert figures["logprob_gap_max"] < 1e-4
    assert figures["kl"] == pytest.approx(0, abs=1e-6)
    assert {"kl/even", "entropy/odd", "ratio/odd"} <= figures.keys()


def test_a_ppo_step_by_hand(stage_of: Any, learner_of: Any, groups: Groups) -> None:
    """Values are 0 at first (a new head), so that with lambda and gamma 1 each token's advantage is the reward."""
    stage = stage_of(
        advantage="gae", kl_coefficient=0, whiten_advantages=False, max_grad_norm=1e9, reward_scale=10,
        value={"gae_lambda": 1.0, "coefficient": 0.5, "clip": None, "learning_rate": 1e-3},
    )  # fmt: skip
    learner = learner_of(stage)
    policy = copy.deepcopy(learner.model)
    figures, items = learner.learn(groups, 1, fresh=True)
    tokens = sum(len(item.rollout.token_ids) for item in items)
    loss = torch.zeros(())
    for item in items:
        prompt = groups[item.place].prompt
        new = plain_logprobs(policy, item.rollout, prompt)
        loss = loss - (torch.exp(new - new.detach()) * item.reward).sum() / tokens
        assert item.fixed["advantage"].tolist() == pytest.approx([item.reward] * len(item.rollout.token_ids))
    loss.backward()
    norm = torch.sqrt(sum((p.grad.square().sum() for p in policy.parameters() if p.grad is not None), torch.zeros(())))  # fmt: skip
    assert figures["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    squares = sum(len(item.rollout.token_ids) * item.reward**2 for item in items)
    assert figures["value_loss"] == pytest.approx(squares / 2 / tokens, rel=1e-5)
    assert figures["value_learning_rate"] == 1e-3
    assert figures["value_grad_norm"] > 0
    assert figures["value_explained_variance"] == pytest.approx(0, abs=1e-5)


def test_values_learn_to_tell_the_reward(stage_of: Any, learner_of: Any, groups: Groups) -> None:
    learner = learner_of(
        stage_of(advantage="gae", value={"clip": None, "warmup_steps": 3}, epochs_per_batch=8)
    )
    before = weights(learner.model)
    explained = [learner.learn(groups, step, fresh=True)[0]["value_explained_variance"] for step in (1, 2, 3)]
    assert explained[0] == pytest.approx(0, abs=1e-4)
    assert explained[2] > 0.3
    assert torch.equal(weights(learner.model), before)  # the policy waits for its values
    assert learner.state["updates"] == 0
    learner.learn(groups, 4, fresh=True)
    assert not torch.equal(weights(learner.model), before)


def test_what_has_no_gradient_is_left_out_to_the_same_effect(
    stage_of: Any, learner_of: Any, groups: Groups
) -> None:
    after = []
    for everything in (False, True):
        learner = learner_of(stage_of(kl_coefficient=0))
        assert not learner.all_teach
        learner.all_teach = everything
        learner.learn(groups, 1, fresh=True)
        after.append(weights(learner.model))
    assert torch.allclose(after[0], after[1], atol=1e-6)


def test_masked_responses_teach_nothing(stage_of: Any, learner_of: Any, groups: Groups) -> None:
    """Each group's first response was cut off: with or without its tokens, the others' update is the same."""
    learner = learner_of(stage_of(overlong={"mask": True}, kl_coefficient=0, aggregation="sequence"))
    figures, items = learner.learn(groups, 1, fresh=True)
    assert [item.teaches for item in items] == [item.sample > 0 for item in items]
    other = learner_of(stage_of(overlong={"mask": True}, kl_coefficient=0, aggregation="sequence"))
    changed = {
        place: replace(group, rollouts=(replace(group.rollouts[0], token_ids=(4, 4), logprobs=(-9.0, -9.0), weight_versions=(0, 0)), *group.rollouts[1:]))
        for place, group in groups.items()
    }  # fmt: skip
    assert other.learn(changed, 1, fresh=True)[0]["grad_norm"] == figures["grad_norm"]


def test_kl_in_the_reward_is_taken_off_before_the_mean(
    stage_of: Any, learner_of: Any, groups: Groups
) -> None:
    stage = stage_of(kl_in="reward", kl_estimator="k1", kl_coefficient=0.5, advantage="dr_grpo")
    learner = learner_of(stage)
    assert not learner.all_teach
    shifted = {
        place: replace(group, rollouts=tuple(replace(one, logprobs=tuple(value + 0.1 for value in one.logprobs)) for one in group.rollouts))
        for place, group in groups.items()
    }  # fmt: skip
    _, items = learner.learn(shifted, 1, fresh=False)
    # log pi - log pi_ref is 0.1 at every token of what is said to have been sampled
    group = [item for item in items if item.place == 0]
    rewards = [item.reward - 0.5 * 0.1 * len(item.rollout.token_ids) for item in group]
    mean = sum(rewards) / 3
    assert [item.advantage for item in group] == pytest.approx([value - mean for value in rewards], abs=1e-5)


def test_sampler_and_trainer_must_agree_on_fresh_samples(
    stage_of: Any, learner_of: Any, groups: Groups
) -> None:
    off = {
        place: replace(group, rollouts=tuple(replace(one, logprobs=tuple(value - 0.5 for value in one.logprobs)) for one in group.rollouts))
        for place, group in groups.items()
    }  # fmt: skip
    learner = learner_of(stage_of())
    with pytest.raises(TuluLiteError, match="sampler and trainer disagree by 0.5"):
        learner.learn(off, 3, fresh=True)
    learner = learner_of(stage_of())
    assert learner.learn(off, 3, fresh=False)[0]["ratio"] == pytest.approx(math.exp(0.5), rel=1e-3)


def test_a_gradient_that_is_not_finite(stage_of: Any, learner_of: Any, groups: Groups) -> None:
    broken = {
        place: replace(group, rollouts=tuple(replace(one, logprobs=(-1e4,) * len(one.logprobs)) for one in group.rollouts))
        for place, group in groups.items()
    }  # fmt: skip
    learner = learner_of(stage_of())
    with pytest.raises(NotFinite, match="stage rl, step 2: the norm of the gradient"):
        learner.learn(broken, 2, fresh=False)
    learner = learner_of(stage_of(on_nan="skip"))
    before = weights(learner.model)
    figures, _ = learner.learn(broken, 2, fresh=False)
    assert figures["skipped_updates"] == 1
    assert "grad_norm" not in figures
    assert torch.equal(weights(learner.model), before)
    assert learner.learn(groups, 3, fresh=True)[0]["skipped_updates"] == 0
    for step in range(SKIPS_IN_A_ROW - 1):
        learner.learn(broken, step, fresh=False)
    with pytest.raises(NotFinite):
        learner.learn(broken, 99, fresh=False)


def test_nothing_scored_is_an_error(stage_of: Any, learner_of: Any, groups: Groups) -> None:
    none = {0: replace(groups[0], rollouts=tuple(one.judged(error("broke")) for one in groups[0].rollouts))}
    with pytest.raises(TuluLiteError, match="no response of the batch has a score"):
        learner_of(stage_of()).learn(none, 1, fresh=True)


def test_shares_are_of_whole_prompts_and_the_same_for_any_number_of_processes(
    stage_of: Any, learner_of: Any, groups: Groups
) -> None:
    learner = learner_of(stage_of(updates_per_step=2, epochs_per_batch=3, kl_coefficient=0))
    items = learner._answered(groups)
    passes = [
        [{item.place for item in share} for share in learner._shares(items, 7, epoch)] for epoch in range(3)
    ]
    assert passes[0] == [{0, 1}, {2, 3}]
    assert all(first | second == {0, 1, 2, 3} and not first & second for first, second in passes)
    assert len({str(one) for one in passes}) > 1
    mine = learner._answered({place: groups[place] for place in (1, 3)})
    again = [
        [{item.place for item in share} for share in learner._shares(mine, 7, epoch)] for epoch in range(3)
    ]
    assert again == [[share & {1, 3} for share in one] for one in passes]


def test_a_policy_that_always_fails_is_noticed_while_its_values_learn(
    stage_of: Any, learner_of: Any, groups: Groups
) -> None:
    """Each model counts its own updates that were left out."""
    broken = {
        place: replace(group, rollouts=tuple(replace(one, logprobs=(-1e4,) * len(one.logprobs)) for one in group.rollouts))
        for place, group in groups.items()
    }  # fmt: skip
    learner = learner_of(stage_of(on_nan="skip", advantage="gae", kl_coefficient=0))
    for step in range(1, SKIPS_IN_A_ROW):
        assert learner.learn(broken, step, fresh=False)[0]["skipped_updates"] == 1
    assert learner.state["skips"] == SKIPS_IN_A_ROW - 1
    assert learner.state["critic_skips"] == 0
    with pytest.raises(NotFinite):
        learner.learn(broken, 99, fresh=False)


def test_kl_in_the_reward_has_its_say_by_its_coefficient_in_groups_without_signal(
    stage_of: Any, learner_of: Any, groups: Groups
) -> None:
    """Of the group whose rewards are all 1 grpo's advantages are the penalties less their mean, not these divided by
    their own std."""
    noisy = {
        place: replace(group, rollouts=tuple(replace(one, logprobs=tuple(value + 1e-6 for value in one.logprobs)) for one in group.rollouts))
        for place, group in groups.items()
    }  # fmt: skip
    learner = learner_of(stage_of(kl_in="reward", kl_estimator="k1", kl_coefficient=0.01))
    _, items = learner.learn(noisy, 1, fresh=False)
    assert max(abs(item.advantage) for item in items if item.place == 2) < 1e-5
    assert max(abs(item.advantage) for item in items if item.place == 0) > 1
