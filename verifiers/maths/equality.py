"""When a given answer is the gold answer. Strict where math-verify 0.9.0 guesses; see each rule's comment."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from verifiers.maths import answers, expressions, identity, numerals
from verifiers.maths.answers import Answer
from verifiers.maths.evaluation import Expression
from verifiers.maths.numerals import Numeral

Fallback = Callable[[str, str], bool]
APPROXIMATE_DIGITS = 6  # significant digits of a decimal that may stand for an exact value


@dataclass(frozen=True, slots=True)
class Context:
    """What besides the two answers decides: the question, and who judges what the grammar cannot read."""

    prompt: str = ""
    fallback: Fallback = lambda gold, given: False

    @property
    def asks_percent(self) -> bool:
        return re.search(r"percent|%", self.prompt, re.IGNORECASE) is not None

    @property
    def asks_base(self) -> bool:
        return re.search(r"\bbase\b", self.prompt, re.IGNORECASE) is not None


def same(gold: Answer, given: Answer, context: Context) -> bool:
    """Whether `given` states `gold`. Not symmetric: the gold sets the form (units, labels, assignments)."""
    if _relations_matter(gold, given):
        return _same_relation(gold, given, context)
    if gold.kind in ("list", "set") or given.kind in ("list", "set"):
        return _same_collection(gold, given, context)
    if gold.kind == "matrix" and given.kind == "leaf":
        return context.fallback(gold.text, given.text)
    if gold.kind != given.kind:
        return _thousands(gold, given, context)
    if gold.kind == "leaf":
        return _same_leaf(gold.text, given.text, context) or _thousands(gold, given, context)
    if gold.kind == "union":
        return _unordered(gold.parts, given.parts, context)
    if gold.brackets != given.brackets or gold.shape != given.shape:
        return False
    return _in_order(gold.parts, given.parts, context)


def _in_order(gold: tuple[Answer, ...], given: tuple[Answer, ...], context: Context) -> bool:
    return len(gold) == len(given) and all(same(a, b, context) for a, b in zip(gold, given, strict=True))


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
    if given.kind == "list":
        given = _without_repeats(given, context)
        if gold.kind not in ("list", "set") and given.kind != "list":
            return same(gold, given, context)
    for one, other in ((gold, given), (given, gold)):
        if one.kind == "tuple" and other.kind == "list":
            return one.brackets == "()" and _in_order(gold.parts, given.parts, context)
    if {gold.kind, given.kind} <= {"list", "set"}:
        return _unordered(_flat(gold), _flat(given), context) or _assignments(gold, given, context)
    if gold.kind == "leaf" and (number := _decimal_comma(given.text)) is not None:
        return "." in gold.text and _same_leaf(gold.text, number, context)
    single = next((a for a in (gold, given) if a.kind in ("list", "set")), gold)
    if len(single.parts) == 1 and single.kind == "set":
        other = given if single is gold else gold
        return same(single.parts[0], other, context)
    return _thousands(gold, given, context)


def _without_repeats(answer: Answer, context: Context) -> Answer:
    """ "639/40 or 15 39/40" is one answer in two spellings."""
    kept: list[Answer] = []
    for part in answer.parts:
        if not any(same(other, part, context) for other in kept):
            kept.append(part)
    return kept[0] if len(kept) == 1 else replace(answer, parts=tuple(kept))


def _decimal_comma(text: str) -> str | None:
    """ "1000,99" as 1000.99; only asked where the gold is a decimal, which a list can never equal."""
    match = re.fullmatch(r"(-?\d+),(\d{1,2}|\d{4,})", text.strip())
    return f"{match.group(1)}.{match.group(2)}" if match else None


def _flat(answer: Answer) -> tuple[Answer, ...]:
    """Lists within a list ("2, 1 \\pm 3", "1; 2, 3") as one."""
    flat: list[Answer] = []
    for part in answer.parts:
        plain = _strip_label(part)
        flat.extend(_flat(plain) if plain.kind == "list" else (part,))
    return tuple(flat)


def _strip_label(answer: Answer) -> Answer:
    if answer.kind == "relation" and answer.operators == ("=",) and is_label(answer.parts[0]):
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


# ---------------------------------------------------------------- relations

_ORDER = {"<": "<", r"\le": r"\le", ">": "<", r"\ge": r"\le"}


def is_label(answer: Answer) -> bool:
    """What may stand before "=" and only names the answer: x, a_{37}, f(x), |AB|, (p, q), \\frac{NO}{BO}."""
    text = re.sub(r"[_^] *(?:\{[^{}]*\}|\w)|\\[A-Za-z]+", " ", answer.text)
    letters = re.search(
        r"[A-Za-z]|\\(?!frac|sqrt|pi\b)[A-Za-z]", re.sub(r"\\(?:frac|sqrt|pi)\b", "", answer.text)
    )
    return letters is not None and not re.search(r"\d", text)


def _relations_matter(gold: Answer, given: Answer) -> bool:
    return gold.kind == "relation" or given.kind == "relation"


def _same_relation(gold: Answer, given: Answer, context: Context) -> bool:
    gold, given = _without_membership(gold), _without_membership(given)
    if gold.kind == "relation" and r"\approx" in gold.operators:
        gold = gold.parts[-1]
    if given.kind == "relation" and r"\approx" in given.operators:
        return _approximated(gold, given, context)
    if not _relations_matter(gold, given):
        return same(gold, given, context)
    if gold.kind == given.kind:
        return _both_relations(gold, given, context)
    relation, other = (gold, given) if gold.kind == "relation" else (given, gold)
    if set(relation.operators) <= set(_ORDER):
        interval = _as_interval(relation)
        if interval is None or other.kind not in ("tuple", "union"):
            return False
        return same(interval, other, context) if relation is gold else same(other, interval, context)
    if relation is gold and re.search(r"[+-]", re.sub(r"[_^] *(?:\{[^{}]*\}|\w)", "", gold.parts[0].text)):
        return False  # "a^2 + b = 0" is an equation, not the name of a number
    value = _value_of(relation, context)
    if value is None:
        return False
    return same(value, given, context) if relation is gold else same(gold, value, context)


def _without_membership(answer: Answer) -> Answer:
    if answer.kind == "relation" and answer.operators == (r"\in",):
        return answer.parts[1]
    return answer


def _value_of(relation: Answer, context: Context) -> Answer | None:
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


def _approximated(gold: Answer, given: Answer, context: Context) -> bool:
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


def _both_relations(gold: Answer, given: Answer, context: Context) -> bool:
    equations = ({"="}, {"="})
    if (set(gold.operators), set(given.operators)) == equations:
        return _same_equation(gold, given, context)
    if not set(gold.operators) | set(given.operators) <= set(_ORDER):
        return gold.operators == given.operators and (
            _in_order(gold.parts, given.parts, context)
            or (gold.operators == (r"\ne",) and _in_order(gold.parts[::-1], given.parts, context))
        )
    one, other = _ascending(gold), _ascending(given)
    if one is None or other is None or one.operators != other.operators:
        return False
    if _in_order(one.parts, other.parts, context):
        return True
    if len(one.parts) != 2:
        return False
    ratio = _ratio(one, other)
    return ratio is not None and ratio > 0


def _same_equation(gold: Answer, given: Answer, context: Context) -> bool:
    labels = is_label(gold.parts[0]), is_label(given.parts[0])
    if all(labels):
        one, other = _value_of(gold, context), _value_of(given, context)
        if one is None or other is None:
            return False
        names = [a.parts[0].text.replace(" ", "") for a in (gold, given)]
        if names[0] == names[1] or same(gold.parts[0], given.parts[0], context):
            return same(one, other, context)
        # y = 2x + 1 and x = (y - 1)/2 are one line; W(x) = 1 and W(n) = 1 one statement
        if re.sub(r"\(.*\)", "()", names[0]) == re.sub(r"\(.*\)", "()", names[1]) and "(" in names[0]:
            return same(one, other, context)
    if len(gold.parts) != 2 or len(given.parts) != 2:
        return False
    return _ratio(gold, given) is not None


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
    ascending = _ascending(relation)
    if ascending is None:
        return None
    parts, operators = ascending.parts, ascending.operators
    infinite = [Answer("leaf", r"-\infty"), Answer("leaf", r"\infty")]
    if len(parts) == 2:
        if is_label(parts[0]) and not is_label(parts[1]):
            low, high, opens, closes = infinite[0], parts[1], "<", operators[0]
        elif is_label(parts[1]) and not is_label(parts[0]):
            low, high, opens, closes = parts[0], infinite[1], operators[0], "<"
        else:
            return None
    elif len(parts) == 3 and is_label(parts[1]):
        low, high, opens, closes = parts[0], parts[2], operators[0], operators[1]
    else:
        return None
    brackets = ("(" if opens == "<" else "[") + (")" if closes == "<" else "]")
    return Answer("tuple", relation.text, (low, high), brackets)


# ---------------------------------------------------------------- leaves

_BASED = re.compile(r"([0-9A-Fa-f]+) *_ *(?:\{ *(?:\\text\{)?(\w+)\}? *\}|(\d))")
_TEXT = re.compile(
    r"\\(?:text|mbox|textbf|textit|textrm|textnormal|mathrm|mathbf|mathsf|operatorname|rm|bf)\b *\{([^{}]*)\}"
)
_TAIL = re.compile(
    r"(?P<core>.*[^\s\\{(^_,])\s*(?:(?P<percent>\\?%)|(?P<degree>\^ *(?:\{ *\\circ *\}|\\circ)(?:\s*\\(?:text|mathrm)\{ *C *\})?)"
    r"|\\(?:text|mbox|textnormal|mathrm|textrm) *\{(?P<unit>[^{}]*[A-Za-z][^{}]*)\}(?P<power> *\^ *(?:\{ *\d *\}|\d))?)",
    re.DOTALL,
)


def words_of(text: str) -> str | None:
    """A text answer's words, lower case but for a single letter; None when it is no text."""
    marked = _TEXT.search(text) is not None
    text = _TEXT.sub(r" \1 ", text)
    text = " ".join(re.sub(r"[*\"`]|\\[ ,;]", " ", text).split()).strip(" .()")
    if not re.fullmatch(r"[^\W\d_][^\W_]*(?:[ '.,&/-]+[^\W_]+)*", text):
        return None
    if len(text) == 1:
        return text if marked or text.isalpha() else None
    return text.casefold() if marked or len(text) > 2 else None


