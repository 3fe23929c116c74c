"""When two expressions are equal: compared by evaluation at many digits.

Two expressions are equal here when they have the same value at several points (a polynomial identity test
in the manner of Schwartz and Zippel). Rational values are exact; others are computed to 60 digits beyond
their size, and a difference counts as rounding only if it shrinks when 100 digits are added. That decides
almost every answer of school and competition mathematics without a computer algebra system, cannot be
fooled by differences that rounding hides (2^-99 and 2^-98), and cannot hang: powers, factorials and lengths
are bounded, and what the grammar does not know is refused instead of guessed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from verifiers.maths.evaluation import AGREE, Expression, inexact, mp_context, value_at

DIGITS = 60  # evaluated with
MAX_DIGITS = 5_000  # of an inexact value that are looked at
MAX_HIDDEN = 300  # an exponent up to which what it makes tiny is looked for
POINTS = 4  # per comparison, half of them with negative values


def equal(one: Expression, other: Expression) -> bool:
    """Whether both have the same value at every point tried (at least one, two with symbols)."""
    names = sorted(one.symbols | other.symbols)
    seed = _seed(one, other)
    tried = 0
    for index in range(POINTS if names else 1):
        same = _same(one, other, _point(names, index, seed))
        if same is False:
            return False
        tried += same is True
    return tried >= (2 if names else 1)


def proportion(one: Expression, other: Expression) -> float | None:
    """one / other if that is one non-zero real constant, else None.

    Two equations L1 - R1 = 0 and L2 - R2 = 0 that are proportional have the same solutions.
    """
    names = sorted(one.symbols | other.symbols)
    seed = _seed(one, other)
    ratio = None
    tried = 0
    for index in range(POINTS):
        with mp_context().workdps(DIGITS):
            a, b = (inexact(value_at(e, _point(names, index, seed))) for e in (one, other))
            if a is None or b is None or a == 0 or b == 0:
                continue
            ratio = a / b if ratio is None else ratio
            if abs(a - b * ratio) > mp_context().mpf(10) ** (-AGREE) * abs(a):
                return None
            tried += 1
    if tried < 2 or ratio is None or mp_context().im(ratio):
        return None
    return float(mp_context().re(ratio))


def approximation(decimal: Fraction, digits: int, exact: Expression) -> bool:
    """Whether a decimal of so many significant digits is `exact` rounded to them (or cut off there)."""
    mp = mp_context()
    with mp.workdps(DIGITS):
        value = inexact(value_at(exact, {})) if not exact.symbols else None
        if value is None or value == 0 or mp.im(value) != 0:
            return False
        written = inexact(decimal)
        unit = mp.mpf(10) ** (mp.floor(mp.log10(abs(value))) + 1 - digits)
        error = abs(written - value)
        return error <= unit / 2 or (error < unit and abs(written) < abs(value))


def _same(one: Expression, other: Expression, point: Mapping[str, Any]) -> bool | None:
    """Equality at one point; None where that says nothing."""
    mp = mp_context()
    dps = DIGITS + _hidden(one, other)
    a, b = _at(one, other, point, dps)
    if a is None and b is None:
        return None if point else False
    if a is None or b is None:
        # outside one's domain on the reals
        return None if point and not (one.complex or other.complex) else False
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    size = max(abs(inexact(a)), abs(inexact(b)))
    if size > mp.mpf(10) ** (DIGITS // 3):
        dps += min(MAX_DIGITS, int(mp.log10(size)))
        a, b = _at(one, other, point, dps)
    difference = _difference(a, b, dps)
    if difference == 0:
        return True
    if difference > mp.mpf(10) ** (-AGREE) * max(size, 1):
        return False
    a, b = _at(one, other, point, dps + 100)
    return (
        a is not None and b is not None and _difference(a, b, dps + 100) <= difference * mp.mpf(10) ** (-90)
    )


_POWER = re.compile(r"(?:\^|\*\*) *\{? *\(?-? *(\d{2,6})|(\d{20,})")


def _hidden(one: Expression, other: Expression) -> int:
    """Digits beyond the usual that a large exponent or a long number asks for: \\sqrt{25 + 10^{-70}} is not 5."""
    found = [
        int(m[1]) if m[1] else len(m[2]) for text in (one.text, other.text) for m in _POWER.finditer(text)
    ]
    return 4 * max((size for size in found if size <= MAX_HIDDEN), default=0)


def _at(one: Expression, other: Expression, point: Mapping[str, Any], dps: int) -> tuple[Any, Any]:
    with mp_context().workdps(dps):
        real = not (one.complex or other.complex)  # \sqrt{-1} has a value beside i, and none beside 1
        return value_at(one, point, real), value_at(other, point, real)


def _difference(a: Any, b: Any, dps: int) -> Any:
    with mp_context().workdps(dps):
        return abs(inexact(a) - inexact(b))


def _seed(one: Expression, other: Expression) -> str:
    """Both texts: whoever would make a difference that vanishes at the points changes them by writing it."""
    return "\0".join(sorted((one.text, other.text)))


def _point(names: list[str], index: int, seed: str) -> dict[str, Any]:
    drawn = random.Random(f"{index}\0{seed}")
    sign = -1 if index % 2 else 1
    return {name: sign * Fraction(drawn.randint(301, 2999), 997) for name in names}
