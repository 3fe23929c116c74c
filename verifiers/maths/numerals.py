"""Exact reading of written numbers: no floats, no computer algebra, nothing that can hang.

A numeral is an integer, decimal, fraction, mixed number or power of ten as a whole string, in plain text or
LaTeX, with at most one unit, currency or percent sign. Everything else is not a numeral: `parse` says None
and the caller asks something that costs more.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction

MAX_DIGITS = 400  # of one numeral
MAX_EXPONENT = 400  # of ten

_MINUS = "\u2212\u2010\u2011\u2012\u2013\u2014\ufe63\uff0d"
_SPACES = "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_NOTHING = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f"
_TABLE: dict[int, str | None] = {
    **dict.fromkeys(map(ord, _MINUS), "-"),
    **dict.fromkeys(map(ord, _SPACES), " "),
    **dict.fromkeys(map(ord, _NOTHING), None),
    **{0xFF01 + i: chr(0x21 + i) for i in range(94) if 0xFF01 + i not in map(ord, _MINUS)},  # full width
    ord("\u066b"): ".",
    ord("\u066c"): ",",
    ord("\u2044"): "/",
    ord("\u2215"): "/",
    ord("\u00d7"): r"\times ",
    ord("\u00b7"): r"\cdot ",
    ord("\u22c5"): r"\cdot ",
    ord("\u00f7"): "/",
    ord("\u00b0"): r"^\circ",
}
_VULGAR = {
    char: unicodedata.numeric(char)
    for char in "\u00bc\u00bd\u00be\u2153\u2154\u2155\u2156\u2157\u2158\u2159\u215a\u215b\u215c\u215d\u215e"
}
_VULGAR_TEX = {
    char: rf"\frac{{{f.numerator}}}{{{f.denominator}}}"
    for char, f in ((char, Fraction(value).limit_denominator(10)) for char, value in _VULGAR.items())
}


def plain_characters(text: str) -> str:
    """The text with Unicode's other digits, minus signs, spaces and full-width forms made ASCII.

    Not NFKC, which would make 5\u00b2 into 52 and 3\u00bd into 31/2.
    """
    if text.isascii():
        return text
    text = text.translate(_TABLE)
    for char, tex in _VULGAR_TEX.items():
        if char in text:
            text = text.replace(char, tex)
    return "".join(str(unicodedata.decimal(c)) if not c.isascii() and c.isdecimal() else c for c in text)


@dataclass(frozen=True, slots=True)
class Numeral:
    """A written number. value is what is written before a percent sign or unit: 50% is 50 with percent."""

    value: Fraction
    percent: bool = False
    unit: str = ""  # lower case, "" when none is written
    digits: int = 0  # significant digits of a decimal, 0 when it is no decimal


_INT = r"(?:[1-9]\d{0,2}(?:,\d{3})+(?![\d,])|[1-9]\d{0,2}(?: \d{3})+(?!\d)|\d+)"
_DEC = rf"(?:{_INT}(?:\.\d*)?|\.\d+)"
_FRAC = r"\\frac *(?:\{ *([+-]? *\d+) *\}|(\d)) *(?:\{ *([+-]? *\d+) *\}|(\d))"
_SHAPES = re.compile(
    rf"(?P<sign>[+-]? *)(?:"
    rf"(?P<mixed>\d+) *(?P<mixfrac>{_FRAC.replace('(', '(?:').replace('(?:?:', '(?:')})"
    rf"|(?P<mixed2>\d+) +(?P<mn>\d+) */ *(?P<md>\d+)"
    rf"|(?P<texfrac>{_FRAC.replace('(', '(?:').replace('(?:?:', '(?:')})"
    rf"|\(?(?P<num>{_DEC})\)? */ *\(?(?P<den>{_DEC})\)?"
    rf"|(?P<man>{_DEC})(?:[eE](?P<exp>[+-]?\d{{1,4}})|"
    rf" *(?:\\times|\\cdot|\*|x) *10 *(?:\^|\*\*) *(?:\{{ *(?P<texp>[+-]? *\d{{1,4}}) *\}}|(?P<texp1>[+-]?\d{{1,4}})))"
    rf"|10 *\^ *(?:\{{ *(?P<pexp>-? *\d{{1,4}}) *\}}|(?P<pexp1>\d))(?!\d)"
    rf"|(?P<dec>{_DEC})"
    rf")",
    re.ASCII,
)
_FRAC_RE = re.compile(_FRAC, re.ASCII)
_CURRENCY = "$\u20ac\u00a3\u00a5\u20b9\u20bd\u20a9"
_PREFIX = re.compile(rf"^([+-]?) *(?:\\?[{_CURRENCY}]|US\$|USD|EUR|Rs\.?)* *")
_TEXT_UNIT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mbox|mathrm|mathbf|rm|operatorname)\b *\{([^{}]*)\}"
)
_UNIT = re.compile(r"[A-Za-z][A-Za-z .'/-]{0,60}(?:\^ *\{? *[1-9] *\}?|\*\*[1-9]|[23])?\.?")
_PERCENT = re.compile(r"\\?%|per ?cent(?:age)?(?: points?)?|pct\.?", re.IGNORECASE)


def parse(text: str) -> Numeral | None:
    """The numeral that is the whole of `text`, or None. Time is linear in the text's length."""
    if len(text) > 4 * MAX_DIGITS:
        return None
    text = _tidy(text)
    prefix = _PREFIX.match(text)
    if prefix is not None and prefix.end():
        text = prefix.group(1) + text[prefix.end() :]
    number = _SHAPES.match(text)
    if number is None:
        return None
    value, digits = _value(number)
    if value is None:
        return None
    rest = text[number.end() :]
    percent, unit = False, ""
    if rest.strip():
        read = _read_unit(rest)
        if read is None:
            return None
        percent, unit = read
    return Numeral(value, percent, unit, digits)


