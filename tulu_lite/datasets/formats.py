"""How rows are written, and the turns each form stands for. Nothing is guessed: the data source names the form.

The turns made here are raw: {role, content} as the row has them, not yet checked. Each function takes the row's data,
its source, and `where`, the place that errors name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..recipe import DataSource
from .bad import BadRow
from .placeholders import look_up, render

Data = Mapping[str, Any]
_COLUMN = re.compile(r"\{([A-Za-z_][\w.]*)\}")
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
}
_MISSING = object()


def conversation(data: Data, entry: DataSource, where: str) -> list[Any] | None:
    """All turns of the row; None when it has none and the source's text templates are meant."""
    if entry.format == "prompt_completion":
        return _side(data, entry.prompt, "user", where) + _side(data, entry.completion, "assistant", where)
    if entry.format == "preference":
        prompt, chosen, _ = preference(data, entry, where)
        return [*prompt, chosen]
    if entry.format == "alpaca":
        return [*_alpaca_prompt(data, where), _turn("assistant", _column(data, "output", where))]
    return _listed(data, entry, where)


def prompt(data: Data, entry: DataSource, where: str) -> list[Any] | None:
    """The turns up to the last user turn; None as in `conversation`."""
    if entry.format == "prompt_completion":
        return _side(data, entry.prompt, "user", where)
    if entry.format == "preference":
        return preference(data, entry, where)[0]
    if entry.format == "alpaca":
        return _alpaca_prompt(data, where)
    turns = _listed(data, entry, where)
    last = turns[-1] if isinstance(turns, list) and len(turns) > 1 else None
    return turns[:-1] if isinstance(last, Mapping) and last.get("role") == "assistant" else turns


def preference(data: Data, entry: DataSource, where: str) -> tuple[list[Any], Any, Any]:
    """(prompt's turns, chosen turn, rejected turn) of `format: preference`.

    Where chosen and rejected are lists of several turns, these begin with the prompt's, the same in both, and the
    prompt column is not read.
    """
    chosen, rejected = (
        _side(data, template, "assistant", where) for template in (entry.chosen, entry.rejected)
    )
    if len(chosen) == len(rejected) == 1:
        return _side(data, entry.prompt, "user", where), chosen[0], rejected[0]
    if not chosen or not rejected or chosen[:-1] != rejected[:-1]:
        raise BadRow(
            "chosen and rejected answer different prompts",
            f"{where}: the turns before the last are not the same in chosen ({len(chosen)} turns) and rejected "
            f"({len(rejected)})",
            why="a pair is two answers to one prompt",
            cure="remove the row, or split it",
        )
    return chosen[:-1], chosen[-1], rejected[-1]


def _listed(data: Data, entry: DataSource, where: str) -> Any:
    if entry.format is None:
        return data.get(entry.messages)
    if entry.format == "messages":
        return _column(data, entry.messages, where)
    column = "conversations" if entry.messages == "messages" else entry.messages
    turns = _column(data, column, where)
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        return turns
    return [_of_sharegpt(turn, f"{where}: turn {number}") for number, turn in enumerate(turns, start=1)]


def _of_sharegpt(turn: Any, where: str) -> Any:
    if not isinstance(turn, Mapping) or "from" not in turn or "value" not in turn:
        given = ", ".join(map(str, turn)) if isinstance(turn, Mapping) else str(turn)[:40]
        raise BadRow(
            "turns of another form",
            f"{where} is {{{given}}}, not {{from, value}} as `format: sharegpt` says",
            cure="name the rows' own format in the data source",
        )
    role = _SHAREGPT_ROLES.get(str(turn["from"]))
    if role is None:
        raise BadRow(
            "an unknown role",
            f"{where} is from {turn['from']!r}",
            cure=f"those of `format: sharegpt` are {', '.join(_SHAREGPT_ROLES)}; rename or remove it",
        )
    return {"role": role, "content": turn["value"]}


def _alpaca_prompt(data: Data, where: str) -> list[Any]:
    """The instruction; after a blank line the input, where there is one."""
    instruction = _column(data, "instruction", where)
    given = data.get("input")
    if isinstance(given, str) and given.strip() and isinstance(instruction, str):
        instruction = f"{instruction}\n\n{given}"
    return [_turn("user", instruction)]


def _side(data: Data, template: str, role: str, where: str) -> list[Any]:
    """A column's list of turns as it is, or the template's text as a turn of `role`."""
    match = _COLUMN.fullmatch(template)
    value = look_up(data, match[1], None) if match else None
    if isinstance(value, (list, tuple)):
        return list(value)
    return [_turn(role, render(template, data, where))]


def _turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _column(data: Data, column: str, where: str) -> Any:
    value = look_up(data, column, _MISSING)
    if value is _MISSING:
        raise BadRow(
            f"no column {column!r}",
            f"{where}: this row has no {column!r}, which the data source's format wants",
            why=f"its fields are {', '.join(map(str, data)) or 'none'}",
            cure="name the rows' own format, or the column that holds the conversation (`messages: ...`)",
        )
    return value
