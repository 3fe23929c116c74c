"""What stands behind a number: units, percent signs, currencies, and words that multiply it."""

from __future__ import annotations

import re

CURRENCY = "$\u20ac\u00a3\u00a5\u20b9\u20bd\u20a9"
_TEXT_UNIT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mbox|mathrm|mathbf|rm|operatorname)\b *\{([^{}]*)\}"
)
_UNIT = re.compile(r"[A-Za-z][A-Za-z .'/-]{0,60}(?:\^ *\{? *-? *[1-9] *\}?|\*\*[1-9]|[23])?\.?")
_PERCENT = re.compile(r"\\?%|per ?cent(?:age)?(?: points?)?|pct\.?", re.IGNORECASE)


# Words with which what is in the text is no unit but a second thought, ...
_DOUBTS = (
    "and or to not nor no never if mod but maybe perhaps possibly could might either else otherwise unless wrong incorrect false "
    "impossible about roughly approximately approx almost nearly ish though although however alternatively alt aka also versus vs "
    "is isn't was be wait guess think too off than"
)
# ... or arithmetic: "5 minus one", "5 thirds", "5 squared" and "12 point five" are other numbers
_OPERATIONS = "plus minus factorial doubled tripled halved divided multiplied modulo remainder negated itself"
_OF_A_BARE_NUMBER = (
    "squared cubed base root lakhs? crores? gross score tens halves thirds fourths fifths sixths sevenths eighths ninths tenths "
    "hundredths thousandths millionths billionths"
)
_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty thirty forty fifty sixty seventy eighty ninety"
)
NUMBER_WORDS = _NUMBERS.split()
_HEDGE = re.compile(
    rf"\b(?:{'|'.join([*_DOUBTS.split(), *_OPERATIONS.split()])})\b"
    rf"|\b(?:{'|'.join(NUMBER_WORDS)})\b(?!-)|^\W*(?:{'|'.join(_OF_A_BARE_NUMBER.split())}|over)\b"
    r"|\b(?:half|third|fourth|fifth|tenth|hundredth|thousandth) *$",
    re.IGNORECASE,
)
_MANY = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}


def hedged(words: str) -> bool:
    """Whether words behind an answer take it back, or offer another."""
    return _HEDGE.search(words) is not None


def many(unit: str) -> tuple[int, str]:
    """(what "million people" multiplies a number by, the unit that is left)."""
    word, _, rest = unit.partition(" ")
    for known in (word, word.removesuffix("s")):
        if known in _MANY:
            return _MANY[known], rest.removeprefix("of ").strip()
    return 1, unit


def read_unit(rest: str) -> tuple[bool, str] | None:
    """(is percent, unit) of what follows a number; None when it is neither."""
    spaced = rest[:1] in (" ", "~") or rest.startswith("\\")
    marked = _TEXT_UNIT.search(rest) is not None or rest.strip().startswith("(")
    rest = re.sub(rf"^\\?[{CURRENCY}]|\\?[{CURRENCY}]$", "", rest.strip()).strip()
    rest = _TEXT_UNIT.sub(lambda m: " " + m.group(1) + " " if m.group(1).strip() else "", rest).strip()
    rest = re.sub(r" *\^ *", "^", re.sub(r" +", " ", rest))
    if rest.startswith("(") and rest.endswith(")"):
        rest = rest[1:-1].strip()
    if not rest:
        return False, ""
    if _PERCENT.fullmatch(rest):
        return True, ""
    if re.fullmatch(r"\^(?:\{ *\\circ *\}|\\circ)|\\degree|degrees?|deg", rest):
        return False, "degree"
    if not _UNIT.fullmatch(rest) or hedged(rest):
        return None
    if marked or _is_unit(rest, spaced):
        return False, normal_unit(rest)
    return None


def _is_unit(words: str, spaced: bool) -> bool:
    """Whether unmarked words are a unit and no product of symbols: "5 m" and "5cm" are, "5m" and "5ab" not."""
    if _RATE.fullmatch(words.strip(" .")):
        return spaced
    word = re.sub(r"\^.*|\*\*.*|(?<=[a-z])[23]$", "", words).strip(" .").lower()
    if word in _KNOWN_UNITS or word.removesuffix("s") in _KNOWN_UNITS:
        return spaced or len(word) > 1
    return spaced and all(len(part) > 2 for part in re.split(r"[ /.'-]+", word))


