"""Mixes by count, fraction and weight: exact, capped, the same whatever runs them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tulu_lite.datasets.batching import share_of_rank, step_indices
from tulu_lite.datasets.mixing import mixed, quotas
from tulu_lite.errors import TuluLiteError
from tulu_lite.recipe import DataSource, Mix


def source(name: str = "a", **amount: Any) -> DataSource:
    return DataSource(path=f"{name}.jsonl", **amount)


def mix(**values: Any) -> Mix:
    return Mix.model_validate(values)


def test_counts_by_hand() -> None:
    entries = [source("a", count=3), source("b", count=7, max_repeat=3), source("c")]
    assert quotas(entries, [10, 3, 4], mix()) == [3, 7, 4]
    (_, a), (_, b), (_, c) = mixed(entries, [10, 3, 4], mix(), seed=0)
    assert len(set(a.tolist())) == 3 and a.tolist() == sorted(a)
    assert b.tolist()[:6] == [0, 1, 2, 0, 1, 2] and len(b) == 7  # whole passes, then a choice
    assert c.tolist() == [0, 1, 2, 3]


def test_fractions_and_weights_by_hand() -> None:
    entries = [source("a", fraction=0.3), source("b", weight=2), source("c", weight=1), source("d", count=10)]
    assert quotas(entries, [100] * 4, mix(total=100)) == [30, 40, 20, 10]
    # the largest total: b can give 100, so 1.5 * 100 = 0.7 T - 10, T = 228.57; c 100 -> 442; a 100 -> 333
    assert quotas(entries, [100] * 4, mix()) == [68, 100, 50, 10]
    assert quotas([source("a", fraction=0.25), source("b")], [50, 30], mix()) == [10, 30]
    assert quotas([source("a", fraction=0.1), source("b", fraction=0.9)], [5, 90], mix()) == [5, 45]


def test_thirds_sum_up_to_the_total() -> None:
    entries = [source(name, weight=1) for name in "abc"]
    assert quotas(entries, [50] * 3, mix(total=100)) == [34, 33, 33]


def test_what_is_short() -> None:
    entries = [source("a", weight=1), source("b", weight=1), source("c", weight=2, max_repeat=2)]
    rows = [10, 100, 20]
    with pytest.raises(
        TuluLiteError, match=r"a\.jsonl has 10 usable rows, but its part of the mix is 25"
    ) as caught:
        quotas(entries, rows, mix(total=100))
    assert "max_repeat: 2.5" in caught.value.cure
    assert quotas(entries, rows, mix(total=100, short="less")) == [10, 25, 40]
    assert quotas(entries, rows, mix(total=100, short="fill")) == [10, 50, 40]
    with pytest.raises(TuluLiteError, match="can give 150 rows, less than its total of 200"):
        quotas(entries, rows, mix(total=200, short="fill"))
    with pytest.raises(TuluLiteError, match="does not add up"):
        quotas([source("a", count=5), source("b", fraction=0.5)], [10, 10], mix(total=20))
    with pytest.raises(TuluLiteError, match="leave nothing for weights"):
        quotas([source("a", count=20), source("b", weight=0.5)], [20, 10], mix(total=20))


amounts = st.one_of(
    st.just({}),
    st.builds(lambda r: {"repeat": r}, st.integers(1, 3)),
    st.builds(lambda n, m: {"count": n, "max_repeat": m}, st.integers(1, 20), st.integers(1, 4)),
    st.builds(lambda w, m: {"weight": w, "max_repeat": m}, st.sampled_from([0.1, 0.5, 1, 3]), st.integers(1, 4)),
    st.builds(lambda f, m: {"fraction": f, "max_repeat": m}, st.sampled_from([0.05, 0.1, 0.3]), st.integers(1, 4)),
)  # fmt: skip
cases = st.lists(st.tuples(amounts, st.integers(1, 30)), min_size=1, max_size=5)


@settings(max_examples=150)
@given(
    cases,
    st.one_of(st.none(), st.integers(1, 120)),
    st.sampled_from(["stop", "less", "fill"]),
    st.integers(0, 3),
)
def test_parts_are_capped_and_even(case: Any, total: int | None, short: str, seed: int) -> None:
    entries = [source(f"s{i}", **amount) for i, (amount, _) in enumerate(case)]
    rows = [have for _, have in case]
    wanted = mix(total=total, short=short)
    try:
        chosen = mixed(entries, rows, wanted, seed)
    except TuluLiteError:
        return
    for (number, indices), entry, have in zip(chosen, entries, rows, strict=True):
        counts = Counter(indices.tolist())
        assert entries[number] is entry
        assert set(counts) <= set(range(have))
        assert max(counts.values(), default=0) <= max(entry.repeat, -(-entry.max_repeat // 1))
        if counts:  # no row twice as long as another was not there once
            assert max(counts.values()) - min([*counts.values(), *([0] if len(counts) < have else [])]) <= 1
        if entry.count is not None and short == "stop":
            assert len(indices) == entry.count
    if total is not None and short != "less":
        assert sum(len(indices) for _, indices in chosen) == total
    again = mixed(entries, rows, wanted, seed)
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(chosen, again, strict=True))


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 5), st.integers(0, 3))
def test_a_step_has_the_same_rows_on_any_number_of_ranks(n: int, batch: int, world: int, seed: int) -> None:
    (_, indices), *_ = mixed([source(count=n)], [40], mix(), seed)
    order = [int(indices[i]) for i in step_indices(n, batch, 1, seed, 1)]
    ranks = [share_of_rank(order, rank, world) for rank in range(world)]
    assert Counter(order) == Counter(row for share in ranks for row in share)


def test_a_source_keeps_its_rows_whatever_stands_beside_it() -> None:
    alone = mixed([source("a", count=5)], [50], mix(), seed=1)[0][1]
    beside = mixed([source("b", weight=1), source("a", count=5)], [9, 50], mix(), seed=1)[1][1]
    assert alone.tolist() == beside.tolist()
    assert alone.tolist() != mixed([source("a", count=5)], [50], mix(), seed=2)[0][1].tolist()
    same, other = (m[1].tolist() for m in mixed([source("a", count=5)] * 2, [50, 50], mix(), seed=1))
    assert same != other  # one file named twice gives two choices


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        ({"count": 3, "weight": 1}, "count and weight each say"),
        ({"count": 3, "repeat": 2}, "max_repeat is the one"),
        ({"max_repeat": 2}, "max_repeat bounds what"),
        ({"fraction": 1.5}, "less than or equal to 1"),
        ({"weight": 0}, "greater than 0"),
    ],
)
def test_amounts_that_contradict(amount: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        source(**amount)


def test_tulu_3_counts() -> None:
    """Some of the published mix (arXiv:2411.15124), by its counts; the shortest of them repeated."""
    counts = {"flan": 89_982, "persona_math": 149_960, "evol_codealpaca": 107_276, "hard_coded": 240}
    entries = [source(name, count=count, max_repeat=10) for name, count in counts.items()]
    assert quotas(entries, [90_000, 149_960, 110_000, 24], mix(total=sum(counts.values()))) == list(
        counts.values()
    )
