"""How a response is laid out: IFBench's `format`."""

from __future__ import annotations

import re
import string
from collections import defaultdict, deque
from itertools import pairwise

from verifiers.constraints.ifbench_checks.emoji import is_emoji
from verifiers.constraints.ifbench_checks.plain import MARKS, bare, trimmed
from verifiers.constraints.punkt import sentences
from verifiers.constraints.treebank import tokens

_CLOSERS = {"(": ")", "[": "]", "{": "}"}


def parentheses(text: str) -> bool:
    """A bracket is closed after five were open at once; a wrong closer forgets all that are open."""
    open_: list[str] = []
    deep = False
    for char in text:
        if char in _CLOSERS:
            open_.append(_CLOSERS[char])
            deep = deep or len(open_) >= 5
        elif char in ")]}":
            if not open_ or open_.pop() != char:
                open_, deep = [], False
            elif deep:
                return True
    return False


def quotes(text: str) -> bool:
    """Three quotations, " in ' in " or the other way, of which all three are closed; an apostrophe is a quote."""
    open_: list[str] = []
    deepest = 0
    for char in text:
        if open_ and char == open_[-1]:
            open_.pop()
            if deepest - len(open_) >= 3:
                return True
        elif char in "\"'":
            open_.append(char)
            deepest = max(deepest, len(open_))
    return False


_LETTERS = re.compile(r"\W*[aA]\W*[bB]\W*[cC]\W*")


def options_of(options: str) -> list[str]:
    """The options of a text such as "yes/no/maybe", "I know or I don't know" or "a), b), c)"."""
    separator = "/" if "/" in options else "or" if "or" in options else ","
    return [option.strip() for option in options.split(separator)]


def options(text: str, options: str) -> bool:
    """The response is one of them: letters to the character, others without punctuation and case."""
    allowed = options_of(options)
    if _LETTERS.match(options):
        return text in allowed
    return trimmed(text).lower() in {trimmed(option).lower() for option in allowed}


def newline(text: str) -> bool:
    """As many lines as words, empty lines and punctuation aside."""
    made = bare(text).strip()
    return sum(line != "" for line in made.split("\n")) == len(made.split())


def emoji(text: str) -> bool:
    """Each sentence has an emoji as its last character or last but one, or at the beginning of the next."""
    ends = [bare(sentence).strip() for sentence in sentences(text)]
    for number, end in enumerate(ends):
        if not end:
            return False
        if not any(is_emoji(char) for char in end[-2:]) and not (
            number + 1 < len(ends) and ends[number + 1] and is_emoji(ends[number + 1][0])
        ):
            return False
    return True


def line_indent(text: str) -> bool:
    """Each line has more spaces before it than the one before.

    Of blank lines the reference removes only some (it removes from the list that it walks), and those that stay
    count as lines; the same ones stay here.
    """
    lines = text.split("\n")
    places: dict[str, deque[int]] = defaultdict(deque)
    for number, line in enumerate(lines):
        if not line.strip():
            places[line].append(number)
    removed = set()
    number = 0
    while number < len(lines):
        if lines[number].strip():
            number += 1
        else:  # the first equal line goes, and the walk misses the next one
            removed.add(places[lines[number]].popleft())
            number += 2
    indents = [len(line) - len(line.lstrip(" ")) for n, line in enumerate(lines) if n not in removed]
    return all(a < b for a, b in pairwise(indents))


_NOT_QUOTES = string.digits + MARKS.replace('"', "")


def quote_unquote(text: str) -> bool:
    """No two double quotes in a row and none at the end; a response without quotes follows."""
    made = text.replace("\u201c", '"').replace("\u201d", '"').replace("'\"'", "")
    made = "".join(made.split())
    return '""' not in made and not made.strip(_NOT_QUOTES).endswith('"')


def list_marker(text: str, sep: str) -> bool:
    """The marker occurs twice, anywhere."""
    return text.count(sep) >= 2


def thesis(text: str) -> bool:
    """Something in <i> or <em> and something after it; the first such pair decides."""
    start = _first(text, "<i>", "<em>")
    if start < 0:
        return False
    rest = text[start:]
    end = _first(rest, "</i>", "</em>")
    return end >= 0 and bool(rest[3:end].strip()) and bool(rest[end + 4 :].strip())


def _first(text: str, tag: str, other: str) -> int:
    """Where `tag` is, or else `other`; -1 for neither."""
    place = text.find(tag)
    return place if place >= 0 else text.find(other)


def sub_bullets(text: str) -> bool:
    """After each * comes a - before the next *. A response without * follows, as in the reference."""
    return all("-" in bullet for bullet in text.split("*")[1:])


def no_bullets_bullets(text: str) -> bool:
    """Two sentences, then two lines that begin with * and nothing after them; an empty line ends the sentences."""
    count = bullets = 0
    prose = True
    for line in text.split("\n"):
        stripped = line.strip()
        if stripped.startswith("*"):
            prose = False
            if count < 2:
                return False
            bullets += 1
        elif prose:
            found = len(sentences(stripped))
            count += found
            prose = found > 0
        else:
            return False
    return bullets >= 2


def title_case(text: str) -> bool:
    """No token is in lower case, or begins so and goes on in upper case: "iPhone" may stay, "the" may not.

    A single letter may be small, as in the reference when its verdicts were published.
    """
    return not any(
        token[0].islower() and (token[1:].islower() or token[1:].isupper()) for token in tokens(text)
    )


def output_template(text: str) -> bool:
    """The three headings occur, anywhere."""
    return all(heading in text for heading in ("My Answer:", "My Conclusion:", "Future Outlook:"))


def no_whitespace(text: str) -> bool:
    return not any(char.isspace() for char in text)
