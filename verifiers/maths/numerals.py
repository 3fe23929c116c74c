"""Exact reading of written numbers: no floats, no computer algebra, nothing that can hang.

A numeral is an integer, decimal, fraction, mixed number or power of ten as a whole string, in plain text or
LaTeX, with at most one unit, currency or percent sign. Everything else is not a numeral: `parse` says None
and the caller asks something that costs more.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import deque
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from verifiers.maths import units
from verifiers.maths.units import CURRENCY

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


_RAISED = re.compile(r"(?<=[A-Za-z0-9)\]}])[\u207a\u207b]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
_RAISED_DIGITS = str.maketrans(
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b", "0123456789+-"
)


def with_exponents(text: str) -> str:
    """Raised digits behind a symbol as the exponent that they are: "cm\u00b2", "10\u207b\u00b3"."""
    return text if text.isascii() else _RAISED.sub(_exponent, text)


def _exponent(raised: re.Match[str]) -> str:
    digits = raised[0].translate(_RAISED_DIGITS)
    alone = len(digits) == 1 and not raised.string[raised.end() :][:1].isdigit()
    return f"^{digits}" if alone else f"^{{{digits}}}"


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
_CURRENCY_UNIT = {
    "$": "$",
    "USD": "$",
    "\u20ac": "euro",
    "EUR": "euro",
}  # a pound sign may be a weight in words
_MAY_BEGIN = re.compile(rf"[-+\d.(\\{CURRENCY}U ER]")
_PREFIX = re.compile(rf"^([+-]?) *(?:\\?[{CURRENCY}]|US\$|USD|EUR|Rs\.?)* *")
_PLAIN = re.compile(r"-?\d{1,18}", re.ASCII)


def parse(text: str) -> Numeral | None:
    """The numeral that is the whole of `text`, or None. Time is linear in the text's length."""
    if len(text) > 4 * MAX_DIGITS:
        return None
    if _PLAIN.fullmatch(text):  # what nine answers of ten are
        return Numeral(Fraction(int(text)))
    return _parse(text)


@functools.lru_cache(maxsize=4096)
def _parse(text: str) -> Numeral | None:
    text = _tidy(text)
    if not text or not _MAY_BEGIN.match(text):
        return None
    prefix = _PREFIX.match(text)
    currency = ""
    if prefix is not None and prefix.end():
        currency = next((unit for mark, unit in _CURRENCY_UNIT.items() if mark in prefix.group()), "")
        text = prefix.group(1) + text[prefix.end() :]
        if currency == "$" and "$" in text:  # "$125$ miles": dollars around mathematics
            currency = ""
    if _REPEATING_MARK.search(text):
        return _repeating(text)
    if text.endswith((".", "s", "\u2026")) and (endless := _ENDLESS.fullmatch(text)) is not None:
        return _repeating(rf"{endless['before']}\overline{{{endless['cycle'] or endless['digit']}}}")
    number = _SHAPES.match(text)
    if number is None:
        return None
    value, digits = _value(number)
    if value is None:
        return None
    rest = text[number.end() :]
    percent, unit = False, ""
    if rest.strip():
        read = units.read_unit(rest)
        if read is None:
            return None
        percent, unit = read
        times, unit = units.many(unit)
        value *= times
    return Numeral(value, percent, currency or unit, digits)


def forget() -> None:
    """Drop the memory of numbers already read."""
    _parse.cache_clear()


_REPEATING_MARK = re.compile(r"\\(?:overline|bar|dot) *\{")
_REPEATING = re.compile(
    r"(?P<sign>[+-]? *)(?P<whole>\d{0,40})\.(?P<fixed>\d{0,40})"
    r"(?:\\(?:overline|bar) *\{ *(?P<cycle>\d{1,40}) *\}"
    r"|\\dot *\{ *(?P<first>\d) *\}(?:(?P<middle>\d{0,38})\\dot *\{ *(?P<last>\d) *\})?)",
    re.ASCII,
)


# 0.333..., 0.1666\ldots, 0.272727...: one digit three times, or several twice
_ENDLESS = re.compile(
    r"(?P<before>[+-]? *\d{0,40}\.\d{0,20}?)(?:(?P<digit>\d)(?P=digit){2,20}|(?P<cycle>\d{2,12})(?P=cycle){1,10})"
    r" *(?:\.\.\.|\u2026|\\[lc]?dots)",
    re.ASCII,
)


