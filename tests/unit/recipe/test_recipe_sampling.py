"""Which stage may bend the distribution it samples from, and that results kept before stay good."""

from __future__ import annotations

import pytest
import yaml

from tulu_lite.recipe import identity, load_recipe, serving
from tulu_lite.recipe.load import RecipeError
from tulu_lite.rollout.adapters import can_serve
from tulu_lite.rollout.state import ServerState

SAMPLING = {"temperature": 1.0, "max_tokens": 40}
RLVR = {
    "name": "rlvr", "kind": "rlvr", "init": "base", "data": "a.jsonl", "validation": "b.jsonl", "steps": 2,
    "learning_rate": 1e-4, "sampling": SAMPLING, "seeds": [1, 2, 3],
}  # fmt: skip
PREFERENCES = {
    "name": "pairs",
    "kind": "preferences",
    "init": "base",
    "data": "a.jsonl",
    "sampling": SAMPLING,
}
EVALUATE = {"name": "test", "kind": "evaluate", "models": ["base"], "data": "a.jsonl", "max_tokens": 40}


@pytest.fixture
def recipe(tmp_path):
    def load(*stages, **top):
        for name in "ab":
            (tmp_path / f"{name}.jsonl").write_text("{}\n")
        file = tmp_path / "recipe.yaml"
        file.write_text(
            yaml.safe_dump({"name": "r", "model": "org/m", "output": "out", "stages": list(stages), **top})
        )
        return load_recipe(file)

    return load


@pytest.mark.parametrize("name", ["top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty"])
def test_rlvr_names_the_field_that_would_make_logprobs_untrue(recipe, name):
    with pytest.raises(RecipeError, match=rf"stages.*rlvr.*sampling.*{name} cannot be used here"):
        recipe({**RLVR, "sampling": {**SAMPLING, name: 1}})


def test_evaluation_and_preferences_may_bend_and_the_key_tells(recipe):
    stage = recipe({**PREFERENCES, "sampling": {**SAMPLING, "min_p": 0.1, "top_k": 5}}).stages[0]
    assert stage.sampling.bending()["min_p"] == 0.1
    assert identity(stage)["sampling"] == {**SAMPLING, "min_p": 0.1, "top_k": 5}
    stage = recipe({**EVALUATE, "repetition_penalty": 1.2}).stages[0]
    assert stage.bending()["repetition_penalty"] == 1.2
    assert identity(stage)["repetition_penalty"] == 1.2
    with pytest.raises(RecipeError, match=r"top_p"):
        recipe({**EVALUATE, "top_p": 0})


def test_stages_that_do_not_bend_keep_the_identity_they_had(recipe):
    """A result from before there was a choice is still the result."""
    stages = recipe(PREFERENCES, EVALUATE).stages
    assert identity(stages[0])["sampling"] == SAMPLING
    assert not {"top_p", "min_p", "presence_penalty"} & identity(stages[1]).keys()


def test_the_server_gets_room_for_the_adapters_of_all_seeds(recipe):
    assert (serving(recipe(RLVR)).max_loras, serving(recipe(EVALUATE)).max_loras) == (0, 0)
    adapted = {**RLVR, "lora": {"rank": 24}}
    assert (serving(recipe(adapted)).max_loras, serving(recipe(adapted)).max_lora_rank) == (4, 24)
    off = serving(recipe(adapted, server={"max_loras": 0}))
    assert off.max_loras == 0
    set_by_hand = serving(recipe(adapted, server={"max_loras": 2, "max_lora_rank": 64}))
    assert (set_by_hand.max_loras, set_by_hand.max_lora_rank) == (2, 64)


def test_the_server_gets_no_room_for_adapters_larger_than_it_takes(recipe):
    large = {**RLVR, "lora": {"rank": 513}}
    assert (serving(recipe(large)).max_loras, serving(recipe(large)).max_lora_rank) == (0, 16)
    small = {**RLVR, "name": "more", "seeds": [1], "lora": {"rank": 512}}
    both = serving(recipe(large, small))
    assert (both.max_loras, both.max_lora_rank) == (2, 512)
    state = ServerState("ready", max_loras=both.max_loras, max_lora_rank=both.max_lora_rank)
    assert (can_serve(state, 512), can_serve(state, 513)) == (True, False)  # the larger are merged
    assert serving(recipe(large, server={"max_loras": 2})).max_lora_rank == 16


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ({"urls": ["http://a:1"], "replicas": 2}, "server.replicas: with server.urls"),
        ({"urls": ["ftp://a"]}, r"'ftp://a' is not of the form http://host:port"),
        (
            {"engine_args": {"max-loras": 3}},
            "server.engine_args.max-loras: this argument is set by tulu_lite",
        ),
    ],
)
def test_what_contradicts_itself_is_told(recipe, server, message):
    with pytest.raises(RecipeError, match=message):
        recipe(RLVR, server=server)
