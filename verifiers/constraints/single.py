"""Single constraints by arguments: {use: contains, args: {word: story, at_least: 1}}.

Their names say what they ask for and they look for nothing else; unlike IFEval's checks they count whole
words and know Unicode's other commas.
"""

from __future__ import annotations

import functools
import re
import unicodedata

from verifiers.base import Verdict, correct, incorrect
from verifiers.constraints import language as languages
from verifiers.constraints.measure import Unit, measure, visible
from verifiers.errors import SpecError
from verifiers.registry import verifier

_COMMAS = frozenset(
    ",\u060c\u3001\uff0c\ufe50\ufe51\uff64\u055d\u07f8\u1363\u1802\u1808\u201a"
    "\u2e32\u2e34\u2e41\u2e49\u2e4c\ua4fe\ua60d\ua6f5\ufe10\ufe11"
)


def _verdict(holds: bool, missed: str) -> Verdict:
    return correct() if holds else incorrect(missed)


def _written(response: str) -> bool:
    return any(char.isalnum() for char in response)


def _within(count: int, least: int | None, most: int | None, what: str) -> Verdict:
    if least is not None and count < least:
        return incorrect(f"{count} {what}, at least {least} asked for")
    if most is not None and count > most:
        return incorrect(f"{count} {what}, at most {most} asked for")
    return correct(f"{count} {what}")


def _check_range(name: str, least: int | None, most: int | None) -> None:
    if least is None and most is None:
        raise SpecError(f"{name} needs a lower or an upper bound")
    if any(bound is not None and bound < 0 for bound in (least, most)):
        raise SpecError(f"{name}: a bound is negative")
    if least is not None and most is not None and least > most:
        raise SpecError(f"{name}: the lower bound {least} is above the upper bound {most}")


@verifier("no_commas", version="2", runs="inline")
def no_commas(response: str) -> Verdict:
    """The response says something, without any comma of any script."""
    if not _written(response):
        return incorrect("the response is empty")
    return _verdict(not any(char in _COMMAS for char in response), "has a comma")


@verifier("starts_with")
class StartsWith:
    """The response starts with `phrase`, white space and case (unless match_case) aside."""

    def __init__(self, phrase: str, match_case: bool = False) -> None:
        self.phrase, self.match_case = _phrase("starts_with", phrase), match_case

    def verify(self, response: str) -> Verdict:
        start = _folded(response.lstrip(), self.match_case).startswith(_folded(self.phrase, self.match_case))
        return _verdict(start, f"does not start with {self.phrase!r}")


@verifier("ends_with")
class EndsWith:
    """The response ends with `phrase`, white space and case (unless match_case) aside."""

    def __init__(self, phrase: str, match_case: bool = False) -> None:
        self.phrase, self.match_case = _phrase("ends_with", phrase), match_case

    def verify(self, response: str) -> Verdict:
        end = _folded(response.rstrip(), self.match_case).endswith(_folded(self.phrase, self.match_case))
        return _verdict(end, f"does not end with {self.phrase!r}")


def _phrase(name: str, phrase: str) -> str:
    if not phrase.strip():
        raise SpecError(f"{name}: the phrase is empty")
    return phrase.strip()


def _folded(text: str, match_case: bool) -> str:
    return text if match_case else text.casefold()


@functools.lru_cache(maxsize=256)
def _whole(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word.strip())}(?!\w)", re.IGNORECASE)


def _occurs(word: str, response: str) -> tuple[int, int]:
    """(how often a word stands there, how often a reader sees it there: full width, or with unseen characters in it)."""
    plain = len(_whole(word).findall(response))
    shown = unicodedata.normalize("NFKC", visible(response))
    if shown == response or visible(word) != word:
        return plain, plain
    return plain, max(plain, len(_whole(unicodedata.normalize("NFKC", word)).findall(shown)))


