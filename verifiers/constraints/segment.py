"""Words and sentences of English text, without downloaded models.

IFEval's reference counts with NLTK: words by \\w+, sentences with the Punkt model (Kiss and Strunk 2006,
"Unsupervised Multilingual Sentence Boundary Detection"), capital words with its Treebank tokeniser. The
rules here give the same counts on ordinary text; Punkt's learnt lists are replaced by short written ones.
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
_END = re.compile(r"[.?!\u3002\uff01\uff1f]+[\"'\u201d\u2019)\]}*_]*(?=\s|$)")
_LAST_TOKEN = re.compile(r"\S*$")


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores: "don't" is two."""
    return re.findall(r"\w+", text)


def count_sentences(text: str) -> int:
    """Sentences that end with ".", "?" or "!" before white space, and a last one without."""
    count, start = 0, 0
    for match in _END.finditer(text):
        if match.end() == len(text.rstrip()) or _ends(text, match):
            if text[start : match.end()].strip():
                count += 1
            start = match.end()
    return count + bool(text[start:].strip())


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


_PUNCTUATION = re.compile(r"\.\.\.|--|[;@#$%&?!\"\u201c\u201d()\[\]{}<>`*]|(?<!\d)[:,]|[:,](?!\d)")
_CLITIC = re.compile(r"(?i)(n't)\b|(?<=\w)('(?:s|m|d|ll|re|ve))\b")
_JOINED = re.compile(
    r"(?i)\b(can)(not)\b|\b(gon)(na)\b|\b(got)(ta)\b|\b(lem)(me)\b|\b(wan)(na)\b|\b(gim)(me)\b"
)


def tokens(text: str) -> list[str]:
    """Words and punctuation marks as the Penn Treebank cuts them: "DON'T" is "DO" and "N'T".

    A full stop before white space is always a token of its own (there, only at the end of a sentence).
    """
    text = _PUNCTUATION.sub(lambda m: f" {m.group()} ", text)
    text = re.sub(r"([^.\s])\.(?=[\s'\"\u201d\u2019)\]}>]*(?:\s|$))", r"\1 . ", text)
    text = re.sub(r"(?<!\w)'(?=\w)|(?<=\w)'(?!\w)", " ' ", text)
    text = _CLITIC.sub(lambda m: " " + m.group(), text)
    text = _JOINED.sub(lambda m: " ".join(g for g in m.groups() if g), text)
    return text.split()
