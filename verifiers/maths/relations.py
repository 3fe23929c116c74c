"""Equations, inequalities and membership: when two of them say the same, and what value or interval one states."""

from __future__ import annotations

import re
from collections.abc import Callable

from verifiers.maths import expressions, identity, line, numerals
from verifiers.maths.answers import Answer
from verifiers.maths.leaves import Context

Same = Callable[[Answer, Answer, Context], bool]  # `equality.same`: a relation's sides are answers again

_ORDER = {"<": "<", r"\le": r"\le", ">": "<", r"\ge": r"\le"}


_VALUE_OF_A_FUNCTION = re.compile(
    r"(?<![A-Za-z\d\\)}])(?:[fghpqFGHPQE]'{0,3}|\\(?:Pr|mathbb *\{ *[PE] *\}))(?:_ *(?:\{\w+\}|\w))? *\((?:[^()]|\([^()]*\)){1,40}\)"
)


def is_label(answer: Answer) -> bool:
    """What may stand before "=" and only names the answer: x, a_{37}, f(x), |AB|, (p, q), \\frac{NO}{BO}."""
    named = _VALUE_OF_A_FUNCTION.sub("f", answer.text)  # f(2), P(X \\ge 2)
    text = re.sub(r"[_^] *(?:\{[^{}]*\}|\w)|\\[A-Za-z]+", " ", named)
    letters = re.search(
        r"[A-Za-z]|\\(?!frac|sqrt|pi\b)[A-Za-z]", re.sub(r"\\(?:frac|sqrt|pi)\b", "", answer.text)
    )
    return letters is not None and not re.search(r"\d", text)


def involved(gold: Answer, given: Answer) -> bool:
    """Whether one of them is an equation, inequality or membership."""
    return gold.kind == "relation" or given.kind == "relation"


def same_relation(gold: Answer, given: Answer, context: Context, same: Same) -> bool:
    """Two answers of which one is a relation at least."""
    if (line.states_a_set(gold) or line.states_a_set(given)) and line.same_set(gold, given):
        return True
    if len({_member(answer) for answer in (gold, given)} - {""}) > 1:
        return False  # 2x in [0, 1] is not x in [0, 1]
    gold, given = _without_membership(gold), _without_membership(given)
    if gold.kind == "relation" and r"\approx" in gold.operators:
        gold = gold.parts[-1]
    if given.kind == "relation" and r"\approx" in given.operators:
        return _approximated(gold, given, context, same)
    if not involved(gold, given):
        return same(gold, given, context)
    if gold.kind == given.kind:
        return _both_relations(gold, given, context, same)
    relation, other = (gold, given) if gold.kind == "relation" else (given, gold)
    if set(relation.operators) <= set(_ORDER):
        interval = _as_interval(relation)
        if interval is None or other.kind not in ("tuple", "union"):
            return False
        return same(interval, other, context) if relation is gold else same(other, interval, context)
    if relation is gold and re.search(r"[+-]", re.sub(r"[_^] *(?:\{[^{}]*\}|\w)", "", gold.parts[0].text)):
        return False  # "a^2 + b = 0" is an equation, not the name of a number
    value = _value_of(relation, context, same)
    if value is None:
        return False
    return same(value, given, context) if relation is gold else same(gold, value, context)


def _member(answer: Answer) -> str:
    """What a membership says to be in a set; "" of all else."""
    member = answer.kind == "relation" and answer.operators == (r"\in",)
    return answer.parts[0].text.replace(" ", "") if member else ""


def _without_membership(answer: Answer) -> Answer:
    return (
        answer.parts[1]
        if is_label(answer.parts[0] if answer.parts else answer) and _member(answer)
        else answer
    )


def _value_of(relation: Answer, context: Context, same: Same) -> Answer | None:
    """What "x = a", "x = a = b" or "a = x" says x is; None if its sides contradict each other."""
    if set(relation.operators) != {"="}:
        return None
    parts = list(relation.parts)
    if is_label(parts[0]):
        parts = parts[1:]
    elif is_label(parts[-1]) and len(parts) == 2:
        parts = parts[:1]
    last = parts[-1]
    # "x = 1 = 2 = 5" is not 5: every side must be the same value
    if not all(same(last, part, context) for part in parts[:-1]):
        return None
    return last


def _approximated(gold: Answer, given: Answer, context: Context, same: Same) -> bool:
    """ "x = a \\approx b": either side may be the answer, if b is near a at all."""
    cut = given.operators.index(r"\approx")
    exact, rounded = given.parts[cut], given.parts[-1]
    if is_label(exact) and len(given.parts) == 2:
        return same(gold, rounded, context)
    one, other = numerals.parse(rounded.text), expressions.read(exact.text)
    if one is None or other is None or cut != len(given.operators) - 1:
        return False
    if not identity.approximation(one.value, 2, other):
        return False
    left = exact
    if cut:
        left = Answer("relation", exact.text, given.parts[: cut + 1], operators=given.operators[:cut])
    return same(gold, rounded, context) or same(gold, left, context)


