"""Subsets of the real line in one normal form: intervals, unions, points, inequalities, "all but 3".

"(-\\infty,-2) \\cup (2,\\infty)", "x < -2 or x > 2" and "|x| > 2" are one set; so are
"\\mathbb{R} \\setminus \\{0\\}" and "x \\ne 0". Ends are compared exactly, by evaluation.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from verifiers.maths import answers, expressions, identity
from verifiers.maths.answers import Answer
from verifiers.maths.evaluation import Expression, inexact, mp_context, value_at

MAX_PIECES = 40
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
_INFINITE = re.compile(r"(-?) *\\infty")
_WITHOUT = re.compile(r"\\mathbb\{R\} *(?:\\setminus|-) *\\\{(.*)\\\}")
# A letter, maybe with an index: z and w are complex by custom, and |z| < 2 is then a disc
_VARIABLE = re.compile(r"(?:\\[A-Za-z]+|[A-Za-z])(?:_ *(?:\{\w+\}|\w))?|[A-Za-z]\([A-Za-z]\)")
_ABSOLUTE = re.compile(r"(?:\\left)?\| *(?![zw])([A-Za-z]) *\|")


@dataclass(frozen=True, slots=True)
class End:
    """Of an interval. side -1 is minus infinity, 1 infinity, 0 a number."""

    side: int
    number: Expression | None = None
    closed: bool = False

    def precedes(self, other: End) -> bool:
        """Whether this end is to the left of the other, equal ends aside."""
        if self.side != other.side:
            return self.side < other.side
        return bool(self.side == 0 and _approximately(self) < _approximately(other))

    def meets(self, other: End) -> bool:
        """Whether both ends are the same place."""
        if self.side or other.side or self.number is None or other.number is None:
            return self.side == other.side
        return identity.equal(self.number, other.number)


Piece = tuple[End, End]


def _approximately(end: End) -> Any:
    with mp_context().workdps(identity.DIGITS):
        return inexact(value_at(end.number, {})) if end.number is not None else None


def states_a_set(answer: Answer) -> bool:
    """Whether this is certainly a set of numbers: (1, 2) alone may be a point and is not."""
    if answer.kind == "list":
        return len(answer.parts) > 0 and all(_orders(part) or part.kind == "union" for part in answer.parts)
    if answer.kind == "leaf":
        return r"\mathbb{R}" in answer.text
    return answer.kind == "union" or _orders(answer) or answer.operators == (r"\ne",)


def _orders(answer: Answer) -> bool:
    return answer.kind == "relation" and set(answer.operators) <= set(_FLIPPED)


def same_set(one: Answer, other: Answer) -> bool:
    """Whether both are read as sets of numbers and are the same one."""
    names = {_name(answer) for answer in (one, other)} - {""}
    if len(names) > 1:
        return False
    sets = [pieces(answer) for answer in (one, other)]
    if sets[0] is None or sets[1] is None or len(sets[0]) != len(sets[1]):
        return False
    return all(
        a.meets(b) and a.closed == b.closed
        for first, second in zip(*sets, strict=True)  # type: ignore[arg-type]
        for a, b in zip(first, second, strict=True)
    )


def pieces(answer: Answer) -> list[Piece] | None:
    """The set's intervals from left to right, joined where they touch; None when it is no set of numbers."""
    found = _pieces(answer)
    return None if found is None or len(found) > MAX_PIECES else _joined(found)


def _pieces(answer: Answer) -> list[Piece] | None:
    if answer.kind == "union":
        return _together(answer.parts)
    if answer.kind == "set":
        return _points([part.text for part in answer.parts])
    if answer.kind == "tuple" and len(answer.parts) == 2:
        return _interval(answer.parts[0].text, answer.parts[1].text, answer.brackets)
    if answer.kind == "relation":
        return _inequality(answer)
    if answer.kind == "list" and all(_orders(part) for part in answer.parts):
        return _alternatives(answer.parts)
    if answer.kind == "leaf":
        return _all_but(answer.text)
    return None


def _together(parts: Sequence[Answer]) -> list[Piece] | None:
    found: list[Piece] = []
    for part in parts:
        inner = _pieces(part)
        if inner is None:
            return None
        found += inner
    return found


def _alternatives(parts: Sequence[Answer]) -> list[Piece] | None:
    """ "x < -2, x > 2": alternatives, for they exclude each other; "x > -2, x < 2" may mean either."""
    found = _together(parts)
    names = {_name(part) for part in parts}
    if found is None or len(names) != 1 or len(found) != len(parts):
        return None
    ordered = _joined(found)
    return ordered if len(ordered) == len(found) else None


def _name(answer: Answer) -> str:
    """The unknown of an inequality or of alternatives; "" of what names none."""
    parts = answer.parts[0].parts if answer.kind == "list" and answer.parts else answer.parts
    if answer.kind not in ("relation", "list"):
        return ""
    for text in (part.text.strip() for part in parts):
        if found := _ABSOLUTE.fullmatch(text):
            return found.group(1)
        if _VARIABLE.fullmatch(text):
            return text.replace(" ", "")
    return ""


