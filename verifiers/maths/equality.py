"""When a given answer is the gold answer. Strict where math-verify 0.9.0 guesses; see each rule's comment."""

from __future__ import annotations

import re
from dataclasses import replace

from verifiers.maths import answers, line, numerals, relations
from verifiers.maths.answers import Answer
from verifiers.maths.leaves import Context, same_leaf


def same(gold: Answer, given: Answer, context: Context) -> bool:
    """Whether `given` states `gold`. Not symmetric: the gold sets the form (units, labels, assignments)."""
    if relations.involved(gold, given):
        return relations.same_relation(gold, given, context, same)
    if (line.states_a_set(gold) or line.states_a_set(given)) and line.same_set(gold, given):
        return True
    if gold.kind in ("list", "set") or given.kind in ("list", "set"):
        return _same_collection(gold, given, context)
    if gold.kind == "matrix" and given.kind == "leaf":
        return context.fallback(gold.text, given.text)
    if gold.kind != given.kind:
        return (
            _same_vector(gold, given, context)
            or _ratio_as_quotient(gold, given, context)
            or _thousands(gold, given, context)
        )
    if gold.kind == "ratio":
        return _same_ratio(gold, given, context)
    if gold.kind == "leaf":
        return same_leaf(gold.text, given.text, context) or _thousands(gold, given, context)
    if gold.kind == "union":
        return _unordered(gold.parts, given.parts, context)
    if gold.brackets != given.brackets or gold.shape != given.shape:
        return False
    return relations.in_order(gold.parts, given.parts, context, same)


_POINT = re.compile(r"[A-Z] *(\([^()]*,[^()]*\))")


def _same_vector(gold: Answer, given: Answer, context: Context) -> bool:
    """A column of a matrix and a tuple in round brackets are two ways to write one vector; so are the point
    (1, 2) and A(1, 2), and a matrix and the list of its rows."""
    if gold.kind == "tuple" and (point := _POINT.fullmatch(given.text)) is not None:
        return same(gold, answers.read(point.group(1)), context)
    if {gold.kind, given.kind} != {"matrix", "tuple"}:
        return False
    column, row = (gold, given) if gold.kind == "matrix" else (given, gold)
    if row.brackets == "[]" and all(p.kind == "tuple" and p.brackets == "[]" for p in row.parts):
        if column.shape != (len(row.parts), len(row.parts[0].parts)):
            return False
        cells = tuple(cell for p in row.parts for cell in p.parts)
        one, other = (column.parts, cells) if gold.kind == "matrix" else (cells, column.parts)
        return relations.in_order(one, other, context, same)
    if column.shape[1] != 1 or row.brackets != "()":
        return False
    return relations.in_order(gold.parts, given.parts, context, same)


def _ratio_as_quotient(gold: Answer, given: Answer, context: Context) -> bool:
    """3:4 as 3/4, where it is no time of day."""
    if {gold.kind, given.kind} != {"ratio", "leaf"}:
        return False
    ratio = gold if gold.kind == "ratio" else given
    if len(ratio.parts) != 2 or (_CLOCK.fullmatch(ratio.text) and not context.asks("ratio")):
        return False
    quotient = Answer("leaf", f"\\frac{{{ratio.parts[0].text}}}{{{ratio.parts[1].text}}}")
    return same(quotient, given, context) if ratio is gold else same(gold, quotient, context)


_CLOCK = re.compile(r"\d{1,2} *: *[0-5]\d(?: *: *[0-5]\d)?.*")


def _same_ratio(gold: Answer, given: Answer, context: Context) -> bool:
    """3:4 is 6:8, unless it may be a time of day and nobody spoke of a ratio."""
    if re.search(r": *0\d", gold.text) and re.sub(" ", "", gold.text) != re.sub(" ", "", given.text):
        return False  # 2:05 is not 2:5
    if relations.in_order(gold.parts, given.parts, context, same):
        return True
    if len(gold.parts) != len(given.parts) or (_CLOCK.fullmatch(gold.text) and not context.asks("ratio")):
        return False
    pairs = [
        (numerals.parse(a.text), numerals.parse(b.text)) for a, b in zip(gold.parts, given.parts, strict=True)
    ]
    quotients = {
        (one.value / other.value, one.unit == other.unit)
        for one, other in pairs
        if one is not None and other is not None and one.value > 0 and other.value > 0
    }
    return (
        None not in [n for pair in pairs for n in pair]
        and len(quotients) == 1
        and all(q for _, q in quotients)
    )


def _unordered(gold: tuple[Answer, ...], given: tuple[Answer, ...], context: Context) -> bool:
    if len(gold) != len(given):
        return False
    left = list(given)
    for one in gold:
        match = next((index for index, other in enumerate(left) if same(one, other, context)), None)
        if match is None:
            return False
        del left[match]
    return True