def _repeating(text: str) -> Numeral | None:
    """0.1\\overline{6} is exactly 1/6: the digits of one cycle, over as many nines."""
    found = _REPEATING.fullmatch(text)
    if found is None:
        return None
    cycle = found["cycle"] or found["first"] + (found["middle"] or "") + (found["last"] or "")
    fixed = Fraction(int((found["whole"] or "0") + found["fixed"]), 10 ** len(found["fixed"]))
    value = fixed + Fraction(int(cycle), (10 ** len(cycle) - 1) * 10 ** len(found["fixed"]))
    return Numeral(-value if "-" in found["sign"] else value)


_OTHER_FRAC = re.compile(r"\\(?:[dtc]|nice|s)frac(?![A-Za-z])")


def _tidy(text: str) -> str:
    """Drop what only positions or wraps a number in LaTeX."""
    text = plain_characters(with_exponents(text)).strip()
    for left, right in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**")):
        if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
            text = text[len(left) : -len(right)].strip()
    text = text.replace("{,}", ",").replace("~", " ")
    if "\\" in text:
        text = re.sub(r",(?:\\[!,;] *)+", ",", text)
        text = text.replace(r"\!", "").replace(r"\displaystyle", "")
        text = re.sub(r"\\[,;: ]", " ", text)
        text = _OTHER_FRAC.sub(r"\\frac", text)
        text = re.sub(r"\\(?:left|right)(?![A-Za-z])", "", text).strip()
    whole = re.fullmatch(r"\\(?:text|textbf|mathrm|mathbf|mbox|bf|boldsymbol|underline) *\{([^{}]*)\}", text)
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


_TOKEN = re.compile(
    rf"(?<![\w.,^_])(?P<sign>(?<![\w)\]}}}}])[+-]\(?)?(?:\\?[{CURRENCY}] ?)?"
    r"(?P<body>\d(?:[\d,]*\d)?(?:\.\d+)*|\.\d+)"
    r"(?P<exp>[eE][+-]?\d{1,3}(?![\w]))?"
    r"(?P<over> ?/ ?\d(?:[\d,]*\d)?(?:\.\d+)?(?!\w)\)?)?"
    r"(?P<percent> ?(?:\\?%|per ?cent\b|pct\b))?",
    re.ASCII,
)
_TEX_TOKEN = re.compile(
    rf"(?<![\w.,^_)\]}}])(?P<sign>[+-] ?)?(?P<whole>\d{{1,15}} *)?(?P<frac>{_FRAC.replace('(', '(?:').replace('(?:?:', '(?:')})",
    re.ASCII,
)
_OR_BEFORE = re.compile(r"\bor\s+\W*$|\d[ \t]+$|\d, ?\d+, ?$")  # "4 or 5", "4 5", "3, 4, 5"
_COMMAND_BEFORE = re.compile(
    r"\\(?!(?:text\w*|mbox|mathbf|mathrm|boldsymbol|q?quad|Rightarrow|rightarrow|implies|therefore|to|left|approx)\b)"
    r"[A-Za-z]+\s*\{?\s*$|\}\s*\{\s*$"
)
_COLOURED = re.compile(r"\\(?:textcolor|colorbox) *\{[^{}]*\} *\{ *$")
# "12 and a half", "12 point five", "12 squared", "12 thousandths", "12 is wrong"
_CHANGED_AFTER = re.compile(
    r"\s+(?:and (?:a|one|two|three)[ -](?:half|third|quarter|fourth|fifth)s?|point (?:"
    + "|".join(units.NUMBER_WORDS)
    + r")"
    r"|squared|cubed|factorial|halves|thirds|tenths|hundredths|thousandths|isn't|(?:is|was) (?:not|wrong|incorrect|impossible|false|too))\b"
)
# "is not 12", "anything but 12", "cannot be 12", "x < 12"
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|isn't|never|can't be|cannot be|(?:anything|nothing|all|everything) but)\s+(?:be\s+|equal\s+(?:to\s+)?)?"
    r"|[^\s=>-]\s*(?:[<>]=?|\\[lg]eq?(?![A-Za-z]))\s*)[\s$*(\\]*$",
    re.IGNORECASE,
)
_DENYING = frozenset(("not", "isn't", "never", "be", "but", "to", "equal"))
_TEXT_AFTER = re.compile(r"\s*\\(?:text\w*|mbox|mathrm) *\{([^{}]{1,80})\}")
LAST_WINDOW = 4_000  # characters from the end within which the last number is looked for


