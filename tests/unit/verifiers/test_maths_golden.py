"""Labelled answers written by hand: by kind of mathematics, half of them right, half nearly so."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from verifiers import Sample, build
from verifiers.maths import answers, extract, line, numerals, spelling

ROWS = [
    json.loads(row) for row in (Path(__file__).parent / "maths_golden.jsonl").read_text().splitlines() if row
]
BY_KIND: dict[str, list[dict[str, Any]]] = defaultdict(list)
for _row in ROWS:
    BY_KIND[_row["kind"]].append(_row)


@pytest.mark.parametrize("kind", BY_KIND)
@pytest.mark.parametrize(
    "form", [r"Therefore the answer is $\boxed{%s}$.", "After some work.\nThe answer is $%s$"]
)
def test_labelled_answers(kind: str, form: str) -> None:
    judge = build("math")
    wrong = []
    for row in BY_KIND[kind]:
        answer = row["answer"]
        if "$" in answer and "boxed" not in form:
            continue  # dollars within dollars say nothing
        response = answer if answer.startswith(r"\boxed") else form % answer
        judge.check_reference(row["gold"])
        verdict = judge.verify(Sample(response, row["gold"], row.get("prompt", "")))
        if verdict.score != float(row["label"]):
            wrong.append((row["gold"], answer, verdict.score, verdict.reason))
    assert not wrong


def test_every_gold_is_its_own_answer() -> None:
    judge = build("math")
    golds = {(row["gold"], row.get("prompt", "")) for row in ROWS}
    for gold, prompt in sorted(golds):
        for response in (rf"\boxed{{{gold}}}", rf"The answer is \({gold}\)."):
            assert judge.verify(Sample(response, gold, prompt)).score == 1, (gold, response)


def test_the_labels_are_balanced() -> None:
    right = sum(row["label"] for row in ROWS)
    assert len(ROWS) >= 900
    assert 0.4 < right / len(ROWS) < 0.6


# ---------------------------------------------------------------- the line


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (r"(-\infty,-2) \cup (2,\infty)", 2), (r"x<-2 \text{ or } x>2", 2), ("|x|>2", 2), ("|x|<2", 1), (r"\mathbb{R}", 1),
        (r"\mathbb{R} \setminus \{1,2\}", 3), (r"x \ne 0", 2), (r"[1,2] \cup [2,3]", 1), (r"[1,2) \cup (2,3]", 2), (r"[1,2) \cup \{2\}", 1),
        (r"(0,3) \cup (1,2)", 1), (r"\{3\} \cup (0,1)", 2), (r"1 \le |y| \le 2", 2), (r"0 \le |y| \le 2", 1), ("3 < x", 1),
    ],
)  # fmt: skip
def test_pieces_of_a_set_of_numbers(text: str, count: int) -> None:
    pieces = line.pieces(answers.read(text))
    assert pieces is not None
    assert len(pieces) == count


@pytest.mark.parametrize("text", ["x>-2, x<2", "x^2<4", "a>2b", "1<x<2<y", "|z|<2", "(2,1)", "(1,2,3)", "x<1, y>2", "|x|<-1", r"1<x>0",
                                  r"[\infty,2]", r"\{a\}", r"x \ne y"])  # fmt: skip
def test_what_is_no_one_set_of_numbers(text: str) -> None:
    assert line.pieces(answers.read(text)) is None


# ---------------------------------------------------------------- spelling, boxes, sentences


@pytest.mark.parametrize(
    ("written", "spelled"),
    [
        (r"-2 \\le x \\le 7", r"-2 \le  x \le  7"), ("-\\\x0crac{7}{4}", r"-\frac{7}{4}"), ("\x0crac{1}{2}", r"\frac{1}{2}"),
        (r"{3 \over 8}", r"\frac{3}{8}"), (r"{10 \choose 3}", r"\binom{10}{3}"), (r"\underline{42}", "42"), (r"\boxed{\mathbf{4}}", "4"),
        ("]1,2[", "(1,2)"), ("[1,2[", "[1,2)"), ("]1,2]", "(1,2]"), (r"[1,2] \cup [3,4]", r"[1,2] \cup [3,4]"), (r"\text{-}5", "-5"),
        (r"\\begin{pmatrix}1\\\\2\\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        (r"\begin{pmatrix}a\\b\end{pmatrix}", r"\begin{pmatrix}a\\b\end{pmatrix}"), (r"3 \text{ to } 4", "3:4"), (r"3+4\mathrm{i}", "3+4i"),
    ],
)  # fmt: skip
def test_one_spelling(written: str, spelled: str) -> None:
    assert spelling.clean(written) == spelled


@pytest.mark.parametrize(
    ("response", "boxes"),
    [
        (r"\boxed{1} papers and \boxed{2} bins", ["1", "2"]),
        (r"\boxed{(3, 3)} \text{ for part (a) and } \boxed{(1, 1)}", ["(3, 3)", "(1, 1)"]),
        (r"\(y_1 = \boxed{a}\) and \(y_2 = \boxed{b}\)", ["a", "b"]),
        (r"x = \boxed{1}, y = \boxed{2}", ["2"]),
        (r"\boxed{1} is wrong and \boxed{2}", ["2"]),
        (r"\boxed{1} not and \boxed{2}", ["2"]),
        (r"\boxed{1}, so \boxed{2}", ["2"]),
        (r"\boxed{1} and then after a long way round we come to \boxed{2}", ["2"]),
    ],
)
def test_boxes_in_a_row(response: str, boxes: list[str]) -> None:
    assert extract.last_boxes(response) == boxes


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (r"\boxed{3} Final Answer: The final answer is $10,455$. I hope it is correct.", "10,455"),
        (r"Final Answer: The final answer is \((-6, 10)\). I hope it is correct.", "(-6, 10)"),
        (r"Final Answer: The final answer is $\boxed{5}$. I hope it is correct.", None),
        (r"Final Answer: The final answer is $5$. I hope it is correct. But no.", None),
        (r"\boxed{6} The final answer is 5.", None),
    ],
)
def test_minervas_closing_sentence(response: str, said: str | None) -> None:
    assert extract.closing_sentence(response) == said


@pytest.mark.parametrize(
    ("response", "gold", "score"),
    [
        ("In all it is 18 apples.", "18", 1), ("It makes **18**", "18", 1), ("In all it is 2,125 apples.", "2125", 1), ("Prix : 2,74 $ a..", "2.74", 1),
        (r"Working: \boxed{3}. Final Answer: The final answer is $5$. I hope it is correct.", "5", 1),
        (r"Working: \boxed{5}. Final Answer: The final answer is $3$. I hope it is correct.", "5", 0),
        (r"\boxed{6} The final answer is 5.", "5", 0), ("In all it is 18 or 19", "18", 0),
    ],
)  # fmt: skip
def test_where_the_answer_is_said(response: str, gold: str, score: int) -> None:
    assert build("math").verify(Sample(response, gold)).score == score


@pytest.mark.parametrize("tail", ["", " of them", " apples in 4 boxes of 72", ".", "\n\n"])
@pytest.mark.parametrize("words", [0, 3, 60])
def test_the_last_number_does_not_depend_on_how_much_stands_before_it(words: int, tail: str) -> None:
    long = numerals.last_number(
        "He has 3/4 of 1,200 left and so on " * words + f"it is 1,0{len(tail)}0" + tail
    )
    short = numerals.last_number(f"it is 1,0{len(tail)}0" + tail)
    assert long == short


@pytest.mark.parametrize(
    "text", [r"0.\overline{3}", r"0.\bar{3}", r"0.\dot{3}", r"0.3\overline{3}", r"\frac13"]
)
def test_repeating_decimals_are_exact(text: str) -> None:
    numeral = numerals.parse(text)
    assert numeral is not None
    assert 3 * numeral.value == 1


@pytest.mark.parametrize(
    "text", [r"0.\overline{}", r"0.\overline{x}", r"\overline{3}", r"0.\overline{3}5", r"0.\overline{AB}"]
)
def test_what_is_no_repeating_decimal(text: str) -> None:
    assert numerals.parse(text) is None
