"""Spikes against values by hand, and that a watch is a function of the values before alone."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tulu_lite.recipe.watching import WarningSettings
from tulu_lite.watching.series import History, robust_sigma, rose
from tulu_lite.watching.spikes import SpikeWatch, deviation, growth


def test_a_robust_sigma_by_hand() -> None:
    # median 3, distances 2 1 0 1 97, their median 1
    assert robust_sigma([1, 2, 3, 4, 100]) == pytest.approx(1.4826)


def test_a_deviation_by_hand() -> None:
    assert deviation([1, 2, 3, 4, 100], 3 + 2 * 1.4826) == pytest.approx(2.0)
    assert deviation([5.0] * 9, 5.5) == pytest.approx(2.0)  # no spread: a twentieth of the median, 0.25
    assert deviation([5.0] * 9, 5.0 * math.e, by_ratio=True) == pytest.approx(20.0)  # 1 over 0.05
    assert deviation([1, math.e**2, math.e**4], math.e**5, by_ratio=True) == pytest.approx(3 / (2 * 1.4826))
    assert deviation([0.0] * 9, 0.1) == math.inf
    assert deviation([0.0] * 9, 0.0) == 0.0
    assert deviation([1, 2, 3], math.nan) == math.inf


@given(st.lists(st.floats(0.1, 100), min_size=8, max_size=40), st.floats(0.1, 100), st.floats(0.5, 20))
def test_a_deviation_does_not_depend_on_the_unit(before: list[float], value: float, unit: float) -> None:
    scaled = deviation([unit * one for one in before], unit * value)
    assert scaled == pytest.approx(deviation(before, value), rel=1e-6, abs=1e-6)


def test_growth_is_the_latest_quarter_over_all() -> None:
    assert growth([1.0] * 7, 8) is None  # fewer than 8
    assert growth([1, 1, 1, 1, 1, 1, 3, 3], 8) == 3.0
    assert growth([2.0] * 8, 8) == 1.0
    assert growth([0.0] * 8, 8) is None


def steady(seed: int, count: int) -> list[dict[str, float]]:
    drawn = random.Random(seed)
    return [
        {"step": step, "loss": 2 + drawn.gauss(0, 0.1), "grad_norm": math.exp(drawn.gauss(0, 0.3))}
        for step in range(1, count + 1)
    ]


def flagged(rows: list[dict[str, float]], settings: WarningSettings) -> list[tuple[int, str]]:
    watch = SpikeWatch(settings)
    return [(spike.step, spike.metric) for row in rows for spike in watch.look(int(row["step"]), row)[0]]


def test_a_planted_spike_is_flagged_and_nothing_else() -> None:
    rows = steady(0, 400)
    rows[249]["loss"] = 5.0
    rows[299]["grad_norm"] = 40.0
    assert flagged(rows, WarningSettings()) == [(250, "loss"), (300, "grad_norm")]


def test_steady_noise_is_not_flagged() -> None:
    for seed in range(5):
        assert flagged(steady(seed, 600), WarningSettings()) == []


def test_a_falling_loss_is_not_flagged() -> None:
    rows = [
        {"step": s, "loss": 10 * math.exp(-s / 20) + 1, "grad_norm": 5 * math.exp(-s / 30) + 1}
        for s in range(1, 200)
    ]
    assert flagged(rows, WarningSettings()) == []


def test_a_value_that_is_no_number_is_flagged_at_once_and_does_not_hide_the_next() -> None:
    rows = steady(1, 40)
    rows[0]["loss"] = math.nan
    rows[30]["loss"] = math.inf
    rows[35]["loss"] = 9.0
    assert flagged(rows, WarningSettings(spike_window=20)) == [(1, "loss"), (31, "loss"), (36, "loss")]


def test_what_is_no_number_has_no_part_in_the_median() -> None:
    watch = SpikeWatch(WarningSettings(spike_window=8))
    for step, value in enumerate([1.0, math.nan, 2.0, math.inf, -math.inf, 3.0], 1):
        watch.look(step, {"loss": value, "grad_norm": value})
    assert list(watch.before["loss"]) == list(watch.before["grad_norm"]) == [1.0, 2.0, 3.0]


def test_spikes_can_be_switched_off() -> None:
    rows = steady(0, 200)
    rows[150]["loss"] = 500.0
    assert flagged(rows, WarningSettings(spike_mads=None)) == []


def test_the_metrics_beside_a_spike() -> None:
    watch = SpikeWatch(WarningSettings(spike_window=8))
    for step in range(1, 10):
        _, figures = watch.look(step, {"loss": 1.0, "grad_norm": 2.0})
    assert figures == {"grad_norm_growth": 1.0}
    spikes, figures = watch.look(10, {"loss": 1.5, "grad_norm": 2.0})
    assert figures == {"loss_spike": 10.0, "grad_norm_growth": 1.0}  # 0.5 over 0.05
    assert spikes[0].median == 1.0 and "step 10: loss 1.5 is 10.0" in spikes[0].text()


def test_a_gradient_of_zero_says_nothing() -> None:
    """Of a step whose groups all had no signal."""
    rows: list[dict[str, float]] = [
        {"step": step, "grad_norm": 0.0 if step % 2 else 1.0} for step in range(1, 80)
    ]
    assert flagged(rows, WarningSettings(spike_window=20)) == []


def test_history_keeps_finite_numbers_of_the_wanted_names() -> None:
    history = History()
    history.add({"step": 3, "kl": 0.5, "pass_rate/a": 1, "loss": 2.0, "on": True}, ("kl", "pass_rate/"))
    history.add({"step": 4, "kl": math.nan, "pass_rate/a": 0.5}, ("kl", "pass_rate/"))
    assert {name: (list(s.steps), list(s.values)) for name, s in history.items()} == {
        "kl": ([3], [0.5]), "pass_rate/a": ([3, 4], [1.0, 0.5]),
    }  # fmt: skip
    assert len(history["never"]) == 0 and "never" not in history


def test_rose_needs_more_than_noise() -> None:
    drawn = random.Random(0)
    noise = [[drawn.gauss(0, 1) for _ in range(20)] for _ in range(2)]
    assert not rose(*noise)
    assert rose(noise[0], [value + 3 for value in noise[1]])
    assert not rose([1.0] * 5, [1.0] * 5)