def _same_leaf(gold: str, given: str, context: Context) -> bool:
    one, other = numerals.parse(gold), numerals.parse(given)
    if one is not None and other is not None:
        return _same_numeral(one, other, context)
    if _BASED.fullmatch(gold) or _BASED.fullmatch(given):
        return _same_in_base(gold, given, context)
    gold_words, given_words = words_of(gold), words_of(given)
    if gold_words is not None and gold_words == given_words:
        return True
    if r"\neg" in gold + given or r"\lnot" in gold + given:
        return _squeezed(gold) == _squeezed(given)
    gold_core, gold_unit = tail(gold)
    given_core, given_unit = tail(given)
    if not _tails_agree(gold_unit, given_unit, context):
        return False
    if "infty" in gold_core or "infty" in given_core:
        return _squeezed(gold_core) == _squeezed(given_core)
    first, second = expressions.read(gold_core), expressions.read(given_core)
    if first is not None and second is not None:
        return identity.equal(first, second) or _decimal_for(first, given_core)
    if _squeezed(gold_core) == _squeezed(given_core):
        return True
    if words_of(gold) is not None and _TEXT.search(gold):
        return False
    return context.fallback(gold_core, given_core)


def _squeezed(text: str) -> str:
    return re.sub(r"\s+(?!\d)|(?<!\d)\s+", "", text)  # "1 2" is not "12"


