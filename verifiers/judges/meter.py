"""What a judge costs: calls, tokens, money, latency."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

from verifiers.stats import RECENT, percentile


@dataclass
class Meter:
    """Counts of one judge; read from any thread. Prices are per million tokens, in whatever currency."""

    price_in: float = 0.0
    price_out: float = 0.0
    calls: int = 0  # answered requests
    cached: int = 0  # answers from disk
    retries: int = 0
    failures: int = 0  # questions that got no readable answer
    tokens_in: int = 0
    tokens_out: int = 0
    _latencies: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answered(self, seconds: float, tokens_in: int, tokens_out: int) -> None:
        with self._lock:
            self.calls += 1
            self.tokens_in += tokens_in
            self.tokens_out += tokens_out
            self._latencies.append(seconds)

    def count(self, name: str) -> None:
        with self._lock:
            setattr(self, name, getattr(self, name) + 1)

    def to_json(self) -> dict[str, float]:
        with self._lock:
            latencies = list(self._latencies)
        return {
            "calls": self.calls,
            "cached": self.cached,
            "retries": self.retries,
            "failures": self.failures,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "cost": (self.tokens_in * self.price_in + self.tokens_out * self.price_out) / 1e6,
            "p50_s": percentile(latencies, 0.5),
            "p95_s": percentile(latencies, 0.95),
        }
