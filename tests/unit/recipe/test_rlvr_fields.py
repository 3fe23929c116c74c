"""The rlvr stage's settings: what is published loads, and what contradicts itself is told with its reason."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tulu_lite.recipe import RlvrStage
from tulu_lite.recipe.base import identity

BASE: dict[str, Any] = {
    "name": "rl", "kind": "rlvr", "init": "base", "data": "a.jsonl", "validation": "b.jsonl", "steps": 9,
    "learning_rate": 5e-7, "sampling": {"max_tokens": 8192}, "prompts_per_step": 48,
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "Tülu 3": {
        "advantage": "gae", "value": {"init": "rm"}, "kl_in": "reward", "kl_estimator": "k1", "kl_coefficient": 0.05,
        "old_logprobs": "trainer", "epochs_per_batch": 4, "reward_scale": 10, "unfinished_reward": -10, "rhythm": "one_behind",
    },
    "Tülu 3.1": {"updates_per_step": 2},
    "Dr. GRPO": {"advantage": "dr_grpo", "aggregation": "constant", "kl_coefficient": 0},
    "DAPO": {"clip": [0.2, 0.28], "refill": {"max_rounds": 4}, "overlong": {"buffer_tokens": 4096}, "kl_coefficient": 0},
    "GSPO": {"loss": "gspo", "aggregation": "sequence", "clip": [3e-4, 4e-4], "updates_per_step": 4},
    "CISPO": {"loss": "cispo", "clip": [1, 5], "kl_coefficient": 0},
    "REINFORCE++": {"advantage": "reinforce", "whiten_advantages": True, "kl_in": "reward", "kl_estimator": "k1"},
    "R1": {"aggregation": "sequence", "kl_coefficient": 0.001, "clip": [1, 10], "reference_refresh_steps": 400},
}  # fmt: skip


def stage(**fields: Any) -> RlvrStage:
    return RlvrStage.model_validate(BASE | fields)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_published_loads(name: str) -> None:
    loaded = stage(**PUBLISHED[name])
    assert loaded.updates == loaded.updates_per_step * loaded.epochs_per_batch


def test_what_follows_from_the_fields() -> None:
    tulu = stage(**PUBLISHED["Tülu 3"])
    assert (tulu.ahead, tulu.updates, tulu.whitens, tulu.other_models) == (1, 4, True, ("rm",))
    assert tulu.critic is not None
    assert (tulu.critic.gae_lambda, tulu.critic.clip, tulu.critic.gamma) == (0.95, 0.2, 1.0)
    plain = stage()
    assert (plain.ahead, plain.whitens, plain.critic, plain.other_models) == (0, False, None, ())
    assert stage(advantage="gae").critic is not None
    assert stage(rhythm="async", max_staleness=3).ahead == 3
    assert stage(reference="./ref", kl_coefficient=0.1).other_models == ("./ref",)


def test_new_fields_at_their_defaults_are_no_part_of_the_key() -> None:
    plain = identity(stage())
    assert (
        not {"loss", "rhythm", "refill", "value", "on_nan", "replay", "no_signal", "keep_rollouts_mb"}
        & plain.keys()
    )
    assert identity(stage(loss="cispo"))["loss"] == "cispo"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"value": {}}, "advantage is grpo, which has none"),
        ({"advantage": "gae", "value": {"warmup_steps": 9}}, "leaves no step of 9"),
        ({"dual_clip": 3, "loss": "gspo"}, "dual_clip belongs to `loss: clipped`"),
        ({"dual_clip": 1.0}, "greater than 1"),
        ({"mismatch": {}}, "set old_logprobs: trainer"),
        ({"mismatch": {"low": 1.5}, "old_logprobs": "trainer"}, "where sampler and trainer agree w is 1"),
        ({"max_staleness": 2}, "max_staleness belongs to `rhythm: async`"),
        ({"reference_refresh_steps": 5, "kl_coefficient": 0}, "there is no reference"),
        ({"reference": "sft", "kl_coefficient": 0}, "none is used"),
        ({"overlong": {"buffer_tokens": 9000}}, "the last part of that budget"),
        ({"curriculum": {"low": 0.9, "high": 0.1}}, "too hard or too easy"),
        ({"replay": "rollouts", "rhythm": "one_behind"}, "trained on in its order"),
        ({"replay": "rollouts", "select": "best"}, "nothing is validated"),
        ({"replay": "rollouts", "seeds": [1, 2]}, "give one seed"),
        ({"replay": "rollouts", "seeds": [1], "sweep": {"learning_rate": [1e-6, 2e-6]}}, "no sweep"),
        ({"overlong": {}}, "costs nothing as it is"),
        ({"overlong": {"penalty": 5}}, "set buffer_tokens"),
        ({"clip": [1.5, 0.2]}, "0 < low <= 1"),
        ({"updates_per_step": 5}, "cannot be split"),
    ],
)
def test_what_contradicts_itself(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as fault:
        stage(**fields)
    assert said in str(fault.value)
