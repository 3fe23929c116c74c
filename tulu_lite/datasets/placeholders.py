"""Text with {column} placeholders: nothing but look-ups in the row, no attributes, no format specs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ..errors import TuluLiteError
from .bad import BadRow

_PIECE = re.compile(r"\{\{|\}\}|\{([A-Za-z_][\w.]*)\}|([{}])")
_MISSING = object()


def render(template: str, row: Mapping[str, Any], where: str = "") -> str:
    """The template with each {column} replaced by the row's text; {{ and }} are literal braces.

    A dotted path reaches into objects: {answer.text}. Text is inserted as it is, numbers in decimal.
    where: the row's place, such as "rows.jsonl:3", for errors.
    Raises TuluLiteError when a column is missing, empty of a value, or holds a list or an object.
    """
    parts = _parse(template)
    return "".join(text if name is None else _text(row, name, template, where) for text, name in parts)


@lru_cache(maxsize=256)
def _parse(template: str) -> tuple[tuple[str, str | None], ...]:
    """(literal text, None) and ("", column) in order."""
    parts: list[tuple[str, str | None]] = []
    end = 0
    for match in _PIECE.finditer(template):
        if match[2]:
            raise TuluLiteError(
                f"the template {template!r} has a lone {match[2]!r} at character {match.start() + 1}",
                why="braces mark {column} placeholders: a letter or _, then letters, digits, _ and dots",
                cure="write {{ and }} for braces that are meant as text, such as \\boxed{{}}",
            )
        parts.append((template[end : match.start()], None))
        parts.append(("", match[1]) if match[1] else (match[0][0], None))
        end = match.end()
    parts.append((template[end:], None))
    return tuple(part for part in parts if part != ("", None))


def columns(template: str) -> tuple[str, ...]:
    """The columns that the template names, in order. Raises TuluLiteError for a lone brace."""
    return tuple(name for _, name in _parse(template) if name is not None)


def look_up(row: Mapping[str, Any], path: str, default: Any) -> Any:
    """The column of this very name, or else what the dotted path leads to; default when there is neither."""
    if path in row:
        return row[path]
    here: Any = row
    for part in path.split("."):
        if not isinstance(here, Mapping) or part not in here:
            return default
        here = here[part]
    return here


def require(row: Mapping[str, Any], path: str, where: str, used_for: str, cure: str) -> Any:
    """The value of a column that must be there (it may be null)."""
    value = look_up(row, path, _MISSING)
    if value is _MISSING:
        raise BadRow(
            f"no column {path!r}",
            f"{_place(where)}this row has no {path!r}, which is wanted for {used_for}",
            why=f"its fields are {', '.join(map(str, row)) or 'none'}",
            cure=cure,
        )
    return value


def _text(row: Mapping[str, Any], name: str, template: str, where: str) -> str:
    value = require(
        row,
        name,
        where,
        f"the template {template!r}",
        'name the column in the data source, such as prompt: "{question}"',
    )
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    kind = {dict: "an object", list: "a list", type(None): "null", bool: "true or false"}.get(
        type(value), type(value).__name__
    )
    inside = f", such as {{{name}.{next(iter(value))}}}" if isinstance(value, dict) and value else ""
    raise BadRow(
        "a column that holds no text",
        f"{_place(where)}{name!r} is {kind}, but the template {template!r} needs text there",
        cure=f"name a column that holds text{inside}, or mend the row",
    )


def _place(where: str) -> str:
    return f"{where}: " if where else ""
