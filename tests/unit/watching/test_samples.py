"""Recorded samples to read: which, how wide, and that no text of a model reaches the terminal's controls."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tulu_lite.watching.samples import (
    chosen_rows,
    common_prompts,
    sample_view,
    side_by_side,
    status_of,
    summary_line,
)
from tulu_lite.watching.terminal import safe_line, safe_text

HOSTILE = "ok\x1b[2J\x1b]0;owned\x07 \x9b31m \u202eevil\u2066 tag\U000e0041 \ud800 \u2028 [bold]not markup[/bold] \r\x08"


def row(
    prompt: str, sample: int, status: str | None = "correct", source: str = "gsm8k", **more: Any
) -> dict[str, Any]:
    verdict = None if status is None else {"status": status, "reason": "", "extracted": None, "score": None}
    return {
        "prompt_id": prompt, "sample": sample, "source": source, "prompt": f"the prompt {prompt}", "response": f"answer {sample}",
        "reference": "42", "tokens": 7, "finish_reason": "stop", "verdict": verdict, "reward": 1.0, "advantage": -0.5, **more,
    }  # fmt: skip


ROWS = [
    row("a1", 0), row("a1", 1, "incorrect"), row("a1", 2), row("b2", 0, "error"), row("b2", 1, source="math"),
    row("c3", 0, "incorrect", finish_reason="length"), row("c3", 1, None),
]  # fmt: skip


def printed(view: Any, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(view)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("wanted", "places"),
    [
        ({}, ["a1:0", "b2:0", "c3:0", "a1:1", "b2:1", "c3:1", "a1:2"]),
        ({"verdict": "correct"}, ["a1:0", "b2:1", "a1:2"]),
        ({"verdict": "incorrect"}, ["a1:1", "c3:0"]),
        ({"verdict": "error"}, ["b2:0"]),
        ({"verdict": "unjudged"}, ["c3:1"]),
        ({"verdict": "unfinished"}, ["c3:0"]),
        ({"source": "math"}, ["b2:1"]),
        ({"prompt": "a"}, ["a1:0", "a1:1", "a1:2"]),
        ({"verdict": "correct", "source": "gsm8k", "prompt": "b"}, []),
    ],
)
def test_the_rows_that_fit_one_of_each_prompt_first(wanted: dict[str, str], places: list[str]) -> None:
    found = [f"{one['prompt_id']}:{one['sample']}" for one in chosen_rows(ROWS, count=99, **wanted)]
    assert found == places
    assert len(chosen_rows(ROWS, count=2, **wanted)) == min(2, len(places))


def test_a_line_sums_the_step_up() -> None:
    assert summary_line(ROWS) == (
        "7 samples of 3 prompts: 3 correct, 2 incorrect, 1 error, 1 unjudged; sources gsm8k 6, math 1"
    )
    assert status_of(ROWS[-1]) == "unjudged"


def test_a_sample_shows_all_of_it() -> None:
    text = printed(sample_view(row("a1", 3, "incorrect", finish_reason="length", reference={"x": 1}), 500))
    for part in (
        "incorrect",
        "gsm8k",
        "7 tokens",
        "reward 1",
        "advantage -0.5",
        "the prompt a1",
        "answer 3",
        "budget ran out",
        'reference: {"x": 1}',
    ):
        assert part in text


def test_long_text_is_cut_and_says_so() -> None:
    text = printed(sample_view(row("a1", 0, response="x" * 5000), 100))
    assert "4900 more characters" in text and "x" * 101 not in text.replace("\n", "")


def dangerous(text: str) -> list[str]:
    return [c for c in text if c != "\n" and not c.isprintable() and c not in "\u200c\u200d\xa0\u3000"]


def test_no_escape_codes_reach_the_terminal() -> None:
    hostile = row(HOSTILE, 0, "incorrect", source=HOSTILE, response=HOSTILE, reference=HOSTILE)
    hostile["prompt"] = HOSTILE
    hostile["verdict"] |= {"reason": HOSTILE, "extracted": HOSTILE}
    for view in (
        sample_view(hostile, 9999),
        summary_line([hostile]),
        *side_by_side({1: [hostile], 2: [hostile]}, 9999, 120, 5),
    ):
        text = printed(view, 120) if not isinstance(view, str) else view
        assert dangerous(text) == []
        text.encode("utf-8")  # no lone surrogate is left
    text = printed(sample_view(hostile, 9999), 200)
    assert "\\x1b[2J" in text and "\\u202e" in text and "\\ud800" in text
    assert "[bold]not markup[/bold]" in text


@given(st.text())
def test_safe_text_is_safe_whatever_comes(text: str) -> None:
    safe = safe_text(text)
    assert all(c in "\n\u200c\u200d" or c.isprintable() or c.isspace() for c in safe)
    assert not any((ord(c) < 32 and c != "\n") or 0x7F <= ord(c) < 0xA0 for c in safe)
    assert "\n" not in safe_line(text)
    safe.encode("utf-8")
    if text.isascii() and text.isprintable():
        assert safe == text


def test_harmless_text_stays_as_it_is() -> None:
    for text in ("naïve – “quotes” 数学 עברית हिन्दी 👩‍👩‍👧", "a\nb", "2\u00a0km"):
        assert safe_text(text) == text
    assert safe_text("a\tb\r\nc") == "a    b\nc"


def test_prompts_that_every_step_has() -> None:
    steps = {1: ROWS, 5: [row("c3", 0), row("a1", 0)], 9: [row("a1", 0), row("c3", 2)]}
    assert common_prompts(steps) == ["a1", "c3"]
    assert common_prompts({1: ROWS, 2: [row("z", 0)]}) == []


def test_side_by_side_where_there_is_room_else_below_one_another() -> None:
    steps = {1: [row("a1", 0, response="early words")], 50: [row("a1", 0, response="late words")]}
    wide = "\n".join(printed(view, 120) for view in side_by_side(steps, 500, 120, 5))
    assert any("early words" in line and "late words" in line for line in wide.splitlines())
    narrow = "\n".join(printed(view, 60) for view in side_by_side(steps, 500, 60, 5))
    assert "early words" in narrow and "late words" in narrow
    assert not any("early words" in line and "late words" in line for line in narrow.splitlines())
    assert max(map(len, narrow.splitlines())) <= 60
    assert narrow.index("step 1") < narrow.index("step 50")
