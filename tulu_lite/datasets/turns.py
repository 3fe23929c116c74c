"""The turns of a row: an optional system turn, then user and assistant in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import TuluLiteError
from .placeholders import render
from .sources import Row

Message = dict[str, str]  # {"role": ..., "content": ...}


def prompt_turns(row: Row) -> list[Message]:
    """The row's turns up to and with its last user turn; a trailing assistant turn is left out."""
    if row.data.get(row.entry.messages) is None:
        return prompt_of_text(row)
    turns = _checked(row)
    if turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    return turns


def conversation_turns(row: Row) -> list[Message]:
    """The row's turns, the last one the assistant's."""
    if row.data.get(row.entry.messages) is None:
        completion = _filled(row, row.entry.completion, "completion")
        return [*prompt_of_text(row), {"role": "assistant", "content": completion}]
    turns = _checked(row)
    if turns[-1]["role"] != "assistant":
        raise TuluLiteError(
            f"{row.where}: the conversation ends with the {turns[-1]['role']}'s turn",
            why="there is nothing to learn from after the last assistant turn",
            cure="end the conversation with an assistant turn, or remove the row",
        )
    return turns


def prompt_of_text(row: Row) -> list[Message]:
    """The entry's prompt template as a user turn, after the entry's system turn."""
    _explain_missing(row)
    return [*_system(row), {"role": "user", "content": _filled(row, row.entry.prompt, "prompt")}]


def response_of_text(row: Row, field: str) -> Message:
    """The entry's `chosen` or `rejected` template as an assistant turn."""
    return {"role": "assistant", "content": _filled(row, getattr(row.entry, field), field)}


def _system(row: Row) -> list[Message]:
    return [{"role": "system", "content": row.entry.system}] if row.entry.system else []


def _filled(row: Row, template: str, field: str) -> str:
    text = render(template, row.data, row.where)
    if not text.strip():
        raise TuluLiteError(
            f"{row.where}: the {field} is empty (from the template {template!r})",
            cure="remove or mend the row",
        )
    return text


def _explain_missing(row: Row) -> None:
    """A row with neither messages nor what a default template wants: say both ways out."""
    entry = row.entry
    if entry.prompt == "{prompt}" and "prompt" not in row.data:
        raise TuluLiteError(
            f"{row.where}: this row has neither {entry.messages!r} nor 'prompt'",
            why=f"its fields are {', '.join(map(str, row.data)) or 'none'}",
            cure="say in the data source where the text is: `messages: conversation_column`, or "
            '`prompt: "{question}"` '
            '(and `completion: "{answer}"` for sft)',
        )


def _checked(row: Row) -> list[Message]:
    """The row's messages as {role, content} alone, after the checks of type, emptiness and order."""
    value, where = row.data[row.entry.messages], row.where
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise TuluLiteError(
            f"{where}: {row.entry.messages!r} is not a list of turns",
            cure='write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]',
        )
    turns = [_turn(item, f"{where}: turn {number}") for number, item in enumerate(value, start=1)]
    if row.entry.system:
        if turns[0]["role"] == "system":
            raise TuluLiteError(
                f"{where}: the row has a system turn of its own, and the data source adds one",
                cure="remove `system` from the data source, or put the rows with system turns in a source "
                "of their own",
            )
        turns = _system(row) + turns
    _check_order(turns, where)
    return turns


def _turn(item: Any, where: str) -> Message:
    if not isinstance(item, dict) or "role" not in item or "content" not in item:
        given = (
            f"has the fields {', '.join(map(str, item))}"
            if isinstance(item, dict)
            else f"is {str(item)[:40]!r}"
        )
        raise TuluLiteError(
            f"{where} {given}, not role and content", cure='write {"role": "user", "content": "..."}'
        )
    role, content = item["role"], item["content"]
    if role not in ("system", "user", "assistant"):
        raise TuluLiteError(
            f"{where} has the role {role!r}", cure="roles are system, user and assistant; rename or remove it"
        )
    if not isinstance(content, str):
        raise TuluLiteError(
            f"{where} has content that is no text: {str(content)[:60]}", cure="content is one string"
        )
    if not content.strip():
        raise TuluLiteError(f"{where} ({role}) is empty", cure="remove or mend the row")
    return {"role": role, "content": content}


def _check_order(turns: list[Message], where: str) -> None:
    first = 1 if turns[0]["role"] == "system" else 0
    for index, turn in enumerate(turns[first:]):
        wanted = ("user", "assistant")[index % 2]
        if turn["role"] != wanted:
            raise TuluLiteError(
                f"{where}: turn {first + index + 1} is the {turn['role']}'s, but it is the {wanted}'s turn",
                why="a conversation is an optional system turn, then user and assistant in turn",
                cure="merge turns of the same role, or remove the row",
            )
    if len(turns) == first:
        raise TuluLiteError(f"{where}: the conversation has no user turn", cure="remove the row")
