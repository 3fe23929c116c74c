"""Plain data between a trusted process and the candidate's: what a value is written as, and read back from.

A value travels as JSON that tells Python's built-in types apart:

    null, true, 1, 1.5, "text"      None, bool, int, finite float, str
    ["l", ...] ["t", ...]           list, tuple
    ["s", ...] ["f", ...]           set, frozenset
    ["d", key, value, ...]          dict
    ["i", "-ff"] ["n", "nan"]       an int of many digits, in base 16; a float that JSON has no word for
    ["c", real, imag] ["b", hex] ["y", hex] ["r", start, stop, step]    complex, bytes, bytearray, range

Reading makes exact built-in types and nothing else, so no code of the candidate's takes part in any
comparison. What is read is bounded in size, depth and hash collisions: it comes from a process that may
answer whatever it likes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Any

MAX_DEPTH = 100
MAX_INT_BITS = 1 << 20
MAX_RANGE = 1_000_000
MAX_COLLISIONS = 64  # different members of one set or dict that share a hash; the chains they make cost n^2


class NotPlain(ValueError):
    """This is no plain data, or more of it than is read."""


def load(text: bytes) -> Any:
    """The message that `text` is, as JSON without values read yet. Raises NotPlain."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError, MemoryError) as fault:
        raise NotPlain(f"an unreadable reply ({type(fault).__name__})") from None


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def read(data: Any, depth: int = 0) -> Any:
    """The value that `data` (from `load`) stands for, of exact built-in types. Raises NotPlain."""
    if not isinstance(data, list):
        if isinstance(data, dict):
            raise NotPlain("an unreadable reply")
        return data
    if depth > MAX_DEPTH:
        raise NotPlain(f"nested deeper than {MAX_DEPTH}")
    if not data or not isinstance(data[0], str):
        raise NotPlain("an unreadable reply")
    reader = _READERS.get(data[0])
    if reader is None:
        raise NotPlain("an unreadable reply")
    try:
        return reader(data[1:], depth + 1)
    except NotPlain:
        raise
    except (
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
    ):  # an unhashable key, bad hex, too few parts
        raise NotPlain("an unreadable reply") from None


def _items(parts: list[Any], depth: int) -> list[Any]:
    return [read(part, depth) for part in parts]


def guarded(members: Iterable[Any]) -> list[Any]:
    """The members as a list, hashable and without crafted collisions. Raises NotPlain or TypeError."""
    listed = list(members)
    if len(listed) <= MAX_COLLISIONS:
        return listed
    hashes = set(map(hash, listed))
    if len(listed) - len(hashes) > MAX_COLLISIONS:
        # Equal members share a hash rightly; their types and texts tell them apart without hashing them.
        different = {f"{type(member).__name__}{member!r:.4000}" for member in listed}
        if len(different) - len(hashes) > MAX_COLLISIONS:
            raise NotPlain("many members of a set or dict with one hash")
    return listed


def _dict(parts: list[Any], depth: int) -> dict[Any, Any]:
    keys = guarded(_items(parts[0::2], depth))
    return dict(zip(keys, _items(parts[1::2], depth), strict=True))


def _int(parts: list[Any], depth: int) -> int:
    (text,) = parts
    if not isinstance(text, str) or len(text) > MAX_INT_BITS // 4:
        raise NotPlain(f"an integer of more than {MAX_INT_BITS} bits")
    return int(text, 16)


def _float(parts: list[Any], depth: int) -> float:
    (name,) = parts
    if name not in ("nan", "inf", "-inf"):
        raise NotPlain("an unreadable reply")
    return float(name)


def _complex(parts: list[Any], depth: int) -> complex:
    real, imaginary = _items(parts, depth)
    if type(real) is not float or type(imaginary) is not float:
        raise NotPlain("an unreadable reply")
    return complex(real, imaginary)


def _range(parts: list[Any], depth: int) -> range:
    start, stop, step = _items(parts, depth)
    return small_range(start, stop, step)


def small_range(*parts: Any) -> range:
    """range(*parts) of at most MAX_RANGE members. Raises NotPlain, TypeError, ValueError."""
    made = range(*parts)
    if made and (abs(made[-1] - made[0]) // abs(made.step)) >= MAX_RANGE:  # len() of a huge one raises
        raise NotPlain(f"a range of more than {MAX_RANGE} members")
    return made


_READERS: dict[str, Callable[[list[Any], int], Any]] = {
    "l": _items,
    "t": lambda parts, depth: tuple(_items(parts, depth)),
    "s": lambda parts, depth: set(guarded(_items(parts, depth))),
    "f": lambda parts, depth: frozenset(guarded(_items(parts, depth))),
    "d": _dict,
    "i": _int,
    "n": _float,
    "c": _complex,
    "b": lambda parts, depth: bytes.fromhex(*parts),
    "y": lambda parts, depth: bytearray.fromhex(*parts),
    "r": _range,
}


def is_plain(value: Any, depth: int = 0) -> bool:
    """Whether `value` is of exact built-in types throughout, so that it can be sent and compared."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str, complex, bytes, bytearray, range):
        return True
    if depth > MAX_DEPTH:
        return False
    if kind in (list, tuple, set, frozenset):
        return all(is_plain(member, depth + 1) for member in value)
    return kind is dict and all(
        is_plain(key, depth + 1) and is_plain(member, depth + 1) for key, member in value.items()
    )


def as_lists(value: Any) -> Any:
    """The value with every tuple as a list: JSON knows no tuples, so an answer may use either."""
    if type(value) in (list, tuple):
        return [as_lists(member) for member in value]
    if type(value) is dict:
        return {key: as_lists(member) for key, member in value.items()}
    return value


def near(found: Any, wanted: Any, tolerance: float) -> bool:
    """Equal, but that floats may differ by `tolerance`, absolutely or as a share of the wanted one."""
    if isinstance(wanted, float) or isinstance(found, float):
        if type(found) not in (int, float) or type(wanted) not in (int, float):
            return found == wanted
        try:
            return math.isclose(found, wanted, rel_tol=tolerance, abs_tol=tolerance)
        except OverflowError:  # an int that no float is near
            return False
    if isinstance(wanted, (list, tuple)):
        return (
            type(found) is type(wanted)
            and len(found) == len(wanted)
            and all(near(f, w, tolerance) for f, w in zip(found, wanted, strict=True))
        )
    if isinstance(wanted, dict) and isinstance(found, dict):
        return found.keys() == wanted.keys() and all(near(found[k], wanted[k], tolerance) for k in wanted)
    return bool(found == wanted)


def shown(value: Any, limit: int = 60) -> str:
    """A value in a few words, for a reason; never raises."""
    try:
        text = repr(value)
    except (ValueError, RecursionError, MemoryError):  # an int of too many digits for text
        return f"a {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 3] + "..."
