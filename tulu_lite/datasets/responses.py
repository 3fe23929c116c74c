"""Sampled responses on disk: groups as they are judged, and the rows of a reject stage, which sft stages read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from verifiers import Verdict

from ..errors import TuluLiteError
from ..files import atomic_file, write_atomic
from ..records import Prompt, Rollout
from .sources import read_jsonl


def rollout_json(rollout: Rollout) -> dict[str, Any]:
    """JSON data of which parse_rollout makes the same rollout again."""
    data = {field.name: getattr(rollout, field.name) for field in fields(Rollout)}
    data["verdict"] = None if rollout.verdict is None else rollout.verdict.to_json()
    return data


def parse_rollout(data: Any) -> Rollout:
    """Raises KeyError, TypeError or ValueError when `data` is not what rollout_json returns."""
    values = dict(data)
    values["token_ids"] = whole_numbers(values["token_ids"])
    values["weight_versions"] = whole_numbers(values["weight_versions"])
    values["logprobs"] = tuple(float(value) for value in values["logprobs"])
    values["verdict"] = None if values["verdict"] is None else Verdict.from_json(values["verdict"])
    return Rollout(**values)


def whole_numbers(values: Any) -> tuple[int, ...]:
    """Raises ValueError when it is not a list of int."""
    if not isinstance(values, list) or any(type(value) is not int for value in values):
        raise ValueError("token ids and weight versions are lists of whole numbers")
    return tuple(values)


# Judged groups, a line each, added as they come


@dataclass(frozen=True, slots=True)
class Judged:
    """The responses of one model to one prompt, with what a second verifier says of those that are ranked."""

    rollouts: tuple[Rollout, ...]
    ranks: tuple[Verdict | None, ...] = ()  # [n], or none where nothing is ranked

    @property
    def verdicts(self) -> list[Verdict]:
        """All that verifiers said."""
        both = [*(rollout.verdict for rollout in self.rollouts), *self.ranks]
        return [verdict for verdict in both if verdict is not None]


class KeptGroups:
    """A file to which judged groups are added as they come, and from which a killed stage goes on.

    A line is whole or, where a kill tore it, no line: the file is cut to its whole lines when it is read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[tuple[str, str], Judged]:
        """(model, prompt id) -> its responses; of two lines the later counts. Raises TuluLiteError for a broken one."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            write_atomic(self.path, whole)
        kept: dict[tuple[str, str], Judged] = {}
        for line, data in read_jsonl(self.path):
            try:
                ranks = tuple(None if rank is None else Verdict.from_json(rank) for rank in data["ranks"])
                rollouts = tuple(parse_rollout(rollout) for rollout in data["rollouts"])
                kept[(data["model"], data["prompt_id"])] = Judged(rollouts, ranks)
            except (KeyError, TypeError, ValueError) as error:
                raise TuluLiteError(
                    f"{self.path}:{line}: this is not a group that a stage kept: {error}",
                    cure="remove the file: its responses are then sampled anew",
                ) from None
        return kept

    def add(self, model: str, groups: Sequence[tuple[Prompt, Judged]]) -> None:
        """Add groups, safe from the death of this process once it returns."""
        lines = [
            json.dumps(
                {
                    "model": model,
                    "prompt_id": prompt.id,
                    "prompt": prompt.user,
                    "rollouts": [rollout_json(rollout) for rollout in judged.rollouts],
                    "ranks": [None if rank is None else rank.to_json() for rank in judged.ranks],
                },
                ensure_ascii=False,
            )
            for prompt, judged in groups
        ]
        content = "".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass")
        with self.path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


# Rows to fine-tune on


@dataclass(frozen=True, slots=True)
class ResponseRow:
    """A row of a reject stage: a response as token ids, or a conversation that was passed through as text."""

    kind: str  # "chosen", or "general"
    source: str
    provenance: Mapping[str, Any]  # stage, model, seed, sample, weight version; or file and line
    prompt: str = ""  # the last user turn, to read
    response: str = ""  # to read
    prompt_ids: tuple[int, ...] = ()  # [P]
    response_ids: tuple[int, ...] = ()  # [T] as they were sampled, the end token included when it was
    verdict: Mapping[str, Any] | None = None
    messages: tuple[Mapping[str, str], ...] = field(default=())  # instead of token ids


def response_key(row: ResponseRow) -> str:
    """The text by whose hash a row is on one side of a split: its prompt."""
    return row.prompt or json.dumps([dict(turn) for turn in row.messages[:-1]], ensure_ascii=False)


def write_responses(path: Path, rows: Sequence[ResponseRow]) -> None:
    """One JSON line a row, with everything that read_responses needs to give the same rows back."""
    with atomic_file(path) as file:
        for row in rows:
            data = {name.name: getattr(row, name.name) for name in fields(ResponseRow)}
            file.write((json.dumps(data, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass"))


def read_responses(path: Path) -> list[ResponseRow]:
    """The rows of write_responses. Raises TuluLiteError naming the line that is none."""
    rows = []
    try:
        for line, data in read_jsonl(path):
            rows.append(_parse_row(data, f"{path}:{line}"))
    except FileNotFoundError:
        raise TuluLiteError(f"there is no file of rows {path}", cure="run the reject stage again") from None
    except OSError as error:
        raise TuluLiteError(f"cannot read the rows {path}: {error.strerror or error}") from None
    return rows


def _parse_row(data: Any, where: str) -> ResponseRow:
    try:
        values = dict(data)
        for name in ("prompt_ids", "response_ids"):
            values[name] = whole_numbers(values[name])
        values["messages"] = tuple(values["messages"])
        row = ResponseRow(**values)
        if bool(row.messages) == bool(row.prompt_ids and row.response_ids):
            raise ValueError("a row has either messages or the token ids of a prompt and a response")
        return row
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) and error.args else str(error)
        raise TuluLiteError(
            f"{where}: this is not a row that a reject stage wrote: {reason}",
            cure="run the reject stage again; for rows of your own, name the file with `path:`",
        ) from None
