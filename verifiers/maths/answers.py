"""A mathematical answer's structure: lists, sets, tuples, intervals, relations, matrices around leaves.

"x = 1, 2"          a list (no order) of two leaves
"\\{1, 2\\}"          a set, the same as the list
"(1, 2)"            a tuple or an open interval: brackets and order count
"[0, 1) \\cup \\{3\\}"  a union of parts
"-2 \\le x < 7"       a relation, the same as the interval [-2, 7)
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field

from verifiers.maths import numerals
from verifiers.maths.spelling import TooComplex, clean

MAX_PARTS = 100  # of a list
MAX_DEPTH = 6


@dataclass(frozen=True, slots=True)
class Answer:
    """kind: leaf, list, set, tuple, union, matrix, ratio or relation."""

    kind: str
    text: str  # what it was read from, cleaned
    parts: tuple[Answer, ...] = ()
    brackets: str = ""  # of a tuple: "()", "[]", "[)" or "(]"
    operators: tuple[str, ...] = field(default=())  # of a relation, between its parts
    shape: tuple[int, int] = (0, 0)  # of a matrix


@functools.lru_cache(maxsize=4096)
def read(text: str) -> Answer:
    """The structure of an answer. Raises TooComplex; everything that has no other structure is a leaf."""
    return _read(clean(text), 0)


def _read(text: str, depth: int) -> Answer:
    if depth > MAX_DEPTH:
        raise TooComplex("an answer nested too deep")
    text = text.strip().strip(",;").strip()
    if numerals.parse(text) is not None:
        return Answer("leaf", text)
    if (matrix := _matrix(text, depth) or _system(text, depth)) is not None:
        return matrix
    while text.startswith("{") and _closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return read_list(text, depth) or _read_one(text, depth)


def read_list(text: str, depth: int = 0) -> Answer | None:
    """The list that top-level semicolons or commas make, commas of thousands included; None without any."""
    for separator in ";,":
        pieces = split(text, separator)
        if len(pieces) > 1:
            return Answer("list", text, _read_all(pieces, depth))
    return None


def _read_all(pieces: list[str], depth: int) -> tuple[Answer, ...]:
    if len(pieces) > MAX_PARTS:
        raise TooComplex(f"an answer of {len(pieces)} parts")
    return tuple(_read(piece, depth + 1) for piece in pieces if piece.strip())


_RELATION = re.compile(r"\\(?:le|ge|ne|approx|in)(?![A-Za-z])|[=<>]")


def _read_one(text: str, depth: int) -> Answer:
    relation = _relation(text, depth)
    if relation is not None:
        return relation
    if r"\cup" in text and len(pieces := split(text, r"\cup")) > 1:
        return Answer("union", text, _read_all(pieces, depth))
    if (bracketed := _bracketed(text, depth)) is not None:
        return bracketed
    if ":" in text and len(pieces := split(text, ":")) > 1 and all(piece.strip() for piece in pieces):
        return Answer("ratio", text, _read_all(pieces, depth))
    if _PLUS_MINUS.search(text):
        return Answer("list", text, tuple(_read(_signed(text, sign), depth + 1) for sign in (0, 1)))
    return Answer("leaf", text)


_PLUS_MINUS = re.compile(r"\\[pm][pm](?![A-Za-z])")


def _signed(text: str, which: int) -> str:
    plus, minus = ("+", "-") if which == 0 else ("-", "+")
    text = re.sub(r"\\pm(?![A-Za-z])", plus, text)
    return re.sub(r"\\mp(?![A-Za-z])", minus, text).strip().removeprefix("+").strip()


def _relation(text: str, depth: int) -> Answer | None:
    cuts: list[tuple[int, int, str]] = []
    for match in _RELATION.finditer(text):
        if match.group() == "=" and text[match.start() - 1 : match.start()] == "\\":
            continue
        if _depth_at(text, match.start()) == 0:
            cuts.append((match.start(), match.end(), match.group().strip()))
    if not cuts or len(cuts) > 12:
        return None
    edges = [0, *(end for _, end, _ in cuts)]
    pieces = [
        text[a:b].strip() for a, b in zip(edges, [*(start for start, _, _ in cuts), len(text)], strict=True)
    ]
    if not all(pieces):
        return None
    return Answer("relation", text, _read_all(pieces, depth), operators=tuple(op for _, _, op in cuts))


# {x | x > 5}: what its condition says
_BUILDER = re.compile(
    r"\\\{ *[A-Za-z] *(?:\\in *\\mathbb\{R\} *)?(?:\||:|\\mid(?![A-Za-z])) *(?P<condition>[^|:]+?) *\\\}",
    re.DOTALL,
)


def _bracketed(text: str, depth: int) -> Answer | None:
    if text.startswith(r"\{") and text.endswith(r"\}") and _closing(text, 1) == len(text) - 1:
        if (builder := _BUILDER.fullmatch(text)) is not None:
            return _read(builder["condition"], depth + 1)
        return Answer("set", text, _read_all(split(text[2:-2], ",;"), depth))
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and _closing(text, 0) == len(text) - 1:
        pieces = split(text[1:-1], ",;")
        brackets = text[0] + text[-1]
        if len(pieces) == 1:
            return _read(pieces[0], depth + 1) if brackets in ("()", "[]") else None
        return Answer("tuple", text, _read_all(pieces, depth), brackets)
    return None


_MATRIX = re.compile(r"\\begin\{([pbvBV]?matrix|array)\}(?:\{[clr|]*\})?(.*)\\end\{\1\}", re.DOTALL)


def _matrix(text: str, depth: int) -> Answer | None:
    match = _MATRIX.fullmatch(text)
    if match is None or match.group(1) in ("vmatrix", "Vmatrix") or r"\begin" in match.group(2):
        return None
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", match.group(2)) if row.strip()]
    cells = [[cell.strip() for cell in row.split("&")] for row in rows]
    if not cells or len({len(row) for row in cells}) != 1:
        return None
    flat = _read_all([cell or "?" for row in cells for cell in row], depth)
    return Answer("matrix", text, flat, shape=(len(cells), len(cells[0])))


def _system(text: str, depth: int) -> Answer | None:
    """The list of a system's equations, one a line; a function by cases (with "&") is none."""
    match = re.fullmatch(
        r"(?:\\\{)?\\begin\{(cases|aligned|array)\}(?:\{l\})?(.*)\\end\{\1\}", text, re.DOTALL
    )
    if match is None or "&" in match.group(2) or r"\begin" in match.group(2):
        return None
    lines = [line.strip(" ,") for line in match.group(2).split(r"\\") if line.strip(" ,")]
    return Answer("list", text, _read_all(lines, depth)) if len(lines) > 1 else None


def split(text: str, separators: str) -> list[str]:
    """Cut at top-level separators: any of several characters, or one LaTeX command."""
    command = separators.startswith("\\")
    pieces, start, depth, index = [], 0, 0, 0
    while index < len(text):
        if text[index] in "([{":
            depth += 1
        elif text[index] in ")]}":
            depth -= 1
        elif depth == 0 and command and text.startswith(separators, index):
            pieces.append(text[start:index])
            index = start = index + len(separators)
            continue
        elif depth == 0 and not command and text[index] in separators:
            pieces.append(text[start:index])
            start = index + 1
        index += 1
    pieces.append(text[start:])
    return pieces


def _depth_at(text: str, position: int) -> int:
    return sum((c in "([{") - (c in ")]}") for c in text[:position])


def _closing(text: str, start: int) -> int:
    """Where the bracket at `start` closes; any bracket closes any other ("[0, 1)"). -1 if it does not."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] in "([{") - (text[index] in ")]}")
        if depth == 0:
            return index
    return -1