_RATE = re.compile(
    r"(?:k?m|cm|mi|ft|miles?|feet|meters?|k?g|dollars?|cents?|liters?|gallons?) */ *"
    r"(?:h|hr|hour|s|sec|second|min|minute|day|week|month|year|person|kg|ml|liter|gallon)"
)


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_KNOWN_UNITS = _set(
    "m g s h l n j w v k c f cm mm km kg mg ml dl kl ft in inch inches feet foot yd yard yards mi mile miles mph kph "
    "lb lbs oz hr hrs min mins sec secs hour minute second day week month year meter metre liter litre gram "
    "pound ounce gallon cup cent cents dollar dollars euro pence am pm a.m p.m hz khz mhz kw pa deg rad "
    "degree radian unit units percent sq people item st nd rd th"
)
_SAME_UNIT = {
    "centimeter": "cm", "centimetre": "cm", "meter": "m", "metre": "m", "kilometer": "km",
    "kilometre": "km", "millimeter": "mm", "millimetre": "mm", "inche": "inch", "in": "inch", "feet": "ft",
    "foot": "ft", "hr": "hour", "h": "hour", "min": "minute", "sec": "second", "s": "second",
    "kilogram": "kg", "gram": "g",
    "kph": "km/hour", "a.m": "am", "p.m": "pm", "cent": "cent", "usd": "$", "dollar": "$", "unit": "", "liter": "l",
    "litre": "l", "pound": "lb", "square unit": "", "cubic unit": "", "unit^2": "", "unit^3": "", "mi": "mile",
    "mile/hour": "mph", "amp": "a", "radian": "rad",
}  # fmt: skip
_MEGA = re.compile(r"M(?=(?:W|g|J|Hz|Pa|V|eV|N|A)\b)")  # 1 MW is no mW


def normal_unit(unit: str) -> str:
    """One spelling for plurals, abbreviations, "per" and "square": "Square Metres" -> "m^2"."""
    unit = _MEGA.sub("mega ", unit.strip(" ."))
    unit = re.sub(
        r"[{} ]*\^[{ ]*(-?) *(\d)[} ]*|\*\*(\d)", lambda m: f"^{m[1] or ''}{m[2] or m[3]}", unit.lower()
    )
    unit = re.sub(r"(?<=[a-z])([23])$", r"^\1", unit)
    unit = re.sub(r"\^1$", "", unit)
    unit = re.sub(r"(?<=[a-z]) (squared|cubed)$", lambda m: "^2" if m[1] == "squared" else "^3", unit)
    unit = re.sub(
        r"(?<=[a-z])[ .]+([a-z]+)\^-([1-3])$", lambda m: f"/{m[1]}" + f"^{m[2]}" * (m[2] != "1"), unit
    )
    if (parts := re.fullmatch(r"([^/]+?)(?: *\bper\b *| */ *)([^/]+)", unit)) is not None:
        rate = f"{normal_unit(parts[1])}/{normal_unit(parts[2])}"
        return _SAME_UNIT.get(rate, rate)
    power = re.search(r"\^-?\d$", unit)
    tail = power.group() if power else ""
    words = unit.removesuffix(tail).strip(" .")
    for word, meaning in (("square ", "^2"), ("sq ", "^2"), ("sq. ", "^2"), ("cubic ", "^3")):
        if words.startswith(word):
            words, tail = words[len(word) :], tail or meaning
    singular = words if words in _SAME_UNIT else words.removesuffix("s")
    base = _SAME_UNIT.get(words, _SAME_UNIT.get(singular, singular))
    return base + tail if base else ""


def is_known(unit: str) -> bool:
    """Whether this is a unit wherever it stands, and no product of symbols: "cm", "units", "sq ft", "in^2"."""
    word = re.sub(r"^(?:sq|square|cubic) +|\^.*", "", unit.strip().lower())
    return len(word) > 1 and (word in _KNOWN_UNITS or word.removesuffix("s") in _KNOWN_UNITS)


def agree(one: str, other: str) -> bool:
    """False only when both state a unit and the units differ."""
    return not one or not other or one == other
