"""Tokens as the Penn Treebank cuts them, in NLTK 3.9's variant: "DON'T" is "DO" and "N'T", quotes are `` and ''.

The steps and their order are those of the Treebank's own script and of NLTK's additions to it (Unicode quotes and
dashes, dots, asterisks); each step takes time linear in the text.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable

from verifiers.constraints.punkt import sentences

Step = Callable[[str], str]


def _step(pattern: str, by: str) -> Step:
    return functools.partial(re.compile(pattern).sub, by)


def _pad(marks: str) -> Step:
    """Spaces around each of some characters, many times as fast as by a pattern."""
    return lambda text: functools.reduce(_spaced, marks, text)


def _spaced(text: str, mark: str) -> str:
    return text.replace(mark, f" {mark} ")


def _put(old: str, new: str) -> Step:
    return operator.methodcaller("replace", old, new)


_OPENING: tuple[Step, ...] = (
    _pad("\u00ab\u201c\u2018\u201e"),
    _step("`+", r" \g<0> "),
    _put("``", " `` "),
    _step(r"""(?<=[ (\[{<])(?:"|'')""", " `` "),
    _step(r"'(?!(?i:re|ve|ll|[mtsdn]))(?=\w\b)", "' "),
)
_MARKS: tuple[Step, ...] = (
    _step(r"([:,])(\D)", r" \1 \2"),
    _step(r"[:,]$", r" \g<0> "),
    _step(r"\.{2,}", r" \g<0> "),
    _pad(";@#$%&?!"),
    _step(r"([^'])' ", r"\1 ' "),
    _pad("*[](){}<>"),
    _put("--", " -- "),
)
_CLOSING: tuple[Step, ...] = (
    _pad("\u00bb\u201d\u2019"),
    _put("''", " '' "),
    _put('"', " '' "),
    _step(r"\s+", " "),
    _step(r"([^' ])('[sSmMdD]|') ", r"\1 \2 "),
    _step(r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", r"\1 \2 "),
)
_JOINED: tuple[Step, ...] = tuple(
    _step(rf"(?i)\b({first})({second})", r" \1 \2 ")
    for first, second in (
        ("can", r"not\b"), ("d", r"'ye\b"), ("gim", r"me\b"), ("gon", r"na\b"), ("got", r"ta\b"), ("lem", r"me\b"),
        ("more", r"'n\b"), ("wan", r"na(?=\s)"),
    )
)  # fmt: skip
_TIS: tuple[Step, ...] = (_step(r"(?i) ('t)(is|was)\b", r" \1 \2 "),)
_ENDS = frozenset(")]}>\"'\u00bb\u201d\u2019 ")


def tokens(text: str) -> list[str]:
    """Words and punctuation marks of a text, sentence by sentence."""
    between = _absent(text)  # all sentences take each step at once: a text may have a hundred thousand
    cut = ["`` " + one[1:] if one.startswith('"') else one for one in sentences(text)]
    opened = _apply(between.join(cut), _OPENING).split(between)
    marked = _apply(between.join(map(_last_stop, opened)), _MARKS)
    padded = f" {marked.replace(between, f' {between} ')} "
    return [token for token in _apply(padded, _CLOSING + _JOINED + _TIS).split() if token != between]


def _absent(text: str) -> str:
    """A character that is no letter, digit, mark or space and does not occur in the text."""
    return next(char for char in map(chr, range(0xE000, 0xF8FF)) if char not in text)


def _apply(text: str, steps: tuple[Step, ...]) -> str:
    return functools.reduce(lambda made, step: step(made), steps, text)


def _last_stop(text: str) -> str:
    """The text with its final full stop apart, brackets and quotes after it aside."""
    end = len(text.rstrip())
    stop = end
    while stop and text[stop - 1] in _ENDS:
        stop -= 1
    if stop < 2 or text[stop - 1] != "." or text[stop - 2] == ".":
        return text
    return f"{text[: stop - 1]} . {text[stop:end]} "
