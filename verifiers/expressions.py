"""Scalar expressions in LaTeX or plain text: parsed strictly, compared by evaluation at many digits.

Two expressions are equal here when they have the same value at several points (a polynomial identity test
in the manner of Schwartz and Zippel). Rational values are exact; others are computed to 60 digits beyond
their size, and a difference counts as rounding only if it shrinks when 100 digits are added. That decides
almost every answer of school and competition mathematics without a computer algebra system, cannot be
fooled by differences that rounding hides (2^-99 and 2^-98), and cannot hang: powers, factorials and lengths
are bounded, and what the grammar does not know is refused instead of guessed.
"""

from __future__ import annotations

import functools
import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

MAX_TOKENS = 400
MAX_DEPTH = 40
MAX_POWER = 1_000_000  # of an exponent's absolute value
MAX_FACTORIAL = 100_000
MAX_BITS = 20_000  # of an exact numerator or denominator; larger values become inexact
MAX_DIGITS = 5_000  # of an inexact value that are looked at
DIGITS = 60  # evaluated with
AGREE = 40  # digits that must agree
POINTS = 4  # per comparison, half of them with negative values

Node = Callable[[Mapping[str, Any]], Any]


class Unreadable(Exception):
    """The text is no expression of this grammar."""


class Undefined(Exception):
    """The expression has no value at this point."""


@dataclass(frozen=True, slots=True)
class Expression:
    evaluate: Node
    symbols: frozenset[str]
    complex: bool  # the imaginary unit occurs
    tokens: tuple[str, ...]

    def irrational(self) -> bool:
        """Whether it is a number that is not computed as an exact fraction."""
        return not self.symbols and not isinstance(_value(self, {}), (Fraction, type(None)))


_TOKEN = re.compile(
    r"\s+|\d+(?:\.\d+)?|\.\d+|\\[A-Za-z]+|\\[|{}!]|[A-Za-z]|\*\*|[-+*/^_(){}\[\]|!=<>,;:&%']|\u221a|\u03c0"
)
_GREEK = set(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma "
    "tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell".split()
)
_FUNCTIONS = {
    **{n: n for n in "sin cos tan cot sec csc sinh cosh tanh exp ln log lg".split()},
    **{f"arc{n}": f"a{n}" for n in "sin cos tan cot sec csc".split()},
    **{f"a{n}": f"a{n}" for n in "sin cos tan".split()},
}
_WORDS = {"sqrt", "pi", "cbrt", *(_FUNCTIONS.keys() - {"lg", "ln"}), "ln"}
_IGNORED = {r"\left", r"\right", r"\displaystyle", r"\limits", r"\,", r"\;", r"\!", r"\:", r"\big", r"\Big", r"\bigl",
            r"\bigr", r"\Bigl", r"\Bigr", r"\quad", r"\mathrm", r"\mathit", r"\mathbf"}  # fmt: skip
_IMPLICIT_STOP = set("+-*/)}]|=<>,;:&%^_!'") | {r"\cdot", r"\times", r"\div", r"\rvert", r"\rfloor", r"\rceil", r"\|"}


def tokenise(text: str) -> list[str]:
    """Raises Unreadable for a character that no expression has."""
    text = re.sub(r"\\[,;:! ]|~", " ", text)
    tokens: list[str] = []
    position = 0
    while position < len(text):
        word = re.compile(r"[A-Za-z]{2,}").match(text, position)
        if word and (not tokens or not tokens[-1].startswith("\\mathrm")):
            known = next((w for w in sorted(_WORDS, key=len, reverse=True) if word.group().startswith(w)), None)
            if known is not None and (len(known) > 1):
                tokens.append("\\" + known)
                position += len(known)
                continue
            if len(word.group()) > 4:
                raise Unreadable(f"the word {word.group()!r}")
        match = _TOKEN.match(text, position)
        if match is None:
            raise Unreadable(f"the character {text[position]!r}")
        position = match.end()
        token = match.group()
        if token.strip() and token not in _IGNORED:
            tokens.append({"**": "^", "\u221a": r"\sqrt", "\u03c0": r"\pi"}.get(token, token))
        if len(tokens) > MAX_TOKENS:
            raise Unreadable(f"more than {MAX_TOKENS} symbols")
    return tokens


