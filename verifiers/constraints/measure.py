"""How long a text is, in several units, so that nothing invisible and no glue between words changes it."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from verifiers.constraints import segment

Unit = Literal["words", "characters", "sentences", "paragraphs", "lines", "tokens"]
# Scripts that put no spaces between words: one character counts as one word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_ONE_BY_ONE = re.compile(f"[{_UNSPACED}]")
_RUN = re.compile(rf"[^\W_{_UNSPACED}]+")
# Letters and symbols by Unicode, with nothing to see: Hangul fillers and the empty Braille pattern
BLANK = "\u115f\u1160\u3164\uffa0\u2800"
_JOINED = 3  # "state-of-the-art" is near the end of what people join


def visible(text: str) -> str:
    """NFC, without format characters (zero width, direction), combining marks, and without control characters."""
    if text.isascii() and text.isprintable():
        return text
    kept = ("Cf", "Cc", "Cn", "Co", "Cs", "Mn", "Me")
    return "".join(
        char
        for char in unicodedata.normalize("NFC", text)
        if char in "\n\t\r" or (unicodedata.category(char) not in kept and char not in BLANK)
    )


def measure(text: str, unit: Unit) -> tuple[int, int]:
    """(what counts towards a lower bound, what counts towards an upper one); they differ for words, and for lines
    that end in another way than "\\n"."""
    text = visible(text).strip()
    if unit == "words":
        return words(text)
    if unit == "tokens":
        return (estimate := tokens(text)), estimate
    if unit == "characters":
        # runs of white space are one character, or an empty page would be long
        return len(re.sub(r"\s+", " ", text)), len(text)
    if unit == "sentences":
        count = _written_sentences(text)
        return count, count
    if unit == "paragraphs":
        count = sum(map(_has_word, re.split(r"\n\s*\n", text)))
        return count, count
    low = sum(map(_has_word, text.split("\n")))
    return low, max(low, sum(map(_has_word, re.split(r"[\n\r\u2028\u2029]", text))))


def words(text: str) -> tuple[int, int]:
    """(words, words with long joins counted apart) of a text that is `visible`."""
    low = high = 0
    for piece in text.split():
        single = len(_ONE_BY_ONE.findall(piece))
        runs = len(_RUN.findall(piece))
        low += single + (runs > 0)
        high += single + (1 if 0 < runs <= _JOINED else runs)
    return low, high


def tokens(text: str) -> int:
    """About as many tokens as a byte-pair vocabulary of 100,000 cuts English into.

    A word of up to six letters is one token, longer ones one for every six; three digits, a punctuation mark and
    a character of an unspaced script are one each. For a policy's true count use the sampler's.
    """
    count = len(_ONE_BY_ONE.findall(text))
    for run in _RUN.findall(text):
        count += -(-len(run) // (3 if run.isdigit() else 6))
    return count + len(re.findall(r"[^\w\s]|_|[^\S \n](?=\S)", text)) + text.count("\n")


def _written_sentences(text: str) -> int:
    """Sentences with a letter or digit: dots alone are none."""
    return sum(_has_word(one) for one in segment.sentences(text))


def _has_word(text: str) -> bool:
    return _RUN.search(text) is not None or _ONE_BY_ONE.search(text) is not None
