"""A recipe is read whole, checked at once, and says what is wrong by field, reason and cure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tulu_lite.errors import TuluLiteError
from tulu_lite.recipe import RecipeError, dump_recipe, identity, load_recipe, recipe_schema

RECIPES = sorted((Path(__file__).parents[3] / "recipes").rglob("*.yaml"))


def minimal(**changes: Any) -> dict[str, Any]:
    recipe: dict[str, Any] = {
        "name": "tiny",
        "model": "./model",
        "output": "./out",
        "stages": [
            {"name": "sft", "kind": "sft", "data": "rows.jsonl", "learning_rate": 1e-3},
            {"name": "dpo", "kind": "dpo", "init": "sft", "data": "pairs.jsonl", "learning_rate": 1e-4},
        ],
    }
    return recipe | changes


def load(tmp_path: Path, data: dict[str, Any], *overrides: str) -> Any:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(data))
    return load_recipe(file, overrides)


def problem(tmp_path: Path, data: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(TuluLiteError) as caught:
        load(tmp_path, data, *overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    "file", [file for file in RECIPES if file.parent.name != "accelerate"], ids=lambda file: file.stem
)
def test_every_shipped_recipe_loads(file: Path) -> None:
    recipe = load_recipe(file)
    assert recipe.stages


def test_paths_are_relative_to_the_recipe_file(tmp_path: Path) -> None:
    recipe = load(tmp_path, minimal(model="../base" if (tmp_path / "x").exists() else "./model"))
    assert recipe.model == str(tmp_path / "model")
    assert recipe.output == str(tmp_path / "out")
    assert recipe.stages[0].data[0].path == str(tmp_path / "rows.jsonl")


def test_a_hub_id_stays_one(tmp_path: Path) -> None:
    assert load(tmp_path, minimal(model="allenai/OLMo-2-0425-1B")).model == "allenai/OLMo-2-0425-1B"


def test_what_is_dumped_loads_equal_from_another_folder(tmp_path: Path) -> None:
    recipe = load(tmp_path, minimal(verifiers={"mine": "checks/mine.py:judge", "only": "one.py"}))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(elsewhere / "recipe.yaml") == recipe
    assert recipe.verifiers == {"mine": f"{tmp_path}/checks/mine.py:judge", "only": f"{tmp_path}/one.py"}


def test_yaml_numbers_without_a_dot_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(minimal()).replace("0.0001", "5e-6"))
    assert "5e-6" in file.read_text()
    assert load_recipe(file).stages[1].learning_rate == 5e-6


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=7", lambda recipe: recipe.seed == 7),
        ("stages.sft.epochs=3", lambda recipe: recipe.stages[0].epochs == 3),
        ("stages.1.beta=0.1", lambda recipe: recipe.stages[1].beta == 0.1),
        ("stages.sft.lora.rank=4", lambda recipe: recipe.stages[0].lora.rank == 4),
        ("stages.sft.data.0.limit=9", lambda recipe: recipe.stages[0].data[0].limit == 9),
        ("server.port=8123", lambda recipe: recipe.server.port == 8123),
    ],
)
def test_overrides_by_dotted_path(tmp_path: Path, override: str, expected: Any) -> None:
    assert expected(load(tmp_path, minimal(), override))


@pytest.mark.parametrize(
    ("changes", "overrides", "said"),
    [
        ({"sed": 3}, (), ["sed", "did you mean seed"]),
        ({}, ("stages.sft.epoch=3",), ["stages.0 (sft).epoch", "did you mean epochs"]),
        ({}, ("stages.dpo.kind=dppo",), ["stages.1", "did you mean dpo"]),
        ({}, ("stages.sft.epochs=0",), ["stages.0 (sft).epochs", "greater than or equal to 1", "0"]),
        ({}, ("stages.sft.learning_rate=fast",), ["learning_rate", "valid number", "fast"]),
        ({}, ("stages.sft.init=dpo",), ["stages.0 (sft).init", "comes later"]),
        ({}, ("stages.dpo.init=sfft",), ["stages.1 (dpo).init", "no stage 'sfft'", "base, sft"]),
        ({}, ("stages.dpo.name=sft",), ["two stages named 'sft'"]),
        ({}, ("stages.dpo.data={stage: sft}",), ["stages.1 (dpo).data", "no such thing as rows"]),
        ({}, ("stages.dpo.data={path: a.jsonl, hub: b/c}",), ["exactly one of path, hub and stage"]),
        ({}, ("stages.dpo.data=rows.csv",), [".json, .jsonl or .parquet"]),
        ({}, ("stages.nope.epochs=1",), ["has no 'nope'", "sft, dpo"]),
        ({}, ("epochs",), ["not of the form path=value"]),
        ({"stages": []}, (), ["stages"]),
    ],
)
def test_a_wrong_recipe_names_field_reason_and_cure(
    tmp_path: Path, changes: dict, overrides: tuple[str, ...], said: list[str]
) -> None:
    message = problem(tmp_path, minimal(**changes), *overrides)
    for part in said:
        assert part in message


def test_a_missing_field_says_what_it_means(tmp_path: Path) -> None:
    data = minimal()
    del data["stages"][0]["learning_rate"]
    message = problem(tmp_path, data)
    assert "stages.0 (sft).learning_rate" in message
    assert "Peak learning rate" in message


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, minimal(), "stages.sft.epochs=0", "stages.dpo.batch_size=0", "seed=x")
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [unclosed", "recipe.yaml:"),
        ("- a\n- b\n", "this file holds a list"),
        ("name: a\nname: b\n", "'name' is given twice"),
    ],
)
def test_broken_yaml_says_where(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(TuluLiteError, match="recipe.yaml") as caught:
        load_recipe(file)
    assert said in str(caught.value)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TuluLiteError, match="there is no recipe"):
        load_recipe(tmp_path / "nothing.yaml")


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("name: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(TuluLiteError, match="not valid YAML"):
        load_recipe(file)


def test_incidental_fields_are_not_part_of_what_a_step_is(tmp_path: Path) -> None:
    plain = identity(load(tmp_path, minimal()).stages[0])
    other = identity(
        load(tmp_path, minimal(), "stages.sft.micro_batch_tokens=77", "stages.sft.save_every_steps=3").stages[
            0
        ]
    )
    changed = identity(load(tmp_path, minimal(), "stages.sft.learning_rate=0.5").stages[0])
    assert plain == other
    assert plain != changed


def test_the_schema_describes_every_field() -> None:
    schema = recipe_schema()
    undescribed = [
        f"{name}.{field}"
        for name, model in schema["$defs"].items()
        for field, rules in model.get("properties", {}).items()
        if field != "kind" and "description" not in rules
    ]
    assert undescribed == []


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
        max_leaves=8,
    )
)
def test_any_yaml_loads_or_is_a_clear_error(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    file = tmp_path_factory.mktemp("any") / "recipe.yaml"
    file.write_text(yaml.safe_dump(minimal(stages=data) if not isinstance(data, dict) else data))
    with pytest.raises(TuluLiteError):
        load_recipe(file)


def test_the_readmes_example_loads(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    example = readme.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "example.yaml").write_text(example)
    assert [stage.kind for stage in load_recipe(tmp_path / "example.yaml").stages] == [
        "sft",
        "preferences",
        "dpo",
        "rlvr",
        "evaluate",
    ]


RL: dict[str, Any] = {
    "name": "rl", "kind": "rlvr", "init": "sft", "data": "rows.jsonl", "validation": "held.jsonl", "seeds": [1, 2], "steps": 2,
    "sampling": {"max_tokens": 4}, "learning_rate": 1e-4, "at_once": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "others", "refused"),
    [
        ({"rhythm": "async"}, {}, "rhythm: async cannot take turns"),
        ({"sweep": {"rhythm": ["on_policy", "async"]}, "seeds": [1]}, {}, "rhythm: async cannot take turns"),
        (
            {"rhythm": "one_behind", "accelerate": {"num_processes": 2}},
            {},
            "one_behind with several processes",
        ),
        ({"rhythm": "one_behind"}, {"accelerate": {"num_processes": 2}}, "one_behind with several processes"),
        (
            {"rhythm": "one_behind", "at_once": 1},
            {"server": {"colocate": True}},
            "the server sleeps meanwhile",
        ),
        ({"rhythm": "async", "lora": {"rank": 4}}, {}, ""),
        ({"rhythm": "async", "seeds": [1]}, {}, ""),
        ({"rhythm": "async", "at_once": 1}, {}, ""),
        ({"rhythm": "one_behind"}, {}, ""),
    ],
)
def test_runs_that_cannot_share_the_server_are_told_before_anything_runs(
    tmp_path: Path, fields: dict[str, Any], others: dict[str, Any], refused: str
) -> None:
    recipe = minimal(**others)
    recipe["stages"][1] = RL | fields
    if refused:
        assert refused in problem(tmp_path, recipe)
    else:
        load(tmp_path, recipe)
