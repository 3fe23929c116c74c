"""The runs of a stage: names that are the same wherever the list changes, combinations checked when the recipe is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tulu_lite.errors import TuluLiteError
from tulu_lite.recipe import Extension, Recipe, dump_recipe, load_recipe, record, runs_of, serving
from tulu_lite.recipe.extensions import read_recorded
from tulu_lite.recipe.runs import short_float, swept_number

STAGES: list[dict[str, Any]] = [
    {"name": "sft", "kind": "sft", "data": "rows.jsonl", "validation": "held.jsonl", "learning_rate": 1e-3},
    {
        "name": "rl", "kind": "rlvr", "init": "sft", "data": "rows.jsonl", "validation": "held.jsonl", "seeds": [1, 2],
        "steps": 4, "sampling": {"max_tokens": 4}, "learning_rate": 1e-4,
    },
]  # fmt: skip


def load(folder: Path, *overrides: str, stages: Any = STAGES, **more: Any) -> Recipe:
    file = folder / "recipe.yaml"
    file.write_text(
        yaml.safe_dump({"name": "tiny", "model": "m/o/d", "output": "./out", "stages": stages, **more})
    )
    return load_recipe(file, overrides)


def names(recipe: Recipe, stage: int = 0) -> list[str]:
    return [run.name for run in runs_of(recipe.stages[stage])]


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ("{learning_rate: [1e-4, 2.5e-6]}", ["learning_rate=1e-4", "learning_rate=2.5e-6"]),
        ("{lora.rank: [4, 8]}", ["lora.rank=4", "lora.rank=8"]),  # where there was no lora
        ("{loss: [token_mean, token_sum]}", ["loss=token_mean", "loss=token_sum"]),
        (
            "{gradient_checkpointing: [true, false]}",
            ["gradient_checkpointing=true", "gradient_checkpointing=false"],
        ),
        ("{lora: [null, {rank: 4}]}", ["lora=none", "lora=rank-4"]),
        ("{betas: [[0.9, 0.95], [0.9, 0.999]]}", ["betas=0.9+0.95", "betas=0.9+0.999"]),
        ("{data: [a.jsonl, [a.jsonl, b.jsonl]]}", ["data=a", "data=a+b"]),
        ("{data.0.limit: [10, 20]}", ["data.0.limit=10", "data.0.limit=20"]),
        (
            "{epochs: [1, 2], batch_size: [4, 8]}",
            [
                "batch_size=4,epochs=1",
                "batch_size=8,epochs=1",
                "batch_size=4,epochs=2",
                "batch_size=8,epochs=2",
            ],
        ),
        ("[{epochs: 1, batch_size: 8}, {epochs: 2}]", ["batch_size=8,epochs=1", "epochs=2"]),
    ],
)
def test_names_of_the_runs(tmp_path: Path, sweep: str, expected: list[str]) -> None:
    recipe = load(tmp_path, f"stages.sft.sweep={sweep}")
    assert names(recipe) == expected
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe(again) == recipe
    assert names(load_recipe(again)) == expected


def test_values_are_put_where_the_path_says_and_nothing_else_changes(tmp_path: Path) -> None:
    recipe = load(tmp_path, "stages.rl.sweep={sampling.temperature: [0.7, 1.2]}", "stages.rl.at_once=2")
    first, *_, last = runs_of(recipe.stages[1])
    assert (first.stage.sampling.temperature, last.stage.sampling.temperature) == (0.7, 1.2)
    assert (first.setting, first.seed, first.name) == (
        "sampling.temperature=0.7",
        1,
        "sampling.temperature=0.7/seed-1",
    )
    assert first.stage.sweep is None
    changed = {"sampling": recipe.stages[1].sampling, "sweep": recipe.stages[1].sweep}  # type: ignore[union-attr]
    assert first.stage.model_copy(update=changed) == recipe.stages[1]


def test_paths_of_swept_data_are_relative_to_the_recipe(tmp_path: Path) -> None:
    swept = "{data: [a.jsonl, {path: sub/b.jsonl, limit: 3}, [a.jsonl, c.jsonl]]}"
    found = [run.stage.data for run in runs_of(load(tmp_path, f"stages.sft.sweep={swept}").stages[0])]
    assert [[source.path for source in data] for data in found] == [
        [f"{tmp_path}/a.jsonl"],
        [f"{tmp_path}/sub/b.jsonl"],
        [f"{tmp_path}/a.jsonl", f"{tmp_path}/c.jsonl"],
    ]
    listed = load(tmp_path, "stages.sft.sweep=[{data: a.jsonl}, {data.0.path: b.jsonl}]")
    assert [run.stage.data[0].path for run in runs_of(listed.stages[0])] == [
        f"{tmp_path}/a.jsonl",
        f"{tmp_path}/b.jsonl",
    ]


def test_a_swept_field_needs_no_value_beside_it(tmp_path: Path) -> None:
    sft = {key: value for key, value in STAGES[0].items() if key != "learning_rate"}
    for sweep in ({"learning_rate": ["1e-4", 3e-4]}, [{"learning_rate": 1e-4}, {"learning_rate": 3e-4}]):
        recipe = load(tmp_path, stages=[{**sft, "sweep": sweep}])
        assert [run.stage.learning_rate for run in runs_of(recipe.stages[0])] == [1e-4, 3e-4]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["stages.sft.sweep={learning_rates: [1]}"], ["sweep.learning_rates", "did you mean learning_rate?"]),
        (["stages.rl.sweep={sampling.temperatur: [1]}"], ["did you mean temperature?"]),
        (
            ["stages.sft.sweep={epochs: [1, 0]}"],
            ["{epochs: 0} is no valid stage", "greater than or equal to 1"],
        ),
        (
            ["stages.rl.sweep={prompts_per_step: [6, 7], updates_per_step: [2]}"],
            ["prompts_per_step: 7", "multiple"],
        ),
        (["stages.sft.sweep={seed: [1, 2]}"], ["seed cannot differ", "seeds: [...]"]),
        (["stages.sft.sweep={validation: [a.jsonl]}"], ["compared on the same rows"]),
        (["stages.sft.sweep={epochs: [1, 1]}"], ["two combinations are called epochs=1"]),
        (["stages.sft.sweep={data: [a/x.jsonl, b/x.jsonl]}"], ["called data=x", "different names"]),
        (["stages.sft.sweep={data.3.limit: [1]}"], ["no such place"]),
        (["stages.sft.sweep={epochs: 2}"], ["stages.0 (sft).sweep", "every combination"]),
        (["stages.sft.sweep=much"], ["every combination"]),
        (["stages.sft.sweep={epochs: []}"], ["nothing to compare"]),
        (["stages.sft.sweep=[]"], ["nothing to compare"]),
        (["stages.sft.sweep=[{}]"], ["names no field"]),
        (["stages.sft.sweep={epochs: [1, 2]}", "stages.sft.validation=[]"], ["compared by `validation`"]),
        (["stages.sft.seeds=[1, 2]", "stages.sft.validation=[]"], ["compared by `validation`"]),
        (["stages.sft.seeds=[1, 2]", "stages.sft.seed=3"], ["leave one of the two out"]),
        (["stages.rl.seeds=[1, 1]"], ["holds one twice"]),
        (["stages.rl.extend=[{run: seed-7, steps: 2}]"], ["no run 'seed-7'", "best, all, seed-1, seed-2"]),
        (["stages.rl.extend=[{run: best, step: 2}]"], ["did you mean steps"]),
        (["stages.rl.stop_early={after_steps: 2, margin: 0}"], ["stop_early.margin"]),
        (["stages.sft.sweep={data: [a.jsonl, {stage: rl}]}"], ["stages.0 (sft).data"]),
        (["stages.rl.at_once=2", "server.colocate=true"], ["stages.1 (rl).at_once", "server.devices"]),
    ],
)
def test_a_wrong_sweep_is_told_when_the_recipe_is_read(
    tmp_path: Path, overrides: list[str], said: list[str]
) -> None:
    with pytest.raises(TuluLiteError) as caught:
        load(tmp_path, *overrides)
    for words in said:
        assert words in str(caught.value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_short_number_reads_back_as_the_same(value: float) -> None:
    assert float(short_float(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-4, "1e-4"),
        (2.5e-6, "2.5e-6"),
        (0.05, "0.05"),
        (5.0, "5"),
        (1e6, "1e6"),
        (0.0, "0"),
        (-3e-5, "-3e-5"),
    ],
)
def test_short_numbers_are_those_that_people_write(value: float, text: str) -> None:
    assert short_float(value) == text


def test_a_setting_of_one_number_can_be_an_axis() -> None:
    assert swept_number("learning_rate=1e-4") == 1e-4
    assert [swept_number(name) for name in ("", "loss=token_sum", "epochs=1,beta=2")] == [None] * 3


def test_adapters_have_room_for_all_that_train_at_once(tmp_path: Path) -> None:
    assert serving(load(tmp_path)).max_loras == 0
    assert serving(load(tmp_path, "stages.rl.lora={rank: 4}")).max_loras == 3
    swept = load(tmp_path, "stages.rl.sweep={lora.rank: [4, 32]}", "stages.rl.at_once=4")
    assert (serving(swept).max_loras, serving(swept).max_lora_rank) == (5, 32)


# What tulu-lite extend recorded


def test_recorded_extensions_are_part_of_every_recipe_of_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    record(out, "rl", [Extension(run="seed-2", steps=200)])
    record(out, "rl", [Extension(run="seed-2", steps=200), Extension(run="seed-1", steps=50)])
    recipe = load(tmp_path, "stages.rl.extend=[{run: seed-1, steps: 50}]")
    assert [(one.run, one.steps) for one in recipe.stages[1].extend] == [("seed-1", 50), ("seed-2", 200)]  # type: ignore[union-attr]
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.yaml") == recipe  # they are not added twice
    fewer = load(tmp_path, "stages.rl.seeds=[1]")
    assert [one.run for one in fewer.stages[1].extend] == ["seed-1"]  # type: ignore[union-attr]
    assert load(tmp_path, "output=./other").stages[1].extend == ()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "text", ["- a", "rl: 3", "rl: [{run: seed-1}]", "rl: [", "{rl: [{run: seed-1, steps: 0}]}"]
)
def test_a_record_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "extend.yaml").write_text(text)
    with pytest.raises(TuluLiteError, match=r"extend\.yaml"):
        read_recorded(tmp_path)


@pytest.mark.parametrize(
    "sweep",
    ["{learning_rat: [1e-4]}", "[{learning_rat: 1e-4}, {learning_rat: 2e-4}]", "{learning_rat: [1e-4], epochs: [1]}"],
)  # fmt: skip
def test_a_misspelt_field_of_a_sweep_is_told_where_the_field_it_meant_is_missing(
    tmp_path: Path, sweep: str
) -> None:
    stage = {name: value for name, value in STAGES[0].items() if name != "learning_rate"}
    with pytest.raises(TuluLiteError) as caught:
        load(tmp_path, f"stages.sft.sweep={sweep}", stages=[stage])
    assert caught.value.what.splitlines()[1:] == [
        "  - stages.0 (sft).sweep.learning_rat: there is no such field; did you mean learning_rate?"
    ]


def test_a_sweep_of_unknown_fields_hides_no_other_fault(tmp_path: Path) -> None:
    stage = {name: value for name, value in STAGES[0].items() if name != "learning_rate"} | {"epochs": "x"}
    with pytest.raises(TuluLiteError) as caught:
        load(tmp_path, "stages.sft.sweep={nowhere: [1]}", stages=[stage])
    lines = caught.value.what.splitlines()[1:]
    assert len(lines) == 3 and "sweep.nowhere: there is no such field" in lines[0]
    assert any("learning_rate: this field is missing" in line for line in lines)
    with pytest.raises(TuluLiteError) as caught:  # said once, where nothing else is wrong
        load(tmp_path, "stages.sft.sweep={learning_rat: [1]}")
    assert caught.value.what.count("learning_rat:") == 1


@pytest.mark.parametrize("sweep", ["7", "[7]", "{7: [1]}", "x"])
def test_a_sweep_that_is_none_is_told_so(tmp_path: Path, sweep: str) -> None:
    with pytest.raises(TuluLiteError, match="sweep"):
        load(tmp_path, f"stages.sft.sweep={sweep}", "stages.sft.epochs=x")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(TuluLiteError, match=f"is a folder, not a recipe.*{tmp_path}/recipe.yaml"):
        load_recipe(tmp_path)


def test_a_record_that_cannot_be_read_for_no_given_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError

    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(TuluLiteError, match=r"extend\.yaml: OSError"):
        read_recorded(tmp_path)
