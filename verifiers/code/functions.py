"""What a test may compute on our side of the pipe: plain functions of plain data, each of bounded cost.

A test's expected values, and what it does with the candidate's answer (`sorted(f(x))`, `abs(f(x) - c) < eps`),
are computed here and never in the candidate's process. The answer may be anything, so nothing here may take
long or fill memory on hostile data.
"""

from __future__ import annotations

import math
import operator
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from verifiers.code.values import MAX_INT_BITS, MAX_RANGE, NotPlain, guarded, small_range

MAX_LENGTH = 10_000_000  # members of a repeated sequence


class TooMuch(ValueError):
    """A computation that would take too long or too much memory."""


def _set(members: Iterable[Any] = ()) -> set[Any]:
    return set(guarded(members))


def _frozenset(members: Iterable[Any] = ()) -> frozenset[Any]:
    return frozenset(guarded(members))


def _counter(members: Iterable[Any] = ()) -> Counter[Any]:
    return Counter(members) if isinstance(members, dict) else Counter(guarded(members))


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    if isinstance(pairs, dict):
        return dict(pairs)
    listed = [tuple(pair) for pair in pairs]
    guarded(pair[0] for pair in listed)
    return dict(listed)


def multiply(left: Any, right: Any) -> Any:
    for sequence, times in ((left, right), (right, left)):
        if hasattr(sequence, "__len__") and isinstance(times, int) and len(sequence) * times > MAX_LENGTH:
            raise TooMuch("a sequence repeated too often")
    if _bits(left) + _bits(right) > MAX_INT_BITS:
        raise TooMuch("a product of too many digits")
    return left * right


def power(base: Any, exponent: Any, modulus: Any = None) -> Any:
    if isinstance(base, int) and isinstance(exponent, int):
        if modulus is None and _bits(base) * abs(exponent) > MAX_INT_BITS // 8:
            raise TooMuch("a power of too many digits")
        if modulus is not None and max(_bits(base), _bits(exponent), _bits(modulus)) > 4096:
            raise TooMuch("a power of too many digits")
    return pow(base, exponent, modulus) if modulus is not None else base**exponent


def _shift(left: Any, right: Any) -> Any:
    if isinstance(right, int) and right > MAX_INT_BITS:
        raise TooMuch("a shift by too many bits")
    return left << right


def _remainder(left: Any, right: Any) -> Any:
    if not isinstance(left, (int, float)):
        raise TypeError("% is read for numbers only")
    return left % right


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _small(function: Callable[..., Any], most: int = 2000) -> Callable[..., Any]:
    def bounded(*numbers: Any) -> Any:
        if any(isinstance(number, int) and abs(number) > most for number in numbers):
            raise TooMuch(f"{function.__name__} of more than {most}")
        return function(*numbers)

    return bounded


def _isclose(a: Any, b: Any, *, rel_tol: float = 1e-9, abs_tol: float = 0.0) -> bool:
    return math.isclose(a, b, rel_tol=rel_tol, abs_tol=abs_tol)


def _enumerate(members: Iterable[Any], start: int = 0) -> list[tuple[int, Any]]:
    return list(enumerate(members, start))


def _next(members: Any, *default: Any) -> Any:
    return next(iter(members), *default)


