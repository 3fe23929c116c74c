"""Answers that are only copied from the question: "expand (x+1)^2" is not answered by (x+1)^2."""

from __future__ import annotations

import math
import re

from verifiers.maths import numerals
from verifiers.maths.answers import Answer

MAX_PROMPT = 20_000  # characters of a question that is searched for the answer

_WORKED = re.compile(r"[-+*/^!\\]")
_PIECE = re.compile(r"\\[A-Za-z]+|\d+(?:\.\d+)?|[^\s{}]")
_TIMES = (r"\times", r"\cdot", "*", "\u00d7")
_SKIPPED = frozenset((r"\left", r"\right", r"\displaystyle"))
# Nothing but numbers, + - * / and brackets: what a pocket calculator would still have to do
_ARITHMETIC = re.compile(r"(?:[\d\s.+\-*/(){}]|\\(?:times|cdot|div|frac|left|right)(?![A-Za-z]))+")


def restates(gold: Answer, given: Answer, prompt: str) -> bool:
    """Whether an answer that has the gold's value still has to be worked out.

    Numbers and words may stand in the question and still be its answer, and so may the gold written
    another way: \\frac{\\pi}{4} for \\pi/4 has the same numbers and symbols.
    """
    if not prompt or len(prompt) > MAX_PROMPT:
        return False
    if given.kind == gold.kind == "relation":
        # "write 4x - 2y = 6 in slope-intercept form" is not answered by 4x - 2y = 6
        return _stands_in(given.text, prompt) and not _stands_in(gold.text, prompt)
    given = _stated(given)
    if given.kind == "relation":
        return _all_copied(given, prompt)
    if given.kind != "leaf":
        return False
    written = numerals.parse(given.text)
    if written is not None:
        return _unreduced(given.text) and not _unreduced(gold.text) and _stands_in(given.text, prompt)
    if not _WORKED.search(given.text) or _atoms(gold.text) == _atoms(given.text):
        return False
    if _stands_in(given.text, prompt):
        return True
    return numerals.parse(gold.text) is not None and _sum_of_the_question(given.text, prompt)


def _stated(answer: Answer) -> Answer:
    """What "x = ..." states; a chain that ends in a number states the number."""
    if answer.kind == "relation" and set(answer.operators) == {"="}:
        last = answer.parts[-1]
        if len(answer.parts) == 2 and re.fullmatch(r"[A-Za-z]", answer.parts[0].text):
            return last
        if numerals.parse(last.text) is not None:
            return last
    return answer


def _all_copied(relation: Answer, prompt: str) -> bool:
    return all(_WORKED.search(part.text) and _stands_in(part.text, prompt) for part in relation.parts)


def _unreduced(text: str) -> bool:
    """A fraction that is not in lowest terms."""
    match = re.fullmatch(r"-?(?:\\[dt]?frac *\{? *(\d+) *\}? *\{? *(\d+) *\}?|(\d+) */ *(\d+))", text.strip())
    if match is None:
        return False
    return math.gcd(int(match[1] or match[3]), int(match[2] or match[4])) > 1


def _stands_in(text: str, prompt: str) -> bool:
    """Whether the question has these very symbols in a row, however they are spaced."""
    pieces = [piece for piece in _PIECE.findall(_one_frac(text)) if piece not in _SKIPPED]
    times = "(?:" + "|".join(map(re.escape, _TIMES)) + "|times)"
    shapes = [times if piece in _TIMES else re.escape(piece) for piece in pieces]
    pattern = (
        r"(?<![A-Za-z0-9])" + r"(?:[\s{}]|\\[,;!]|\\left|\\right)*".join(shapes) + r"(?:\})*(?![A-Za-z0-9])"
    )
    return re.search(pattern, _one_frac(prompt)) is not None


def _sum_of_the_question(text: str, prompt: str) -> bool:
    """Whether it is plain arithmetic with the question's own numbers, left to the reader: 7 * 8, 2 + 2 + 0."""
    numbers = re.findall(r"\d+(?:\.\d+)?", text)
    if len(numbers) < 2 or not _ARITHMETIC.fullmatch(text):
        return False
    return set(numbers) - {"0", "1"} <= set(re.findall(r"\d+(?:\.\d+)?", prompt))


def _one_frac(text: str) -> str:
    return re.sub(r"\\[dtc]frac", r"\\frac", text)


def _atoms(text: str) -> list[str]:
    return sorted(re.findall(r"\d+|\\[A-Za-z]+|[A-Za-z]", text.replace("\\frac", "").replace("\\cdot", "")))
