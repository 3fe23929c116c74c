"""What a pool has done so far, in counts."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

from verifiers.base import Verdict

RECENT = 2000  # durations kept for the percentiles of one verifier


@dataclass(slots=True)
class VerifierStats:
    """Of one verifier, by the name in its verdicts; a composition's parts that ran apart are counted too."""

    items: int = 0
    errors: int = 0
    timeouts: int = 0
    cache_hits: int = 0
    seconds: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def add(self, verdict: Verdict, cached: bool) -> None:
        self.items += 1
        self.errors += verdict.score is None
        self.cache_hits += cached
        if not cached:
            self.seconds += verdict.seconds
            self.recent.append(verdict.seconds)

    def to_json(self) -> dict[str, float]:
        return {
            "items": self.items,
            "errors": self.errors,
            "timeouts": self.timeouts,
            "cache_hits": self.cache_hits,
            "seconds": self.seconds,
            "p50_s": percentile(self.recent, 0.5),
            "p95_s": percentile(self.recent, 0.95),
        }


def percentile(values: deque[float] | list[float], share: float) -> float:
    """The value that `share` of the values are not above; 0 of none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(slots=True)
class PoolStats:
    """Counts since the pool was made. busy_share is of workers x wall time inside `verify`."""

    items: int = 0
    errors: int = 0
    timeouts: int = 0
    restarts: int = 0  # workers replaced, for whatever reason
    recycled: int = 0  # of these, for their age or a full memory
    loops: int = 0  # event loops replaced because a verifier blocked them
    cache_hits: int = 0
    inline: int = 0
    most_waiting: int = 0  # items taken from the caller and not yet judged, at the most
    wall_s: float = 0.0
    busy_s: float = 0.0  # of workers
    async_s: float = 0.0  # of judgements in the event loop, side by side
    workers: int = 0
    verifiers: dict[str, VerifierStats] = field(default_factory=dict)

    @property
    def items_per_s(self) -> float:
        return self.items / self.wall_s if self.wall_s else 0.0

    @property
    def busy_share(self) -> float:
        return self.busy_s / (self.wall_s * self.workers) if self.wall_s and self.workers else 0.0

    def of(self, verifier: str) -> VerifierStats:
        found = self.verifiers.get(verifier)
        if found is None:
            found = self.verifiers[verifier] = VerifierStats()
        return found

    def to_json(self) -> dict[str, Any]:
        counts = {name: value for name, value in asdict(self).items() if name != "verifiers"}
        each = {name: stats.to_json() for name, stats in sorted(self.verifiers.items())}
        return {**counts, "items_per_s": self.items_per_s, "busy_share": self.busy_share, "verifiers": each}
