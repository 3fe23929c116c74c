"""English sentences nearly as NLTK 3.9 cuts them, which IFEval's and IFBench's references count by.

The algorithm is Punkt (Kiss and Strunk 2006, "Unsupervised Multilingual Sentence Boundary Detection",
Computational Linguistics 32(4), section 4): a full stop ends a sentence unless its word is a known abbreviation,
an ellipsis, an initial or a number and the next word does not look like a beginning. What Punkt learns about words
from a corpus is written by hand here, in `abbreviations`, so that now and then a text is cut elsewhere than by NLTK's
model: mostly at a list's letters ("c. Mobile"). Everything here takes time linear in the text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from verifiers.constraints.abbreviations import AFTER_NUMBER, STARTERS, abbreviated, everyday

_AFTER = r"[)\";}\]*:@'({\[?!]"  # ends a word
_RUN = r"(?:-{2,}|\.{2,}|(?:\.\s){2,}\.)"  # one token
_CANDIDATE = re.compile(rf"[.?!](?=(?P<after>{_AFTER}|\s+(?P<next>\S+)))")
_TOKEN = re.compile(
    rf"{_RUN}"
    rf"|(?![(\"`{{\[:;&#*@)}}\]\-,])\S+?(?=\s|$|{_AFTER}|{_RUN}|,(?=$|\s|{_AFTER}|{_RUN}))"
    r"|\S"
)
_NUMBER = re.compile(r"-?[.,]?\d[\d,.-]*\.?")
_INITIAL = re.compile(r"[^\W\d]\.")
_CLOSING = re.compile(r"[\"')\]}]+?(?:\s+|(?=--)|$)", re.MULTILINE)  # belongs to the sentence before it


@dataclass(slots=True)
class _Token:
    text: str
    type: str  # in lower case, numbers all alike
    breaks: bool = False
    shortened: bool = False  # an abbreviation
    ellipsis: bool = False

    def without_stop(self) -> str:
        return self.type[:-1] if len(self.type) > 1 and self.type[-1] == "." else self.type

    def as_next(self) -> str:
        return self.without_stop() if self.breaks else self.type


def _token(text: str) -> _Token:
    """A token with what it says by itself."""
    token = _Token(text, "##number##" if _NUMBER.fullmatch(text) else text.lower())
    if text in (".", "?", "!"):
        token.breaks = True
    elif text.startswith("..") and not text.strip("."):
        token.ellipsis = True
    elif text.endswith(".") and not text.endswith(".."):
        token.shortened = abbreviated(text[:-1].lower())
        token.breaks = not token.shortened
    return token


def _starts(token: _Token) -> bool | None:
    """Whether a token begins a sentence by how it is written; None when that does not tell."""
    if token.text in (";", ":", ",", ".", "!", "?") or token.text[0].islower():
        return False
    return True if token.text[0].isupper() and token.as_next() in STARTERS else None


def _decide(token: _Token, following: _Token) -> None:
    """Whether a token that ends in a full stop ends its sentence, in view of the token after it."""
    if not token.text.endswith("."):
        return
    starts = _starts(following)
    initial = _INITIAL.fullmatch(token.text) is not None
    number = token.without_stop() == "##number##"
    if initial or number:
        word = following.as_next()
        name = initial and following.text[0].isupper() and not everyday(word)
        if starts is False or name or (number and word in AFTER_NUMBER):
            token.breaks, token.shortened = False, True
    elif (token.shortened or token.ellipsis) and starts:
        token.breaks = True


def _has_break(context: str) -> bool:
    """Whether some token of a context, but for its last one, ends a sentence."""
    before: _Token | None = None
    for line in context.split("\n"):
        for found in _TOKEN.finditer(line):
            token = _token(found.group())
            if before is not None:
                _decide(before, token)
                if before.breaks:
                    return True
            before = token
    return False


def _contexts(text: str) -> Iterator[tuple[re.Match[str], str]]:
    """Marks that may end a sentence, each with the words around it; of several in one word only the last."""
    held: re.Match[str] | None = None
    start = stop = 0  # the word before the held mark
    for mark in _CANDIDATE.finditer(text):
        space = _last_space(text, stop, mark.start())
        begin = space + 1 if space > stop else start
        if held is not None and stop <= begin:
            yield held, text[start:stop] + held.group() + held.group("after")
        held, start, stop = mark, begin, mark.start()
    if held is not None:
        yield held, text[start:stop] + held.group() + held.group("after")


def _last_space(text: str, low: int, high: int) -> int:
    """The index of the last white space in text[low:high], or -1."""
    for index in range(high - 1, low - 1, -1):
        if text[index].isspace():
            return index
    return -1


def _spans(text: str) -> Iterator[tuple[int, int]]:
    begin = 0
    for mark, context in _contexts(text):
        if _has_break(context):
            yield begin, mark.end()
            begin = mark.start("next") if mark.group("next") else mark.end()
    yield begin, len(text.rstrip())


@functools.lru_cache(maxsize=32)  # several instructions of a row cut the same text
def sentences(text: str) -> tuple[str, ...]:
    """The sentences of a text, white space between them left out, closing quotes and brackets with their own."""
    spans = list(_spans(text))
    made: list[str] = []
    moved = 0
    for number, (begin, end) in enumerate(spans):
        begin += moved
        moved = 0
        if number + 1 < len(spans):
            after, stop = spans[number + 1]
            if closing := _CLOSING.match(text[after:stop]):
                moved = closing.end()
                made.append(text[begin : after + len(closing.group().rstrip())])
                continue
        if text[begin:end]:
            made.append(text[begin:end])
    return tuple(made)