def _same_collection(gold: Answer, given: Answer, context: Context) -> bool:
    """Lists and sets have no order; a tuple is not a set, but may be written without its brackets."""
    if given.kind == "list" and len(given.parts) != len(gold.parts):
        given = _without_repeats(given, context)
        if gold.kind not in ("list", "set") and given.kind != "list":
            return same(gold, given, context)
    for one, other in ((gold, given), (given, gold)):
        if one.kind == "tuple" and other.kind == "list":
            if other is given:
                given = _by_name(given)
            else:
                gold = _by_name(gold)
            return one.brackets == "()" and relations.in_order(gold.parts, given.parts, context, same)
    if {gold.kind, given.kind} <= {"list", "set"}:
        if any(p.kind == "set" for p in gold.parts) != any(p.kind == "set" for p in given.parts):
            return False  # {{1}} is not {1}
        return _unordered(_flat(gold), _flat(given), context) or _assignments(gold, given, context)
    if gold.kind == "leaf" and (number := _decimal_comma(given.text, 1)) is not None:
        return "." in gold.text and same_leaf(gold.text, number, context)
    if given.kind == "leaf" and (number := _decimal_comma(gold.text, 2)) is not None:
        return "." in given.text and same_leaf(number, given.text, context)
    single = next((a for a in (gold, given) if a.kind in ("list", "set")), gold)
    if len(single.parts) == 1 and single.kind == "set" and r"\emptyset" not in single.text:
        other = given if single is gold else gold
        return same(single.parts[0], other, context)
    return _thousands(gold, given, context)


def _by_name(answer: Answer) -> Answer:
    """ "y = 2, x = 1" as the point whose x is 1: its coordinates in the order of their names."""
    names = [part.parts[0].text.strip() if part.kind == "relation" else "" for part in answer.parts]
    if len(set(names)) != len(names) or not set(names) <= {"x", "y", "z"}:
        return answer
    ordered = sorted(zip(names, answer.parts, strict=True), key=lambda pair: pair[0])
    return replace(answer, parts=tuple(part for _, part in ordered))


def _without_repeats(answer: Answer, context: Context) -> Answer:
    """ "639/40 or 15 39/40" is one answer in two spellings."""
    kept: list[Answer] = []
    for part in answer.parts:
        if not any(same(other, part, context) for other in kept):
            kept.append(part)
    return kept[0] if len(kept) == 1 else replace(answer, parts=tuple(kept))


def _decimal_comma(text: str, least: int) -> str | None:
    """ "1000,99" as 1000.99, with so many digits behind the comma at least and not three (thousands).

    Only asked where the other side is a decimal, which a list can never equal. A gold needs two digits:
    "1,2" is the list of 1 and 2, and 1.2 is no part of it.
    """
    match = re.fullmatch(r"(-?\d+),(\d+)", text.strip())
    if match is None or len(match.group(2)) < least:
        return None
    if len(match.group(2)) == 3 and match.group(1).lstrip("-") != "0":
        return None
    return f"{match.group(1)}.{match.group(2)}"


def _flat(answer: Answer) -> tuple[Answer, ...]:
    """Lists within a list ("2, 1 \\pm 3", "1; 2, 3") as one."""
    flat: list[Answer] = []
    for part in answer.parts:
        plain = _strip_label(part)
        flat.extend(_flat(plain) if plain.kind == "list" else (part,))
    return tuple(flat)


def _strip_label(answer: Answer) -> Answer:
    if answer.kind == "relation" and answer.operators == ("=",) and relations.is_label(answer.parts[0]):
        return answer.parts[1]
    return answer


def _assignments(gold: Answer, given: Answer, context: Context) -> bool:
    """ "p=5, q=2; p=7, q=2" is the list of the pairs (5, 2), (7, 2)."""

    def pairs(answer: Answer) -> tuple[Answer, ...] | None:
        made = []
        for part in answer.parts:
            if part.kind == "list" and all(_strip_label(p) is not p for p in part.parts):
                made.append(Answer("tuple", part.text, tuple(map(_strip_label, part.parts)), "()"))
            elif part.kind == "tuple":
                made.append(part)
            else:
                return None
        return tuple(made)

    one, other = pairs(gold), pairs(given)
    return one is not None and other is not None and _unordered(one, other, context)


def _thousands(gold: Answer, given: Answer, context: Context) -> bool:
    """ "100,200" reads as one number or as two; two answers agree if one reading of both does."""
    texts = (gold.text, given.text)
    if not all("," in text for text in texts) or gold.kind == given.kind == "list":
        return False
    one, other = (answers.read_list(text) for text in texts)
    return one is not None and other is not None and _unordered(one.parts, other.parts, context)
