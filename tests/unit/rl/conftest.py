"""A stage's settings, judged groups, and a tiny model, for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tulu_lite.recipe import RlvrStage
from tulu_lite.records import Prompt, Rollout, RolloutGroup
from verifiers.base import error, scored

BASE: dict[str, Any] = {
    "name": "rl", "kind": "rlvr", "init": "base", "data": "a.jsonl", "validation": "b.jsonl", "steps": 4,
    "learning_rate": 1e-2, "sampling": {"max_tokens": 8}, "prompts_per_step": 4, "samples_per_prompt": 3, "warmup_ratio": 0,
}  # fmt: skip


@pytest.fixture(scope="session")
def stage_of() -> Callable[..., RlvrStage]:
    return lambda **fields: RlvrStage.model_validate(BASE | fields)


def _prompt(number: int, source: str = "s") -> Prompt:
    return Prompt(f"p{number}", "", (1, 5 + number), source, "math", str(number), f"question {number}")


def _rollout(score: float | None, tokens: Sequence[int] = (7, 8, 2), finish: str = "stop", version: int = 0) -> Rollout:  # fmt: skip
    verdict = error("broke") if score is None else scored(score)
    ids = tuple(tokens)
    return Rollout(ids, (-1.5,) * len(ids), (version,) * len(ids), finish, "said", verdict)


@pytest.fixture(scope="session")
def prompt_of() -> Callable[..., Prompt]:
    return _prompt


@pytest.fixture(scope="session")
def rollout_of() -> Callable[..., Rollout]:
    return _rollout


@pytest.fixture(scope="session")
def group_of() -> Callable[..., RolloutGroup]:
    def group(number: int, *scores: float | None, source: str = "s") -> RolloutGroup:
        return RolloutGroup(_prompt(number, source), tuple(_rollout(score) for score in scores))

    return group


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, initializer_range=0.2, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
