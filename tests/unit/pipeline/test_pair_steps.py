"""Pair stages in a recipe: what fits together, what their results hang on, and when a reward model can be asked."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tulu_lite.pipeline.expand import expand
from tulu_lite.pipeline.judges import Judges, announce
from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.pipeline.steps import Step
from tulu_lite.recipe import Recipe, RecipeError, load_recipe

VARIABLE = "TULU_LITE_JUDGE_RM"
JUDGE = {"rm": {"kind": "reward", "model": "reward"}}


def stages() -> list[dict[str, Any]]:
    pairs = {"data": "pairs.jsonl", "validation": "held.jsonl", "learning_rate": 1e-4}
    prompts = {"data": "prompts.jsonl", "sampling": {"max_tokens": 4}}
    return [
        {"name": "sft", "kind": "sft", "data": "sft.jsonl", "learning_rate": 1e-3},
        {"name": "early", "kind": "preferences", "init": "sft", **prompts},
        {"name": "reward", "kind": "reward", "init": "sft", **pairs},
        {"name": "late", "kind": "preferences", "init": "sft", **prompts},
        {"name": "dpo", "kind": "dpo", "init": "sft", **pairs},
    ]


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Recipe]:
    """load(stage="dpo", field=value, judges=...) -> the recipe with one stage changed."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    for name in ("sft", "pairs", "held", "prompts"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name}) + "\n")

    def loaded(stage: str = "", judges: Any = None, more: Any = (), **changes: Any) -> Recipe:
        all_stages = [one | changes if one["name"] == stage else one for one in stages()] + list(more)
        recipe = {"name": "r", "model": "./model", "output": "./out", "stages": all_stages}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | ({"judges": judges} if judges else {})))
        return load_recipe(tmp_path / "recipe.yaml")

    return loaded


def steps_of(recipe: Recipe) -> dict[str, Step]:
    return {step.id: step for step in expand(recipe, Ledger(Path(recipe.output)))}


EVALUATE = {
    "name": "test",
    "kind": "evaluate",
    "models": ["reward"],
    "data": "prompts.jsonl",
    "max_tokens": 4,
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"stage": "dpo", "label_smoothing": 0.1, "objective": "ipo"},
            "label_smoothing has no meaning for ipo",
        ),
        ({"stage": "dpo", "objective": "robust"}, "label_smoothing, their share, is 0"),
        ({"stage": "dpo", "label_smoothing": 0.5}, "less than 0.5"),
        ({"stage": "dpo", "gamma": 1.0}, "gamma is simpo's margin"),
        (
            {"stage": "dpo", "objective": "simpo", "length_normalised": False},
            "compares mean log-probabilities",
        ),
        ({"stage": "dpo", "objective": "simpo", "reference": "base"}, "simpo has no reference"),
        ({"stage": "dpo", "reference": "nope"}, "dpo).reference: there is no stage 'nope'"),
        ({"stage": "dpo", "reference": "reward"}, "makes a reward model"),
        (
            {"stage": "dpo", "init": "reward"},
            "makes a reward model, which gives numbers and answers no prompts",
        ),
        ({"more": [EVALUATE]}, "accuracy is measured on the pairs of its own `validation`"),
        ({"stage": "reward", "data": {"stage": "sft"}}, "makes no such thing as rows"),
        ({"judges": {"rm": {"model": "reward"}}}, "with `kind: reward`"),
        ({"judges": {"rm": {"kind": "reward", "model": "sft"}}}, "is a stage of kind sft"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_fit_is_said(load: Callable[..., Recipe], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(**changes)
    assert said in str(caught.value)


def test_a_reward_model_can_start_from_another_and_read_preferences(load: Callable[..., Recipe]) -> None:
    more = {
        "name": "second",
        "kind": "reward",
        "init": "reward",
        "data": {"stage": "late"},
        "learning_rate": 1e-4,
    }
    assert steps_of(load(more=[more]))["second"].inputs == ("reward", "late")


def test_the_reference_is_part_of_what_decides_the_result(load: Callable[..., Recipe]) -> None:
    plain = steps_of(load())["dpo"]
    assert "reference" not in plain.identity["stage"]
    based = steps_of(load("dpo", reference="base"))["dpo"]
    own = steps_of(load("dpo", reference="sft"))["dpo"]
    assert list(based.identity["inputs"]) == ["sft", "base"]
    assert len({plain.key, based.key, own.key}) == 3
    assert own.inputs == ("sft",)


def test_a_served_reward_model_is_part_of_what_later_stages_hang_on(load: Callable[..., Recipe]) -> None:
    one = steps_of(load(judges=JUDGE))
    assert one["early"].inputs == ("sft",)  # it was over before there was a reward model
    assert one["late"].inputs == ("sft", "reward")
    assert one["dpo"].inputs == ("sft",)  # it judges nothing
    other = steps_of(load("reward", judges=JUDGE, centring=0.01))
    changed = {id for id in one if one[id].key != other[id].key}
    assert changed == {"reward", "late"}


def test_a_judge_is_started_once_its_stage_is_done(
    load: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in (VARIABLE, f"{VARIABLE}_TOKENS"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    started: list[tuple[str, str, Any]] = []

    class Server:
        def __init__(self, settings: Any, model: Path, *_: Any) -> None:
            self.made = (
                model.name,
                settings.engine_args["served_model_name"],
                settings.engine_args["runner"],
            )

        def start(self) -> None:
            started.append(self.made)

    monkeypatch.setattr("tulu_lite.pipeline.judges.RolloutServer", Server)
    recipe = load(judges=JUDGE)
    announce(recipe)
    assert os.environ[f"{VARIABLE}_TOKENS"] == "sampled"
    steps = steps_of(recipe)
    judges = Judges(recipe)
    judges.start(steps)
    assert started == []
    steps["reward"].folder.mkdir(parents=True)
    steps["reward"].result_file.write_text(json.dumps({"model": "model", "summary": {}}))
    judges.start(steps)
    judges.start(steps)
    assert started == [("model", "rm", "pooling")]