def _same_numeral(gold: Numeral, given: Numeral, context: Context) -> bool:
    if not numerals.units_agree(gold.unit, given.unit):
        return False
    if gold.percent != given.percent:
        # 50 is not 50%, unless the question asks for a percentage
        if context.asks_percent and gold.value == given.value:
            return True
        if gold.percent and context.asks_percent:
            return False
        return _plain(gold) == _plain(given)
    if gold.value == given.value:
        return True
    exact = gold.digits == 0 and gold.value.denominator != 1
    return exact and _rounds(given, gold)


def _plain(numeral: Numeral) -> object:
    return numeral.value / 100 if numeral.percent else numeral.value


def _rounds(given: Numeral, gold: Numeral) -> bool:
    exact = expressions.read(f"{gold.value.numerator}/{gold.value.denominator}")
    return (
        given.digits >= APPROXIMATE_DIGITS
        and exact is not None
        and identity.approximation(given.value, given.digits, exact)
    )


def _decimal_for(gold: Expression, given: str) -> bool:
    """A decimal of six or more digits may stand for an irrational number."""
    numeral = numerals.parse(given)
    if numeral is None or numeral.digits < APPROXIMATE_DIGITS or gold.symbols or not gold.irrational():
        return False
    return identity.approximation(numeral.value, numeral.digits, gold)


def _same_in_base(gold: str, given: str, context: Context) -> bool:
    """Digits and base must both be the gold's; 52_8 is not 52_2 and not 52 (unless the question names it)."""
    one, other = _BASED.fullmatch(gold), _BASED.fullmatch(given)
    if one and other:
        digits = [m.group(1).lstrip("0").upper() for m in (one, other)]
        bases = [(m.group(2) or m.group(3)).lower() for m in (one, other)]
        return digits[0] == digits[1] and bases[0] == bases[1]
    if one and context.asks_base:
        return one.group(1).upper() == given.strip().upper()
    return False


def tail(text: str) -> tuple[str, str]:
    """An expression without the unit, degree or percent sign after it, and that unit ("%", "degree")."""
    match = _TAIL.fullmatch(text.strip())
    if match is None:
        return text, ""
    if match.group("percent"):
        return match.group("core"), "%"
    if match.group("degree"):
        return (
            (text, "")
            if re.search(r"\\(?:sin|cos|tan)", match.group("core"))
            else (match.group("core"), "degree")
        )
    power = re.sub(r"[^\d]", "", match.group("power") or "")
    unit = match.group("unit").strip()
    return match.group("core"), numerals.normal_unit(unit + (f"^{power}" if power else "")) or "unit"


def _tails_agree(gold: str, given: str, context: Context) -> bool:
    if "%" in (gold, given) and gold != given:
        return context.asks_percent and {gold, given} == {"%", ""}
    return numerals.units_agree(gold, given)
