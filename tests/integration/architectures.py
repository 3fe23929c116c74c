"""Tiny random models of each architecture that weight updates are proven on, made from transformers' own configs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    Olmo2Config,
    OlmoeConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from tulu_lite.records import Prompt
from tulu_lite.rollout.client import RolloutClient, Sampling

SHAPE: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "initializer_range": 0.1,
}  # fmt: skip
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SHAPE, head_dim=32, tie_word_embeddings=False),
    "qwen2": lambda: Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=32, tie_word_embeddings=True),
    "olmo2": lambda: Olmo2Config(**SHAPE, tie_word_embeddings=False),
    "gemma": lambda: GemmaConfig(**SHAPE, head_dim=32),
    "gemma2": lambda: Gemma2Config(**SHAPE, **GEMMA),
    "gemma3": lambda: Gemma3TextConfig(**SHAPE, **GEMMA),
    "olmoe": lambda: OlmoeConfig(**SHAPE, num_experts=8, num_experts_per_tok=2, tie_word_embeddings=False),
}
PROMPTS = [Prompt(f"p{i}", "", tuple(range(3 + i, 10 + 2 * i)), "test") for i in range(6)]
GREEDY = Sampling(1, 0.0, 24, 0)


def make_model(architecture: str, folder: Path, seed: int = 0) -> Any:
    """Save a random model in float32, its norms and biases random too, and return it."""
    torch.manual_seed(seed)
    made: Any = AutoModelForCausalLM.from_config(CONFIGS[architecture](), dtype=torch.float32)
    change(made, seed).save_pretrained(folder)
    # Attention with soft-capped logits (Gemma 2) is done by transformers' eager path alone.
    load: Any = AutoModelForCausalLM.from_pretrained
    return load(folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def change(model: Any, seed: int, size: float = 0.05) -> Any:
    """A copy with noise on every weight."""
    generator = torch.Generator().manual_seed(1000 + seed)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return other


@torch.no_grad()
def disagreements(client: RolloutClient, model: Any, version: int) -> tuple[list[str], float]:
    """(what differs from transformers, largest difference of a logprob) over greedy responses of the server.

    A token counts as equal when its logit is within 1e-4 of the largest: rounding may then choose either.
    """
    wrong: list[str] = []
    worst = 0.0
    for group in client.generate(PROMPTS, GREEDY):
        rollout = group.rollouts[0]
        if set(rollout.weight_versions) != {version}:
            wrong.append(f"{group.prompt.id}: versions {sorted(set(rollout.weight_versions))}, not {version}")
        ids = torch.tensor([group.prompt.token_ids + rollout.token_ids])
        log_p = model(ids).logits[0].float().log_softmax(-1)[len(group.prompt.token_ids) - 1 : -1]
        chosen = log_p.gather(1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
        if (log_p.max(-1).values - chosen).max() > 1e-4:
            wrong.append(f"{group.prompt.id}: other tokens")
        worst = max(worst, (chosen - torch.tensor(rollout.logprobs)).abs().max().item())
    return wrong, worst


def checkpoint_weights(model: Any) -> Iterable[tuple[str, torch.Tensor]]:
    """(name in the checkpoint, tensor): what a trainer pushes."""
    from tulu_lite.training.model import merged_weights

    return merged_weights(model)
