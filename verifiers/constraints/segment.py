"""Words, and sentences by short written rules, for the single verifiers.

The rules know abbreviations ("e.g.", "no. 5") that Punkt, by which the published benchmarks count, does not.
"""

from __future__ import annotations

import re


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Abbreviations after which a full stop does not end a sentence: any case, capitalised, before a number.
_ANY_CASE = _set(
    "vs v etc e.g i.e cf al approx dept a.m p.m ph.d u.s u.k u.n u.s.a d.c b.c a.d m.d b.a m.a n.y l.a lbs oz ft"
)
_CAPITALISED = _set(
    "Dr Mr Mrs Ms Prof St Sr Jr Rev Gen Col Sgt Capt Lt Gov Sen Rep Hon Messrs Maj Adm Ca Est Inc Ltd Co Corp Bros "
    "Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec Mon Tue Tues Wed Thu Thur Thurs Fri Sat Sun Ave Blvd Rd Mt"
)
_BEFORE_NUMBER = _set("no vol fig pp p eq ch sec art nos figs")
# Ones that end a sentence when a usual first word follows.
_MAY_END = _set("etc inc ltd co corp bros jr sr a.m p.m u.s u.k u.n u.s.a d.c b.c a.d ph.d m.d n.y oz lbs ft")
# Words that usually begin a sentence when they are capitalised.
_STARTERS = _set(
    "the this that these those a an it he she they we you i in on at for from with if when while there but and so "
    "however my our your his her its their what who how why where as to by"
)
# A run of marks is tried once, from its beginning: from every mark of it, "!!!!...x" would take quadratic time.
_END = re.compile(r"(?<![.?!\u3002\uff01\uff1f])[.?!\u3002\uff01\uff1f]++[\"'\u201d\u2019)\]}*_]*+(?=\s|$)")
_LAST_TOKEN = re.compile(r"\S*$")


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores: "don't" is two."""
    return re.findall(r"\w+", text)


def sentences(text: str) -> list[str]:
    """Sentences that end with ".", "?" or "!" before white space, and a last one without."""
    made, start, last = [], 0, len(text.rstrip())
    for match in _END.finditer(text):
        if match.end() == last or _ends(text, match):
            made.append(text[start : match.end()].strip())
            start = match.end()
    made.append(text[start:].strip())
    return [sentence for sentence in made if sentence]


def count_sentences(text: str) -> int:
    return len(sentences(text))


def _ends(text: str, match: re.Match[str]) -> bool:
    mark = match.group()
    following = text[match.end() : match.end() + 200].split()
    first = following[0].lstrip("\"'\u201c\u2018([{*_") if following else ""
    if "?" in mark or "!" in mark or mark[0] not in ".":
        return True
    if mark.startswith(".."):
        return first[:1].isupper() and first.strip(".,;:!?'\"").lower() in _STARTERS
    token_match = _LAST_TOKEN.search(text[max(0, match.start() - 60) : match.start()])
    token = (token_match.group() if token_match else "").lstrip("\"'\u201c\u2018([{*_")
    lower = token.lower()
    if len(mark.rstrip("\"'\u201d\u2019)]}*_")) == 1:
        if lower in _BEFORE_NUMBER and first[:1].isdigit():
            return False
        if lower in _ANY_CASE or token in _CAPITALISED:
            return lower in _MAY_END and first[:1].isupper() and first.strip(".,;:!?'\"").lower() in _STARTERS
        if len(token) == 1 and token.isalpha():  # an initial
            return token == "I" and first[:1].isupper()
        if re.fullmatch(r"\d+", token):  # "1. first": a list's number, or a year at the end
            return not first[:1].islower()
    return True
