"""The turns of a row, checked: an optional system turn, then user and assistant in turn, none of them empty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import formats
from .bad import BadRow
from .placeholders import look_up, render
from .sources import Row

Message = dict[str, str]  # {"role": ..., "content": ...}


def prompt_turns(row: Row) -> list[Message]:
    """The row's turns up to and with its last user turn; a trailing assistant turn is left out."""
    raw = formats.prompt(row.data, row.entry, row.where)
    return prompt_of_text(row) if raw is None else _checked(raw, row)


def conversation_turns(row: Row) -> list[Message]:
    """The row's turns, the last one the assistant's."""
    raw = formats.conversation(row.data, row.entry, row.where)
    if raw is None:
        prompt = prompt_of_text(row)
        return [*prompt, {"role": "assistant", "content": _filled(row, row.entry.completion, "completion")}]
    turns = _checked(raw, row)
    if turns[-1]["role"] != "assistant":
        raise BadRow(
            "no answer at the end",
            f"{row.where}: the conversation ends with the {turns[-1]['role']}'s turn",
            why="there is nothing to learn from after the last assistant turn",
            cure="end the conversation with an assistant turn, or remove the row",
        )
    return turns


def pair_turns(row: Row) -> tuple[list[Message], Message, Message]:
    """(the prompt's turns, the chosen and the rejected turn)."""
    if row.entry.format is None:
        return prompt_of_text(row), response_of_text(row, "chosen"), response_of_text(row, "rejected")
    prompt, *answers = formats.preference(row.data, row.entry, row.where)
    chosen, rejected = (_checked([*prompt, answer], row) for answer in answers)
    for turns in (chosen, rejected):
        if turns[-1]["role"] != "assistant":
            raise BadRow(
                "no answer at the end",
                f"{row.where}: a side of the pair ends with the {turns[-1]['role']}'s turn",
                cure="end chosen and rejected with an assistant turn, or remove the row",
            )
    return chosen[:-1], chosen[-1], rejected[-1]


def prompt_of_text(row: Row) -> list[Message]:
    """The entry's prompt template as a user turn, after the entry's system turn."""
    _explain_missing(row)
    return [*_system(row), {"role": "user", "content": _filled(row, row.entry.prompt, "prompt")}]


def response_of_text(row: Row, field: str) -> Message:
    """The entry's `chosen` or `rejected` template as an assistant turn."""
    template = getattr(row.entry, field)
    if isinstance(look_up(row.data, template.strip("{}"), None), (list, tuple)):
        raise BadRow(
            "a list instead of text",
            f"{row.where}: {field} is a list of turns, but the data source names no format",
            cure="write `format: preference` in the data source",
        )
    return {"role": "assistant", "content": _filled(row, template, field)}


def whole_text(turns: Sequence[Message]) -> str:
    """The contents of all turns, for filters."""
    return "\n".join(turn["content"] for turn in turns)


def _system(row: Row) -> list[Message]:
    return [{"role": "system", "content": row.entry.system}] if row.entry.system else []


def _filled(row: Row, template: str, field: str) -> str:
    text = render(template, row.data, row.where)
    if not text.strip():
        raise BadRow(
            f"an empty {field}",
            f"{row.where}: the {field} is empty (from the template {template!r})",
            cure="remove or mend the row",
        )
    _check_unicode(text, f"{row.where}: the {field}")
    return text


def _check_unicode(text: str, what: str) -> None:
    """Raise where the text holds half a surrogate pair, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(
            "broken Unicode",
            f"{what} holds the lone surrogate U+{ord(text[error.start]):04X} at character {error.start + 1}",
            why="it is half of a character, left by a text that was cut or decoded wrongly",
            cure="mend the row, or set `bad_rows: drop`",
        ) from None


def _explain_missing(row: Row) -> None:
    """A row with neither messages nor what a default template wants: say the ways out."""
    entry = row.entry
    if entry.prompt != "{prompt}" or "prompt" in row.data:
        return
    form = next(
        (form for column, form in (("conversations", "sharegpt"), ("instruction", "alpaca"), ("chosen", "preference")) if column in row.data),
        None,
    )  # fmt: skip
    raise BadRow(
        "no prompt",
        f"{row.where}: this row has neither {entry.messages!r} nor 'prompt'",
        why=f"its fields are {', '.join(map(str, row.data)) or 'none'}",
        cure="say in the data source where the text is: "
        + (f"`format: {form}`, " if form else "")
        + '`messages: conversation_column`, or `prompt: "{question}"` (and `completion: "{answer}"` for sft)',
    )


def _checked(value: Any, row: Row) -> list[Message]:
    """The turns as {role, content} alone, after the checks of type, emptiness, Unicode and order."""
    where = row.where
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise BadRow(
            "not a list of turns",
            f"{where}: {row.entry.messages!r} is not a list of turns",
            cure='write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]',
        )
    turns = [_turn(item, f"{where}: turn {number}") for number, item in enumerate(value, start=1)]
    if row.entry.system:
        if turns[0]["role"] == "system":
            raise BadRow(
                "two system turns",
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
        hint = (
            "; rows of {from, value} are `format: sharegpt`"
            if isinstance(item, dict) and "from" in item
            else ""
        )
        raise BadRow(
            "turns of another form",
            f"{where} {given}, not role and content",
            cure='write {"role": "user", "content": "..."}' + hint,
        )
    role, content = item["role"], item["content"]
    if role not in ("system", "user", "assistant"):
        raise BadRow(
            "an unknown role",
            f"{where} has the role {role!r}",
            cure="roles are system, user and assistant; rename or remove it",
        )
    if not isinstance(content, str):
        raise BadRow(
            "content that is no text",
            f"{where} has content that is no text: {str(content)[:60]}",
            cure="content is one string",
        )
    if not content.strip():
        raise BadRow("an empty turn", f"{where} ({role}) is empty", cure="remove or mend the row")
    _check_unicode(content, f"{where} ({role})")
    return {"role": role, "content": content}


def _check_order(turns: list[Message], where: str) -> None:
    first = 1 if turns[0]["role"] == "system" else 0
    for index, turn in enumerate(turns[first:]):
        wanted = ("user", "assistant")[index % 2]
        if turn["role"] != wanted:
            raise BadRow(
                "roles out of turn",
                f"{where}: turn {first + index + 1} is the {turn['role']}'s, but it is the {wanted}'s turn",
                why="a conversation is an optional system turn, then user and assistant in turn",
                cure="merge turns of the same role, or remove the row",
            )
    if len(turns) == first:
        raise BadRow(
            "only a system turn", f"{where}: the conversation has no user turn", cure="remove the row"
        )
