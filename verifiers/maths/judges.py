"""Mathematical answers: `number`, `gsm8k`, `boxed` and `math`."""

from __future__ import annotations

import re
from typing import Any

from verifiers.base import Sample, Verdict, correct, incorrect
from verifiers.errors import BadReference
from verifiers.maths import (
    algebra,
    answers,
    equality,
    evaluation,
    expressions,
    extract,
    leaves,
    numerals,
    spelling,
    units,
)
from verifiers.maths.answers import Answer
from verifiers.maths.numerals import Numeral
from verifiers.maths.restating import restates
from verifiers.maths.spelling import TooComplex
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
    if not units.agree(found.unit, gold.unit):
        return incorrect(f"unit {found.unit}, not {gold.unit}", written)
    return correct(extracted=written)


@verifier("number", version="3", runs="inline", check_reference=gold_number)
def number(response: str, reference: Any) -> Verdict:
    """The last number in the response equals the reference, exactly; units and percent signs are ignored."""
    gold = gold_number(reference)
    found, written = numerals.last_number(extract.answer_part(response))
    return _compare(found, written, Numeral(gold.value))


@verifier("gsm8k", version="3", runs="inline", check_reference=gold_number)
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


# ---------------------------------------------------------------- mathematics in general


def warm() -> None:
    evaluation.warm()
    algebra.warm()


def forget() -> None:
    """Drop the memory of texts already read (numbers, answers, expressions), so that a measurement is of reading."""
    numerals.forget()
    answers.read.cache_clear()
    expressions.read.cache_clear()


def gold_answer(reference: Any) -> Answer:
    """A data set's answer: an expression, or a solution that ends with \\boxed{...} or "#### ...".

    Raises BadReference when nothing can be compared with it.
    """
    if isinstance(reference, bool) or not isinstance(reference, (int, float, str)):
        raise BadReference(f"the reference must be text or a number, got {type(reference).__name__}")
    text = reference if isinstance(reference, str) else repr(reference)
    boxes = extract.last_boxes(text)
    if boxes is None:
        boxes = [extract.after_hashes(text) or text]
    if not boxes or not any(box.strip() for box in boxes):
        raise BadReference(f"the reference {text[:80]!r} holds no answer")
    try:
        answer = answers.read(", ".join(boxes))
    except TooComplex as fault:
        raise BadReference(f"the reference {text[:80]!r} is {fault}") from fault
    unread = _unread(answer)
    if unread is not None and (stated := extract.after_answer_is(text)) is not None and stated != text:
        return gold_answer(stated)
    if unread is not None:
        raise BadReference(
            f"the reference {text[:80]!r} cannot be judged: nothing here reads {unread!r}",
            cure="Give the answer alone, in LaTeX or plain text.",
        )
    return answer


def _unread(answer: Answer) -> str | None:
    """The first leaf that neither our grammar nor math-verify reads."""
    if answer.kind == "leaf":
        return None if _readable(answer.text) else answer.text
    if not answer.parts:
        return answer.text if answer.kind not in ("set", "list") else None
    return next((found for part in answer.parts if (found := _unread(part)) is not None), None)


def _readable(text: str) -> bool:
    core, _ = leaves.tail(text)
    return (
        numerals.parse(text) is not None
        or leaves.words_of(text) is not None
        or expressions.read(core) is not None
        or leaves.geometric(text) is not None
        or leaves.residue(text) is not None
        or re.fullmatch(
            r"-? *\\infty|\\emptyset|\\varnothing|[0-9A-Fa-f]+ *_ *(?:\d|\{ *\w+ *\})", core.strip()
        )
        is not None
        or algebra.parse(core) is not None
    )


def _judge(found: list[str] | None, why: str, sample: Sample) -> Verdict:
    gold = gold_answer(sample.reference)
    if not found:
        return incorrect(why)
    written = ", ".join(found)
    try:
        given = answers.read(written)
        context = leaves.Context(sample.prompt, algebra.same)
        # The same text is the same answer, whatever it means
        if given.text == gold.text:
            return correct(extracted=written)
        if equality.same(gold, given, context):
            if restates(gold, given, sample.prompt):
                return incorrect("only restates an expression of the question", written)
            return correct(extracted=written)
    except (TooComplex, RecursionError) as fault:
        return incorrect(f"no readable answer: {fault}", written)
    return incorrect("another answer", written)


@verifier("boxed", version="3", check_reference=gold_answer, warm=warm)
def boxed(sample: Sample) -> Verdict:
    """The last \\boxed{...} of the response states the reference. Without a box the response is wrong."""
    boxes = extract.last_boxes(extract.answer_part(sample.response))
    return _judge(boxes, "no box" if boxes is None else "the last box is empty or not closed", sample)


@verifier("math", version="3", check_reference=gold_answer, warm=warm)
def math(sample: Sample) -> Verdict:
    """The answer equals the reference as mathematics.

    The answer is the last \\boxed{...}; without one what follows the last "the answer is", or the last
    "####", or the last formula between dollars when it is the last thing said; or the last number.
    """
    found, why = _find(extract.answer_part(sample.response))
    return _judge(found, why, sample)


def _find(text: str) -> tuple[list[str] | None, str]:
    if (said := extract.closing_sentence(text)) is not None:
        return [said], ""
    boxes = extract.last_boxes(text)
    if boxes is not None:
        return boxes, "the last box is empty or not closed"
    for place in (extract.after_hashes, extract.after_answer_is, extract.last_math):
        found = place(text)
        if found and (place is not extract.after_answer_is or _readable_alone(found)):
            return [found], ""
        if found and place is extract.after_answer_is and extract.answer_is_a_formula(text):
            return [found], ""  # that is the answer, read or not: no number is picked out of it
        if found and "\\" not in found and len(re.findall(r"\d+(?:[.,]\d+)*", found)) == 1:
            text = found
            break
    if _readable_alone(text):
        return [text.strip()], ""
    numeral, written = numerals.last_number(text)
    return ([written], "") if numeral is not None else (None, f"no answer found ({written})")


def _readable_alone(text: str) -> bool:
    """Whether the text is nothing but an answer."""
    words = re.findall(r"[A-Za-z]{3,}", re.sub(r"\\(?:text\w*|mbox|mathrm)\{[^{}]*\}|\\[A-Za-z]+", " ", text))
    if len(text) > spelling.MAX_LENGTH or len(words) > 3 or "\n" in text.strip():
        return False
    try:
        answer = answers.read(text)
    except TooComplex:
        return False
    return _unread(answer) is None and not _a_sentence(answer)


def _a_sentence(answer: Answer) -> bool:
    """Whether a part reads as words only, with a number in them: "In all it is 18", "Total: 18"."""
    if answer.kind == "ratio" and leaves.words_of(answer.parts[0].text) and len(answer.parts[0].text) > 1:
        return True
    if answer.kind != "leaf":
        return any(map(_a_sentence, answer.parts))
    core = leaves.tail(answer.text)[0]
    said = re.findall(r"(?<![^\W\d_])(?<!\\)[^\W\d_]{2,}", core)
    if not said or not re.search(r"\d", core) or numerals.parse(answer.text) is not None:
        return False
    return (
        len(said) > 1
        or expressions.read(core) is None
        or re.search(r"(?<!\S)(?!sqrt)[a-z]{3,}(?!\S)", core) is not None
    )
