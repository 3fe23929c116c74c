"""Spikes: a loss or gradient norm far above what the steps before it had, with the batch that caused it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ..recipe.watching import WarningSettings
from .series import is_number, robust_sigma

JUDGED = ("loss", "grad_norm")
BY_RATIO = (
    "grad_norm",
)  # judged by logarithms: what moves it multiplies it. It is never negative, and 0 says nothing
FLOOR = 0.05  # of the median: the least standard deviation that a value is measured in


@dataclass(frozen=True)
class Spike:
    """One value outside the band. deviation: (value - median) / robust sigma; inf for a value that is not finite."""

    step: int
    metric: str
    value: float
    median: float
    deviation: float

    def text(self) -> str:
        if not math.isfinite(self.value):
            return f"step {self.step}: {self.metric} is {self.value}"
        return (
            f"step {self.step}: {self.metric} {self.value:.4g} is {self.deviation:.1f} robust standard deviations above "
            f"the median {self.median:.4g} of the steps before"
        )


def deviation(before: Sequence[float], value: float, by_ratio: bool = False) -> float:
    """(value - median) / max(1.4826 MAD, 0.05 |median|) of the values before; by_ratio: the same of their logarithms,
    whose floor is 0.05. inf where the value is not finite, and where it is above values that were all 0."""
    if not math.isfinite(value):
        return math.inf
    if by_ratio:
        before, value = [math.log(one) for one in before], math.log(value)
    middle = median(before)
    sigma = max(robust_sigma(before), FLOOR * (1.0 if by_ratio else abs(middle)))
    if sigma == 0:
        return math.inf if value > middle else 0.0
    return (value - middle) / sigma


def least_before(window: int) -> int:
    """How many values must be there before one is judged: a fifth of the window, at least 8."""
    return max(8, window // 5)


def growth(before: Sequence[float], window: int) -> float | None:
    """Median of the latest quarter of `window` values over the median of all of them: 1 where a norm is steady, above
    1 where it grows, which often comes before a divergence. None before a fifth of the window is there."""
    if len(before) < least_before(window):
        return None
    whole = median(before)
    return median(list(before)[-max(2, len(before) // 4) :]) / whole if whole > 0 else None


class SpikeWatch:
    """The last values of the judged metrics. `look` is a function of these alone, so that a resumed run, which puts
    them back, flags the same steps."""

    def __init__(self, settings: WarningSettings) -> None:
        self.settings = settings
        self.before: dict[str, deque[float]] = {
            metric: deque(maxlen=settings.spike_window) for metric in JUDGED
        }

    def look(self, step: int, values: Mapping[str, Any]) -> tuple[list[Spike], dict[str, float]]:
        """Spikes among the step's values, and the metrics that are to be logged with them."""
        spikes: list[Spike] = []
        figures: dict[str, float] = {}
        for metric in JUDGED:
            value = values.get(metric)
            if not is_number(value):
                continue
            before = self.before[metric]
            spike = self._judge(step, metric, float(value))
            if spike is not None:
                spikes.append(spike)
                figures[f"{metric}_spike"] = round(min(spike.deviation, 1e9), 2)
            if math.isfinite(value) and (value > 0 or metric not in BY_RATIO):
                before.append(float(value))
        grown = growth(self.before["grad_norm"], self.settings.spike_window)
        if grown is not None and "grad_norm" in values:
            figures["grad_norm_growth"] = round(grown, 4)
        return spikes, figures

    def _judge(self, step: int, metric: str, value: float) -> Spike | None:
        before, limit = self.before[metric], self.settings.spike_mads
        if limit is None:
            return None
        if not math.isfinite(value):
            return Spike(step, metric, value, median(before) if before else math.nan, math.inf)
        by_ratio = metric in BY_RATIO
        if len(before) < least_before(self.settings.spike_window) or (by_ratio and value <= 0):
            return None
        far = deviation(before, value, by_ratio)
        return Spike(step, metric, value, median(before), far) if far > limit else None