def _tidy(text: str) -> str:
    """Drop what only positions or wraps a number in LaTeX."""
    text = plain_characters(text).strip()
    for left, right in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**")):
        if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
            text = text[len(left) : -len(right)].strip()
    text = re.sub(r",(?:\\[!,;] *)+", ",", text)
    text = text.replace("{,}", ",").replace(r"\!", "").replace(r"\displaystyle", "")
    text = re.sub(r"\\[,;: ]|~", " ", text)
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\(?:left|right)(?![A-Za-z])", "", text).strip()
    whole = re.fullmatch(r"\\(?:text|textbf|mathrm|mathbf|mbox|bf|boldsymbol) *\{([^{}]*)\}", text)
    if whole:
        text = whole.group(1).strip()
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip()
    return text


def _value(number: re.Match[str]) -> tuple[Fraction | None, int]:
    group = number.groupdict()
    if sum(char.isdigit() for char in number.group()) > MAX_DIGITS:
        return None, 0
    sign = -1 if "-" in group["sign"] else 1
    digits = 0
    value: Fraction | None
    if group["mixed"] is not None or group["mixed2"] is not None:
        part = (
            _tex_fraction(group["mixfrac"])
            if group["mixed"] is not None
            else _ratio(Fraction(int(group["mn"])), Fraction(int(group["md"])))
        )
        if part is None or not 0 <= part < 1:
            return None, 0
        value = int(group["mixed"] or group["mixed2"]) + part
    elif group["texfrac"] is not None:
        value = _tex_fraction(group["texfrac"])
    elif group["num"] is not None:
        top, bottom = _decimal(group["num"]), _decimal(group["den"])
        value = None if top is None or bottom is None else _ratio(top, bottom)
    elif group["man"] is not None:
        value = _power(_decimal(group["man"]), group["exp"] or group["texp"] or group["texp1"])
    elif group["pexp"] is not None or group["pexp1"] is not None:
        value = _power(Fraction(1), group["pexp"] or group["pexp1"])
    else:
        value = _decimal(group["dec"])
        if "." in group["dec"]:
            digits = len(group["dec"].replace(",", "").replace(".", "").lstrip("0"))
    return (None if value is None else sign * value), digits


def _decimal(text: str) -> Fraction | None:
    try:
        return Fraction(Decimal(text.replace(",", "").replace(" ", "")))
    except (InvalidOperation, ValueError):
        return None


def _ratio(top: Fraction, bottom: Fraction) -> Fraction | None:
    return top / bottom if bottom else None


def _tex_fraction(text: str) -> Fraction | None:
    match = _FRAC_RE.fullmatch(text.strip())
    if match is None:
        return None
    top, bottom = (int((match.group(i) or match.group(i + 1)).replace(" ", "")) for i in (1, 3))
    return _ratio(Fraction(top), Fraction(bottom))


def _power(mantissa: Fraction | None, exponent: str) -> Fraction | None:
    power = int(exponent.replace(" ", ""))
    if mantissa is None or abs(power) > MAX_EXPONENT:
        return None
    return mantissa * Fraction(10) ** power


def _read_unit(rest: str) -> tuple[bool, str] | None:
    """(is percent, unit) of what follows a number; None when it is neither."""
    spaced = rest[:1] in (" ", "~") or rest.startswith("\\")
    marked = _TEXT_UNIT.search(rest) is not None or rest.strip().startswith("(")
    rest = re.sub(rf"^\\?[{_CURRENCY}]|\\?[{_CURRENCY}]$", "", rest.strip()).strip()
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
    if not _UNIT.fullmatch(rest) or re.search(r"\b(?:and|or|to|not|if|mod)\b", rest, re.IGNORECASE):
        return None
    if marked or _is_unit(rest, spaced):
        return False, normal_unit(rest)
    return None


