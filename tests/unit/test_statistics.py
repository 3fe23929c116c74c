"""Intervals against published values, and what they must do by their nature."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tulu_lite.statistics import difference, mean, pass_at_k, proportion, seeds_mean


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
