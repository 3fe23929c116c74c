"""The recipes of published models hold the published figures, and plan as rehearsals."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from tulu_lite.pipeline.plan import make_plan
from tulu_lite.recipe import load_recipe
from tulu_lite.rehearsal import rehearse

RECIPES = Path(__file__).parents[3] / "recipes"
PUBLISHED = sorted(file for room in ("tulu3", "olmo2", "r1") for file in (RECIPES / room).glob("*.yaml"))
PPO = {
    "advantage": "gae", "kl_estimator": "k1", "kl_in": "reward", "samples_per_prompt": 1, "epochs_per_batch": 4, "clip": (0.2, 0.2),
    "reward_scale": 10, "unfinished_reward": -10, "rhythm": "one_behind", "value.gamma": 1, "value.gae_lambda": 0.95, "value.clip": 0.2,
    "value.coefficient": 0.1, "sampling.max_tokens": 2048, "sampling.temperature": 1, "whitens": True,
}  # fmt: skip
GRPO = {"advantage": "grpo", "kl_estimator": "k3", "kl_in": "loss", "samples_per_prompt": 16, "prompts_per_step": 48,
        "learning_rate": 5e-7, "schedule": "constant", "sampling.max_tokens": 2048}  # fmt: skip
SFT = {"epochs": 2, "max_length": 4096, "schedule": "linear", "warmup_ratio": 0.03, "weight_decay": 0}
DPO = {"beta": 5, "length_normalised": True, "epochs": 1, "max_length": 2048, "batch_size": 128, "schedule": "linear", "warmup_ratio": 0.1}  # fmt: skip
R1 = {
    "samples_per_prompt": 16,
    "kl_coefficient": 0.001,
    "clip": (1.0, 10.0),
    "sampling.max_tokens": 32768,
    "updates_per_step": 16,
}
FIGURES: dict[str, dict[str, dict[str, Any]]] = {
    "tulu3/8b": {
        "sft": SFT | {"learning_rate": 5e-6, "batch_size": 128, "loss": "token_sum"},
        "pairs": {"samples_per_prompt": 4, "sampling.temperature": 1, "rejected": "random_lower", "pool.0": "sft"},
        "dpo": DPO | {"learning_rate": 5e-7},
        "reward": {"learning_rate": 3e-6, "epochs": 1, "max_length": 2048},
        "rlvr": PPO | {"learning_rate": 3e-7, "kl_coefficient": 0.05, "prompts_per_step": 224, "value.init": "reward"},
    },
    "tulu3/70b": {
        "sft": SFT | {"learning_rate": 2e-6, "batch_size": 128, "loss": "token_sum"},
        "dpo": DPO | {"learning_rate": 2e-7},
        "rlvr": PPO | {"learning_rate": 1e-7, "kl_coefficient": 0.07, "prompts_per_step": 640, "warmup_ratio": 0.1},
    },
    "tulu3/3.1-8b": {"rlvr": GRPO | {"kl_coefficient": 0.01, "updates_per_step": 2}},
    "olmo2/1b": {
        "sft": SFT | {"learning_rate": 3e-5}, "dpo": DPO | {"learning_rate": 2.5e-6},
        "rlvr-mix": GRPO | {"kl_coefficient": 0.01, "init": "dpo"}, "rlvr-math": GRPO | {"init": "rlvr-mix"},
    },
    "olmo2/7b": {
        "sft": SFT | {"learning_rate": 1e-5}, "dpo": DPO | {"learning_rate": 1e-6},
        "rlvr-mix": PPO | {"init": "dpo"}, "rlvr-gsm": PPO | {"init": "rlvr-mix"}, "rlvr-math": PPO | {"init": "rlvr-gsm"},
    },
    "olmo2/13b": {
        "sft": SFT | {"learning_rate": 5e-6}, "dpo": DPO | {"learning_rate": 8e-7},
        "rlvr-mix": PPO | {"init": "dpo"}, "rlvr-gsm": PPO | {"init": "rlvr-mix"}, "rlvr-math": PPO | {"init": "rlvr-gsm"},
    },
    "olmo2/32b": {
        "sft": SFT | {"learning_rate": 4e-6}, "dpo": DPO,
        "rlvr-mix": GRPO | {"init": "dpo"}, "rlvr-gsm": GRPO | {"init": "rlvr-mix"}, "rlvr-math": GRPO | {"init": "rlvr-gsm"},
    },
    "r1/zero": {"rl": R1 | {"init": "base", "sampling.temperature": 1}},
    "r1/r1": {
        "reasoning": R1 | {"init": "cold-start", "sampling.temperature": 1},
        "rejection": {"init": "reasoning", "general_share": 0.25, "min_score": 1, "samples_per_prompt": 16},
        "sft": {"init": "base", "data.0.stage": "rejection"},
        "last": R1 | {"init": "sft", "sampling.temperature": 0.7},
    },
}  # fmt: skip


def name_of(file: Path) -> str:
    return f"{file.parent.name}/{file.stem}"


def at(stage: Any, dotted: str) -> Any:
    return functools.reduce(
        lambda here, part: here[int(part)] if part.isdigit() else getattr(here, part),
        dotted.split("."),
        stage,
    )


@pytest.mark.parametrize("file", PUBLISHED, ids=name_of)
def test_the_published_figures(file: Path) -> None:
    stages = {stage.name: stage for stage in load_recipe(file).stages}
    for name, figures in FIGURES[name_of(file)].items():
        found = {field: at(stages[name], field) for field in figures}
        assert found == figures, name


def test_references_are_refreshed_every_400_updates_and_olmo_sweeps_the_kl() -> None:
    for file, name in (("r1/zero.yaml", "rl"), ("r1/r1.yaml", "reasoning")):
        stage = next(stage for stage in load_recipe(RECIPES / file).stages if stage.name == name)
        assert stage.reference_refresh_steps * stage.updates == 400
        assert (
            stage.prompts_per_step * stage.samples_per_prompt / stage.updates == 512
        )  # responses of an update
    for size in ("7b", "13b"):
        for stage in load_recipe(RECIPES / "olmo2" / f"{size}.yaml").stages:
            if stage.kind == "rlvr":
                assert stage.sweep == {"kl_coefficient": [0.03, 0.05, 0.07, 0.1]}
                assert len(stage.seeds) > 1
                assert 99_000 <= stage.steps * stage.prompts_per_step <= 200_000


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("file", PUBLISHED, ids=name_of)
def test_it_plans_as_a_rehearsal_with_the_same_steps(file: Path, tmp_path: Path) -> None:
    given = load_recipe(file, [f"output={tmp_path / 'out'}"])
    recipe = rehearse(given, lambda line: None)
    assert [stage.name for stage in recipe.stages] == [stage.name for stage in given.stages]
    plan = make_plan(recipe)
    runs = {planned.step.id for planned in plan}
    for stage in given.stages:
        for seed in getattr(stage, "seeds", None) or ():
            assert any(id.startswith(f"{stage.name}/") and id.endswith(f"seed-{seed}") for id in runs), (
                stage.name
            )
    assert sum(planned.size.tokens for planned in plan if planned.size) < 2_000_000
    readme = (file.parent / "README.md").read_text()
    assert file.name in readme
