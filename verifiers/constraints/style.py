"""Rewards for how a response is written as a whole: one language, no loops, not too long.

Each looks at the whole response, its <think> part included, unless `part` says otherwise.
"""

from __future__ import annotations

import operator
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from verifiers.base import Verdict, correct, incorrect, scored, strip_thinking
from verifiers.constraints import detection
from verifiers.constraints.language import LANGUAGES, script_of
from verifiers.constraints.measure import Unit, measure, visible
from verifiers.errors import SpecError
from verifiers.registry import verifier

Part = Literal["all", "thinking", "answer"]


def _part(response: str, part: Part) -> str | None:
    """That part of a response; None when there is none or a <think> is not closed."""
    if part == "all":
        return response
    answer = strip_thinking(response)
    if answer is None or part == "answer":
        return answer
    end = response.lower().rfind("</think")
    return re.sub(r"(?i)<think(?:ing)?>", " ", response[:end]) if end >= 0 else None


# ---------------------------------------------------------------- one language

# Each begins where it can end or be given up in linear time: at a line's beginning, or up to the next opening.
_CODE = re.compile(r"^[ \t]{0,3}```[^\n]*+\n.*?(?:^[ \t]{0,3}```|\Z)", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(
    r"`[^`\n]{1,300}`|\$[^$\n]{1,300}\$|\\\[(?:[^\\]|\\[^\[\]])*+\\\]|\\\((?:[^\\]|\\[^()])*+\\\)|https?://\S+"
)
_WORD = re.compile(r"[^\W\d_]+")
_UNSPACED = frozenset(("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"))
_SCRIPTS = {
    "ja": ("CJK", "HIRAGANA", "KATAKANA"), "zh-cn": ("CJK",), "zh-tw": ("CJK",), "ko": ("HANGUL",), "th": ("THAI",),
    "el": ("GREEK",), "he": ("HEBREW",), "kn": ("KANNADA",), "pa": ("GURMUKHI",), "gu": ("GUJARATI",),
    "ta": ("TAMIL",), "te": ("TELUGU",), "ml": ("MALAYALAM",), "bn": ("BENGALI",),
    **dict.fromkeys(("ru", "uk", "bg", "mk"), ("CYRILLIC",)), **dict.fromkeys(("ar", "fa", "ur"), ("ARABIC",)),
    **dict.fromkeys(("hi", "mr", "ne"), ("DEVANAGARI",)),
}  # fmt: skip
_ALONE = frozenset(
    ("ko", "th", "el", "he", "kn", "pa", "gu", "ta", "te", "ml", "bn")
)  # one language a script
_CHUNK = 200  # letters: langdetect needs some
_MAX_CHUNKS = 24


@verifier("language_consistency", strip_thinking=False, accepts_truncated=False, warm=detection.warm)
class LanguageConsistency:
    """The share of the words that are in the language `code` (DeepSeek-R1, arXiv:2501.12948, section 2.3.2).

    Code, formulas and addresses do not count. Words are told by their script, and stretches of about 200 letters by
    langdetect where languages share one; a character of a script without spaces counts as a word, a word of mixed
    scripts is in none. part: "all", "thinking" or "answer". at_least: 1 from that share on, else 0.
    """

    def __init__(self, code: str, part: Part = "all", at_least: float | None = None) -> None:
        if code not in LANGUAGES:
            raise SpecError(f"language_consistency: {code!r} is none of {', '.join(sorted(LANGUAGES))}")
        if at_least is not None and not 0 < at_least <= 1:
            raise SpecError(f"language_consistency: at_least is {at_least}, not above 0 and up to 1")
        self.code, self.part, self.at_least = code, part, at_least
        self.scripts = _SCRIPTS.get(code, ("LATIN",))

    def verify(self, response: str) -> Verdict:
        text = _part(response, self.part)
        if text is None:
            return incorrect(f"there is no {self.part} part")
        share = self.share(text)
        if share is None:
            return incorrect("has no words")
        reason = f"{share:.1%} {self.code}"
        if self.at_least is not None:
            return correct(reason) if share >= self.at_least else incorrect(reason)
        return scored(share, reason)

    def share(self, text: str) -> float | None:
        """The words of the language over all words; None without words."""
        units = _units(_SPAN.sub(" ", _CODE.sub(" ", visible(text))))
        if not units:
            return None
        native = [script in self.scripts for _, script in units]
        chunks = _chunks([word if ok else "" for (word, _), ok in zip(units, native, strict=True)])
        right = 0.0
        for start, end in chunks:
            right += sum(native[start:end]) * self._spoken(
                [word for word, _ in units[start:end]], native[start:end]
            )
        looked_at = sum(end - start for start, end in chunks)
        return right / looked_at

    def _spoken(self, words: Sequence[str], native: Sequence[bool]) -> float:
        """1 when the words of the language's scripts are in the language, else 0."""
        if self.code in _ALONE:
            return 1.0
        glue = "" if self.scripts[0] in _UNSPACED else " "
        found = detection.detect(glue.join(w for w, ok in zip(words, native, strict=True) if ok))
        same = {self.code, "zh-cn", "zh-tw"} if self.code.startswith("zh") else {self.code}
        return float(found in same)


def _units(text: str) -> list[tuple[str, str]]:
    """(word, its script) of a text; scripts without spaces go by characters; "" is the script of mixed words."""
    units: list[tuple[str, str]] = []
    for word in _WORD.findall(text):
        scripts = [script_of(char) for char in word]
        if set(scripts) & _UNSPACED:
            units += zip(word, scripts, strict=True)
        else:
            units.append((word, scripts[0] if len(set(scripts)) == 1 else ""))
    return units


def _chunks(words: Sequence[str]) -> list[tuple[int, int]]:
    """Stretches of words with about _CHUNK letters each; of many, some at even distances."""
    chunks, start, letters = [], 0, 0
    for end, word in enumerate(words, 1):
        letters += len(word)
        if letters >= _CHUNK:
            chunks.append((start, end))
            start, letters = end, 0
    if start < len(words):  # what is left over is too short by itself
        start = chunks.pop()[0] if chunks else 0
        chunks.append((start, len(words)))
    if len(chunks) > _MAX_CHUNKS:
        step = len(chunks) / _MAX_CHUNKS
        chunks = [chunks[int(number * step)] for number in range(_MAX_CHUNKS)]
    return chunks


# ---------------------------------------------------------------- length


@verifier("soft_length", strip_thinking=False)
class SoftLength:
    """1 up to `max` - `buffer` units, from there down to 0 at `max` in a straight line (DAPO, arXiv:2503.14476,
    equation 13, whose penalty is this score less 1); 0 below `min`. Reasoning counts; a truncated response has 0.

    unit: words, characters, sentences, paragraphs, lines, or tokens (estimated).
    """

    def __init__(self, unit: Unit, max: int, buffer: int, min: int = 0) -> None:
        if not 0 <= min <= max - buffer or buffer < 0:
            raise SpecError(
                f"soft_length: 0 <= min <= max - buffer <= max does not hold: {min}, {max}, {buffer}"
            )
        self.unit, self.max, self.buffer, self.min = unit, max, buffer, min

    def verify(self, response: str) -> Verdict:
        low, high = measure(response, self.unit)
        reason = f"{high} {self.unit}"
        if low < max(1, self.min):
            return incorrect(f"{low} {self.unit}, at least {max(1, self.min)} asked for")
        if high <= self.max - self.buffer:
            return correct(reason)
        return scored(max(0.0, (self.max - high) / self.buffer) if self.buffer else 0.0, reason)


# ---------------------------------------------------------------- repetition

_PIECE = re.compile(r"\w+|[^\w\s]")
_LONGEST_LOOP = 40  # pieces of one round
_STUTTER = re.compile(r"([^\s\-_=*#.~|+]{1,8}?)\1{29,}")  # lines of dashes and the like are no stutter


@verifier("no_repetition", strip_thinking=False)
class NoRepetition:
    """No degenerate loop, and few of the n-grams of words occur more than once.

    n: words of an n-gram. max_share: of n-grams that occurred before, at most; above it the score falls in a straight
    line to 0 where all are repeated (graded) or is 0. max_loop: how often a stretch of 1 to 40 words and marks may
    follow itself at once, when it has a letter or digit; more is 0.
    """

    def __init__(self, n: int = 4, max_share: float = 0.3, max_loop: int = 8, graded: bool = False) -> None:
        if not 1 <= n <= 20 or not 0 <= max_share < 1 or max_loop < 1:
            raise SpecError("no_repetition: n is 1 to 20, max_share from 0 to below 1, max_loop 1 or more")
        self.n, self.max_share, self.max_loop, self.graded = n, max_share, max_loop, graded

    def verify(self, response: str) -> Verdict:
        text = unicodedata.normalize("NFKC", visible(response)).casefold()
        pieces = _pieces(text)
        if not any(piece.isalnum() for piece in pieces):
            return incorrect("has no words")
        if found := _STUTTER.search(text):
            return incorrect(f"{found.group(1)!r} {len(found.group()) // len(found.group(1))} times in a row")
        loop = _loop(pieces, self.max_loop)
        if loop is not None:
            return incorrect(f"{' '.join(loop)[:200]!r} more than {self.max_loop} times in a row")
        share = repeated_share(pieces, self.n)
        reason = f"{share:.1%} of {self.n}-grams are repeated"
        if share <= self.max_share:
            return correct(reason)
        return scored((1 - share) / (1 - self.max_share) if self.graded else 0.0, reason)


def _pieces(text: str) -> list[str]:
    """Words and marks; characters of scripts without spaces one by one."""
    pieces: list[str] = []
    for piece in _PIECE.findall(text):
        if piece.isascii() or not any(script_of(char) in _UNSPACED for char in piece):
            pieces.append(piece)
        else:
            pieces += piece
    return pieces


def repeated_share(pieces: Sequence[str], n: int) -> float:
    """The n-grams that occurred before, over all n-grams of words; 0 without any."""
    words = [piece for piece in pieces if piece.isalnum()]
    grams = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    total = grams.total()
    return 1 - len(grams) / total if total else 0.0


def _loop(pieces: Sequence[str], most: int) -> list[str] | None:
    """A stretch with a letter or digit that follows itself so that it is there more than `most` times at once."""
    for period in range(1, min(_LONGEST_LOOP, len(pieces) // (most + 1)) + 1):
        same = bytes(
            map(operator.eq, pieces[period:], pieces)
        )  # a 1 where a piece is the one a period before
        run = b"\1" * (period * most)
        start = same.find(run)
        while start >= 0:
            end = start + len(run)
            stretch = list(pieces[end : end + period])
            if any(piece.isalnum() for piece in stretch):
                return stretch
            start = same.find(run, end)
    return None
