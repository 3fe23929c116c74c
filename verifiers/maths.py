"""Mathematical answers: `number`, `gsm8k`, `boxed` and `math`."""

from __future__ import annotations

from typing import Any

from verifiers import extract, numerals
from verifiers.base import Verdict, correct, incorrect
from verifiers.errors import BadReference
from verifiers.numerals import Numeral
from verifiers.registry import verifier


def gold_number(reference: Any) -> Numeral:
    """A data set's answer as a number: 72, "72", "1,080", "9 (apples)", a solution ending "#### 72".

    Raises BadReference.
    """
    if isinstance(reference, bool) or not isinstance(reference, (int, float, str)):
        raise BadReference(f"the reference must be a number or text, got {type(reference).__name__}")
    text = reference if isinstance(reference, str) else repr(reference)
    marked = extract.after_hashes(text)
    numeral = numerals.parse(marked if marked is not None else text)
    if numeral is None:
        raise BadReference(
            f"the reference {text[:80]!r} is not one number",
            cure='Give a number such as 72 or "3/4", or a solution that ends "#### 72".',
        )
    return numeral


def _compare(found: Numeral | None, written: str, gold: Numeral) -> Verdict:
    if found is None:
        return incorrect(written)
    if found.value != gold.value:
        return incorrect("another number", written)
    if not numerals.units_agree(found.unit, gold.unit):
        return incorrect(f"unit {found.unit}, not {gold.unit}", written)
    return correct(extracted=written)


@verifier("number", runs="inline", check_reference=gold_number)
def number(response: str, reference: Any) -> Verdict:
    """The last number in the response equals the reference, exactly; units and percent signs are ignored."""
    gold = gold_number(reference)
    found, written = numerals.last_number(extract.answer_part(response))
    return _compare(found, written, Numeral(gold.value))


@verifier("gsm8k", runs="inline", check_reference=gold_number)
def gsm8k(response: str, reference: Any) -> Verdict:
    """The last \\boxed{}, else the number after the last "####", else the last number, equals the gold.

    The reference may be the full solution with its "#### 72". Numbers are compared exactly.
    """
    gold = gold_number(reference)
    text = extract.answer_part(response)
    boxes = extract.last_boxes(text)
    marked = extract.after_hashes(text) if boxes is None else None
    if boxes is None and marked is None:
        found, written = numerals.last_number(text)
        return _compare(found, written, Numeral(gold.value))
    if boxes is not None and len(boxes) != 1:
        return incorrect("several boxes in a row" if boxes else "the last box is empty or not closed")
    written = boxes[0] if boxes else marked or ""
    found = numerals.parse(written.rpartition("=")[2] if written.count("=") == 1 else written)
    return _compare(found, written if found else f"not one number: {written[:80]}", Numeral(gold.value))
