"""Responses as tensors, and the seconds that a step's parts take.

B responses of a micro-batch, T their tokens (prompt and response).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..records import Rollout


@dataclass
class Answered:
    """One response that teaches: what the loss needs of it."""

    prompt_ids: tuple[int, ...]
    rollout: Rollout
    advantage: float = 0.0  # of the whole response
    place: int = 0  # of its group in the step's batch
    sample: int = 0  # which of its group
    source: str = ""
    reward: float = 0.0
    teaches: bool = True  # False: it only counts in its group's mean
    fixed: dict[str, Tensor] = field(
        default_factory=dict
    )  # by name [its response tokens], constants, on the CPU

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + len(self.rollout.token_ids)


@dataclass
class Clock:
    """Seconds of the current step by what they went into."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - began

    def add(self, what: str, seconds: float) -> None:
        self.seconds[what] += seconds

    def take(self) -> dict[str, float]:
        taken = {f"{what}_s": round(seconds, 4) for what, seconds in self.seconds.items()}
        self.seconds.clear()
        return taken


def collate(items: Sequence[Answered], device: torch.device, pad_id: int) -> tuple[Tensor, ...]:
    """Right-padded tensors of B responses: token ids, attention, response mask, sampler's logprobs [B, T]; advantages [B]."""
    rows = items or [Answered((pad_id,), Rollout((pad_id,), (0.0,), (0,), "stop"), 0.0)]
    longest = max(item.tokens for item in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    attention = torch.zeros((len(rows), longest), dtype=torch.long)
    mask = torch.zeros((len(rows), longest))
    old = torch.zeros((len(rows), longest))
    for row, item in enumerate(rows):
        start, end = len(item.prompt_ids), item.tokens
        ids[row, :end] = torch.tensor(item.prompt_ids + item.rollout.token_ids)
        attention[row, :end] = 1
        if items:
            mask[row, start:end] = 1
            old[row, start:end] = torch.tensor(item.rollout.logprobs)
    advantage = torch.tensor([item.advantage for item in rows])
    return tuple(tensor.to(device) for tensor in (ids, attention, mask, old, advantage))


def fixed_rows(items: Sequence[Answered], name: str, like: Tensor) -> Tensor:
    """The items' constants of a name as [B, T - 1], each response token's at the place of its log-probability; 0
    elsewhere. like: [B, T - 1], of the items' collate."""
    rows = torch.zeros(like.shape, dtype=torch.float32)
    for row, item in enumerate(items):
        start = len(item.prompt_ids) - 1
        rows[row, start : item.tokens - 1] = item.fixed[name]
    return rows.to(like.device)


def keep_rows(items: Sequence[Answered], name: str, rows: Tensor) -> None:
    """The opposite of fixed_rows."""
    rows = rows.detach().float().cpu()
    for row, item in enumerate(items):
        item.fixed[name] = rows[row, len(item.prompt_ids) - 1 : item.tokens - 1].clone()
