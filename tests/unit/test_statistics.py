"""Intervals against published values, and what they must do by their nature."""

from __future__ import annotations

import math
import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tulu_lite.statistics import (
    difference,
    mean,
    of_values,
    paired,
    pass_at_k,
    proportion,
    resampled,
    seeds_mean,
)


def test_wilson_against_a_published_example() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3: 81 of 263 gives 0.2553 to 0.3662
    estimate = proportion(81, 263)
    assert estimate.low == pytest.approx(0.2553, abs=5e-5)
    assert estimate.high == pytest.approx(0.3662, abs=5e-5)


def test_wilson_at_the_ends() -> None:
    # Newcombe 1998: 0 of 20 gives 0 to 0.1611
    assert proportion(0, 20).low == 0
    assert proportion(0, 20).high == pytest.approx(0.1611, abs=5e-5)
    assert proportion(20, 20).high == 1


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_interval_holds_its_value(counts: tuple[int, int]) -> None:
    estimate = proportion(*counts)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_no_prompts_is_not_a_number() -> None:
    assert math.isnan(proportion(0, 0).value)
    assert math.isnan(mean([]).value)


@pytest.mark.parametrize(("n", "correct", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 2), (4, 1, 4)])
def test_pass_at_k_by_counting_subsets(n: int, correct: int, k: int) -> None:
    subsets = list(combinations(range(n), k))
    passed = sum(any(i < correct for i in subset) for subset in subsets)
    assert pass_at_k(correct, n, k) == pytest.approx(passed / len(subsets))


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    before = [[float(i % 2) for i in range(200)]]
    after = [[float(i % 2 or i % 10 == 0) for i in range(200)]]
    gain = difference(after, before)
    assert gain.value == pytest.approx(0.1)
    assert 0.05 < gain.low < gain.value < gain.high < 0.15
    assert difference(after, before) == gain  # the same again


def test_seeds_that_differ_widen_the_interval() -> None:
    alike = [[1.0] * 100 + [0.0] * 100] * 3
    apart = [[1.0] * 100 + [0.0] * 100, [1.0] * 200, [0.0] * 200]
    assert seeds_mean(apart).high - seeds_mean(apart).low > 2 * (
        seeds_mean(alike).high - seeds_mean(alike).low
    )


def test_a_difference_needs_the_same_prompts() -> None:
    with pytest.raises(ValueError, match="the same prompts"):
        difference([[1.0]], [[1.0, 0.0]])


def test_all_right_is_not_certainty() -> None:
    """Resampling 72 right answers gives 72 right answers; the interval must still be Wilson's: 1 / (1 + z²/72)."""
    low = 72 / (72 + 1.959963985**2)
    for estimate in (seeds_mean([[1.0] * 72] * 2), mean([1.0] * 72)):
        assert (estimate.value, estimate.high, estimate.n) == (1.0, 1.0, 72)
        assert estimate.low == pytest.approx(low)
    assert mean([0.0] * 72).high == pytest.approx(1 - low)
    gain = difference([[1.0] * 72] * 2, [[0.0] * 72])
    assert (gain.value, gain.high) == (1.0, 1.0)
    assert gain.low == pytest.approx(1 - math.sqrt(2) * (1 - low))
    assert mean([0.5] * 8).low == 0.5  # no share of right and wrong


def test_paired_by_id_on_what_both_have() -> None:
    after = {"a": 1.0, "b": 1.0, "c": 0.5, "d": math.nan, "only": 9.0}
    before = {"a": 0.0, "b": 1.0, "c": 0.25, "d": 1.0}
    gain = paired(after, before)
    assert gain is not None
    assert (gain.value, gain.n) == (pytest.approx(1.25 / 3), 3)
    assert 0.0 <= gain.low < gain.value < gain.high <= 1.0  # means of draws of 1, 0 and 0.25
    back = paired(before, after)
    assert back is not None
    assert (back.value, back.low, back.high) == pytest.approx((-gain.value, -gain.high, -gain.low))
    assert paired({"a": 1.0}, {"b": 1.0}) is None
    assert paired({}, {}) is None


def test_the_paired_interval_is_that_of_the_mean_of_differences() -> None:
    """For many items the bootstrap's interval is the normal one: mean +- 1.96 s / sqrt(n)."""
    drawn = random.Random(0)
    delta = [drawn.gauss(0.3, 1.0) for _ in range(2000)]
    noise = [drawn.gauss(0.0, 50.0) for _ in delta]  # common to both sides: pairing takes it out
    gain = paired(
        {str(i): n + d for i, (n, d) in enumerate(zip(noise, delta, strict=True))},
        {str(i): n for i, n in enumerate(noise)},
    )
    assert gain is not None
    average = sum(delta) / 2000
    half = 1.96 * math.sqrt(sum((d - average) ** 2 for d in delta) / 1999 / 2000)
    assert (gain.low, gain.high) == pytest.approx((average - half, average + half), abs=0.01)


def test_equal_marks_leave_doubt() -> None:
    same = paired({str(i): 1.0 for i in range(20)}, {str(i): 1.0 for i in range(20)})
    apart = paired({str(i): 1.0 for i in range(20)}, {str(i): 0.0 for i in range(20)})
    assert same is not None and apart is not None
    assert same.value == 0.0 and same.low < 0.0 < same.high
    assert apart.value == 1.0 and 0.5 < apart.low < 1.0
    certain = paired({"a": 2.5, "b": 3.5}, {"a": 2.0, "b": 3.0})  # no marks: the same difference everywhere
    assert certain is not None
    assert (certain.value, certain.low, certain.high) == (0.5, 0.5, 0.5)


def test_of_values_is_a_share_for_marks_and_a_mean_for_others() -> None:
    assert of_values([1.0, 0.0, 1.0, math.nan]) == proportion(2, 3)
    loss = of_values([1.0, 2.0, 3.0, 2.0] * 50)
    assert loss.value == 2.0
    half = 1.96 * math.sqrt(0.5 / 200)
    assert (loss.low, loss.high) == pytest.approx((2 - half, 2 + half), abs=0.015)
    assert math.isnan(of_values([math.nan]).value)


def test_resampling_in_parts_gives_every_mean_once() -> None:
    many = np.arange(3_000, dtype=np.float64)  # 2000 x 3000 draws are made in three parts
    means = resampled(many)
    assert means.shape == (2000,)
    assert len(np.unique(means)) > 1990
    assert abs(means.mean() - 1499.5) < 3
