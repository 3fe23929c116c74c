"""A training stage killed by SIGKILL at twenty random moments ends with the bits of one that was never killed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tulu_lite.pipeline.expand import expand
from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.recipe import load_recipe

sys.path.insert(0, str(Path(__file__).parent))
from killing import killed_at_random

WORDS = ["<pad>", "<bos>", "<eos>", "<|user|>", "<|assistant|>", *(f"w{number}" for number in range(30))]
STAGES: dict[str, dict[str, Any]] = {
    "sft": {"kind": "sft", "export": "best", "lora": {"rank": 2, "dropout": 0.2}},
    "dpo": {"kind": "dpo", "init": "base"},
    "reward": {"kind": "reward", "init": "base"},
}


def row(number: int) -> dict[str, str]:
    filler = " ".join(f"w{10 + (number * k) % 20}" for k in range(1, 2 + number % 7))
    answers = {"chosen": f"w1 {filler}", "rejected": "w2 w4", "completion": f"w1 {filler} w5"}
    return {"prompt": f"w{number % 30} w3 {filler}", **answers}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, rows, and a recipe with a stage of each kind."""
    root = tmp_path_factory.mktemp("kills")
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(root / "model")
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(root / "model")
    (root / "rows.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(24)))
    (root / "held.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(40, 46)))
    common = {
        "data": "rows.jsonl", "validation": "held.jsonl", "learning_rate": 1e-2, "batch_size": 6, "max_length": 60,
        "epochs": 2, "warmup_ratio": 0.2, "save_every_steps": 1, "validate_every_steps": 2,
    }  # fmt: skip
    recipe = {
        "name": "tiny", "model": str(root / "model"), "output": "./out", "chat_template": "tulu",
        "accelerate": {"device": "cpu", "threads": 1},
        "stages": [{"name": name, **common, **fields} for name, fields in STAGES.items()],
    }  # fmt: skip
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return root


@pytest.mark.parametrize("name", STAGES)
def test_killed_twenty_times_it_gives_the_same_bits(world: Path, name: str) -> None:
    recipe = load_recipe(world / "recipe.yaml")
    (step,) = (step for step in expand(recipe, Ledger(Path(recipe.output))) if step.id == name)
    outcome = killed_at_random(
        f"tulu_lite.stages.{STAGES[name]['kind']}",
        ["--recipe", str(world / "recipe.yaml"), "--stage", name],
        step.folder,
        kills=20,
        seed=7,
    )
    assert outcome.differences == []
    assert outcome.kills == 20
    assert outcome.resumed >= 3, "the kills came too early to tell anything"
