"""Verifiers that compare text."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from verifiers.base import Verdict, correct, incorrect
from verifiers.errors import BadReference
from verifiers.maths.extract import answer_part, last_boxes
from verifiers.registry import verifier


def normal_text(text: str) -> str:
    """NFC, with runs of white space as one space and none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def check_text(reference: Any) -> None:
    if not isinstance(reference, (str, int, float)) or isinstance(reference, bool):
        raise BadReference(f"the reference must be text, got {type(reference).__name__}")
    if not str(reference).strip():
        raise BadReference("the reference is empty")


@verifier("exact", runs="inline", check_reference=check_text)
def exact(response: str, reference: str, ignore_case: bool = False) -> Verdict:
    """The whole response equals the reference, but for white space.

    ignore_case: compare case-folded.
    """
    check_text(reference)
    ours, theirs = normal_text(response), normal_text(str(reference))
    if ignore_case:
        ours, theirs = ours.casefold(), theirs.casefold()
    return correct(extracted=ours) if ours == theirs else incorrect("differs from the reference", ours)


_GAP = r"[ \t]{0,5}"  # bounded: several unbounded gaps in a row take cubic time on a run of spaces
_ANSWER_IS = re.compile(
    rf"(?:answer|option|choice)\b{_GAP}(?:is|:|=|(?:may|might|could|would|should|must) be)?{_GAP}"
    rf"(?:option\b|choice\b|:)?{_GAP}[*_$\"'\u201c\u2018\[]{{0,3}}{_GAP}"
    rf"(?:\\(?:text|textbf|mathrm|mathbf)\{{)?\(?([A-Za-z])\)?(?![A-Za-z]|['\u2019][a-z])",
    re.IGNORECASE,
)
_BOXED = re.compile(r"(?:\\(?:text|textbf|mathrm|mathbf)\{)?\(?([A-Za-z])\)?[ .:}]*")
# "\textbf{(B) }7": the letter in brackets, and what the option says
_BOXED_OPTION = re.compile(
    r"(?:\\(?:text|textbf|mathrm|mathbf)\{)? *\(([A-Z])\)(?!.*(?<![A-Za-z])[A-Z](?![A-Za-z]))"
)
# A further letter right behind the one chosen ("B, C", "B. Or perhaps C"), unless a sentence begins with it
_FURTHER = re.compile(
    r"(?:[^A-Za-z0-9\n]{0,10}\b(?:or|and|possibly|maybe|perhaps|also|otherwise|alternatively|else|either|if not)\b){0,4}"
    r"[^A-Za-z0-9\n]{1,10}([A-Z])(?![A-Za-z]|['\u2019][a-z]|[)*_.]{0,4} (?:is|was|are|has|does|would|can|cannot|could)\b)",
    re.IGNORECASE,
)
_QUESTION = re.compile(r"[)*_}$\"'\u201d\u2019. ]{0,5}\?")
_ALONE = re.compile(r"[*_(]{0,4}([A-Za-z])[.):*_]{0,4}")
_LEADING = re.compile(r"[*_]{0,4}\(?([A-Z])(?:\)|[.:](?=\s))")


def check_letter(reference: Any) -> None:
    if not isinstance(reference, str) or not re.fullmatch(r"\(?[A-Za-z]\)?\.?", reference.strip()):
        raise BadReference(f"the reference must be one letter such as B or (B), got {reference!r}")


@verifier("choice", version="2", runs="inline", check_reference=check_letter)
def choice(response: str, reference: str) -> Verdict:
    """The letter of a multiple-choice answer: the last \\boxed{B}, "the answer is (B)", or a last line "B".

    A response that states several different letters at the end ("A or B") is wrong.
    """
    check_letter(reference)
    wanted = reference.strip(" ().").upper()
    found, rest = _chosen(answer_part(response))
    if found is None:
        return incorrect("no letter found")
    if (several := _further(rest, found)) is not None:
        return incorrect("several letters", f"{found} {several}")
    return correct(extracted=found) if found == wanted else incorrect(f"chose {found}", found)


def _further(rest: str, found: str) -> str | None:
    """Another letter that stands right behind the one found, and what joins the two."""
    match = _FURTHER.match(rest)
    if match is None or not match.group(1).isupper() or match.group(1) == found:
        return None
    word = match.group(1) in "AI" and re.match(r" [a-z]", rest[match.end() :])  # "B. A triangle has"
    return None if word else match.group(0).strip()


def _chosen(response: str) -> tuple[str | None, str]:
    """The letter a response settles on and the text after it."""
    boxes = last_boxes(response)
    if boxes is not None:
        box = boxes[0].strip() if len(boxes) == 1 else ""
        boxed = _BOXED.fullmatch(box) or _BOXED_OPTION.match(box)
        return (boxed.group(1).upper() if boxed else None), ""
    stated = list(_ANSWER_IS.finditer(response))
    # "the answer is a ..." is an article, "the answer is A" a letter
    stated = [m for m in stated if not _QUESTION.match(response, m.end())]
    stated = [m for m in stated if m.group(1).isupper() or not response[m.end() : m.end() + 2].strip(" .")]
    if stated:
        return stated[-1].group(1).upper(), response[stated[-1].end(1) :]
    line = response.strip().rpartition("\n")[2].strip()
    found = _ALONE.fullmatch(line) or _LEADING.match(line)
    return (found.group(1).upper(), line[found.end() :]) if found else (None, "")