def _listed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its lazy result made at once: a lazy one would be compared by identity."""
    return lambda *arguments: list(function(*arguments))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "all": all,
    "any": any,
    "bin": bin,
    "bool": bool,
    "bytes": lambda v=b"": bytes(v) if not isinstance(v, int) else bytes(min(v, MAX_RANGE)),
    "chr": chr,
    "complex": complex,
    "dict": _dict,
    "divmod": divmod,
    "enumerate": _enumerate,
    "filter": _listed(filter),
    "float": float,
    "frozenset": _frozenset,
    "hash": hash,
    "hex": hex,
    "int": int,
    "isinstance": isinstance,
    "iter": list,
    "len": len,
    "list": list,
    "map": _listed(map),
    "max": max,
    "min": min,
    "next": _next,
    "oct": oct,
    "ord": ord,
    "pow": power,
    "range": small_range,
    "repr": repr,
    "reversed": lambda members: list(reversed(members)),
    "round": round,
    "set": _set,
    "sorted": sorted,
    "str": str,
    "sum": sum,
    "tuple": tuple,
    "zip": _listed(zip),
}
# Types as second arguments of isinstance, or as inputs of the candidate's function
TYPES = {"int": int, "float": float, "str": str, "list": list, "tuple": tuple, "set": set, "dict": dict, "bool": bool, "bytes": bytes, "complex": complex, "frozenset": frozenset}  # fmt: skip
# Those that read an iterable whatever its type: of the candidate's generators and views they get a list
ITERATING = {"all", "any", "enumerate", "frozenset", "iter", "list", "max", "min", "next", "set", "sorted", "sum", "tuple", "Counter", "collections.Counter"}  # fmt: skip

_MATH = [
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "ceil",
    "copysign",
    "cos",
    "cosh",
    "degrees",
    "dist",
    "e",
    "erf",
    "exp",
    "expm1",
    "fabs",
    "floor",
    "fmod",
    "fsum",
    "gcd",
    "hypot",
    "inf",
    "isfinite",
    "isinf",
    "isnan",
    "isqrt",
    "lcm",
    "ldexp",
    "log",
    "log10",
    "log1p",
    "log2",
    "modf",
    "nan",
    "pi",
    "pow",
    "radians",
    "sin",
    "sinh",
    "sqrt",
    "tan",
    "tanh",
    "tau",
    "trunc",
]
MODULES: dict[str, Any] = {
    **{f"math.{name}": getattr(math, name) for name in _MATH},
    "math.isclose": _isclose,
    "math.factorial": _small(math.factorial),
    "math.comb": _small(math.comb),
    "math.perm": _small(math.perm),
    "math.prod": lambda members: _product(members),
    "collections.Counter": _counter,
    "sys.getsizeof": sys.getsizeof,
    "sys.maxsize": sys.maxsize,
}
MODULE_NAMES = {name.partition(".")[0] for name in MODULES}


def _product(members: Iterable[Any]) -> Any:
    result: Any = 1
    for member in members:
        result = multiply(result, member)
    return result


BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mult": multiply,
    "Div": operator.truediv,
    "FloorDiv": operator.floordiv,
    "Mod": _remainder,
    "Pow": power,
    "LShift": _shift,
    "RShift": operator.rshift,
    "BitOr": operator.or_,
    "BitXor": operator.xor,
    "BitAnd": operator.and_,
}
UNARY: dict[str, Callable[[Any], Any]] = {
    "USub": operator.neg,
    "UAdd": operator.pos,
    "Not": operator.not_,
    "Invert": operator.invert,
}
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "Eq": operator.eq,
    "NotEq": operator.ne,
    "Lt": operator.lt,
    "LtE": operator.le,
    "Gt": operator.gt,
    "GtE": operator.ge,
    "In": lambda member, members: member in members,
    "NotIn": lambda member, members: member not in members,
    "Is": operator.is_,
    "IsNot": operator.is_not,
}
# Methods of plain data whose result is not much larger than what they are called on, and which change nothing
METHODS = frozenset(
    [
        "capitalize",
        "casefold",
        "copy",
        "count",
        "difference",
        "encode",
        "endswith",
        "find",
        "get",
        "index",
        "intersection",
        "isalnum",
        "isalpha",
        "isdigit",
        "isdisjoint",
        "islower",
        "isspace",
        "issubset",
        "issuperset",
        "isupper",
        "items",
        "join",
        "keys",
        "lower",
        "lstrip",
        "removeprefix",
        "removesuffix",
        "rsplit",
        "rstrip",
        "split",
        "splitlines",
        "startswith",
        "strip",
        "swapcase",
        "symmetric_difference",
        "title",
        "union",
        "upper",
        "values",
        "bit_length",
        "conjugate",
        "is_integer",
    ]
)


def method(value: Any, name: str) -> Callable[..., Any]:
    """A method of plain data. Raises AttributeError."""
    found = getattr(value, name)
    if name == "join":  # the separator is repeated
        return lambda parts: _join(value, parts)
    if name in ("keys", "values", "items"):
        return lambda: list(found()) if name != "keys" else set(found())
    return found  # type: ignore[no-any-return]


def _join(separator: Any, parts: Any) -> Any:
    parts = list(parts)
    if len(separator) * len(parts) > MAX_LENGTH:
        raise TooMuch("a text too long")
    return separator.join(parts)


__all__ = ["BINARY", "COMPARE", "FUNCTIONS", "METHODS", "MODULES", "NotPlain", "TYPES", "TooMuch", "UNARY"]
