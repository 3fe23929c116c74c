"""Each form of row is converted as its source says, and a row of another form is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tulu_lite.datasets.bad import BadRow
from tulu_lite.datasets.sources import load_rows, prompt_key
from tulu_lite.datasets.turns import conversation_turns, pair_turns, prompt_turns
from tulu_lite.recipe import DataSource

Write = Callable[..., str]


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "S"}
TURNS = [SYSTEM, user("q"), assistant("a")]
SHAREGPT = [{"from": "system", "value": "S"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


@pytest.mark.parametrize(
    ("how", "data", "turns"),
    [
        ({"format": "messages"}, {"messages": TURNS}, TURNS),
        ({"format": "messages", "messages": "talk"}, {"talk": TURNS}, TURNS),
        ({"format": "sharegpt"}, {"conversations": SHAREGPT}, TURNS),
        ({"format": "sharegpt", "messages": "talk"}, {"talk": SHAREGPT}, TURNS),
        ({"format": "alpaca", "system": "S"}, {"instruction": "q", "input": "", "output": "a"}, TURNS),
        ({"format": "alpaca"}, {"instruction": "q", "input": "i", "output": "a"}, [user("q\n\ni"), assistant("a")]),
        ({"format": "alpaca"}, {"instruction": "q", "output": "a"}, [user("q"), assistant("a")]),
        ({"format": "prompt_completion", "system": "S"}, {"prompt": "q", "completion": "a"}, TURNS),
        ({"format": "prompt_completion"}, {"prompt": [SYSTEM, user("q")], "completion": [assistant("a")]}, TURNS),
        ({"format": "prompt_completion", "prompt": "{p.t}?"}, {"p": {"t": "q"}, "completion": "a"}, [user("q?"), assistant("a")]),
        ({"format": "preference"}, {"prompt": "q", "chosen": "a", "rejected": "b"}, [user("q"), assistant("a")]),
        ({}, {"messages": TURNS}, TURNS),
        ({}, {"prompt": "q", "completion": "a"}, [user("q"), assistant("a")]),
    ],
)  # fmt: skip
def test_conversations(write: Write, how: Any, data: Any, turns: Any) -> None:
    (row,) = load_rows([DataSource(path=write("a.jsonl", [data]), **how)], seed=0)
    assert conversation_turns(row) == turns
    assert prompt_turns(row) == turns[:-1]


@pytest.mark.parametrize(
    ("how", "data", "prompt"),
    [
        ({}, {"prompt": "q", "chosen": "a", "rejected": "b"}, [user("q")]),
        ({"format": "preference"}, {"prompt": "q", "chosen": "a", "rejected": "b"}, [user("q")]),
        (  # the sides hold the whole conversation, as most hub sets have it
            {"format": "preference"},
            {
                "prompt": "not read",
                "chosen": [user("q"), assistant("a")],
                "rejected": [user("q"), assistant("b")],
            },
            [user("q")],
        ),
        (
            {"format": "preference"},
            {"prompt": [SYSTEM, user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
            [SYSTEM, user("q")],
        ),
        (
            {"format": "preference", "chosen": "{good}", "rejected": "{bad}", "system": "S"},
            {"good": [user("q"), assistant("a")], "bad": [user("q"), assistant("b")]},
            [SYSTEM, user("q")],
        ),
    ],
)
def test_pairs(write: Write, how: Any, data: Any, prompt: Any) -> None:
    (row,) = load_rows([DataSource(path=write("a.jsonl", [data]), **how)], seed=0)
    assert pair_turns(row) == (prompt, assistant("a"), assistant("b"))


@pytest.mark.parametrize(
    ("how", "data", "reason"),
    [
        ({"format": "messages"}, {"conversations": SHAREGPT}, "no column 'messages'"),
        ({"format": "messages"}, {"messages": SHAREGPT}, "turns of another form"),
        ({"format": "sharegpt"}, {"conversations": TURNS}, "turns of another form"),
        ({"format": "sharegpt"}, {"conversations": [{"from": "tool", "value": "x"}]}, "an unknown role"),
        ({"format": "sharegpt"}, {"conversations": "q"}, "not a list of turns"),
        ({"format": "sharegpt"}, {"conversations": SHAREGPT[:2]}, "no answer at the end"),
        ({"format": "alpaca"}, {"prompt": "q", "completion": "a"}, "no column 'instruction'"),
        ({"format": "alpaca"}, {"instruction": "q", "output": ""}, "an empty turn"),
        ({"format": "alpaca"}, {"instruction": "q"}, "no column 'output'"),
        ({"format": "prompt_completion"}, {"prompt": "q"}, "no column 'completion'"),
        ({"format": "prompt_completion"}, {"prompt": "q", "completion": " "}, "an empty turn"),
        ({}, {"prompt": "q", "completion": " "}, "an empty completion"),
        ({}, {"instruction": "q", "output": "a"}, "no prompt"),
        ({}, {"prompt": "q", "completion": ["a"]}, "a column that holds no text"),
        ({}, {"prompt": "q\udc00", "completion": "a"}, "broken Unicode"),
        ({}, {"messages": [user("q"), assistant("\ud800")]}, "broken Unicode"),
        ({}, {"messages": [SYSTEM]}, "only a system turn"),
        ({}, {"messages": [user("q"), user("q"), assistant("a")]}, "roles out of turn"),
    ],
)
def test_rows_of_another_form(write: Write, how: Any, data: Any, reason: str) -> None:
    (row,) = load_rows([DataSource(path=write("a.jsonl", [data]), **how)], seed=0)
    with pytest.raises(BadRow, match=r"a\.jsonl:1: ") as caught:
        conversation_turns(row)
    assert caught.value.reason == reason


def test_a_row_without_a_form_says_which_it_may_be(write: Write) -> None:
    hints = {"conversations": "sharegpt", "instruction": "alpaca", "chosen": "preference"}
    for column, form in hints.items():
        (row,) = load_rows([DataSource(path=write("a.jsonl", [{column: "x"}]))], seed=0)
        with pytest.raises(BadRow) as caught:
            conversation_turns(row)
        assert f"format: {form}" in caught.value.cure
    data = {"prompt": "q", "chosen": [assistant("a")], "rejected": [assistant("b")]}
    (row,) = load_rows([DataSource(path=write("a.jsonl", [data]))], seed=0)
    with pytest.raises(BadRow, match="a list of turns") as caught:
        pair_turns(row)
    assert "format: preference" in caught.value.cure


def test_sides_that_answer_different_prompts(write: Write) -> None:
    data = {"chosen": [user("q"), assistant("a")], "rejected": [user("r"), assistant("b")]}
    (row,) = load_rows([DataSource(path=write("a.jsonl", [data]), format="preference")], seed=0)
    with pytest.raises(BadRow, match="not the same in chosen"):
        pair_turns(row)


def test_shares_go_by_the_prompt_in_every_format(write: Write) -> None:
    written = [
        ({"format": "alpaca"}, {"instruction": "q", "output": "a"}),
        ({"format": "sharegpt"}, {"conversations": SHAREGPT[1:]}),
        (
            {"format": "preference"},
            {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
        ),
        ({}, {"prompt": "q"}),
    ]
    for how, data in written:
        (row,) = load_rows([DataSource(path=write("a.jsonl", [data]), **how)], seed=0)
        assert prompt_key(row) == "q"
