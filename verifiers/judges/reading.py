"""What is taken from a judge's reply: the fields of its schema, or nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

MAX_REPLY = 20_000  # characters
_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL)
_REASONING = re.compile(r"<think>(.*?)</think>", re.DOTALL)


class Unreadable(Exception):
    """The reply is not what was asked for. It is never taken for a score."""


def read_reply(content: Any, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The reply as a mapping that fits the schema exactly.

    The whole reply must be one JSON object (in a code fence, or after one leading <think> block, at most): a
    judge that says more than that may be repeating what it was told to judge. Raises Unreadable.
    """
    if not isinstance(content, str):
        raise Unreadable(f"the reply is {type(content).__name__}, not text")
    if len(content) > MAX_REPLY:
        raise Unreadable(f"the reply has {len(content)} characters")
    text = content.strip()
    reasoning = _REASONING.match(text)
    if reasoning is not None:
        text = text[reasoning.end() :].strip()
    fenced = _FENCE.fullmatch(text)
    if fenced is not None:
        text = fenced.group(1).strip()
    try:
        # strict=False: some servers' grammars let raw control characters into strings
        found = json.loads(text, strict=False, object_pairs_hook=_distinct, parse_constant=_no_constant)
    except (ValueError, RecursionError) as fault:
        raise Unreadable(f"the reply is not one JSON object ({fault}): {text[:120]!r}") from None
    if not isinstance(found, dict):
        raise Unreadable(f"the reply is a JSON {type(found).__name__}, not an object")
    _check(found, schema)
    return found


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands there twice")
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_TYPES: dict[str, type] = {"string": str, "integer": int, "boolean": bool}


def _check(found: dict[str, Any], schema: Mapping[str, Any]) -> None:
    properties = schema["properties"]
    if set(found) != set(properties):
        wrong = sorted(set(found) ^ set(properties))
        raise Unreadable(f"the reply's keys are not those asked for: {', '.join(wrong)[:120]}")
    for key, rule in properties.items():
        value = found[key]
        if type(value) is not _TYPES[rule["type"]]:  # exactly: True is no 1, 5.0 no 5, "5" no 5
            raise Unreadable(f"{key} is {type(value).__name__}, not {rule['type']}")
        if "enum" in rule and value not in rule["enum"]:
            raise Unreadable(f"{key} is {str(value)[:40]!r}, not {' or '.join(map(str, rule['enum']))}")