@functools.lru_cache(maxsize=4096)
def read(text: str) -> Expression | None:
    """The expression that is the whole of `text`, or None."""
    try:
        tokens = tokenise(text)
        parser = _Parser(tokens)
        node = parser.sum(0)
        if parser.peek():
            raise Unreadable(f"{parser.peek()!r} left over")
    except (Unreadable, RecursionError):
        return None
    return Expression(node, frozenset(parser.symbols), parser.imaginary, tuple(tokens))


class _Parser:
    """Recursive descent. Each method returns a function from a point to a value."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = 0
        self.symbols: set[str] = set()
        self.imaginary = False
        self.bars = 0

    def peek(self, ahead: int = 0) -> str:
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        token = self.peek()
        if not token or (expected and token != expected):
            raise Unreadable(f"{token or 'the end'!r} where {expected or 'more'!r} should be")
        self.position += 1
        return token

    def sum(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise Unreadable("nested too deep")
        total = self.product(depth)
        while self.peek() in ("+", "-"):
            total = _binary(self.take(), total, self.product(depth))
        return total

    def product(self, depth: int) -> Node:
        value = self.signed(depth)
        while True:
            token = self.peek()
            if token in ("*", r"\cdot", r"\times"):
                self.take()
                value = _binary("*", value, self.signed(depth))
            elif token in ("/", r"\div"):
                self.take()
                value = _binary("/", value, self.signed(depth))
            elif token and token not in _IMPLICIT_STOP:
                # "2 3" is two numbers side by side, not a product
                if token[0].isdigit() and self.tokens[self.position - 1][-1].isdigit():
                    raise Unreadable("two numbers side by side")
                value = _binary("*", value, self.power(depth))
            elif token == "|" and not self.bars:
                value = _binary("*", value, self.power(depth))
            else:
                return value

    def signed(self, depth: int) -> Node:
        if self.peek() in ("+", "-"):
            sign = self.take()
            if depth > MAX_DEPTH:
                raise Unreadable("nested too deep")
            value = self.signed(depth + 1)
            return value if sign == "+" else _binary("-", lambda _: Fraction(0), value)
        return self.power(depth)

    def power(self, depth: int) -> Node:
        base = self.postfix(self.atom(depth), depth)
        if self.peek() == "^":
            self.take()
            if self._degree_sign():
                base = _binary("*", base, lambda _: _mp().pi / 180)
            else:
                base = _binary("^", base, self.exponent(depth))
            if self.peek() == "^":
                raise Unreadable("a double exponent")
            base = self.postfix(base, depth)
        return base

    def _degree_sign(self) -> bool:
        for size, shape in ((1, [r"\circ"]), (3, ["{", r"\circ", "}"])):
            if self.tokens[self.position : self.position + size] == shape:
                self.position += size
                return True
        return False

    def exponent(self, depth: int) -> Node:
        if self.peek() == "{":
            return self.group(depth)
        if self.peek() in ("+", "-"):
            return self.signed(depth + 1)
        token = self.peek()
        if len(token) > 1 and token.isdigit() and self.position and "\\" in "".join(self.tokens):
            raise Unreadable("an exponent of several digits without braces")  # TeX reads x^12 as x^1 2
        return self.power(depth + 1) if token != "(" else self.atom(depth + 1)

    def postfix(self, value: Node, depth: int) -> Node:
        while self.peek() == "!":
            self.take()
            value = _unary(_factorial, value)
        return value

    def group(self, depth: int) -> Node:
        self.take("{")
        value = self.sum(depth + 1)
        self.take("}")
        return value

    def argument(self, depth: int) -> Node:
        """The argument of a TeX command: a group, or one digit or letter (\\frac12)."""
        token = self.peek()
        if token == "{":
            return self.group(depth)
        if token and token[0].isdigit():
            if len(token) > 1:  # \frac12: TeX takes one character
                if not token.isdigit():
                    raise Unreadable("a decimal where TeX takes one digit")
                self.tokens[self.position : self.position + 1] = [token[0], token[1:]]
            return self._number(self.take())
        return self.atom(depth + 1)

    def atom(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise Unreadable("nested too deep")
        token = self.take()
        if token[0].isdigit() or token[0] == ".":
            if self.peek() == "_":
                raise Unreadable("a number with a subscript")
            return self._number(token)
        closing = {"(": ")", "{": "}", "[": "]", r"\lvert": r"\rvert", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
        if token in closing:
            bars, self.bars = self.bars, 0
            value = self.sum(depth + 1)
            self.take(closing[token])
            self.bars = bars
            return _unary(_BRACKETS[token], value) if token in _BRACKETS else value
        if token == "|":
            self.bars += 1
            value = self.sum(depth + 1)
            self.bars -= 1
            self.take("|")
            return _unary(_BRACKETS[r"\lvert"], value)
        if token[0] == "\\":
            return self.command(token[1:], depth)
        if token.isalpha():
            return self.symbol(token)
        raise Unreadable(f"{token!r}")

    def _number(self, token: str) -> Node:
        number = Fraction(token)
        return lambda _: number

    def symbol(self, name: str) -> Node:
        if self.peek() == "_":
            self.take()
            name += "_" + self._subscript()
        elif name == "e":
            return lambda _: _mp().e
        elif name == "i":
            self.imaginary = True
            return lambda _: _mp().mpc(0, 1)
        while self.peek() == "'":
            name += self.take()
        if self.peek() == "(" and name in ("f", "g", "h", "P", "Q", "F", "G"):
            raise Unreadable("a function without a definition")
        self.symbols.add(name)
        return lambda point: point[name]

    def _subscript(self) -> str:
        if self.peek() != "{":
            return self.take()
        self.take()
        parts = []
        while self.peek() not in ("}", ""):
            parts.append(self.take())
        self.take("}")
        return "".join(parts)

    def command(self, name: str, depth: int) -> Node:
        if name in ("frac", "dfrac", "tfrac", "cfrac"):
            top = self.argument(depth)
            return _binary("/", top, self.argument(depth))
        if name == "sqrt":
            return self._root(depth)
        if name == "cbrt":
            return _binary("root", self.argument(depth), lambda _: Fraction(3))
        if name in ("binom", "dbinom", "tbinom"):
            top = self.argument(depth)
            return _binary("binom", top, self.argument(depth))
        if name == "pi":
            return lambda _: _mp().pi
        if name in _FUNCTIONS:
            return self._function(_FUNCTIONS[name], depth)
        if name in _GREEK:
            return self.symbol("\\" + name)
        if name == "imath":
            return self.symbol("i")
        raise Unreadable(f"\\{name}")

    def _root(self, depth: int) -> Node:
        if self.peek() != "[":
            return _binary("root", self.argument(depth), lambda _: Fraction(2))
        self.take("[")
        index = self.sum(depth + 1)
        self.take("]")
        return _binary("root", self.argument(depth), index)

    def _function(self, name: str, depth: int) -> Node:
        base: Node | None = None
        if name == "log" and self.peek() == "_":
            self.take()
            base = self.argument(depth)
        power: Node | None = None
        if self.peek() == "^":
            self.take()
            power = self.exponent(depth)
            if self.tokens[self.position - 3 : self.position] == ["-", "1", "}"]:
                if name not in ("sin", "cos", "tan", "cot", "sec", "csc"):
                    raise Unreadable("an inverse function without a name")
                name, power = "a" + name, None
        argument = self._function_argument(depth)
        value = _log(argument, base) if name == "log" else _unary(_NAMED[name], argument)
        return value if power is None else _binary("^", value, power)

    def _function_argument(self, depth: int) -> Node:
        if self.peek() == "(":
            return self.power(depth + 1)
        if self.peek() == "-":
            return self.signed(depth + 1)
        argument = self.power(depth + 1)
        while (token := self.peek()) and token not in _IMPLICIT_STOP and token != "(" and token[1:] not in _FUNCTIONS:
            argument = _binary("*", argument, self.power(depth + 1))
        return argument


# ---------------------------------------------------------------- values


@functools.lru_cache(maxsize=1)
def _mp() -> Any:
    from mpmath import mp  # 60 ms that a worker without mathematics does not spend

    return mp


def warm() -> None:
    """Import what evaluation needs."""
    _mp()


def _binary(operation: str, left: Node, right: Node) -> Node:
    apply = _OPERATIONS[operation]
    return lambda point: apply(left(point), right(point))


def _unary(function: Callable[[Any], Any], argument: Node) -> Node:
    return lambda point: function(argument(point))


def _inexact(value: Any) -> Any:
    """At the working precision; symbols and numbers are Fractions as long as they can be."""
    return _mp().mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _arithmetic(apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def both(a: Any, b: Any) -> Any:
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            value = apply(a, b)
            small = value.numerator.bit_length() < MAX_BITS and value.denominator.bit_length() < MAX_BITS
            return value if small else _inexact(value)
        return apply(_inexact(a), _inexact(b))

    return both


def _divide(a: Any, b: Any) -> Any:
    if b == 0:
        raise Undefined
    return a / b


def _power(base: Any, exponent: Any) -> Any:
    mp = _mp()
    if abs(exponent) > MAX_POWER:
        raise Undefined
    if base == 0:
        if mp.re(_inexact(exponent)) <= 0:
            raise Undefined
        return Fraction(0)
    whole = mp.isint(_inexact(exponent))
    if isinstance(base, Fraction) and whole:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(int(exponent)) < MAX_BITS:
            return base ** int(exponent)
    base = _inexact(base)
    if abs(mp.log(abs(base))) * abs(_inexact(exponent)) > 10 * MAX_POWER:
        raise Undefined
    return base ** int(exponent) if whole else mp.power(base, _inexact(exponent))


def _root(value: Any, index: Any) -> Any:
    mp = _mp()
    if not isinstance(index, Fraction) or index.denominator != 1 or not 1 <= index <= 100:
        raise Undefined
    n, value = int(index), _inexact(value)
    if n % 2 == 1 and mp.im(value) == 0 and mp.re(value) < 0:
        return -mp.root(-value, n)  # the real root, as schools mean it
    return mp.root(value, n)


def _factorial(value: Any) -> Any:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= MAX_FACTORIAL:
        raise Undefined
    return Fraction(math.factorial(int(value))) if value <= 1000 else _mp().factorial(int(value))


def _binomial(n: Any, k: Any) -> Any:
    if abs(n) > MAX_FACTORIAL or abs(k) > MAX_FACTORIAL:
        raise Undefined
    if isinstance(n, Fraction) and isinstance(k, Fraction) and n.denominator == k.denominator == 1 and 0 <= k <= n <= 5000:
        return Fraction(math.comb(int(n), int(k)))
    return _mp().binomial(_inexact(n), _inexact(k))


def _log(argument: Node, base: Node | None) -> Node:
    """Without a base, \\log is to an unknown one: log 4 = 2 log 2 holds, log 100 = 2 does not."""

    def value(point: Mapping[str, Any]) -> Any:
        mp = _mp()
        x, b = _inexact(argument(point)), mp.mpf("7.389") if base is None else _inexact(base(point))
        if x == 0 or b in (0, 1):
            raise Undefined
        return mp.log(x) / mp.log(b)

    return value


_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": _arithmetic(lambda a, b: a + b),
    "-": _arithmetic(lambda a, b: a - b),
    "*": _arithmetic(lambda a, b: a * b),
    "/": _arithmetic(_divide),
    "^": _power,
    "root": _root,
    "binom": _binomial,
}
_BRACKETS: dict[str, Callable[[Any], Any]] = {
    r"\lvert": lambda x: abs(x),
    r"\lfloor": lambda x: Fraction(math.floor(x)) if isinstance(x, Fraction) else _mp().floor(x),
    r"\lceil": lambda x: Fraction(math.ceil(x)) if isinstance(x, Fraction) else _mp().ceil(x),
}


def _mp_function(name: str) -> Callable[[Any], Any]:
    return lambda x: getattr(_mp(), name)(_inexact(x))


_NAMED = {
    **{n: _mp_function(n) for n in "sin cos tan cot sec csc sinh cosh tanh exp ln asin acos atan acot asec acsc".split()},
    "lg": _mp_function("log10"),
}


# ---------------------------------------------------------------- equality


def equal(one: Expression, other: Expression) -> bool:
    """Whether both have the same value at every point tried (at least one, two with symbols)."""
    names = sorted(one.symbols | other.symbols)
    tried = 0
    for index in range(POINTS if names else 1):
        same = _same(one, other, _point(names, index))
        if same is False:
            return False
        tried += same is True
    return tried >= (2 if names else 1)


def proportion(one: Expression, other: Expression) -> float | None:
    """one / other if that is one non-zero real constant, else None.

    Two equations L1 - R1 = 0 and L2 - R2 = 0 that are proportional have the same solutions.
    """
    names = sorted(one.symbols | other.symbols)
    ratio = None
    tried = 0
    for index in range(POINTS):
        with _mp().workdps(DIGITS):
            a, b = (_inexact(_value(e, _point(names, index))) for e in (one, other))
            if a is None or b is None or a == 0 or b == 0:
                continue
            ratio = a / b if ratio is None else ratio
            if abs(a - b * ratio) > _mp().mpf(10) ** (-AGREE) * abs(a):
                return None
            tried += 1
    if tried < 2 or ratio is None or _mp().im(ratio):
        return None
    return float(_mp().re(ratio))


def approximation(decimal: Fraction, digits: int, exact: Expression) -> bool:
    """Whether a decimal of so many significant digits is `exact` rounded to them (or cut off there)."""
    mp = _mp()
    with mp.workdps(DIGITS):
        value = _inexact(_value(exact, {})) if not exact.symbols else None
        if value is None or value == 0 or mp.im(value) != 0:
            return False
        written = _inexact(decimal)
        unit = mp.mpf(10) ** (mp.floor(mp.log10(abs(value))) + 1 - digits)
        return abs(written - value) < unit


def _same(one: Expression, other: Expression, point: Mapping[str, Any]) -> bool | None:
    """Equality at one point; None where that says nothing."""
    mp = _mp()
    dps = DIGITS
    a, b = _at(one, other, point, dps)
    if a is None and b is None:
        return None if point else False
    if a is None or b is None:
        # outside one's domain on the reals
        return None if point and not (one.complex or other.complex) else False
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    size = max(abs(_inexact(a)), abs(_inexact(b)))
    if size > mp.mpf(10) ** (DIGITS // 3):
        dps += min(MAX_DIGITS, int(mp.log10(size)))
        a, b = _at(one, other, point, dps)
    difference = _difference(a, b, dps)
    if difference == 0:
        return True
    if difference > mp.mpf(10) ** (-AGREE) * max(size, 1):
        return False
    a, b = _at(one, other, point, dps + 100)
    return a is not None and b is not None and _difference(a, b, dps + 100) <= difference * mp.mpf(10) ** (-90)


def _at(one: Expression, other: Expression, point: Mapping[str, Any], dps: int) -> tuple[Any, Any]:
    with _mp().workdps(dps):
        return _value(one, point), _value(other, point)


def _difference(a: Any, b: Any, dps: int) -> Any:
    with _mp().workdps(dps):
        return abs(_inexact(a) - _inexact(b))


def _point(names: list[str], index: int) -> dict[str, Any]:
    drawn = random.Random(index)
    sign = -1 if index % 2 else 1
    return {name: sign * Fraction(drawn.randint(301, 2999), 997) for name in names}


def _value(expression: Expression, point: Mapping[str, Any]) -> Any:
    """A finite number, or None where there is none (or only a complex one of a real expression)."""
    mp = _mp()
    try:
        value = expression.evaluate(point)
        if isinstance(value, Fraction):
            return value
        if not mp.isfinite(value):
            return None
        imaginary = mp.im(value)
        if imaginary and not expression.complex:
            if abs(imaginary) > mp.mpf(10) ** (-AGREE) * abs(value):
                return None
            value = mp.re(value)
        return value
    except (Undefined, ZeroDivisionError, ValueError, OverflowError, ArithmeticError, TypeError, RecursionError):
        return None
