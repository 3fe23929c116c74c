"""Scalar expressions in LaTeX or plain text, parsed strictly: what the grammar does not know is refused."""

from __future__ import annotations

import functools
import re
from fractions import Fraction

from verifiers.maths.evaluation import (
    BRACKETS,
    NAMED,
    Expression,
    Node,
    binary,
    factorial,
    logarithm,
    mp_context,
    unary,
)

MAX_TOKENS = 400
MAX_DEPTH = 40


class Unreadable(Exception):
    """The text is no expression of this grammar."""


_TOKEN = re.compile(
    r"\s+|\d+(?:\.\d+)?|\.\d+|\\[A-Za-z]+|\\[|{}!]|[A-Za-z]|\*\*|[-+*/^_(){}\[\]|!=<>,;:&%']|\u221a|\u03c0"
)


def _names(text: str) -> list[str]:
    return text.split()


_GREEK = frozenset(
    _names(
        "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma "
        "tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell"
    )
)
_FUNCTIONS = {
    **{n: n for n in _names("sin cos tan cot sec csc sinh cosh tanh exp ln log lg")},
    **{f"arc{n}": f"a{n}" for n in _names("sin cos tan cot sec csc")},
    **{f"a{n}": f"a{n}" for n in _names("sin cos tan")},
}
_WORDS = {"sqrt", "pi", "cbrt", *(_FUNCTIONS.keys() - {"lg", "ln"}), "ln"}
_IGNORED = {r"\left", r"\right", r"\displaystyle", r"\limits", r"\,", r"\;", r"\!", r"\:", r"\big", r"\Big", r"\bigl",
            r"\bigr", r"\Bigl", r"\Bigr", r"\quad", r"\mathrm", r"\mathit", r"\mathbf"}  # fmt: skip
_IMPLICIT_STOP = set("+-*/)}]|=<>,;:&%^_!'") | {
    r"\cdot",
    r"\times",
    r"\div",
    r"\rvert",
    r"\rfloor",
    r"\rceil",
    r"\|",
}


def tokenise(text: str) -> list[str]:
    """Raises Unreadable for a character that no expression has."""
    text = re.sub(r"\\[,;:! ]|~", " ", text)
    tokens: list[str] = []
    position = 0
    while position < len(text):
        word = re.compile(r"[A-Za-z]{2,}").match(text, position)
        if word and (not tokens or not tokens[-1].startswith("\\mathrm")):
            known = next(
                (w for w in sorted(_WORDS, key=len, reverse=True) if word.group().startswith(w)), None
            )
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
    return Expression(node, frozenset(parser.symbols), parser.imaginary, text)