@verifier("contains", version="2")
class Contains:
    """The whole word or phrase occurs at_least to at_most times, in any case."""

    def __init__(self, word: str, at_least: int | None = None, at_most: int | None = None) -> None:
        self.word = _phrase("contains", word)
        if at_least is None and at_most is None:
            at_least = 1
        _check_range("contains", at_least, at_most)
        self.least, self.most = at_least, at_most

    def verify(self, response: str) -> Verdict:
        if not _written(response):
            return incorrect("the response is empty")
        low, high = _occurs(self.word, response)
        if self.most is not None and high > self.most:
            return _within(high, None, self.most, f"times {self.word!r}")
        return _within(low, self.least, None, f"times {self.word!r}")


@verifier("excludes", version="2")
class Excludes:
    """None of `words` occurs as a whole word, in any case."""

    def __init__(self, words: list[str]) -> None:
        if not words or not all(isinstance(word, str) and word.strip() for word in words):
            raise SpecError("excludes: words must be a list of words")
        self.words = tuple(words)

    def verify(self, response: str) -> Verdict:
        if not _written(response):
            return incorrect("the response is empty")
        found = [word for word in self.words if _occurs(word, response)[1]]
        return _verdict(not found, f"has {', '.join(found)}")


@verifier("length", version="3")
class Length:
    """min to max words, characters, sentences, paragraphs, lines or (estimated) tokens.

    What is invisible counts nothing. Words are what white space separates, and single characters of scripts
    without spaces; of words joined by punctuation more than three count one by one towards `max`.
    """

    def __init__(self, unit: Unit, min: int | None = None, max: int | None = None) -> None:
        _check_range("length", min, max)
        self.unit, self.least, self.most = unit, min, max

    def verify(self, response: str) -> Verdict:
        low, high = measure(response, self.unit)
        if not low and not _written(response):
            return incorrect("the response is empty")
        if self.most is not None and high > self.most:
            return _within(high, None, self.most, self.unit)
        return _within(low, self.least, None, self.unit)


@verifier("regex")
class Regex:
    """`pattern` is found in the response, or is the whole of it (full). Runs in a worker, under its clock."""

    def __init__(self, pattern: str, full: bool = False, ignore_case: bool = False) -> None:
        try:
            self.pattern = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
        except (re.error, OverflowError, RecursionError) as fault:
            raise SpecError(f"regex: {pattern!r} is no regular expression: {fault}") from fault
        self.full = full

    def verify(self, response: str) -> Verdict:
        match = self.pattern.fullmatch(response.strip()) if self.full else self.pattern.search(response)
        return correct(extracted=match.group()) if match else incorrect("the pattern does not match")


@verifier("lowercase", runs="inline")
def lowercase(response: str) -> Verdict:
    """No letter is upper case, and there are letters."""
    return _verdict(response.islower(), "has upper case" if _written(response) else "the response is empty")


@verifier("uppercase", runs="inline")
def uppercase(response: str) -> Verdict:
    """No letter is lower case, and there are letters."""
    return _verdict(response.isupper(), "has lower case" if _written(response) else "the response is empty")


@verifier("bullets")
class Bullets:
    """min to max lines that begin with "-", "*" or "\u2022", a space and a text."""

    def __init__(self, min: int | None = None, max: int | None = None) -> None:
        _check_range("bullets", min, max)
        self.least, self.most = min, max

    def verify(self, response: str) -> Verdict:
        lines = re.findall(r"^[ \t]*[-*\u2022][ \t]+(?=[^\n]*\w)", response, re.MULTILINE)
        return _within(len(lines), self.least, self.most, "bullets")


@verifier("language")
class Language:
    """The response is written in the language `code` (ISO 639-1; zh-cn, zh-tw)."""

    def __init__(self, code: str) -> None:
        if code not in languages.LANGUAGES:
            raise SpecError(f"language: {code!r} is none of {', '.join(sorted(languages.LANGUAGES))}")
        self.code = code

    def verify(self, response: str) -> Verdict:
        found = languages.detect(response)
        return _verdict(found == self.code, f"is {found or 'no language'}, not {self.code}")