_LAST_DIGIT = re.compile(r".*\d", re.DOTALL)
_BREAK = re.compile(r"[A-Za-z]{2} +(?=[A-Za-z]{2})")  # no number goes on across two words
_FAR, _NEAR = (
    200,
    70,
)  # characters before the last digit: where to look for a break; what the rules below look at


def last_number(text: str) -> tuple[Numeral | None, str]:
    """The last number written in a text, and how it is written; (None, why) when there is none to trust."""
    text = plain_characters(text[-LAST_WINDOW:])
    text = text.replace("{,}", ",").replace("**", " ")
    if "\\" in text:
        text = _OTHER_FRAC.sub(r"\\frac", text.replace(r"\!", "").replace(r"\,", ""))
    last = None
    if (digit := _LAST_DIGIT.match(text)) is None:
        return None, "no number found"
    if pause := _BREAK.search(text, max(0, digit.end() - _FAR), digit.end()):
        last = _last_token(text[pause.end() :])
    if pause is not None and last is not None and last.start() >= _NEAR:
        text = text[
            pause.end() :
        ]  # all that decides stands behind the break: reading more would only cost time
    else:
        last = _last_token(text)
    return (None, "no number found") if last is None else _trusted(last, text)


def _last_token(text: str) -> re.Match[str] | None:
    tokens = deque(_TOKEN.finditer(text), maxlen=1)
    fractions = deque(_TEX_TOKEN.finditer(text) if "\\frac" in text else (), maxlen=1)
    if fractions and (not tokens or fractions[0].end() >= tokens[0].end()):
        return fractions[0]
    return tokens[0] if tokens else None


def _trusted(last: re.Match[str], text: str) -> tuple[Numeral | None, str]:
    """The last number, unless it is a part of something else."""
    before, after = text[: last.start()], text[last.end() :]
    if re.search(r"[\^_]\s*\{?[^\s{}]{0,8}$", before) or re.match(
        r"\s*(?:\^(?! *\{? *\\circ)|\*\*|_)|!(?=\s*[-+*/=)\d$]|$)(?!$)", after
    ):
        return None, f"the last number is part of an expression: {last.group().strip()}"
    later = re.search(r"\d", after)
    if later is not None:
        return None, f"the last digits are no plain number: {after[:20].strip()}"
    if (_COMMAND_BEFORE.search(before) and not _COLOURED.search(before)) or re.match(
        r"\.\.|\u2026|\?", after
    ):
        return None, f"the last number is part of something else: {last.group().strip()}"
    if unicodedata.category(after[:1] or " ").startswith("M"):
        return None, f"the last number is marked or struck out: {last.group().strip()}"
    if re.match(r"'(?![A-Za-z])", after) and not before.endswith("'"):
        return None, f"the last number is feet or minutes: {last.group().strip()}'"
    if before[-1:] == ":" and before[-2:-1].isdigit():
        return None, f"the last number is part of a time or ratio: {before[-3:]}{last.group().strip()}"
    if _OR_BEFORE.search(before[-60:]):
        return None, "several answers"
    word = before[-12:].rstrip(" $*(\\").rpartition(" ")[2].lower()
    if (word in _DENYING or word[-1:] in ("<", ">", "=") or "\\" in word) and _DENIED_BEFORE.search(
        before[-60:]
    ):
        return None, f"the last number is denied or a bound: {before[-20:]}{last.group().strip()}"
    marked = _TEXT_AFTER.match(after)
    if _CHANGED_AFTER.match(after) or (marked is not None and units.hedged(marked[1])):
        return None, f"the last number is changed or taken back: {last.group().strip()}{after[:20]}"
    written = re.sub(r"[()]", "", last.group()).strip()
    numeral = parse(written)
    if numeral is None and re.fullmatch(r"-?(?:\d+,\d{1,2}|0,\d+)", written):  # "2,74" cannot be thousands
        written = written.replace(",", ".")
        numeral = parse(written)
    if numeral is None:
        return None, f"not a well-formed number: {written[:60]}"
    return numeral, written