class _Parser:
    """Recursive descent. Each method returns a function from a point to a value."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = 0
        self.symbols: set[str] = set()
        self.imaginary = False
        self.bars = 0
        self.bare_end = -1  # where the last {...} of its own ended

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
            total = binary(self.take(), total, self.product(depth))
        return total

    def product(self, depth: int) -> Node:
        value = self.signed(depth)
        while True:
            token = self.peek()
            if token in ("*", r"\cdot", r"\times"):
                self.take()
                value = binary("*", value, self.signed(depth))
            elif token in ("/", r"\div"):
                self.take()
                value = binary("/", value, self.signed(depth))
            elif token and token not in _IMPLICIT_STOP:
                # "2 3" is two numbers side by side, not a product
                if token[0].isdigit() and self.tokens[self.position - 1][-1].isdigit():
                    raise Unreadable("two numbers side by side")
                if (token[0].isdigit() and self.bare_end == self.position) or (
                    token == "{" and self.peek(1)[:1].isdigit()
                ):
                    raise Unreadable("digits in braces side by side")  # {5}{1} is printed as 51
                if (
                    token.isdigit()
                    and self.peek(1) not in ("^", "!")
                    and self.tokens[self.position - 1] != ")"
                ):
                    raise Unreadable("a number behind a factor")  # "\\frac{14}{3} 1" has two answers
                value = binary("*", value, self.power(depth))
            elif token == "|" and not self.bars:
                value = binary("*", value, self.power(depth))
            else:
                return value

    def signed(self, depth: int) -> Node:
        if self.peek() in ("+", "-"):
            sign = self.take()
            if depth > MAX_DEPTH:
                raise Unreadable("nested too deep")
            value = self.signed(depth + 1)
            return value if sign == "+" else binary("-", lambda _: Fraction(0), value)
        return self.power(depth)

    def power(self, depth: int) -> Node:
        base = self.postfix(self.atom(depth), depth)
        if self.peek() == "^":
            self.take()
            if self._degree_sign():
                base = binary("*", base, lambda _: mp_context().pi / 180)
            else:
                base = binary("^", base, self.exponent(depth))
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
        return self._number(self.take()) if token.isdigit() else self.atom(depth + 1)

    def postfix(self, value: Node, depth: int) -> Node:
        while self.peek() == "!":
            self.take()
            value = unary(factorial, value)
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
            return self._mixed(token) or self._number(token)
        closing = {
            "(": ")",
            "{": "}",
            "[": "]",
            r"\lvert": r"\rvert",
            r"\lfloor": r"\rfloor",
            r"\lceil": r"\rceil",
        }
        if token in closing:
            bars, self.bars = self.bars, 0
            value = self.sum(depth + 1)
            self.take(closing[token])
            self.bars = bars
            if token == "{":
                self.bare_end = self.position
            return unary(BRACKETS[token], value) if token in BRACKETS else value
        if token == "|":
            self.bars += 1
            value = self.sum(depth + 1)
            self.bars -= 1
            self.take("|")
            return unary(BRACKETS[r"\lvert"], value)
        if token[0] == "\\":
            return self.command(token[1:], depth)
        if token.isalpha():
            return self.symbol(token)
        raise Unreadable(f"{token!r}")

    def _mixed(self, token: str) -> Node | None:
        """3\\frac{1}{2} is three and a half, as schools write it, and no product."""
        written = "".join(self.tokens[self.position : self.position + 7])
        match = re.match(r"\\frac(?:\{(\d+)\}\{(\d+)\}|(\d)(\d)(?!\d))", written)
        if match is None or not token.isdigit():
            return None
        top, bottom = int(match[1] or match[3]), int(match[2] or match[4])
        if not 0 < top < bottom:
            return None
        self.position += 7 if match[1] else 2 if self.peek(1) == match[3] + match[4] else 3
        value = int(token) + Fraction(top, bottom)
        return lambda _: value

    def _number(self, token: str) -> Node:
        number = Fraction(token)
        return lambda _: number

    def symbol(self, name: str) -> Node:
        if self.peek() == "_":
            self.take()
            name += "_" + self._subscript()
        elif name == "e":
            return lambda _: mp_context().e
        elif name == "i":
            self.imaginary = True
            return lambda _: mp_context().mpc(0, 1)
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
            return binary("/", top, self.argument(depth))
        if name == "sqrt":
            return self._root(depth)
        if name == "cbrt":
            return binary("root", self.argument(depth), lambda _: Fraction(3))
        if name in ("binom", "dbinom", "tbinom"):
            top = self.argument(depth)
            return binary("binom", top, self.argument(depth))
        if name == "pi":
            return lambda _: mp_context().pi
        if name in _FUNCTIONS:
            return self._function(_FUNCTIONS[name], depth)
        if name in _GREEK:
            return self.symbol("\\" + name)
        if name == "imath":
            return self.symbol("i")
        raise Unreadable(f"\\{name}")

    def _root(self, depth: int) -> Node:
        if self.peek() != "[":
            return binary("root", self.argument(depth), lambda _: Fraction(2))
        self.take("[")
        index = self.sum(depth + 1)
        self.take("]")
        return binary("root", self.argument(depth), index)

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
        value = logarithm(argument, base) if name == "log" else unary(NAMED[name], argument)
        return value if power is None else binary("^", value, power)

    def _function_argument(self, depth: int) -> Node:
        if self.peek() == "(":  # \\sin(x)^2 is the square of \\sin(x), for `power` to see
            return self.postfix(self.atom(depth + 1), depth)
        if self.peek() == "-":
            return self.signed(depth + 1)
        argument = self.power(depth + 1)
        while (
            (token := self.peek())
            and token not in _IMPLICIT_STOP
            and token != "("
            and token[1:] not in _FUNCTIONS
        ):
            argument = binary("*", argument, self.power(depth + 1))
        return argument
