"""When two answers without structure are the same: numbers, units, bases, words, expressions."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from verifiers.maths import expressions, identity, numerals, units
from verifiers.maths.evaluation import Expression
from verifiers.maths.numerals import Numeral

Fallback = Callable[[str, str], bool]
APPROXIMATE_DIGITS = 6  # significant digits of a decimal that may stand for an exact value


@dataclass(frozen=True, slots=True)
class Context:
    """What besides the two answers decides: the question, and who judges what the grammar cannot read."""

    prompt: str = ""
    fallback: Fallback = lambda gold, given: False

    def asks(self, words: str) -> bool:
        """Whether the question has one of these words (a regular expression)."""
        return re.search(words, self.prompt, re.IGNORECASE) is not None

    def asks_percent(self) -> bool:
        """Whether the answer is wanted as a percentage: a question may well speak of 20% and ask for dollars."""
        return _WANTED_PERCENT.search(self.prompt) is not None


_WANTED_PERCENT = re.compile(
    r"(?<![\d.}$\\])(?<![\d.}$] )(?<!\d-)\bpercent|(?<![\d.}$\\])(?<![\d.}$] )\\?%|\bwhat\b[^.?!]{0,60}\b(?:rate|discount|mark-?up)\b",
    re.IGNORECASE,
)


_BASED = re.compile(r"\(?([0-9A-Fa-f]+)\)? *_ *(?:\{ *(?:\\text *\{)? *(\w+) *\}? *\}|(\d))")
_BASES = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
    "ten": "10", "eleven": "11", "twelve": "12", "sixteen": "16",
}  # fmt: skip
_TEXT = re.compile(
    r"\\(?:text|mbox|textbf|textit|textrm|textnormal|mathrm|mathbf|mathsf|operatorname|rm|bf)\b *\{([^{}]*)\}"
)
_TAIL = re.compile(
    r"(?P<core>.*[^\s\\{(^_,])\s*(?:(?P<percent>\\?%)|(?P<degree>\^ *(?:\{ *\\circ *\}|\\circ)(?:\s*\\(?:text|mathrm)\{ *C *\})?)"
    r"|\\(?:text|mbox|textnormal|mathrm|textrm) *\{(?P<unit>[^{}]*[A-Za-z][^{}]*)\}(?P<power> *\^ *(?:\{ *-?\d *\}|\d))?)",
    re.DOTALL,
)
_BARE_UNIT = re.compile(
    r"(?P<core>.*[\d}){\]!] ?|.*\\pi) +(?P<unit>(?:sq(?:uare)? |cubic )?[a-z]{2,12}(?: *\^ *(?:\{ *\d *\}|\d))?)",
    re.DOTALL,
)


def words_of(text: str) -> str | None:
    """A text answer's words, lower case but for a single letter; None when it is no text."""
    marked = _TEXT.search(text) is not None
    text = _TEXT.sub(r" \1 ", text)
    text = " ".join(re.sub(r"[*\"`]|\\[ ,;]", " ", text).split()).strip(" .()")
    text = re.sub(r"^(?:an?|the) (?=\w{3})", "", text, flags=re.IGNORECASE)
    if not re.fullmatch(r"[^\W\d_][^\W_]*(?:[ '.,&/-]+[^\W_]+)*", text):
        return None
    if len(text) == 1:
        return text if marked or text.isalpha() else None
    if not marked and len(text) <= 2 and text.casefold() != "no":
        return None
    return _PHRASES.get(text.casefold(), text.casefold())


_PHRASES = {
    "no solutions": "no solution", "there is no solution": "no solution", "there are no solutions": "no solution",
    "no real solutions": "no real solution", "dne": "does not exist",
    "undefined": "does not exist", "infinite": "infinitely many", "infinitely many solutions": "infinitely many",
    "all reals": "all real numbers", "all real numbers": "all real numbers", "reals": "all real numbers",
    "real numbers": "all real numbers", "none of these": "none of the above",
}  # fmt: skip
_WORDS_FOR = {
    r"\emptyset": {"empty set", "no solution", "no real solution", "none"},
    r"\mathbb{R}": {"all real numbers"},
    **{str(number): {word} for number, word in enumerate(units.NUMBER_WORDS[:21])},
}


