"""What a step of the policy gradient is made of besides its loss: tensors of responses, sums, times, rewards.

B responses of a micro-batch, T their tokens (prompt and response).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import gather_object

from ..recipe import RlvrStage
from ..records import Rollout, RolloutGroup


@dataclass
class Answered:
    """One response that teaches: what the loss needs of it."""

    prompt_ids: tuple[int, ...]
    rollout: Rollout
    advantage: float

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + len(self.rollout.token_ids)


@dataclass
class Sums:
    """Sums over response tokens of one step, on this process; divided by the global counts when logged."""

    values: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    gap_max: float = 0.0

    def add(self, **values: torch.Tensor) -> None:
        for name, value in values.items():
            self.values[name] += float(value.detach())


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

    def take(self) -> dict[str, float]:
        taken = {f"{what}_s": round(seconds, 4) for what, seconds in self.seconds.items()}
        self.seconds.clear()
        return taken


def collate(items: Sequence[Answered], device: torch.device, pad_id: int) -> tuple[torch.Tensor, ...]:
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


def reward(rollout: Rollout, stage: RlvrStage) -> float:
    """The reward of a judged response; NaN when it has no score."""
    if rollout.verdict is None or rollout.verdict.reward is None:
        return float("nan")
    if not rollout.finished and stage.unfinished_reward is not None:
        return stage.unfinished_reward
    return rollout.verdict.reward * stage.reward_scale


def reward_figures(groups: Sequence[RolloutGroup], stage: RlvrStage) -> dict[str, float]:
    """Of all processes' responses: reward, pass rate (by source too), length, truncation, groups without signal."""
    rows: list[tuple[str, float, bool, int, bool]] = []
    silent = 0
    for group in groups:
        rewards = [reward(rollout, stage) for rollout in group.rollouts]
        silent += len({value for value in rewards if value == value}) < 2
        rows += [
            (
                group.prompt.source,
                value,
                (rollout.score or 0) >= 1,
                len(rollout.token_ids),
                rollout.finished,
            )
            for value, rollout in zip(rewards, group.rollouts, strict=True)
        ]
    rows, silent_groups, group_count = _gathered(rows, silent, len(groups))
    known = [row for row in rows if row[1] == row[1]]
    figures = {
        "reward": _mean([row[1] for row in known]),
        "pass_rate": _mean([row[2] for row in known]),
        "response_tokens": _mean([row[3] for row in rows]),
        "truncated_share": 1 - _mean([row[4] for row in rows]),
        "unscored_share": 1 - len(known) / max(len(rows), 1),
        "silent_groups_share": silent_groups / max(group_count, 1),
        "responses": float(len(rows)),
    }
    for source in sorted({row[0] for row in known}):
        figures[f"pass_rate/{source}"] = _mean([row[2] for row in known if row[0] == source])
    return figures


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _gathered(rows: list[Any], silent: int, groups: int) -> tuple[list[Any], int, int]:
    """All processes' rows and counts."""
    parts = gather_object([(rows, silent, groups)])
    return (
        [row for part in parts for row in part[0]],
        sum(part[1] for part in parts),
        sum(part[2] for part in parts),
    )
