"""GPUs for runs that train at the same time, on machines that are made up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tulu_lite.errors import TuluLiteError
from tulu_lite.pipeline.command import processes_of
from tulu_lite.pipeline.placing import placement
from tulu_lite.pipeline.steps import Step
from tulu_lite.recipe import AccelerateSettings, Recipe
from tulu_lite.recipe.placement import GIB, Machine, share

EIGHT = Machine((80 * GIB,) * 8, vllm_for_gpus=True)


def recipe(tmp_path: Path, server: dict[str, Any], **stage: Any) -> Recipe:
    sft = {"name": "sft", "kind": "sft", "data": "r.jsonl", "validation": "v.jsonl", "learning_rate": 1e-4}
    rl = {"name": "rl", "kind": "rlvr", "init": "sft", "steps": 2, "sampling": {"max_tokens": 4}}
    stages = [{**sft, **stage}, {**sft, **rl, **stage}]
    return Recipe(name="r", model="/m", output=str(tmp_path), stages=stages, server=server)  # type: ignore[arg-type]


def steps(recipe: Recipe, number: int, count: int) -> Sequence[Step]:
    stage = recipe.stages[number]
    return [
        Step(f"{stage.name}/seed-{n}", stage.kind, stage, n, "base", (), {}, "k", Path(recipe.output))
        for n in range(count)
    ]


def test_each_run_has_gpus_of_its_own_beside_the_server(tmp_path: Path) -> None:
    made = recipe(
        tmp_path,
        {"devices": (0, 1), "replicas": 2},
        seeds=(1, 2, 3),
        at_once=3,
        accelerate={"num_processes": 2},
    )
    placed = placement(made, steps(made, 1, 3), lambda: EIGHT)
    assert [share(placed.training, slot, 2) for slot in range(3)] == [(2, 3), (4, 5), (6, 7)]


def test_too_few_gpus_are_told_before_anything_starts(tmp_path: Path) -> None:
    made = recipe(
        tmp_path,
        {"devices": (0, 1), "replicas": 2},
        seeds=(1, 2, 3, 4),
        at_once=4,
        accelerate={"num_processes": 2},
    )
    with pytest.raises(
        TuluLiteError, match="4 runs at once of 2 training processes each need 8 GPUs, and there are 6"
    ) as caught:
        placement(made, steps(made, 1, 4), lambda: EIGHT)
    assert "at_once to 3" in caught.value.cure
    assert placement(made, steps(made, 1, 3), lambda: EIGHT).training == (
        2,
        3,
        4,
        5,
        6,
        7,
    )  # three are left to do


def test_where_nothing_samples_all_gpus_are_for_training(tmp_path: Path) -> None:
    made = recipe(tmp_path, {}, seeds=(1, 2), at_once=2)
    assert placement(made, steps(made, 0, 2), lambda: EIGHT).training == tuple(range(8))
    assert (
        placement(made, steps(made, 0, 2), lambda: Machine((), False)).training == ()
    )  # no GPU: the CPU is shared
    on_cpu = made.model_copy(update={"accelerate": AccelerateSettings(device="cpu")})
    assert placement(on_cpu, steps(on_cpu, 0, 2), lambda: EIGHT).training == ()
    alone = recipe(tmp_path, {}, seeds=(1, 2))
    assert placement(alone, steps(alone, 0, 2), lambda: EIGHT).training == ()  # it sees them all anyway


def test_the_processes_of_a_configuration_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "zero3.yaml"
    file.write_text("distributed_type: DEEPSPEED\nnum_processes: 4\n")
    assert processes_of(AccelerateSettings(config_file=str(file))) == 4
    assert processes_of(AccelerateSettings(config_file=str(file), num_processes=2)) == 2
    assert processes_of(AccelerateSettings()) == 1
    file.write_text("- no\n")
    with pytest.raises(TuluLiteError, match="cannot read accelerate.config_file"):
        processes_of(AccelerateSettings(config_file=str(file)))
