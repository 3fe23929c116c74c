"""The trainer's log-probabilities of what the server sampled, also under suppositions of what may be amiss.

N response tokens of several sequences, in order; V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..datasets.batching import pack_by_length
from ..records import RolloutGroup
from ..training.logprobs import LogprobModel, token_logprobs
from ..training.model import unwrapped
from .figures import Array

MICRO_BATCH_TOKENS = 8192
CHUNK_TOKENS = 1024


@dataclass(frozen=True)
class Said:
    """One sampled response: its prompt, its tokens, and what the server said of them."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + len(self.token_ids)


def said(groups: Sequence[RolloutGroup]) -> list[Said]:
    """Every response of the groups, in order."""
    return [
        Said(group.prompt.token_ids, rollout.token_ids, rollout.logprobs, rollout.weight_versions)
        for group in groups
        for rollout in group.rollouts
    ]


def server_logprobs(responses: Sequence[Said]) -> Array:
    """[N]"""
    return np.array([value for response in responses for value in response.logprobs], np.float64)


def places(responses: Sequence[Said]) -> np.ndarray:
    """[N] each response token's place in its sequence, counted from the prompt's first token."""
    spans = [np.arange(len(item.prompt_ids), item.tokens) for item in responses]
    return np.concatenate(spans) if spans else np.zeros(0, np.int64)


@torch.no_grad()
def trainer_logprobs(model: nn.Module, responses: Sequence[Said], temperature: float) -> Array:
    """[N] by the very code that trains (training/logprobs.py). model: a LogprobModel, or what accelerate made of it."""
    device = next(unwrapped(model).parameters()).device
    out: list[Array] = [np.zeros(0)] * len(responses)
    for batch in pack_by_length([item.tokens for item in responses], MICRO_BATCH_TOKENS):
        longest = max(responses[index].tokens for index in batch)
        ids = torch.zeros((len(batch), longest), dtype=torch.long)
        attention = torch.zeros((len(batch), longest), dtype=torch.long)
        for row, index in enumerate(batch):
            item = responses[index]
            ids[row, : item.tokens] = torch.tensor(item.prompt_ids + item.token_ids)
            attention[row, : item.tokens] = 1
        logprobs = token_logprobs(
            model, ids.to(device), attention.to(device), chunk_tokens=CHUNK_TOKENS, temperature=temperature
        ).cpu()
        for row, index in enumerate(batch):
            item = responses[index]
            out[index] = (
                logprobs[row, len(item.prompt_ids) - 1 : item.tokens - 1].double().numpy()
            )  # token t+1 stands at t
    return np.concatenate(out)


@torch.no_grad()
def trainer_logits(model: LogprobModel, responses: Sequence[Said]) -> torch.Tensor:
    """[N, V] float32: whole logits, for few tokens only. The model's own forward pass, head and scaling included."""
    device = next(model.base.parameters()).device
    rows = []
    for item in responses:
        ids = torch.tensor([item.prompt_ids + item.token_ids], device=device)
        logits = model.base(input_ids=ids, use_cache=False).logits[0]
        rows.append(logits[len(item.prompt_ids) - 1 : item.tokens - 1].float().cpu())
    return torch.cat(rows)


def few(responses: Sequence[Said], tokens: int, longest_first: bool = True) -> list[Said]:
    """Responses that hold about so many response tokens; the long ones say most about positions."""
    chosen: list[Said] = []
    count = 0
    for item in sorted(responses, key=lambda item: -item.tokens if longest_first else 0):
        if count < tokens:
            chosen.append(item)
            count += len(item.token_ids)
    return chosen


@contextmanager
def in_type(model: LogprobModel, dtype: torch.dtype) -> Iterator[LogprobModel]:
    """A copy of the model that computes in `dtype`."""
    yield copy.deepcopy(model).to(dtype)


@contextmanager
def with_rope(model: LogprobModel, theta: float | None) -> Iterator[LogprobModel]:
    """The model with plain rotary positions of base `theta`; None: of its own base, without any scaling."""
    changed: list[tuple[Any, torch.Tensor, float | None, Any]] = []
    base = theta or rope_theta(model)
    try:
        for module in model.base.modules():
            inverse = getattr(module, "inv_freq", None)
            if isinstance(inverse, torch.Tensor) and inverse.ndim == 1:
                size = len(inverse)
                plain = torch.tensor([base ** (-i / size) for i in range(size)], dtype=inverse.dtype)
                scale = getattr(module, "attention_scaling", None)
                kind = getattr(module, "rope_type", None)
                changed.append((module, inverse, scale, kind))
                module.inv_freq = plain.to(inverse.device)
                if scale is not None:
                    module.attention_scaling = 1.0
                if kind is not None:
                    module.rope_type = "default"  # or a dynamic type would compute its own again
        yield model
    finally:
        for module, inverse, scale, kind in changed:
            module.inv_freq = inverse
            if scale is not None:
                module.attention_scaling = scale
            if kind is not None:
                module.rope_type = kind


def rope_theta(model: LogprobModel) -> float:
    """The base of the model's rotary positions, 10,000 where its config says none."""
    config = model.config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    return float(parameters.get("rope_theta") or getattr(config, "rope_theta", None) or 10_000.0)


def rope_kind(model: LogprobModel) -> str:
    parameters = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    return str(parameters.get("rope_type", "default"))


def has_rope(model: LogprobModel) -> bool:
    return any(isinstance(getattr(module, "inv_freq", None), torch.Tensor) for module in model.base.modules())


@contextmanager
def with_attention(model: LogprobModel, implementation: str) -> Iterator[LogprobModel]:
    """The model with other attention kernels (eager: plain matrix products)."""
    config = model.config
    before = config._attn_implementation
    model.base.set_attn_implementation(implementation)
    try:
        yield model
    finally:
        model.base.set_attn_implementation(before)


def log_spaced(low: float, high: float, count: int) -> list[float]:
    return [low * math.exp(i * math.log(high / low) / (count - 1)) for i in range(count)]
