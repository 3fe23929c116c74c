"""One spelling for what is written in many: Unicode signs, LaTeX's synonyms, wrappers, delimiters."""

from __future__ import annotations

import re
from collections.abc import Callable

from verifiers.maths import numerals

MAX_LENGTH = 2_000  # characters of an answer


class TooComplex(Exception):
    """The answer is longer or deeper than any answer to a question."""


# "x \\ge 0 and x < 1" is 0 \\le x < 1; with a comma, or with "or", it may be all numbers
_AND = r"(?:\\(?:text|mbox|textrm|mathrm) *\{ *and *\}|\\(?:land|wedge)(?![A-Za-z])|(?<![A-Za-z])and(?![A-Za-z]))"
_BOUND = r"[^<>=,;&\\]{1,30}?|[^<>=,;&]{0,10}\\(?:frac|sqrt|pi)(?![A-Za-z])[^<>=,;&]{0,30}?"
_BOTH = re.compile(
    rf"^\s*(?:(?P<a>[A-Za-z]) *(?P<above>>|\\ge(?![A-Za-z])) *(?P<low>{_BOUND}) *,? *{_AND} *(?P=a) *(?P<below><|\\le(?![A-Za-z])) *(?P<high>{_BOUND})"
    rf"|(?P<b>[A-Za-z]) *(?P<below2><|\\le(?![A-Za-z])) *(?P<high2>{_BOUND}) *,? *{_AND} *(?P=b) *(?P<above2>>|\\ge(?![A-Za-z])) *(?P<low2>{_BOUND}))\s*$"
)


def _between(found: re.Match[str]) -> str:
    below = {">": "<", "<": "<"}
    above, under = (found["above"] or found["above2"]), (found["below"] or found["below2"])
    return (
        f"{found['low'] or found['low2']} {below.get(above, chr(92) + 'le ')} {found['a'] or found['b']} "
        f"{below.get(under, chr(92) + 'le ')} {found['high'] or found['high2']}"
    )


_REPLACED: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r",(?:\\[!,;] *)+"), ","),
    (
        re.compile(
            r"\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?|biggl?|biggr?|displaystyle|limits|mathstrut)(?![A-Za-z])\.?"
        ),
        "",
    ),
    (re.compile(r"\\(?:[dtc]|nice|s)frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\{([^{}]*[^{}\\ ]) *\\over(?![A-Za-z]) *([^{}]*)\}"), r"\\frac{\1}{\2}"),
    (re.compile(r"\{([^{}]*[^{}\\ ]) *\\choose(?![A-Za-z]) *([^{}]*)\}"), r"\\binom{\1}{\2}"),
    (re.compile(r"\\(?:mathrm|operatorname|mathit|rm) *\{([ie])\}"), r"\1"),
    (re.compile(r"\\text *\{-\}"), "-"),
    (re.compile(r"\\(?:text|mathrm) *\{ *\\?\$ *\} *(?=[\d.])"), r"\\$"),
    (
        re.compile(
            r"\\frac *\{ *\\(?:text|mathrm) *\{ *([A-Za-z]+) *\} *\} *\{ *\\(?:text|mathrm) *\{ *([A-Za-z]+) *\} *((?:\^ *\{? *\d *\}?)?) *\}"
        ),
        r"\\text{ \1/\2}\3",
    ),
    (
        re.compile(
            r"(?<=[A-Za-z]\}) *(?:\\cdot|\\,|\\;)? *(?=\\(?:text|mathrm) *\{ *[A-Za-z]+ *\} *\^ *\{ *-)"
        ),
        "",
    ),
    (re.compile(r"\{:\}"), ":"),
    (re.compile(r"(?<=[)\]}]) *U *(?=[(\[]|\\\{)"), r" \\cup "),
    (re.compile(r"\\langle(?![A-Za-z])|\u27e8"), "("),
    (re.compile(r"\\rangle(?![A-Za-z])|\u27e9"), ")"),
    (re.compile(r"\\(?:varnothing(?![A-Za-z])|\{ *\\\})|\u2205"), r"\\emptyset "),
    (
        re.compile(r"\\(?:mathbb|mathbf|Bbb) *(?:\{R\}|R(?![A-Za-z]))|\\(?:R|Reals)(?![A-Za-z])|\u211d"),
        r"\\mathbb{R}",
    ),
    (re.compile(r"\\(?:backslash|smallsetminus)(?![A-Za-z])|\u2216"), r"\\setminus "),
    (re.compile(r"\u2229"), r"\\cap "),
    (re.compile(r"\u2261"), r"\\equiv "),
    (re.compile(r"(?<=\d) *\\text *\{ *to *\} *(?=\d)|(?<=\d) to (?=\d)"), ":"),
    (re.compile(r"\\(?:leqslant|leq|le)(?![A-Za-z])|<=|\u2264"), r"\\le "),
    (re.compile(r"\\(?:geqslant|geq|ge)(?![A-Za-z])|>=|\u2265"), r"\\ge "),
    (re.compile(r"\\(?:neq|ne)(?![A-Za-z])|!=|\u2260"), r"\\ne "),
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\u221e|\binfinity\b|\boo\b"), r"\\infty "),
    (re.compile(r"\+ *\\infty"), r"\\infty"),
    (re.compile(r"\u222a"), r"\\cup "),
    (re.compile(r"\u2208"), r"\\in "),
    (re.compile(r"\\(?:approx|simeq|thickapprox)(?![A-Za-z])|\u2248"), r"\\approx "),
    (re.compile(r"\u00b1"), r"\\pm "),
    (re.compile(r"\\colon(?![A-Za-z])"), ":"),
    (re.compile(r"\\l?vert(?![A-Za-z])"), "|"),
    (re.compile(r"\\rvert(?![A-Za-z])"), "|"),
    (re.compile(r"\\lbrace(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![A-Za-z])"), r"\\}"),
    (_BOTH, _between),
    (
        re.compile(r"\\(?:text|mbox|textrm|mathrm)\{[ ,;]*(?:and|or)[ ,]*\}|\\(?:lor|land|vee)(?![A-Za-z])"),
        " , ",
    ),
    (re.compile(r"(?<![A-Za-z\\])(?:,? *)(?:and|or)(?![A-Za-z])"), " , "),
    (re.compile(r"(?<=\d)(?:and|or)(?=[ (\dA-Z])|(?<=\))(?:and|or)(?=\()"), " , "),
    (re.compile(r"(?<!\\)\\(?:q?quad|[,;: ])|~|\n"), " "),
    (re.compile(r"\\!|\{,\}(?=\D)"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<!,) *, *(?:, *)+"), ", "),
]
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"))
# What a string literal with single backslashes makes of \frac, \alpha, \beta and \vec
_CONTROL = (("\x0c", r"\f"), ("\x07", r"\a"), ("\x08", r"\b"), ("\x0b", r"\v"))
_WRAPPER = re.compile(r"\\(?:underline|boxed|fbox|mathbf|boldsymbol|bm|mathit|displaystyle) *\{")
_TEXT_OF_DIGITS = re.compile(r"\\(?:text|textbf|mathrm|mbox|textrm|textnormal) *\{ *(?=[-\d.(])([^{}]*)\}")
_FRENCH = (  # "]a, b[" is the open interval
    (re.compile(r"\]([^\[\]()]*[,;][^\[\]()]*)\["), r"(\1)"),
    (re.compile(r"([\[(])([^\[\]()]*[,;][^\[\]()]*)\["), r"\1\2)"),
    (re.compile(r"\]([^\[\]()]*[,;][^\[\]()]*)([\])])"), r"(\1\2"),
)


