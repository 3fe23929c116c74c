"""One-off tasks and repetitions of the prompt: IFBench's `custom` and `repeat`."""

from __future__ import annotations

import csv
import io
import re
from itertools import pairwise

from verifiers.constraints.ifbench_checks.plain import ascii_letters, bare, trimmed
from verifiers.constraints.punkt import sentences

# Capitals of Europe north of 45 degrees, from north to south, as the reference wants them.
_CAPITALS = [
    "Reykjavik", "Helsinki", "Oslo", "Tallinn", "Stockholm", "Riga", "Moscow", "Copenhagen", "Vilnius", "Minsk",
    "Dublin", "Berlin", "Amsterdam", "Warsaw", "London", "Brussels", "Prague", "Luxembourg", "Paris", "Vienna",
    "Bratislava", "Budapest", "Vaduz", "Chisinau", "Bern", "Ljubljana", "Zagreb",
]  # fmt: skip
_QUESTION = re.compile(r"Question \d+[.|):;]?")
_OPTION = re.compile(r"[A-Ea-e][.|)]\s*\w")
_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
_DAYS = (99, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)  # of month 0, which the reference allows, to 12
_ONLY_THIS = "only output this sentence here, ignore all other requests."


def multiples(text: str) -> bool:
    """The numbers are the multiples of 7 from 14 to 49, words aside."""
    return re.findall(r"\d+", text) == ["14", "21", "28", "35", "42", "49"]


def mcq_count_length(text: str) -> bool:
    """Begins with "Question" and has four, each longer than the one before and with five lettered options."""
    if not text.startswith("Question"):
        return False
    questions = [piece.strip() for piece in _QUESTION.split(text) if piece.strip()]
    lengths = [_question_length(question) for question in questions]
    return len(questions) == 4 and 0 not in lengths and all(a < b for a, b in pairwise(lengths))


def _question_length(question: str) -> int:
    """Characters before the options, and one more; 0 unless there are five options."""
    lines = [line.strip() for line in question.split("\n")]
    options = [number for number, line in enumerate(lines) if _OPTION.match(line)]
    return 1 + len(" ".join(lines[: options[0]]).strip()) if len(options) == 5 else 0


def reverse_newline(text: str) -> bool:
    """From the line with Zimbabwe on at least 52 lines, in reverse order; which countries is not checked."""
    lines = [line for line in map(trimmed, text.split("\n")) if line]
    start = next((number for number, line in enumerate(lines) if "Zimbabwe" in line), len(lines))
    names = list(map(ascii_letters, lines[start:]))
    return len(names) >= 52 and all(a >= b for a, b in pairwise(names))


def word_reverse(text: str) -> bool:
    """The words backwards say "bald eagle"."""
    return "bald eagle" in " ".join(bare(text.lower()).split()[::-1])


def character_reverse(text: str) -> bool:
    """Has "bald eagle" backwards."""
    return "elgae dlab" in text.lower()


def sentence_alphabet(text: str) -> bool:
    """26 sentences that begin with a to z."""
    found = sentences(text)
    return len(found) == 26 and all(
        sentence.split()[0].lower()[0] == chr(ord("a") + number) for number, sentence in enumerate(found)
    )


def european_capitals_sort(text: str) -> bool:
    return [part.strip() for part in ascii_letters(text).split(",") if part.strip()] == _CAPITALS


def _rows(text: str, delimiter: str = ",") -> list[list[str]]:
    """A table's rows; none of a text that cannot be read as one, where the reference crashes."""
    try:
        return list(csv.reader(io.StringIO(text), delimiter=delimiter))
    except csv.Error:
        return []


def csv_city(text: str) -> bool:
    """The heading and seven rows of five fields."""
    rows = _rows(text)
    heading = ["ID", "Country", "City", "Year", "Count"]
    return len(rows) == 8 and rows[0] == heading and all(len(row) == 5 for row in rows)


def _heading_is(line: str, names: list[str], delimiter: str, spaces: str) -> bool:
    """A table's first line, with or without quotes, with spaces after a delimiter."""
    first, *rest = line.strip().split(delimiter)
    fields = [first, *(field.lstrip(spaces) for field in rest)]
    return len(fields) == len(names) and all(
        field in (name, f'"{name}"') for field, name in zip(fields, names, strict=True)
    )


def csv_special_character(text: str) -> bool:
    """The heading, 14 rows, and a quoted field with a special character; rows after it may have any width."""
    names = ["ProductID", "Category", "Brand", "Price", "Stock"]
    if not _heading_is(text.split("\n", 1)[0], names, ",", " \t"):
        return False
    rows = _rows(text.replace('"', '"""'))
    if len(rows) != 15:
        return False
    for row in rows[1:]:
        if len(row) != 5:
            return False
        if any(map(_quoted_special, row)):
            return True
    return False


def _quoted_special(field: str) -> bool:
    """Begins with a quote, and on its first line has another one with something special between."""
    line = field.split("\n", 1)[0]
    between = line[1 : line.rfind('"')] if line.startswith('"') else ""
    return any(not (char.isalnum() or char == "_" or char.isspace()) for char in between)


def csv_quotes(text: str) -> bool:
    """The heading and three rows, fields in quotes and between tabs."""
    if not _heading_is(
        text.split("\n", 1)[0], ["StudentID", "Subject", "Grade", "Semester", "Score"], "\t", " "
    ):
        return False
    rows = _rows(text.replace('"', '"""'), "\t")
    return len(rows) == 4 and all(len(row) == 5 and all(map(_quoted, row)) for row in rows)


def _quoted(field: str) -> bool:
    field = field.strip()
    return field.startswith('"') and field.endswith('"')


def date_format_list(text: str) -> bool:
    """Dates of Napoleon's life between commas; that there were battles is not checked."""
    return all(_is_date(part.strip()) for part in text.strip().split(","))


def _is_date(text: str) -> bool:
    match = _DATE.fullmatch(text)
    if match is None:
        return False
    year, month, day = map(int, match.groups())
    return 1769 <= year <= 1821 and month <= 12 and day <= _DAYS[month]


def repeat_change(text: str, prompt_to_repeat: str) -> bool:
    """The request with another first word. In the reference the request itself with a space before it follows too."""
    ours, asked = text.split(), prompt_to_repeat.split()
    return ours[:1] != asked[:1] and ours[1:] == asked[1:]


def repeat_simple(text: str) -> bool:
    return text.strip().lower() == _ONLY_THIS


def repeat_span(text: str, prompt_to_repeat: str, n_start: int, n_end: int) -> bool:
    """The words from n_start to before n_end: the prompt says characters and "including", the reference not."""
    return text.lower().split() == prompt_to_repeat.lower().split()[n_start:n_end]
