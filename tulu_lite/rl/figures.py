"""What is logged of a step: of the samples (reward, length, signal), and of the update (KL, entropy, ratio), by source."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..objectives.signal import differ
from ..recipe import RlvrStage
from ..records import RolloutGroup
from ..training.sharding import from_all
from .rewards import is_silent, reward

NAMES = (
    "tokens", "loss", "kl", "entropy", "clipped", "ratio", "gap", "sampler_kl", "negative_logprob", "mismatch_weight",
    "value_loss", "value_clipped",
)  # fmt: skip
MEANS = {  # over tokens: what they are called, and of which sum
    "kl": "kl", "entropy": "entropy", "clip_share": "clipped", "ratio": "ratio", "logprob_gap_mean": "gap",
    "sampler_kl": "sampler_kl", "negative_logprob": "negative_logprob", "mismatch_weight": "mismatch_weight",
    "value_clip_share": "value_clipped",
}  # fmt: skip
OF_SOURCES = ("kl", "entropy", "clip_share", "ratio", "negative_logprob")


@dataclass
class UpdateSums:
    """Sums over response tokens of all updates on one batch, on this process, kept on the device until asked for."""

    rows: list[Tensor] = field(default_factory=list)  # [len(NAMES), B] each
    sources: list[str] = field(default_factory=list)
    gap_max: list[Tensor] = field(default_factory=list)  # [] each
    skipped: int = 0  # updates that were left out
    given: set[str] = field(default_factory=set)  # names that any sum was given for

    def add(self, sources: Sequence[str], **sums: Tensor) -> None:
        """sums: [B] by name; those that are missing are 0."""
        if not sources:
            return
        zero = torch.zeros_like(sums["tokens"])
        self.rows.append(torch.stack([sums.get(name, zero).detach().float() for name in NAMES]))
        self.sources += sources
        self.given |= sums.keys()

    def by_source(self) -> dict[str, dict[str, float]]:
        """The sums of this process."""
        found: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(NAMES, 0.0))
        if self.rows:
            table = torch.cat(self.rows, dim=1).double().cpu()
            for column, source in enumerate(self.sources):
                for row, name in enumerate(NAMES):
                    found[source][name] += float(table[row, column])
        return dict(found)


def update_figures(sums: UpdateSums, updates: int) -> dict[str, float]:
    """Per-token means over all processes, and by source where there are several, of what was summed: nothing is said of
    a policy that was not trained, or of values that are not there. Every process calls it."""
    gap_max = max((float(value) for value in sums.gap_max), default=0.0)
    parts = from_all((sums.by_source(), sorted(sums.given), gap_max))
    given = {name for _, names, _ in parts for name in names}
    merged: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(NAMES, 0.0))
    for part, _, _ in parts:
        for source, values in part.items():
            for name, value in values.items():
                merged[source][name] += value
    total = {name: sum(values[name] for values in merged.values()) for name in NAMES}
    figures = _means(total, given)
    figures |= {name: total[name] / updates for name in ("loss", "value_loss") if name in given}
    if "gap" in given:
        figures["logprob_gap_max"] = max(largest for _, _, largest in parts)
    if len(merged) > 1:
        for source, values in sorted(merged.items()):
            means = _means(values, given)
            figures |= {f"{name}/{source}": means[name] for name in OF_SOURCES if name in means}
    return figures


def _means(sums: Mapping[str, float], given: set[str]) -> dict[str, float]:
    tokens = max(sums["tokens"], 1.0)
    return {name: sums[of] / tokens for name, of in MEANS.items() if of in given}


@dataclass(frozen=True)
class Told:
    """What is said of one response; NaN: it has no score."""

    source: str
    reward: float
    passed: bool
    tokens: int
    finished: bool


def told(groups: Iterable[RolloutGroup], stage: RlvrStage) -> tuple[list[Told], list[tuple[str, bool]]]:
    """(of each response, (source, whether it has signal) of each group)."""
    responses, signals = [], []
    for group in groups:
        signals.append((group.prompt.source, not is_silent(group, stage)))
        responses += [
            Told(
                group.prompt.source,
                reward(rollout, stage),
                (rollout.score or 0) >= 1,
                len(rollout.token_ids),
                rollout.finished,
            )
            for rollout in group.rollouts
        ]
    return responses, signals


def sample_figures(groups: Iterable[RolloutGroup], stage: RlvrStage) -> dict[str, float]:
    """Of all processes' responses: reward, pass rate, length, truncation, groups without signal; by source where there
    are several (pass rates always). Every process calls it."""
    parts = from_all(told(groups, stage))
    responses = [one for part, _ in parts for one in part]
    signals = [one for _, part in parts for one in part]
    figures = _sampled(responses, [signal for _, signal in signals])
    sources = sorted({one.source for one in responses})
    for source in sources:
        own = _sampled([one for one in responses if one.source == source], [signal for of, signal in signals if of == source])  # fmt: skip
        if len(sources) == 1:
            own = {"pass_rate": own["pass_rate"]}
        figures |= {f"{name}/{source}": value for name, value in own.items()}
    return figures


def _sampled(responses: Sequence[Told], signals: Sequence[bool]) -> dict[str, float]:
    known = [one for one in responses if one.reward == one.reward]
    return {
        "reward": _mean([one.reward for one in known]),
        "reward_spread": _spread([one.reward for one in known]),
        "pass_rate": _mean([one.passed for one in known]),
        "response_tokens": _mean([one.tokens for one in responses]),
        "truncated_share": 1 - _mean([one.finished for one in responses]) if responses else 0.0,
        "unscored_share": 1 - len(known) / max(len(responses), 1),
        "silent_groups_share": 1 - _mean(signals) if signals else 0.0,
        "responses": float(len(responses)),
    }


def staleness(groups: Iterable[RolloutGroup], now: int) -> tuple[float, int]:
    """(mean, largest) number of steps that the weights which sampled a token are behind those that will learn from it.

    now: the step whose weights learn; a token's weight version is the step of its own. Over all processes, each of which
    calls it.
    """
    behind: Counter[int] = Counter()
    for group in groups:
        for rollout in group.rollouts:
            behind += Counter(rollout.weight_versions)
    total: Counter[int] = sum(from_all(behind), Counter())
    tokens = max(total.total(), 1)
    mean = sum((now - step) * count for step, count in total.items()) / tokens
    return mean, max((now - step for step in total), default=0)


def _spread(values: Sequence[float]) -> float:
    """The highest less the lowest; 0 where they differ by rounding alone."""
    lowest, highest = min(values, default=0.0), max(values, default=0.0)
    return highest - lowest if differ(lowest, highest) else 0.0


def _mean(values: Sequence[Any]) -> float:
    return sum(values) / len(values) if values else 0.0
