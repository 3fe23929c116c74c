"""What families of instructions share: arguments that are checked when data is loaded, loose variants, verdicts.

A row's reference is {"instruction_id_list": [ids], "kwargs": [one mapping an id]}, as IFEval and IFBench publish
it; arguments that are None count as not given. The published code draws a random argument where one is missing;
here an unknown id, and an argument that is missing, unknown or senseless, is refused when the data is loaded.
"""

from __future__ import annotations

import difflib
import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from verifiers.base import Verdict, incorrect, scored
from verifiers.constraints.measure import BLANK
from verifiers.errors import BadReference

Mode = Literal["fraction", "all"]
Read = Callable[[Any], Any]  # the argument as the check wants it; raises ValueError for a senseless one
MAX_COUNT = 1_000_000


# ---------------------------------------------------------------- arguments


def count(value: Any) -> int:
    """A whole number from 0; JSON writers turn 3 into 3.0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("not a number")
    if not 0 <= value <= MAX_COUNT or value != int(value):
        raise ValueError("not a whole number from 0")
    return int(value)


def positive(value: Any) -> int:
    """A whole number from 1."""
    if (number := count(value)) < 1:
        raise ValueError("not a whole number from 1")
    return number


def percentage(value: Any) -> float:
    """A number from 0 to 100."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 100:
        raise ValueError("not a number from 0 to 100")
    return float(value)


def text(value: Any) -> str:
    """Text with something in it."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("not a text, or blank")
    return value


def texts(value: Any) -> list[str]:
    """A list of texts, at least one."""
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError("not a list of texts")
    return [text(one) for one in value]


def one_of(*allowed: str) -> Read:
    """One of a few texts."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f"not one of {', '.join(sorted(allowed))}")
        return value

    return read


# ---------------------------------------------------------------- one kind of instruction


@dataclass(frozen=True, slots=True)
class Instruction:
    """One kind of instruction: its check, how each argument is read, and what must hold between them."""

    check: Callable[..., bool]
    arguments: Mapping[str, Read]
    together: Callable[..., None] | None = None  # raises ValueError

    def read(self, name: str, kwargs: Any) -> dict[str, Any]:
        """The arguments as the check wants them. Raises BadReference naming instruction and argument."""
        if kwargs is not None and not isinstance(kwargs, Mapping):
            raise BadReference(f"{name}: kwargs must be a mapping, got {type(kwargs).__name__}")
        given = {key: value for key, value in (kwargs or {}).items() if value is not None}
        made = {}
        for argument, read in self.arguments.items():
            if argument not in given:
                raise BadReference(f"{name}: the argument {argument!r} is missing")
            try:
                made[argument] = read(given[argument])
            except ValueError as fault:
                raise BadReference(f"{name}: {argument} is {given[argument]!r}: {fault}") from fault
        if extra := set(given) - set(self.arguments):
            takes = sorted(self.arguments) or "none"
            raise BadReference(f"{name} takes no argument {min(extra, key=str)!r}; it takes {takes}")
        if self.together is not None:
            try:
                self.together(**made)
            except ValueError as fault:
                raise BadReference(f"{name}: {fault}") from fault
        return made


def instruction(
    check: Callable[..., bool], together: Callable[..., None] | None = None, /, **arguments: Read
) -> Instruction:
    return Instruction(check, arguments, together)


Table = Mapping[str, Instruction]
Wanted = list[tuple[str, dict[str, Any]]]


def read_reference(table: Table, reference: Any) -> Wanted:
    """[(instruction id, its arguments)] of a row. Raises BadReference naming the id and the argument."""
    if isinstance(reference, str):  # as columns of text hold it
        try:
            reference = json.loads(reference)
        except ValueError:
            raise BadReference(
                f"the reference must be a mapping, or one as JSON, got {reference[:80]!r}"
            ) from None
    if not isinstance(reference, Mapping) or not {"instruction_id_list", "kwargs"} <= set(reference):
        raise BadReference('the reference must be a mapping {"instruction_id_list": [...], "kwargs": [...]}')
    ids, listed = reference["instruction_id_list"], reference["kwargs"]
    if not isinstance(ids, (list, tuple)) or not isinstance(listed, (list, tuple)) or not ids:
        raise BadReference("instruction_id_list and kwargs must be lists that are not empty")
    if len(ids) != len(listed):
        raise BadReference(f"there are {len(ids)} instructions but {len(listed)} kwargs")
    return [(name, _known(table, name).read(name, kwargs)) for name, kwargs in zip(ids, listed, strict=True)]


def _known(table: Table, name: Any) -> Instruction:
    if isinstance(name, str) and name in table:
        return table[name]
    near = difflib.get_close_matches(str(name), table, n=1)
    raise BadReference(f"unknown instruction {name!r}.", cure=f"Did you mean {near[0]!r}?" if near else "")


# ---------------------------------------------------------------- verdicts


def follows(table: Table, response: str, name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether a response follows one instruction, strictly. One with nothing to see in it follows none."""
    return _has_seen(response) and table[name].check(response, **arguments)


def _has_seen(text: str) -> bool:
    """Whether there is anything to see; of a long text without, each character is looked up once."""
    return any(map(_is_seen, text[:50])) or any(map(_is_seen, set(text[50:])))


def _is_seen(char: str) -> bool:
    """Not white space, zero width, a control character or a lone accent."""
    return char not in BLANK and (char.isalnum() or unicodedata.category(char)[0] in "PSLN")


def loose_variants(response: str) -> list[str]:
    """The response, without asterisks, and each without its first line, its last, and both; no text twice."""
    lines = response.split("\n")
    cut = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys([*cut, *(one.replace("*", "") for one in cut)]))


def judge(table: Table, variants: Sequence[str], wanted: Wanted, mode: Mode) -> Verdict:
    """The share of the instructions that some variant follows; mode "all": 1 only for every one of them."""
    missed = [
        name
        for name, arguments in wanted
        if not any(follows(table, one, name, arguments) for one in variants)
    ]
    reason = "does not follow " + ", ".join(missed) if missed else ""
    if mode == "all":
        return incorrect(reason) if missed else scored(1.0)
    return scored((len(wanted) - len(missed)) / len(wanted), reason)