def _is_unit(words: str, spaced: bool) -> bool:
    """Whether unmarked words are a unit and no product of symbols: "5 m" and "5cm" are, "5m" and "5ab" not."""
    word = re.sub(r"\^.*|\*\*.*|(?<=[a-z])[23]$", "", words).strip(" .").lower()
    if word in _KNOWN_UNITS or word.removesuffix("s") in _KNOWN_UNITS:
        return spaced or len(word) > 1
    return spaced and all(len(part) > 2 for part in re.split(r"[ /.'-]+", word))


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
    "kilogram": "kg", "gram": "g", "mile per hour": "mph", "dollar": "$", "unit": "", "liter": "l",
    "litre": "l", "pound": "lb", "square unit": "", "cubic unit": "", "unit^2": "", "unit^3": "",
}  # fmt: skip


def normal_unit(unit: str) -> str:
    """One spelling for plurals, abbreviations and "square": "Square Metres" -> "m^2"."""
    unit = re.sub(
        r"[{} ]*\^[{ ]*(\d)[} ]*|\*\*(\d)", lambda m: f"^{m.group(1) or m.group(2)}", unit.lower().strip(" .")
    )
    unit = re.sub(r"(?<=[a-z])([23])$", r"^\1", unit)
    unit = re.sub(r"\^1$", "", unit)
    power = re.search(r"\^\d$", unit)
    tail = power.group() if power else ""
    words = unit.removesuffix(tail).strip(" .")
    for word, meaning in (("square ", "^2"), ("sq ", "^2"), ("sq. ", "^2"), ("cubic ", "^3")):
        if words.startswith(word):
            words, tail = words[len(word) :], tail or meaning
    singular = words if words in _SAME_UNIT else words.removesuffix("s")
    base = _SAME_UNIT.get(words, _SAME_UNIT.get(singular, singular))
    return base + tail if base else ""


def units_agree(one: str, other: str) -> bool:
    """False only when both state a unit and the units differ."""
    return not one or not other or one == other


_TOKEN = re.compile(
    rf"(?<![\w.,^_])(?P<sign>(?<![\w)\]}}}}])[+-]\(?)?(?:\\?[{_CURRENCY}] ?)?"
    r"(?P<body>\d(?:[\d,]*\d)?(?:\.\d+)*|\.\d+)"
    r"(?P<exp>[eE][+-]?\d{1,3}(?![\w]))?"
    r"(?P<over> ?/ ?\d(?:[\d,]*\d)?(?:\.\d+)?(?!\w)\)?)?"
    r"(?P<percent> ?(?:\\?%|per ?cent\b|pct\b))?",
    re.ASCII,
)
_TEX_TOKEN = re.compile(
    rf"(?P<sign>(?<![\w)\]}}])[+-] ?)?(?P<whole>\d{{1,15}} *)?(?P<frac>{_FRAC.replace('(', '(?:').replace('(?:?:', '(?:')})",
    re.ASCII,
)
_OR_BEFORE = re.compile(r"\bor\s+\W*$|\d[ \t]+$|\d, ?\d+, ?$")  # "4 or 5", "4 5", "3, 4, 5"
_COMMAND_BEFORE = re.compile(
    r"\\(?!(?:text\w*|mbox|mathbf|mathrm|boldsymbol|q?quad|Rightarrow|rightarrow|implies|therefore|to|left|approx)\b)"
    r"[A-Za-z]+\s*\{?\s*$"
)
LAST_WINDOW = 4_000  # characters from the end within which the last number is looked for


def last_number(text: str) -> tuple[Numeral | None, str]:
    """The last number written in a text, and how it is written; (None, why) when there is none to trust."""
    text = plain_characters(text[-LAST_WINDOW:])
    text = text.replace("{,}", ",").replace(r"\!", "").replace(r"\,", "").replace("**", " ")
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    found = list(_TOKEN.finditer(text))
    fractions = list(_TEX_TOKEN.finditer(text))
    last = found[-1] if found else None
    if fractions and (last is None or fractions[-1].end() >= last.end()):
        last = fractions[-1]
    if last is None:
        return None, "no number found"
    if re.search(r"[\^_]\s*\{?[^\s{}]{0,8}$", text[: last.start()]) or re.match(
        r"\s*(?:\^|\*\*|_)|!(?=\s*[-+*/=)\d$]|$)(?!$)", text[last.end() :]
    ):
        return None, f"the last number is part of an expression: {last.group().strip()}"
    later = re.search(r"\d", text[last.end() :])
    if later is not None:
        return None, f"the last digits are no plain number: {text[last.end() : last.end() + 20].strip()}"
    if _COMMAND_BEFORE.search(text[: last.start()]) or re.match(r"\.\.|\u2026|\?", text[last.end() :]):
        return None, f"the last number is part of something else: {last.group().strip()}"
    if _OR_BEFORE.search(text[max(0, last.start() - 60) : last.start()]):
        return None, "several answers"
    written = re.sub(r"[()]", "", last.group()).strip()
    numeral = parse(written)
    if numeral is None:
        return None, f"not a well-formed number: {written[:60]}"
    return numeral, written