def _end(text: str, closed: bool) -> End | None:
    if infinite := _INFINITE.fullmatch(text.strip()):
        return None if closed else End(-1 if infinite.group(1) else 1)
    number = expressions.read(text)
    if number is None or number.symbols or number.complex or value_at(number, {}) is None:
        return None
    return End(0, number, closed)


def _interval(low: str, high: str, brackets: str) -> list[Piece] | None:
    left, right = _end(low, brackets[0] == "["), _end(high, brackets[1] == "]")
    return [(left, right)] if left is not None and right is not None and left.precedes(right) else None


def _points(texts: Sequence[str]) -> list[Piece] | None:
    ends = [_end(text, closed=True) for text in texts]
    return None if None in ends else [(end, end) for end in ends if end is not None]


def _outside(texts: Sequence[str]) -> list[Piece] | None:
    """All numbers but these."""
    points = _points(texts)
    if points is None:
        return None
    holes = [End(0, point.number) for point, _ in _joined(points)]
    edges = [End(-1), *holes, End(1)]
    return list(itertools.pairwise(edges))


def _all_but(text: str) -> list[Piece] | None:
    if text.strip() == r"\mathbb{R}":
        return [(End(-1), End(1))]
    if match := _WITHOUT.fullmatch(text.strip()):
        return _outside(match.group(1).split(","))
    removed = re.fullmatch(r"\\mathbb\{R\} *\\setminus *([\[(].*[\])])", text.strip(), re.DOTALL)
    inner = pieces(answers.read(removed.group(1))) if removed else None
    return _complement(inner) if inner else None


def _complement(inside: list[Piece]) -> list[Piece]:
    """All numbers that are in none of the pieces, which are in order and apart."""
    ends = [
        End(-1),
        *(replace(end, closed=not end.closed and not end.side) for piece in inside for end in piece),
        End(1),
    ]
    return [
        (low, high)
        for low, high in zip(ends[::2], ends[1::2], strict=True)
        if low.side == 0 or high.side != low.side
    ]


def _inequality(relation: Answer) -> list[Piece] | None:
    parts, operators = relation.parts, relation.operators
    if operators == (r"\ne",) and _VARIABLE.fullmatch(parts[0].text.strip()):
        return _outside([parts[1].text])
    if operators == (r"\in",) and _VARIABLE.fullmatch(parts[0].text.strip()):
        return _pieces(parts[1])
    if not set(operators) <= set(_FLIPPED):
        return None
    texts = [part.text.strip() for part in parts]
    if len({op[0] if op in "<>" else op[1] for op in operators} & {"<", "l"}) == 0:  # all point down
        texts, operators = texts[::-1], tuple(_FLIPPED[op] for op in reversed(operators))
    if not set(operators) <= {"<", r"\le"}:
        return None
    if len(texts) == 2:
        texts, operators = (
            ([r"-\infty", *texts], ("<", *operators))
            if is_unknown(texts[0])
            else ([*texts, r"\infty"], (*operators, "<"))
        )
    if len(texts) != 3 or not is_unknown(texts[1]):
        return None
    low, middle, high = texts
    brackets = ("[" if operators[0] == r"\le" else "(") + ("]" if operators[1] == r"\le" else ")")
    return _magnitude(low, high, brackets) if _ABSOLUTE.fullmatch(middle) else _interval(low, high, brackets)


def is_unknown(text: str) -> bool:
    """Whether an inequality may be solved for this: x, a_1, f(x), |x|."""
    return _VARIABLE.fullmatch(text) is not None or _ABSOLUTE.fullmatch(text) is not None


def _magnitude(low: str, high: str, brackets: str) -> list[Piece] | None:
    """low < |x| < high, as two intervals, or one around 0 when nothing is below."""
    bottom, top = _end(low, brackets[0] == "["), _end(high, brackets[1] == "]")
    if bottom is None or top is None or top.side < 0 or (top.side == 0 and _approximately(top) <= 0):
        return None
    mirrored = "(" if brackets[1] == ")" else "["
    minus_high = r"-\infty" if top.side else f"-({high})"
    if bottom.side < 0:
        return _interval(minus_high, high, mirrored + brackets[1])
    if _approximately(bottom) < 0:
        return None
    left = _interval(minus_high, f"-({low})", mirrored + ("]" if brackets[0] == "[" else ")"))
    right = _interval(low, high, brackets)
    return None if left is None or right is None else left + right


def _joined(found: list[Piece]) -> list[Piece]:
    """Sorted from left to right; pieces that overlap or touch in a point that belongs to one are one."""

    def order(a: Piece, b: Piece) -> int:
        if not a[0].meets(b[0]):
            return -1 if a[0].precedes(b[0]) else 1
        return b[0].closed - a[0].closed

    joined: list[Piece] = []
    for low, high in sorted(found, key=functools.cmp_to_key(order)):
        if joined and _touch(joined[-1][1], low):
            joined[-1] = (joined[-1][0], _further(joined[-1][1], high))
        else:
            joined.append((low, high))
    return joined


def _touch(end: End, start: End) -> bool:
    if end.meets(start):
        return end.closed or start.closed
    return start.precedes(end)


def _further(one: End, other: End) -> End:
    if one.meets(other):
        return one if one.closed else other
    return other if one.precedes(other) else one
