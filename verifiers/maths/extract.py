"""Where in a response the answer is."""

from __future__ import annotations

import re

MAX_BOX = 2_000  # characters of one box

_BOX = re.compile(r"\\(?:boxed|fbox) *(?:\{|(?=[\dA-Za-z]))")
# What may stand between two boxes that are one answer of several parts: "and", a part's name ("for part (a)"), a
# noun with "and" ("\boxed{1} paper and \boxed{2} bins"), and before the second what it is ("and y = \boxed{2}")
_JOIN = r"(?:for +)?part +\(?\w\)?|\b(?:and|or)\b"
_BETWEEN = re.compile(
    rf"(?:[\s$,;.*]|\\[()\[\],;: ]|\\q?quad|{_JOIN}|\\(?:text|mbox) *\{{(?:[ ,]|{_JOIN}){{0,6}}\}}"
    r"|\b(?!is|was|not|wrong|but|then|thus|hence|gives|rather|instead|first)[a-z]{3,12} +and\b){0,40}"
    r"(?:(?<=[\s($])[A-Za-z](?:_\w|_\{\w{1,4}\})? *= *)?"
)
_MAX_BETWEEN = 60
_MINERVA = re.compile(
    r"Final Answer:? +The final answer is (?P<said>[^\n]{1,400})\. I hope it is correct\.?\s*\Z"
)
_PERCENT = re.compile(r"\s*(?:\$|\\\)|\\\])?\s*(?:\\?%|per ?cent|pct\b)", re.IGNORECASE)
_ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_ANSWER_IS = re.compile(
    r"(?:final\s+answer|the\s+answer|answer)\b\s*(?:is\b|:|=)?\s*(?:is\b)?\s*:?\s*[*_]*\s*", re.IGNORECASE
)
_REASON = (
    r",?\s+(?:because|since|which|as (?:desired|required|claimed|expected|wanted|needed|stated|asked))\b"
)
_FORMULA = r"(?:\$[^$\n]{1,200}\$|\\\([^\n]{1,200}?\\\))"
_MORE = re.compile(
    rf"(?:\s*(?:,\s*(?:and|or)?|and|or|/)\s*(?:also |else |maybe |perhaps |possibly )?{_FORMULA}){{1,20}}"
)
_MATH = re.compile(
    r"\$\$(?P<dd>.+?)\$\$|(?<!\\)\$(?P<d>[^$]+?)(?<!\\)\$|\\\[(?P<b>.+?)\\\]|\\\((?P<p>.+?)\\\)", re.DOTALL
)


def answer_part(response: str) -> str:
    """What stands in the last <answer>...</answer>, or the whole response without one."""
    start = end = -1
    opened = -1
    for tag in _ANSWER_TAG.finditer(response):
        if not tag.group(1):
            opened = tag.end()
        elif opened >= 0:
            start, end, opened = opened, tag.start(), -1
    return response[start:end] if end >= 0 else response


def last_boxes(text: str) -> list[str] | None:
    """The contents of the last \\boxed{...}; more than one when boxes stand in a row ("\\boxed{1} and
    \\boxed{2}"), which is an answer of several parts. None when there is no box; [] when the last one is
    not closed or too long to be an answer.
    """
    found: list[tuple[int, int, str]] = []
    position = 0
    for match in _BOX.finditer(text):
        if match.start() < position:
            continue  # a box inside a box
        content = _braced(text, match.end()) if match.group().endswith("{") else text[match.end()]
        if content is None:
            found.append((match.start(), len(text), ""))
            position = len(text)
            break
        position = match.end() + len(content) + match.group().endswith("{")
        found.append((match.start(), position, content))
    if not found:
        return None
    row = [found[-1]]
    for box in reversed(found[:-1]):
        between = text[box[1] : row[-1][0]]
        if len(between) > _MAX_BETWEEN or not _BETWEEN.fullmatch(between):
            break
        if "=" in between and not re.search(r"\band\b", between):
            break  # "x = 1, y = 2" may well be steps; "x = 1 and y = 2" is an answer
        row.append(box)
    contents = [_innermost(content.strip()) for _, _, content in reversed(row)]
    if contents and contents[-1] and _PERCENT.match(text, row[0][1]):
        contents[-1] += r"\%"
    return contents if all(0 < len(content) <= MAX_BOX for content in contents) else []