def same_leaf(gold: str, given: str, context: Context) -> bool:
    one, other = numerals.parse(gold), numerals.parse(given)
    if one is not None and other is not None:
        return _same_numeral(one, other, context)
    if "_" in gold + given and (_based(gold) or _based(given)):
        return _same_in_base(gold, given, context)
    gold_words, given_words = words_of(gold), words_of(given)
    if gold_words is not None and gold_words == given_words:
        return True
    for sign, words in _WORDS_FOR.items():
        if sign in (gold.strip(), given.strip()) and {gold_words, given_words} & words:
            return True
    if gold_words is not None and len(gold_words) == 1 and _choice(given) == gold_words:
        return True
    if "mod" in gold + given and (residue(gold) or residue(given)):
        return residue(gold) == residue(given)  # a class of numbers is not one of them
    if geometric(gold) or geometric(given):
        return geometric(gold) == geometric(given)
    if r"\neg" in gold + given or r"\lnot" in gold + given:
        return _squeezed(gold) == _squeezed(given)
    gold_core, gold_unit = tail(gold)
    given_core, given_unit = tail(given)
    if {gold_unit, given_unit} in ({"degree", ""}, {"degree", "rad"}) and _in_radians(
        *(
            core if unit == "rad" else whole
            for whole, core, unit in ((gold, gold_core, gold_unit), (given, given_core, given_unit))
        )
    ):
        return True
    if not _tails_agree(gold_unit, given_unit, context):
        return False
    if "infty" in gold_core or "infty" in given_core:
        return _squeezed(gold_core) == _squeezed(given_core)
    first, second = expressions.read(gold_core), expressions.read(given_core)
    if first is not None and second is not None:
        if second.symbols - first.symbols and not (second := _constant_renamed(first, second)):
            return False  # "5 + 0x" has not been worked out
        return identity.equal(first, second) or _decimal_for(first, given_core)
    if _squeezed(gold_core) == _squeezed(given_core):
        return True
    if words_of(gold) is not None and _TEXT.search(gold):
        return False
    return context.fallback(gold_core, given_core)


def _constant_renamed(gold: Expression, given: Expression) -> Expression | None:
    """ "x^2 + c" for the gold "x^2 + C": the constant of an integral has any name. None for anything else."""
    own, other = gold.symbols - given.symbols, given.symbols - gold.symbols
    if own != {"C"} or len(other) != 1 or not re.search(r"\+ *C$", gold.text.strip()):
        return None
    renamed = re.sub(r"(?<=\+) *[ckK]$", "C", given.text.strip())
    return expressions.read(renamed) if renamed != given.text.strip() else None


def _choice(text: str) -> str | None:
    """The letter of "(C) 12", a choice with its number behind it, and of "Option C"."""
    text = _TEXT.sub(r"\1", text).strip()
    if named := re.fullmatch(r"(?:[Oo]ption|[Cc]hoice|[Aa]nswer) *\(?([A-Z])\)?", text):
        return named.group(1)
    match = re.fullmatch(r"\(([A-Z])\)(?![-+])(.{1,40})", text, re.DOTALL)
    return match.group(1) if match and numerals.parse(match.group(2)) is not None else None


_RESIDUE = re.compile(
    r"(?:[A-Za-z] *\\equiv *)?(-?\d{1,30}) *(?:\\pmod|\\bmod|\\mod|\(? *\\?mod) *"
    r"(?:\{ *(?P<braced>\d{1,30}) *\}|(?P<bare>\d{1,30}))\)?",
    re.ASCII,
)


def residue(text: str) -> tuple[int, int] | None:
    """(residue, modulus) of "x \\equiv 3 \\pmod{7}" or "3 (mod 7)"."""
    if "mod" not in text:
        return None
    match = _RESIDUE.fullmatch(re.sub(r"\\(?:text|mathrm) *\{ *(mod) *\}", r"\1", text.strip()))
    if match is None or not (modulus := int(match["braced"] or match["bare"])):
        return None
    return int(match.group(1)) % modulus, modulus


_GEOMETRIC = re.compile(
    r"\\(triangle|angle|overline|overrightarrow|overleftrightarrow|widehat|odot|square) *(?:\{ *([A-Z']{1,6}) *\}|([A-Z']{1,6}))"
)


def geometric(text: str) -> tuple[str, str] | None:
    """(what it is, its points) of \\triangle ABC or \\overline{AB}; None for anything else."""
    match = _GEOMETRIC.fullmatch(text.strip())
    return (match[1], match[2] or match[3]) if match else None


