"""A rehearsal is the same recipe with tiny models, few rows and short lengths, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tulu_lite.errors import TuluLiteError
from tulu_lite.pipeline.plan import make_plan
from tulu_lite.recipe import load_recipe
from tulu_lite.rehearsal import rehearse
from tulu_lite.rehearsal.answers import Verifying, leaf_names
from tulu_lite.rehearsal.models import tiny_config

pytestmark = pytest.mark.usefixtures("untrained")
STAGES: list[dict[str, Any]] = [
    {
        "name": "sft", "kind": "sft", "epochs": 3, "batch_size": 128, "learning_rate": 5e-6, "loss": "token_sum",
        "data": [
            {"hub": "owner/chat", "count": 70000, "source": "chat"},
            {"hub": "owner/asked", "prompt": "{body} {question}", "completion": "{answer.text}", "count": 30000},
            {"path": "own.jsonl", "count": 100},
        ],
        "accelerate": {"config_file": "zero3.yaml", "mixed_precision": "bf16"}, "gradient_checkpointing": True,
    },
    {
        "name": "rl", "kind": "rlvr", "init": "sft", "seeds": [3, 7], "steps": 1000, "prompts_per_step": 512,
        "updates_per_step": 4, "samples_per_prompt": 16, "sampling": {"max_tokens": 2048}, "learning_rate": 3e-7,
        "kl_estimator": "k1", "kl_in": "reward", "reference_refresh_steps": 400, "validate_every_steps": 50,
        "overlong": {"buffer_tokens": 512}, "clip": [0.2, 0.28],
        "data": {"hub": "owner/mixed", "reference": "truth", "source": "{dataset}", "verifier": "mixed", "share": [0, 0.9]},
        "validation": {"hub": "owner/mixed", "reference": "truth", "source": "{dataset}", "verifier": "mixed", "share": [0.9, 1]},
    },
]  # fmt: skip


def recipe_file(folder: Path, **changes: Any) -> Path:
    (folder / "own.jsonl").write_text(
        "".join(json.dumps({"prompt": f"say {i}", "completion": f"{i}!"}) + "\n" for i in range(40))
    )
    recipe = {
        "name": "big", "model": "meta-llama/Llama-3.1-8B", "output": "./out", "chat_template": "tulu",
        "verifiers": {"mixed": {"choose": {"gsm8k": "gsm8k", "if": "ifeval"}, "by": "source"}},
        "server": {"tensor_parallel": 4, "devices": [0, 1, 2, 3]}, "stages": STAGES,
    }  # fmt: skip
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe | changes))
    return file


def rehearsed(folder: Path, **changes: Any) -> tuple[Any, list[str]]:
    said: list[str] = []
    return rehearse(load_recipe(recipe_file(folder, **changes)), said.append), said


def test_sizes_shrink_and_what_is_computed_stays(tmp_path: Path) -> None:
    recipe, said = rehearsed(tmp_path)
    sft, rl = recipe.stages
    assert (sft.epochs, sft.batch_size) == (2, 4)
    assert (rl.steps, rl.prompts_per_step, rl.samples_per_prompt, rl.sampling.max_tokens) == (3, 4, 4, 40)
    assert (rl.reference_refresh_steps, rl.validate_every_steps) == (1, 1)
    assert rl.overlong.buffer_tokens == 10  # a quarter of the budget, as written
    given = load_recipe(tmp_path / "recipe.yaml")
    for stage, other in zip(recipe.stages, given.stages, strict=True):
        for field in ("learning_rate", "schedule", "warmup_ratio", "seeds", "loss", "clip", "kl_estimator", "kl_in",
                      "kl_coefficient", "updates_per_step", "epochs_per_batch", "advantage", "betas"):  # fmt: skip
            assert getattr(stage, field, None) == getattr(other, field, None), field
    assert recipe.verifiers == given.verifiers
    assert recipe.chat_template == "tulu"
    assert (recipe.accelerate.device, sft.accelerate, sft.gradient_checkpointing) == ("cpu", None, False)
    assert recipe.server.devices is None
    assert recipe.output == str(tmp_path / "out-rehearsal")
    assert not (tmp_path / "out").exists()
    text = "\n".join(said)
    assert "Llama-3.1-8B: llama" in text and "3 hub data sets" not in text and "4 hub data sets" in text


def rows_of(source: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(source.path).read_text().splitlines()]


def test_made_up_rows_have_the_columns_that_the_recipe_names_and_local_ones_are_its_own(
    tmp_path: Path,
) -> None:
    recipe, _ = rehearsed(tmp_path)
    chat, asked, own = recipe.stages[0].data
    assert {role for row in rows_of(chat) for turn in row["messages"] for role in [turn["role"]]} == {
        "user",
        "assistant",
    }
    assert set(rows_of(asked)[0]) == {"body", "question", "answer"}
    assert rows_of(own) == [{"prompt": f"say {i}", "completion": f"{i}!"} for i in range(12)]
    assert (chat.weight, asked.weight, own.weight) == (70000, 30000, 100)
    data, validation = recipe.stages[1].data[0], recipe.stages[1].validation[0]
    assert [row["dataset"] for row in rows_of(data)[:4]] == ["gsm8k", "if", "gsm8k", "if"]
    assert rows_of(data)[1]["truth"]["instruction_id_list"]
    assert not {json.dumps(row) for row in rows_of(data)} & {json.dumps(row) for row in rows_of(validation)}


def test_sources_in_a_sweep_are_rehearsed_too(tmp_path: Path) -> None:
    sft = {"name": "sft", "kind": "sft", "learning_rate": 1e-5, "validation": {"hub": "owner/held"}}
    swept = {"data": [{"hub": "owner/a"}, [{"hub": "owner/b", "count": 9}, {"hub": "owner/c", "count": 1}]]}
    recipe, _ = rehearsed(tmp_path, stages=[{**sft, "data": {"hub": "owner/a"}, "sweep": swept}])
    first, second = recipe.stages[0].sweep["data"]
    assert [source["hub"] for source in [*first, *second]] == [None] * 3
    assert [source["weight"] for source in second] == [9.0, 1.0]
    assert len(make_plan(recipe)) == 3  # both settings and the choice
    with pytest.raises(TuluLiteError, match="its sweep changes data.0.hub"):
        rehearsed(
            tmp_path,
            stages=[{**sft, "data": {"hub": "owner/a"}, "sweep": {"data.0.hub": ["owner/a", "owner/b"]}}],
        )


def test_the_same_recipe_gives_the_same_rehearsal(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    one, other = rehearsed(first)[0], rehearsed(second)[0]
    files = sorted((first / "out-rehearsal" / "data").iterdir())
    assert files
    for file in files:
        assert file.read_bytes() == (second / "out-rehearsal" / "data" / file.name).read_bytes()
    assert Path(one.model).name == Path(other.model).name  # named by what it is made from


def test_judges_of_others_are_served_here_and_may_fail(tmp_path: Path) -> None:
    judged = {"use": "judge_aspect", "args": {"base_url": "https://example.com/v1", "model": "big", "api_key_env": "KEY", "aspect": "all"}}  # fmt: skip
    stages = [
        {
            "name": "pairs", "kind": "preferences", "models": ["base", "Qwen/Qwen2.5-7B-Instruct"],
            "data": {"hub": "owner/chat", "verifier": "judged", "reference": "id"}, "sampling": {"max_tokens": 999},
        },
        {"name": "dpo", "kind": "dpo", "init": "base", "data": [{"stage": "pairs"}, {"hub": "owner/pairs", "format": "preference"}], "learning_rate": 1e-7},
    ]  # fmt: skip
    recipe, said = rehearsed(tmp_path, verifiers={"judged": {"gate": ["no_commas", judged]}}, stages=stages)
    assert any("https://example.com" in line for line in said)
    args = recipe.verifiers["judged"]["gate"][1]["args"]
    assert args["base_url"] == "env:TULU_LITE_JUDGE_REHEARSAL" and "api_key_env" not in args
    assert recipe.judges["rehearsal"].model.startswith(str(tmp_path))
    pairs, dpo = recipe.stages
    assert pairs.max_error_share == 1
    assert pairs.models[0] == "base" and Path(pairs.models[1]).is_dir()
    row = rows_of(dpo.data[1])[0]
    assert row["chosen"][0] == row["rejected"][0] and row["chosen"][1] != row["rejected"][1]


def test_every_answer_that_is_shown_as_right_is_right(tmp_path: Path) -> None:
    specs: dict[str, Any] = {
        "a": {"weighted": [{"use": "math", "weight": 1}, {"use": "think_answer", "weight": 1}]},
        "b": {"all_of": ["number", "ifeval"]},
        "c": {"scale": {"choose": {"x": "boxed", "y": "ifeval"}, "by": "source"}, "by": 10},
    }
    verifying = Verifying(load_recipe(recipe_file(tmp_path, verifiers=specs)))
    for name, source in (("a", "s"), ("b", "s"), ("c", "x"), ("c", "y"), ("gsm8k", "s")):
        reference = verifying.reference(name, 3, source)
        answers = verifying.answers(name, reference, source, "how many?")
        assert answers.right and answers.other, (name, source)
    assert verifying.branches("c") == ["x", "y"]
    assert leaf_names(specs["c"], "y") == ["ifeval"]


def test_a_verifier_that_takes_none_of_the_tried_references_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "from verifiers import BadReference, verifier\n\n"
        "def check(reference):\n    raise BadReference('no')\n\n"
        "@verifier('odd', version='1', check_reference=check)\n"
        "def odd(response, reference):\n    return True\n"
    )
    with pytest.raises(TuluLiteError, match="cannot rehearse the verifier"):
        rehearsed(tmp_path, verifiers={"mixed": str(tmp_path / "odd.py:odd")})


@pytest.mark.parametrize(
    ("model", "kind", "tied"),
    [
        ("meta-llama/Llama-3.1-70B", "llama", None),
        ("Qwen/Qwen2.5-1.5B", "qwen2", True),
        ("Qwen/Qwen2.5-7B", "qwen2", None),
        ("Qwen/Qwen3-8B", "qwen3", None),
        ("allenai/OLMo-2-0325-32B", "olmo2", None),
    ],
)
def test_architectures_by_name_where_the_hub_is_away(model: str, kind: str, tied: bool | None) -> None:
    config, where = tiny_config(model, None)
    assert (config["model_type"], config.get("tie_word_embeddings")) == (kind, tied)
    assert "by" not in where and "name" in where


def test_an_architecture_that_cannot_be_known_is_an_error_with_a_cure() -> None:
    with pytest.raises(TuluLiteError, match="its name tells no architecture"):
        tiny_config("somebody/unheard-of", None)


def test_a_folders_own_config_keeps_its_architecture_and_loses_its_size(tmp_path: Path) -> None:
    config = {
        "model_type": "olmo3", "hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 40, "num_key_value_heads": 8,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"], "rms_norm_eps": 1e-6, "sliding_window": 4096,
        "vocab_size": 100278, "eos_token_id": 100257, "rope_scaling": {"factor": 8.0},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    tiny, where = tiny_config(str(tmp_path), None)
    assert tiny["layer_types"] == ["sliding_attention", "full_attention"]
    assert (tiny["hidden_size"], tiny["num_key_value_heads"], tiny["rms_norm_eps"]) == (64, 1, 1e-6)
    assert not {"vocab_size", "eos_token_id", "rope_scaling"} & set(tiny)
    assert where == "its config.json"


def test_a_rehearsal_plans_with_every_step_of_the_recipe(tmp_path: Path) -> None:
    recipe, _ = rehearsed(tmp_path)
    plan = make_plan(recipe)
    assert [planned.step.id for planned in plan] == ["sft", "rl/seed-3", "rl/seed-7", "rl"]
    assert all(planned.size is None or planned.size.tokens for planned in plan)


def test_the_command_plans_a_rehearsal_and_says_what_it_changed(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from tulu_lite.cli import app

    done = CliRunner().invoke(app, ["plan", str(recipe_file(tmp_path)), "--rehearse", "seed=5"])
    assert done.exit_code == 0, done.output
    assert "rehearsal of big" in done.output and "rl/seed-7" in done.output
    assert "as written: stages, objectives" in done.output