def _both_relations(gold: Answer, given: Answer, context: Context, same: Same) -> bool:
    equations = ({"="}, {"="})
    if (set(gold.operators), set(given.operators)) == equations:
        return _same_equation(gold, given, context, same)
    if not set(gold.operators) | set(given.operators) <= set(_ORDER):
        return gold.operators == given.operators and (
            in_order(gold.parts, given.parts, context, same)
            or (gold.operators == (r"\ne",) and in_order(gold.parts[::-1], given.parts, context, same))
        )
    one, other = _ascending(gold), _ascending(given)
    if one is None or other is None or one.operators != other.operators:
        return False
    if in_order(one.parts, other.parts, context, same):
        return True
    if len(one.parts) != 2:
        return False
    ratio = _ratio(one, other)
    return ratio is not None and ratio > 0


def _same_equation(gold: Answer, given: Answer, context: Context, same: Same) -> bool:
    labels = is_label(gold.parts[0]), is_label(given.parts[0])
    if all(labels):
        one, other = _value_of(gold, context, same), _value_of(given, context, same)
        if one is None or other is None:
            return False
        names = [a.parts[0].text.replace(" ", "") for a in (gold, given)]
        if names[0] == names[1] or same(gold.parts[0], given.parts[0], context):
            return same(one, other, context)
        if any(_VALUE_OF_A_FUNCTION.fullmatch(name) and re.search(r"\d", name) for name in names):
            return False  # f(2) is not f(3)
        # y = 2x + 1 and x = (y - 1)/2 are one line; W(x) = 1 and W(n) = 1 one statement
        if re.sub(r"\(.*\)", "()", names[0]) == re.sub(r"\(.*\)", "()", names[1]) and "(" in names[0]:
            return same(one, _renamed(other, names[1], names[0]), context)
    if len(gold.parts) != 2 or len(given.parts) != 2:
        return False
    if line.is_unknown(gold.parts[0].text) and not any(map(is_label, given.parts)):
        solution = expressions.read(gold.parts[1].text)
        if solution is not None and not solution.symbols:
            return False  # x = 5 is a solution, 2x = 10 a problem
    return _ratio(gold, given) is not None


def _renamed(answer: Answer, label: str, wanted: str) -> Answer:
    """f(t) = t^2 with the argument that the other side calls x: t is only a name there."""
    old, new = (re.search(r"\(([A-Za-z])\)", name) for name in (label, wanted))
    if old is None or new is None or answer.kind != "leaf" or old.group(1) == new.group(1):
        return answer
    text = re.sub(rf"(?<![A-Za-z\\]){old.group(1)}(?![A-Za-z])", new.group(1), answer.text)
    return Answer("leaf", text)


def _ratio(one: Answer, other: Answer) -> float | None:
    """(left - right) of one over that of the other, if it is one constant."""
    pair = [expressions.read(f"({a.parts[0].text})-({a.parts[1].text})") for a in (one, other)]
    if pair[0] is None or pair[1] is None or pair[0].symbols != pair[1].symbols:
        return None
    return identity.proportion(pair[0], pair[1])


def _ascending(relation: Answer) -> Answer | None:
    """The same inequality with only < and \\le; None when it points both ways."""
    if {">", r"\ge"} >= set(relation.operators):
        operators = tuple(_ORDER[op] for op in reversed(relation.operators))
        return Answer("relation", relation.text, relation.parts[::-1], operators=operators)
    return relation if {"<", r"\le"} >= set(relation.operators) else None


def _as_interval(relation: Answer) -> Answer | None:
    """With ends that may hold symbols; |x| < a has its own reading (`line`)."""
    ascending = _ascending(relation)
    if ascending is None:
        return None
    parts, operators = ascending.parts, ascending.operators
    if any("|" in part.text for part in parts):
        return None
    infinite = [Answer("leaf", r"-\infty"), Answer("leaf", r"\infty")]
    if len(parts) == 2:
        if line.is_unknown(parts[0].text) and not line.is_unknown(parts[1].text):
            low, high, opens, closes = infinite[0], parts[1], "<", operators[0]
        elif line.is_unknown(parts[1].text) and not line.is_unknown(parts[0].text):
            low, high, opens, closes = parts[0], infinite[1], operators[0], "<"
        else:
            return None
    elif len(parts) == 3 and line.is_unknown(parts[1].text):
        low, high, opens, closes = parts[0], parts[2], operators[0], operators[1]
    else:
        return None
    brackets = ("(" if opens == "<" else "[") + (")" if closes == "<" else "]")
    return Answer("tuple", relation.text, (low, high), brackets)


def in_order(gold: tuple[Answer, ...], given: tuple[Answer, ...], context: Context, same: Same) -> bool:
    """Whether the parts are the same, one by one."""
    return len(gold) == len(given) and all(same(a, b, context) for a, b in zip(gold, given, strict=True))