def _squeezed(text: str) -> str:
    return re.sub(r" (?!\d)|(?<!\d) ", "", " ".join(text.split()))  # "1 2" is not "12"


def _same_numeral(gold: Numeral, given: Numeral, context: Context) -> bool:
    if not units.agree(gold.unit, given.unit):
        return False
    if given.unit == "dozen" and not gold.unit and not context.asks("dozen"):
        return False
    if gold.percent != given.percent:
        # 50 is not 50%, unless the question asks for a percentage
        if context.asks_percent() and gold.value == given.value:
            return True
        if gold.percent and context.asks_percent():
            return False
        return _plain(gold) == _plain(given)
    if gold.value == given.value:
        return True
    exact = gold.digits == 0 and gold.value.denominator != 1
    return exact and _rounds(given, gold)


def _plain(numeral: Numeral) -> object:
    return numeral.value / 100 if numeral.percent else numeral.value


def _rounds(given: Numeral, gold: Numeral) -> bool:
    """Whether a decimal is a fraction such as 1/3, which no decimal is, rounded or cut off."""
    if given.digits < APPROXIMATE_DIGITS or not _endless(gold.value.denominator):
        return False
    exact = expressions.read(f"{gold.value.numerator}/{gold.value.denominator}")
    return exact is not None and identity.approximation(given.value, given.digits, exact)


def _endless(denominator: int) -> bool:
    """Whether a fraction in lowest terms with this denominator has no end as a decimal."""
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator != 1


def _in_radians(gold: str, given: str) -> bool:
    """90^\\circ is \\frac{\\pi}{2}; where the other side is a bare 90, the sign is only a unit."""
    one, other = expressions.read(gold), expressions.read(given)
    return one is not None and other is not None and identity.equal(one, other)


def _decimal_for(gold: Expression, given: str) -> bool:
    """A decimal of six or more digits may stand for an irrational number."""
    numeral = numerals.parse(given)
    if numeral is None or numeral.digits < APPROXIMATE_DIGITS or gold.symbols or not gold.irrational():
        return False
    return identity.approximation(numeral.value, numeral.digits, gold)


def _same_in_base(gold: str, given: str, context: Context) -> bool:
    """Digits and base must both be the gold's; 52_8 is not 52_2 and not 52 (unless the question names it)."""
    one, other = _based(gold), _based(given)
    if one and other:
        return one == other
    if one and context.asks(r"\bbase\b"):
        return one[0] == given.strip().upper().lstrip("0")
    return False


def _based(text: str) -> tuple[str, str] | None:
    """(digits, base) of 2A_{16}, 101_{two}, (52)_8 or 2\\text{A}_{16}."""
    match = _BASED.fullmatch(re.sub(r"\\(?:text|mathrm) *\{([0-9A-F]+)\}", r"\1", text.strip()))
    if match is None:
        return None
    base = (match.group(2) or match.group(3)).lower()
    return match.group(1).lstrip("0").upper(), _BASES.get(base, base)


def tail(text: str) -> tuple[str, str]:
    """An expression without the unit, degree or percent sign after it, and that unit ("%", "degree")."""
    match = _TAIL.fullmatch(text.strip())
    if match is None:
        bare = _BARE_UNIT.fullmatch(text.strip())  # "2\\sqrt{3} cm"
        if bare is not None and units.is_known(bare["unit"]):
            return bare["core"].strip(), units.normal_unit(bare["unit"]) or "unit"
        return text, ""
    if match.group("percent"):
        return match.group("core"), "%"
    if match.group("degree"):
        return (
            (text, "")
            if re.search(r"\\(?:sin|cos|tan)", match.group("core"))
            else (match.group("core"), "degree")
        )
    power = re.sub(r"[^\d-]", "", match.group("power") or "")
    unit = match.group("unit").strip()
    if re.search(r"[\d,;]", unit) or units.hedged(unit):  # "5 (possibly 6)" is no 5
        return text, ""
    return match.group("core"), units.normal_unit(unit + (f"^{power}" if power else "")) or "unit"


def _tails_agree(gold: str, given: str, context: Context) -> bool:
    if "%" in (gold, given) and gold != given:
        return context.asks_percent() and {gold, given} == {"%", ""}
    return units.agree(gold, given)
