"""The history of a step's metrics by name, and what a stretch of it comes to."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TypeGuard

ROBUST_SIGMA = 1.4826  # of a normal distribution: standard deviation / median absolute deviation


@dataclass
class Series:
    """One metric where it was logged: its steps, rising, and its values, finite ones alone."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def __len__(self) -> int:
        return len(self.values)

    def add(self, step: int, value: float) -> None:
        self.steps.append(step)
        self.values.append(value)


class History(dict[str, Series]):
    """Series by metric. A metric that was never logged is an empty series."""

    def __missing__(self, name: str) -> Series:
        return Series()

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> History:
        """From the rows of a metrics.jsonl."""
        history = cls()
        for row in rows:
            history.add(row)
        return history

    def add(self, row: Mapping[str, Any], wanted: Sequence[str] = ("",)) -> None:
        """One row; of it the metrics whose names begin with one of `wanted`."""
        for name, value in row.items():
            if (
                name != "step"
                and is_number(value)
                and math.isfinite(value)
                and name.startswith(tuple(wanted))
            ):
                self.setdefault(name, Series()).add(row["step"], float(value))


def is_number(value: Any) -> TypeGuard[float]:
    """A number that is not true or false."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def robust_sigma(values: Sequence[float]) -> float:
    """1.4826 times the median absolute deviation from the median: the standard deviation of what is not an outlier."""
    middle = median(values)
    return ROBUST_SIGMA * median(abs(value - middle) for value in values)


def rose(earlier: Sequence[float], later: Sequence[float]) -> bool:
    """Whether the median of `later` is above that of `earlier` by more than two standard errors of a difference of
    two medians, 1.2533 sigma sqrt(1/n + 1/m), with the larger robust sigma of the two stretches."""
    sigma = max(robust_sigma(earlier), robust_sigma(later))
    error = 1.2533 * sigma * math.sqrt(1 / len(earlier) + 1 / len(later))
    return median(later) - median(earlier) > 2 * error
