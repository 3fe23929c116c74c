"""math-verify, for what our own grammar does not read: integrals, sums, functions, products of matrices.

Guarded before, because its parser and sympy's simplifier can take for ever (the pool's clock is the last
guard, not the first), and checked after, because it drops what it cannot parse (4\\sqrt(2) becomes 4), and
rounds. Its own time limits use signals, which fail outside the main thread; they are off.
"""

from __future__ import annotations

import functools
import logging
import re
from typing import Any

from verifiers.maths import units

MAX_LENGTH = 300
MAX_NESTING = 10
MAX_DIGITS = 30  # of one integer
MAX_EXPONENT = 1_000
MAX_FACTORIAL = 500
MAX_TERM = 100  # of the numbers in a sum or product, its bounds included
PRECISION = 40

_KNOWN = re.compile(
    r"\\(?:frac|sqrt|int|iint|oint|sum|prod|lim|to|infty|pi|cdot|times|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|"
    r"ln|log|exp|begin|end|alpha|beta|gamma|delta|epsilon|theta|lambda|mu|nu|rho|sigma|tau|phi|varphi|psi|omega|"
    r"Delta|Gamma|Omega|Phi|Psi|Sigma|Theta|binom|det|mathbb|mathbf|vec|hat|overline|cap|setminus|"
    r"emptyset|subset|circ|prime|dots|ldots|cdots|bmod|pmod|mod|lfloor|rfloor|lceil|rceil|left|right|text|mathrm)"
    r"(?![A-Za-z])|\\[\\{}|,;]"
)


_WORDS = re.compile(r"\\(?:text|mathrm) *\{([^{}]*)\}")


@functools.lru_cache(maxsize=1)
def _library() -> Any:
    """Imports math-verify and sympy: about a second, so it is done before an item's clock starts."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    import math_verify  # type: ignore[import-untyped]

    return math_verify


def warm() -> None:
    library = _library()
    library.parse("$x+1$", parsing_timeout=0)


def guard(text: str) -> str:
    """Why math-verify must not see this text; "" when it may."""
    if len(text) > MAX_LENGTH:
        return f"longer than {MAX_LENGTH} characters"
    nesting = deepest = 0
    for char in text:
        nesting += (char in "([{") - (char in ")]}")
        deepest = max(deepest, nesting)
    if nesting or deepest > MAX_NESTING:
        return "brackets unbalanced or nested too deep"
    if re.search(rf"\d{{{MAX_DIGITS + 1}}}", text):
        return "an integer of too many digits"
    if any(int(n) > MAX_EXPONENT for n in re.findall(r"\^ *\{? *-? *(\d+)", text)) or text.count("^") > 12:
        return "exponents too large or too many"
    if re.search(r"\^ *\{[^{}]*\^", text):
        return "a tower of exponents"
    if any(int(n) > MAX_FACTORIAL for n in re.findall(r"(\d+) *\)? *!", text)) or "!!" in text:
        return "a factorial too large"
    if unknown := re.search(r"\\(?:[A-Za-z]+|.)", _KNOWN.sub(" ", text)):
        return f"the command {unknown.group()}"
    if re.search(r"\d *['_]|\d +\.?\d|(?<!matrix)\} +\.?\d|\\sqrt *\(|[?#@$\"`]", text):
        return "notation that math-verify misreads"
    if re.search(r"\\(?:sum|prod)(?![A-Za-z])", text) and any(
        int(n) > MAX_TERM for n in re.findall(r"\d+", text)
    ):
        return "a sum or product of too much"
    if len(re.findall(r"\\(?:i?int|oint|sum|prod|lim)(?![A-Za-z])", text)) > 2:
        return "too many integrals, sums or limits"
    if any(units.hedged(words) or re.search(r"\d", words) for words in _WORDS.findall(text)):
        return "words that math-verify drops"
    return ""


def parse(text: str) -> Any | None:
    """The sympy object that math-verify reads as the whole of `text`, or None."""
    if guard(text):
        return None
    library = _library()
    config = library.LatexExtractionConfig(boxed_match_priority=-1)
    found = library.parse(
        f"${text}$", extraction_config=[config], fallback_mode="no_fallback", parsing_timeout=0
    )
    if len(found) != 1 or isinstance(found[0], str):
        return None
    return found[0] if _kept_all(text, found[0]) else None


def _kept_all(text: str, parsed: Any) -> bool:
    """Whether every letter used as a symbol is still there: a parser that stops early loses the rest."""
    bare = re.sub(r"\\(?:text|mathrm|begin|end)\{[^{}]*\}|\\[A-Za-z]+|d[a-z](?![A-Za-z])", " ", text)
    letters = set(re.findall(r"[A-Za-z]", bare)) - set("eid")
    names = set("".join(re.findall(r"[A-Za-z]+", str(parsed))))
    digits = set(re.findall(r"\d", bare))
    return letters <= names and (not digits or re.search(r"\d|pi|E|I|oo|/", str(parsed)) is not None)


def _operations(text: str) -> set[str]:
    return set(re.findall(r"\\(int|iint|oint|sum|prod|lim)(?![A-Za-z])", text))


def _said(text: str) -> list[str]:
    return sorted(words.strip().lower() for words in _WORDS.findall(text) if len(words.strip()) > 1)


def same(gold: str, given: str) -> bool:
    """math-verify's verdict, believed only if it says yes in both directions and the numbers agree too."""
    if _operations(given) - _operations(gold):
        return False  # an integral that the gold has worked out
    if _said(gold) != _said(given):
        return False  # the library drops words, and with them units and their powers
    one, other = parse(gold), parse(given)
    if one is None or other is None:
        return False
    verify = _library().verify
    try:
        if not (verify(one, other, timeout_seconds=0) and verify(other, one, timeout_seconds=0)):
            return False
        return _numbers_agree(one, other)
    except (ArithmeticError, AttributeError, NotImplementedError, RecursionError, TypeError, ValueError):
        return False


def _numbers_agree(one: Any, other: Any) -> bool:
    """The two to forty digits of what is a number; the same symbols in what is not."""
    if one == other:
        return True
    if getattr(one, "free_symbols", set()) != getattr(other, "free_symbols", set()):
        return False
    if not getattr(one, "is_number", False) or not getattr(other, "is_number", False):
        return True
    a, b = one.evalf(PRECISION), other.evalf(PRECISION)
    return bool(abs(a - b) <= 10 ** (-PRECISION + 10) * max(abs(a), abs(b)))
