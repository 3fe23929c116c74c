"""Evaluating expressions: exact fractions as long as possible, then mpmath at the working precision.

Nothing here can hang or fill the memory: powers, factorials and exact sizes are bounded.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

MAX_POWER = 1_000_000  # of an exponent's absolute value
MAX_FACTORIAL = 100_000
MAX_BITS = 20_000  # of an exact numerator or denominator; larger values become inexact
AGREE = 40  # digits that must agree

Node = Callable[[Mapping[str, Any]], Any]


class Undefined(Exception):
    """The expression has no value at this point."""


@dataclass(frozen=True, slots=True)
class Expression:
    """`evaluate` maps values of the symbols (Fractions) to a Fraction or mpmath number, or raises Undefined."""

    evaluate: Node
    symbols: frozenset[str]
    complex: bool  # the imaginary unit occurs
    text: str = ""  # what it was read from

    def irrational(self) -> bool:
        """Whether it is a number that is not computed as an exact fraction."""
        return not self.symbols and not isinstance(value_at(self, {}), (Fraction, type(None)))


@functools.lru_cache(maxsize=1)
def mp_context() -> Any:
    from mpmath import mp  # type: ignore[import-untyped]  # 60 ms that a worker without mathematics does not spend

    return mp


def warm() -> None:
    """Import what evaluation needs."""
    mp_context()


def binary(operation: str, left: Node, right: Node) -> Node:
    apply = _OPERATIONS[operation]
    return lambda point: apply(left(point), right(point))


def unary(function: Callable[[Any], Any], argument: Node) -> Node:
    return lambda point: function(argument(point))


def inexact(value: Any) -> Any:
    """At the working precision; symbols and numbers are Fractions as long as they can be."""
    return mp_context().mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _arithmetic(apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def both(a: Any, b: Any) -> Any:
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            value = apply(a, b)
            small = value.numerator.bit_length() < MAX_BITS and value.denominator.bit_length() < MAX_BITS
            return value if small else inexact(value)
        return apply(inexact(a), inexact(b))

    return both


def _divide(a: Any, b: Any) -> Any:
    if b == 0:
        raise Undefined
    return a / b


def _power(base: Any, exponent: Any) -> Any:
    mp = mp_context()
    if abs(exponent) > MAX_POWER:
        raise Undefined
    if base == 0:
        if mp.re(inexact(exponent)) <= 0:
            raise Undefined
        return Fraction(0)
    whole = mp.isint(inexact(exponent))
    if isinstance(base, Fraction) and whole:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(int(exponent)) < MAX_BITS:
            return base ** int(exponent)
    base = inexact(base)
    if abs(mp.log(abs(base))) * abs(inexact(exponent)) > 10 * MAX_POWER:
        raise Undefined
    return base ** int(exponent) if whole else mp.power(base, inexact(exponent))


def _root(value: Any, index: Any) -> Any:
    mp = mp_context()
    if not isinstance(index, Fraction) or index.denominator != 1 or not 1 <= index <= 100:
        raise Undefined
    n, value = int(index), inexact(value)
    if n % 2 == 1 and mp.im(value) == 0 and mp.re(value) < 0:
        return -mp.root(-value, n)  # the real root, as schools mean it
    return mp.root(value, n)


def factorial(value: Any) -> Any:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= MAX_FACTORIAL:
        raise Undefined
    return Fraction(math.factorial(int(value))) if value <= 1000 else mp_context().factorial(int(value))


def _binomial(n: Any, k: Any) -> Any:
    if abs(n) > MAX_FACTORIAL or abs(k) > MAX_FACTORIAL:
        raise Undefined
    if (
        isinstance(n, Fraction)
        and isinstance(k, Fraction)
        and n.denominator == k.denominator == 1
        and 0 <= k <= n <= 5000
    ):
        return Fraction(math.comb(int(n), int(k)))
    return mp_context().binomial(inexact(n), inexact(k))


def logarithm(argument: Node, base: Node | None) -> Node:
    """Without a base, \\log is to an unknown one: log 4 = 2 log 2 holds, log 100 = 2 does not."""

    def value(point: Mapping[str, Any]) -> Any:
        mp = mp_context()
        x, b = inexact(argument(point)), mp.mpf("7.389") if base is None else inexact(base(point))
        if x == 0 or b in (0, 1):
            raise Undefined
        return mp.log(x) / mp.log(b)

    return value


_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": _arithmetic(lambda a, b: a + b),
    "-": _arithmetic(lambda a, b: a - b),
    "*": _arithmetic(lambda a, b: a * b),
    "/": _arithmetic(_divide),
    "^": _power,
    "root": _root,
    "binom": _binomial,
}
BRACKETS: dict[str, Callable[[Any], Any]] = {
    r"\lvert": lambda x: abs(x),
    r"\lfloor": lambda x: Fraction(math.floor(x)) if isinstance(x, Fraction) else mp_context().floor(x),
    r"\lceil": lambda x: Fraction(math.ceil(x)) if isinstance(x, Fraction) else mp_context().ceil(x),
}


def _mp_function(name: str) -> Callable[[Any], Any]:
    return lambda x: getattr(mp_context(), name)(inexact(x))


_TRIGONOMETRIC = ("sin", "cos", "tan", "cot", "sec", "csc")
NAMED = {
    **{name: _mp_function(name) for name in (*_TRIGONOMETRIC, "sinh", "cosh", "tanh", "exp", "ln")},
    **{f"a{name}": _mp_function(f"a{name}") for name in _TRIGONOMETRIC},
    "lg": _mp_function("log10"),
}


def value_at(expression: Expression, point: Mapping[str, Any], real: bool = True) -> Any:
    """A finite number, or None where there is none.

    real: of an expression without the imaginary unit, only a real value counts.
    """
    mp = mp_context()
    try:
        value = expression.evaluate(point)
        if isinstance(value, Fraction):
            return value
        if not mp.isfinite(value):
            return None
        imaginary = mp.im(value)
        if imaginary and real and not expression.complex:
            if abs(imaginary) > mp.mpf(10) ** (-AGREE) * abs(value):
                return None
            value = mp.re(value)
        return value
    except (
        Undefined,
        ZeroDivisionError,
        ValueError,
        OverflowError,
        ArithmeticError,
        TypeError,
        RecursionError,
    ):
        return None
