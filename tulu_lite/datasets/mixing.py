"""How sources make up an epoch: rows of each, chosen by seed alone.

The choice depends on the sources, their usable rows and the seed, so it is the same on any number of processes.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from ..errors import TuluLiteError
from ..recipe import DataSource, Mix


def mixed(
    entries: Sequence[DataSource], rows: Sequence[int], mix: Mix, seed: int
) -> list[tuple[int, np.ndarray]]:
    """(source, its rows' indices [n], ascending within each pass) in order.

    rows: usable rows of each source. A source that gives more rows than it has gives all of them as often as they go
    in, then a seeded choice of the rest.
    """
    seen: Counter[str] = Counter()
    chosen = []
    for i, (entry, have, want) in enumerate(zip(entries, rows, quotas(entries, rows, mix), strict=True)):
        seen[entry.label] += 1
        passes, rest = divmod(want, have) if have else (0, 0)
        choice = random.Random(f"{seed}:mix:{entry.label}:{seen[entry.label]}")
        some = sorted(choice.sample(range(have), rest))
        indices = np.concatenate([np.tile(np.arange(have), passes), np.asarray(some, dtype=np.int64)])
        chosen.append((i, indices.astype(np.int64)))
    return chosen


def quotas(entries: Sequence[DataSource], rows: Sequence[int], mix: Mix) -> list[int]:
    """Rows of an epoch that each source gives, summing up to the mix's total where it has one.

    Raises TuluLiteError when a source cannot give its part (unless `short` says otherwise), or the parts miss the total.
    """
    fixed = [_fixed(entry, have) for entry, have in zip(entries, rows, strict=True)]
    caps = [
        have * entry.repeat if _takes_all(entry) else math.floor(have * entry.max_repeat)
        for entry, have in zip(entries, rows, strict=True)
    ]
    total = mix.total if mix.total is not None else _largest_total(entries, fixed, caps)
    wanted = _shares_of(entries, fixed, total)
    if mix.short == "fill":
        wanted = _filled_up(entries, wanted, caps)
    elif mix.short == "stop":
        _stop_where_short(entries, rows, wanted, caps)
    given = [min(want, cap) for want, cap in zip(wanted, caps, strict=True)]
    if mix.short == "fill" and mix.total is not None and sum(given) < mix.total:
        raise TuluLiteError(
            f"the mix can give {sum(given):,} rows, less than its total of {mix.total:,}",
            cure="lower mix.total, raise max_repeat of sources with a weight, or set mix.short: less",
        )
    return given


def _takes_all(entry: DataSource) -> bool:
    return entry.count is None and entry.fraction is None and entry.weight is None


def _fixed(entry: DataSource, have: int) -> int | None:
    """Rows that do not depend on the total; None for fractions and weights."""
    if entry.count is not None:
        return entry.count
    return have * entry.repeat if _takes_all(entry) else None


def _exact(value: float | None) -> Fraction:
    """The number as it was written: 0.3 is 3/10."""
    return Fraction(0) if value is None else Fraction(repr(float(value)))


def _largest_total(entries: Sequence[DataSource], fixed: Sequence[int | None], caps: Sequence[int]) -> int:
    """Rows of the largest epoch of these proportions in which no source exceeds its cap."""
    sure = sum(rows for rows in fixed if rows is not None)
    by_fraction = sum((_exact(entry.fraction) for entry in entries), Fraction(0))
    weights = sum((_exact(entry.weight) for entry in entries), Fraction(0))
    if not weights:
        if by_fraction == 0:
            return sure
        if by_fraction < 1:  # the fixed rows are what the fractions leave
            return round(sure / (1 - by_fraction))
    limits = [
        Fraction(cap) / _exact(entry.fraction)
        for entry, cap in zip(entries, caps, strict=True)
        if entry.fraction is not None
    ]
    if weights and by_fraction < 1:
        limits += [
            (Fraction(cap) * weights / _exact(entry.weight) + sure) / (1 - by_fraction)
            for entry, cap in zip(entries, caps, strict=True)
            if entry.weight is not None
        ]
    return math.floor(min(limits))


def _shares_of(entries: Sequence[DataSource], fixed: Sequence[int | None], total: int) -> list[int]:
    """Rows wanted of each source: whole numbers by largest remainder, so that they sum up to the total exactly."""
    sure = sum(rows for rows in fixed if rows is not None)
    by_fraction = sum((_exact(entry.fraction) for entry in entries), Fraction(0))
    weights = sum((_exact(entry.weight) for entry in entries), Fraction(0))
    left = total - sure - by_fraction * total
    if left < 0 or (weights and left == 0) or (not weights and left >= 1):
        parts = (
            f"{sure:,} rows of counts and whole sources and {float(by_fraction):g} of the total by fractions"
        )
        raise TuluLiteError(
            f"the mix does not add up to its total of {total:,}: {parts}"
            + (", which leave nothing for weights" if weights else ""),
            cure="give a source a `weight` to take what is left, or change mix.total, counts or fractions",
        )
    exact = [
        Fraction(rows)
        if rows is not None
        else _exact(entry.fraction) * total + (left * _exact(entry.weight) / weights if weights else 0)
        for entry, rows in zip(entries, fixed, strict=True)
    ]
    whole = [math.floor(part) for part in exact]
    open_ = [i for i, rows in enumerate(fixed) if rows is None]
    by_remainder = sorted(open_, key=lambda i: (whole[i] - exact[i], i))
    for i in by_remainder[: total - sum(whole)]:
        whole[i] += 1
    return whole


def _filled_up(entries: Sequence[DataSource], wanted: list[int], caps: Sequence[int]) -> list[int]:
    """What short sources cannot give is given by those with a weight that still can, in proportion."""
    given = [min(want, cap) for want, cap in zip(wanted, caps, strict=True)]
    while missing := sum(wanted) - sum(given):
        able = [i for i, e in enumerate(entries) if e.weight is not None and given[i] < caps[i]]
        if not able:
            break
        weights = sum(_exact(entries[i].weight) for i in able)
        more = {i: math.floor(missing * _exact(entries[i].weight) / weights) for i in able}
        if not any(more.values()):
            more[able[0]] = 1
        for i in able:
            given[i] = min(caps[i], given[i] + more[i])
    return given


def _stop_where_short(
    entries: Sequence[DataSource], rows: Sequence[int], wanted: Sequence[int], caps: Sequence[int]
) -> None:
    for entry, have, want, cap in zip(entries, rows, wanted, caps, strict=True):
        if want > cap:
            raise TuluLiteError(
                f"{entry.label} has {have:,} usable rows, but its part of the mix is {want:,}",
                why=f"each may appear {entry.max_repeat:g} times in an epoch (max_repeat)",
                cure=f"set max_repeat: {math.ceil(100 * want / max(have, 1)) / 100:g} for it, lower its part, or set mix.short to "
                "less or fill",
            )
