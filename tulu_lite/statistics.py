"""Estimates with 95 % intervals. Resampling is seeded: the same results give the same intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

Z95 = 1.959963984540054  # standard normal quantile at 0.975
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval, from n prompts."""

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float | int]:
        return asdict(self)

    def percent(self) -> str:
        """46.2 [41.4, 51.1]"""
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def proportion(successes: int, n: int) -> Estimate:
    """A share with Wilson's score interval (Wilson 1927, JASA 22), which stays in [0, 1] and holds at 0 and n."""
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    share = successes / n
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    return Estimate(share, max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share)), n)


def mean(values: Sequence[float]) -> Estimate:
    """Mean over prompts with a normal interval; Wilson's where every value is 0, or every value 1."""
    n = len(values)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    array = np.asarray(values, dtype=np.float64)
    if (same := _all_or_nothing(array)) is not None:
        return same
    half = Z95 * float(array.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    centre = float(array.mean())
    return Estimate(centre, centre - half, centre + half, n)


def seeds_mean(scores_SN: Sequence[Sequence[float]]) -> Estimate:
    """Mean over S seeds on the same N prompts; the interval resamples both seeds and prompts (bootstrap)."""
    array = np.asarray(scores_SN, dtype=np.float64)
    if (same := _all_or_nothing(array)) is not None:
        return same
    low, high = _interval(_resampled_means(array))
    return Estimate(float(array.mean()), low, high, array.shape[1])


def difference(after_SN: Sequence[Sequence[float]], before_SN: Sequence[Sequence[float]]) -> Estimate:
    """mean(after) - mean(before) on the same N prompts, paired by prompt; seeds of either side are resampled too."""
    after, before = np.asarray(after_SN, dtype=np.float64), np.asarray(before_SN, dtype=np.float64)
    if after.shape[1] != before.shape[1]:
        raise ValueError(
            f"paired differences need the same prompts, not {after.shape[1]} and {before.shape[1]}"
        )
    all_after, all_before = _all_or_nothing(after), _all_or_nothing(before)
    if all_after is not None and all_before is not None:
        return _newcombe(all_after, all_before)
    drawn = np.random.default_rng(0)
    means = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        prompts = _draw_prompts(after.shape[1], drawn)
        means[i] = _draw(after, prompts, drawn) - _draw(before, prompts, drawn)
    low, high = _interval(means)
    return Estimate(float(after.mean() - before.mean()), low, high, after.shape[1])


def paired(after: Mapping[str, float], before: Mapping[str, float]) -> Estimate | None:
    """mean(after) - mean(before) over the prompts that both have a value for (by id; NaN is none), with a bootstrap
    interval over prompts. None when there are none.

    Marks that are 0 or 1 and differ nowhere leave resampling no doubt at all; then the interval is that of Newcombe's
    method 10 for two shares of so many prompts.
    """
    common = sorted(id for id in after.keys() & before.keys() if not math.isnan(after[id] + before[id]))
    if not common:
        return None
    ones, others = (np.array([side[id] for id in common], dtype=np.float64) for side in (after, before))
    delta = ones - others
    if bool((delta == delta[0]).all()) and bool(np.isin([ones, others], (0.0, 1.0)).all()):
        shares = [proportion(round(float(side.sum())), len(common)) for side in (ones, others)]
        return _newcombe(*shares)
    low, high = _interval(resampled(delta))
    return Estimate(float(delta.mean()), low, high, len(common))


def of_values(values: Sequence[float]) -> Estimate:
    """Mean of one value a prompt: a share where all are 0 or 1, else with a bootstrap interval over prompts. NaN is left
    out."""
    known = np.array([value for value in values if not math.isnan(value)], dtype=np.float64)
    if len(known) == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    if bool(np.isin(known, (0.0, 1.0)).all()):
        return proportion(int(known.sum()), len(known))
    low, high = _interval(resampled(known))
    return Estimate(float(known.mean()), low, high, len(known))


def resampled(values_N: np.ndarray) -> np.ndarray:
    """Means [RESAMPLES] of N values drawn with replacement; made in parts, so that many prompts need little memory."""
    drawn = np.random.default_rng(0)
    rows = max(1, 2_000_000 // len(values_N))
    parts = [
        values_N[drawn.integers(0, len(values_N), (min(rows, RESAMPLES - first), len(values_N)))].mean(axis=1)
        for first in range(0, RESAMPLES, rows)
    ]
    return np.concatenate(parts)


def pass_at_k(correct: int, n: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is correct, from n samples of which `correct` are
    (Chen et al. 2021, arXiv:2107.03374, eq. 1)."""
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs 1 <= k <= n = {n}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def _all_or_nothing(scores: np.ndarray) -> Estimate | None:
    """Wilson's interval for [..., N] scores that are all 0 or all 1, in which resampling would see no doubt at all.

    None for any others.
    """
    value, n = float(scores.flat[0]) if scores.size else math.nan, scores.shape[-1]
    return proportion(round(value) * n, n) if value in (0.0, 1.0) and bool((scores == value).all()) else None


def _newcombe(after: Estimate, before: Estimate) -> Estimate:
    """A difference of two shares (Newcombe 1998, Statistics in Medicine 17:873, method 10)."""
    value = after.value - before.value
    low = value - math.hypot(after.value - after.low, before.high - before.value)
    high = value + math.hypot(after.high - after.value, before.value - before.low)
    return Estimate(value, max(-1.0, low), min(1.0, high), after.n)


def _resampled_means(array_SN: np.ndarray) -> np.ndarray:
    drawn = np.random.default_rng(0)
    return np.array(
        [_draw(array_SN, _draw_prompts(array_SN.shape[1], drawn), drawn) for _ in range(RESAMPLES)]
    )


def _draw_prompts(n: int, drawn: np.random.Generator) -> np.ndarray:
    return drawn.integers(0, n, size=(n,))


def _draw(array_SN: np.ndarray, prompts: np.ndarray, drawn: np.random.Generator) -> float:
    seeds = drawn.integers(0, array_SN.shape[0], array_SN.shape[0])
    return float(array_SN[seeds][:, prompts].mean())


def _interval(means: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
