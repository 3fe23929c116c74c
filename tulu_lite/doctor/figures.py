"""How far the sampler's log-probabilities are from the trainer's, in figures. No torch.

N tokens, each with the natural logarithm of the probability that the server says it drew it with, and that which the
trainer gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

QUANTILES = (0.5, 0.9, 0.99, 0.999)
SIXTEEN_BIT = ("bfloat16", "float16")


@dataclass(frozen=True)
class Limits:
    """Above these figures sampler and trainer do not run the same model."""

    mean: float
    max: float
    kl: float  # of k3, nats a token


# float32: a hundred times what vLLM and transformers were measured to differ by (mean 1e-6, max 5e-6); 16-bit types:
# three times and more of what they differ by among themselves (mean 0.012, max 0.08 of 8k tokens), with room for the
# rare token of low probability.
LIMITS_32 = Limits(mean=1e-5, max=1e-4, kl=1e-7)
LIMITS_16 = Limits(mean=0.04, max=1.0, kl=5e-3)


def limits_for(*dtypes: str) -> Limits:
    """What may be expected when the two sides compute in these types."""
    return LIMITS_16 if any(dtype in SIXTEEN_BIT for dtype in dtypes) else LIMITS_32


@dataclass(frozen=True)
class Bucket:
    """Tokens whose place in the sequence (the prompt included) is in [first, last]."""

    first: int
    last: int
    tokens: int
    mean: float
    max: float


@dataclass(frozen=True)
class Gap:
    """|log p_server - log p_trainer| over N tokens, and what KL(server || trainer) they show."""

    tokens: int
    mean: float
    max: float
    quantiles: tuple[float, ...]  # at QUANTILES
    bias: float  # mean of log p_server - log p_trainer, which is the estimate k1 of the KL divergence
    k3: float  # mean of exp(-d) - 1 + d with d the difference (Schulman 2020): never negative
    buckets: tuple[Bucket, ...]

    @property
    def k1(self) -> float:
        return self.bias

    def within(self, limits: Limits) -> bool:
        return self.mean <= limits.mean and self.max <= limits.max and self.k3 <= limits.kl

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"quantiles": dict(zip(map(str, QUANTILES), self.quantiles, strict=True))}


def gap_of(server: Array, trainer: Array, places: Sequence[int] | NDArray[np.int64]) -> Gap:
    """The figures of N tokens. places: of each token in its sequence, from 0. Raises ValueError for no tokens."""
    if not len(server):
        raise ValueError("there are no tokens to compare")
    difference = np.asarray(server, np.float64) - np.asarray(trainer, np.float64)
    size = np.abs(difference)
    k3 = float((np.expm1(np.clip(-difference, None, 50.0)) + difference).mean())
    return Gap(
        tokens=len(size),
        mean=float(size.mean()),
        max=float(size.max()),
        quantiles=tuple(float(value) for value in np.quantile(size, QUANTILES)),
        bias=float(difference.mean()),
        k3=max(k3, 0.0),
        buckets=_buckets(size, np.asarray(places)),
    )


def _buckets(size: Array, places: NDArray[Any]) -> tuple[Bucket, ...]:
    """By powers of two: 0-15, 16-31, 32-63, ..."""
    found = []
    first, last = 0, 15
    while first <= int(places.max()):
        inside = size[(places >= first) & (places <= last)]
        if len(inside):
            found.append(Bucket(first, last, len(inside), float(inside.mean()), float(inside.max())))
        first, last = last + 1, 2 * last + 1
    return tuple(found)


def growth(gap: Gap) -> float:
    """How many times larger the mean gap is in the last bucket than in the first; 1 when there is one bucket alone."""
    return gap.buckets[-1].mean / max(gap.buckets[0].mean, 1e-12) if len(gap.buckets) > 1 else 1.0