def _innermost(content: str) -> str:
    """\\boxed{\\boxed{5}} holds 5."""
    while content.startswith("\\") and (box := _BOX.match(content)) is not None and box.group().endswith("{"):
        inner = _braced(content, box.end())
        if inner is None or box.end() + len(inner) + 1 != len(content):
            break
        content = inner.strip()
    return content


def _braced(text: str, start: int) -> str | None:
    """The text from `start`, just after an opening brace, to its closing brace."""
    depth = 1
    for index in range(start, min(len(text), start + MAX_BOX + 1)):
        char = text[index]
        if char in "{}" and not _escaped(text, index):
            depth += 1 if char == "{" else -1
            if depth == 0:
                return text[start:index]
    return None


def _escaped(text: str, index: int) -> bool:
    slashes = 0
    while index > slashes and text[index - 1 - slashes] == "\\":
        slashes += 1
    return slashes % 2 == 1


def after_hashes(text: str) -> str | None:
    """The rest of the line after the last "####", GSM8K's own mark."""
    _, mark, after = text.rpartition("####")
    return after.strip().split("\n")[0].strip() if mark else None


def closing_sentence(text: str) -> str | None:
    """What the sentence says that Minerva's prompt asks for, word for word and at the very end.

    It is a form as explicit as a box, so it stands above boxes in the working; a box in it is read as such.
    """
    match = _MINERVA.search(text, max(0, len(text) - 600))
    if match is None or "\\boxed" in match["said"]:
        return None
    said = re.sub(r'^\s*\\?"|\\?"\s*$', "", match["said"]).strip()
    if (maths := _MATH.fullmatch(said)) is not None:
        said = next(group for group in maths.groups() if group is not None).strip()
    return said


def after_answer_is(text: str) -> str | None:
    """What follows the last "the answer is" up to the end of its sentence, math delimiters removed."""
    matches = list(_ANSWER_IS.finditer(text))
    if not matches:
        return None
    rest = text[matches[-1].end() :][:MAX_BOX].strip()
    if math := _MATH.match(rest):
        if more := _MORE.match(rest, math.end()):
            return rest[: more.end()]  # "$5$ or $6$" is no 5
        found = next(group for group in math.groups() if group is not None).strip()
        return found + r"\%" if _PERCENT.match(rest, math.end()) else found
    sentence, *ended = re.split(rf"(\n|[.!?](?=\s|$)|{_REASON})", rest, maxsplit=1)
    if ended and ended[0] == "?":
        return sentence + "?"  # asked, not said
    sentence = re.split(r"\s(?:is|equals)\s(?:equal to\s)?", sentence)[-1].strip(" *_:")
    if (math := _MATH.fullmatch(sentence)) is not None:
        sentence = next(group for group in math.groups() if group is not None).strip()
    return sentence or None


def answer_is_a_formula(text: str) -> bool:
    """Whether the last "the answer is" is followed by a formula between dollars (and not by two prices)."""
    matches = list(_ANSWER_IS.finditer(text))
    math = _MATH.match(text[matches[-1].end() :][:MAX_BOX].strip()) if matches else None
    return math is not None and not re.search(r"[.!?]\s|\b[A-Z]?[a-z]+ [a-z]+\b", math.group())


def last_math(text: str) -> str | None:
    """The $...$, \\(...\\) or \\[...\\] that a text ends with, but for a few words without a number."""
    text = text[-20_000:]
    found = list(_MATH.finditer(text))
    rest = text[found[-1].end() :] if found else ""
    if not found or len(rest) > 60 or re.search(r"[\d$]", rest):
        return None
    content = next(g for g in found[-1].groups() if g is not None).strip()
    return content + r"\%" if _PERCENT.match(text, found[-1].end()) else content