def clean(text: str) -> str:
    """The text in the one spelling that the readers know. Raises TooComplex."""
    if len(text) > MAX_LENGTH:
        raise TooComplex(f"an answer of {len(text)} characters")
    text = _unescaped(numerals.plain_characters(numerals.with_exponents(text))).strip()
    text = _unwrapped(text.replace("{,}", ","))
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    text = _without_delimiters(text.strip())
    if text.count("[") != text.count("]") or text.startswith("]"):
        for pattern, replacement in _FRENCH:
            text = pattern.sub(replacement, text)
    text = text.strip().rstrip(",;").removesuffix("\\").strip()
    return text if text.endswith("..") else text.removesuffix(".").strip()


def _unescaped(text: str) -> str:
    """Backslashes that were escaped once too often, or not at all."""
    for char, command in _CONTROL:
        if char in text:
            text = re.sub(rf"\\?{char}(?=[a-z])", lambda _: command, text)  # noqa: B023 - used at once
    if r"\\" in text:
        if r"\\begin" in text:
            text = text.replace(r"\\", "\\")
        elif r"\begin" not in text:
            text = re.sub(r"\\\\(?=[A-Za-z{}%])", lambda _: "\\", text)
    return text


def _unwrapped(text: str) -> str:
    """Without bold, underline, a further box or \\text around the whole."""
    for _ in range(4):
        wrapper = _WRAPPER.match(text)
        if wrapper is not None and text.endswith("}") and _balanced(inner := text[wrapper.end() : -1]):
            text = inner.strip()
        elif whole := _TEXT_OF_DIGITS.fullmatch(text):
            text = whole.group(1).strip()
        else:
            break
    return text


def _balanced(text: str) -> bool:
    depth = 0
    for char in text:
        depth += (char == "{") - (char == "}")
        if depth < 0:
            return False
    return depth == 0


def _without_delimiters(text: str) -> str:
    for left, right in _DELIMITERS:
        if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
            inner = text[len(left) : -len(right)]
            if left not in inner:
                text = inner.strip()
    if re.search(r"(?<!\\)\$", text) and not re.match(r"-?\$\d", text):
        text = re.sub(r"(?<!\\)\$", " ", text)  # "$1$, $2$ and $3$"
    return text
