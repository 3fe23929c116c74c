"""Preference pairs: written by a preferences stage, read by a dpo or reward stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..errors import TuluLiteError
from ..files import atomic_file
from ..recipe import DataSource, PairStage
from ..records import PreferencePair, Prompt
from .chat import ChatTemplate
from .report import DataReport
from .responses import parse_rollout, rollout_json, whole_numbers
from .sources import Row, load_rows, read_jsonl, select
from .turns import prompt_of_text, response_of_text


@dataclass(frozen=True, slots=True)
class PairExample:
    """A pair to train on: token ids of the prompt [P] and of both responses [T], with their end tokens."""

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    source: str
    where: str = ""  # file:line


def write_pairs(path: Path, pairs: Sequence[PreferencePair]) -> None:
    """One JSON line a pair, with everything that read_pairs needs to give the same pairs back."""
    with atomic_file(path) as file:
        for pair in pairs:
            file.write(
                (json.dumps(_pair_json(pair), ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
            )


def read_pairs(path: Path) -> list[PreferencePair]:
    """The pairs of write_pairs. Raises TuluLiteError naming the line that is none."""
    try:
        return [_parse_pair(data, f"{path}:{line}") for line, data in read_jsonl(path)]
    except FileNotFoundError:
        raise TuluLiteError(
            f"there is no file of pairs {path}", cure="run the preferences stage again"
        ) from None
    except OSError as error:
        raise TuluLiteError(f"cannot read the pairs {path}: {error.strerror or error}") from None


def load_pairs(
    stage: PairStage, template: ChatTemplate, *, seed: int, stage_rows: Callable[[str], Path] | None
) -> tuple[list[PairExample], DataReport]:
    """The stage's pairs in order, and what was dropped.

    Pairs of a preferences stage keep their token ids as they were sampled; rows of text go through the chat
    template. seed: of the choice that `limit` makes. stage_rows: the file of an earlier stage's pairs.
    Raises TuluLiteError for a row that is no pair, or too long where the stage says so; and if none is left.
    """
    report = DataReport()
    kept: list[PairExample] = []
    for entry in stage.data:
        located = _sampled(entry, seed, stage_rows) if entry.stage else _of_text(entry, template, seed)
        for where, pair in located:
            length = len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))
            if pair.chosen_ids == pair.rejected_ids:
                report.dropped["chosen and rejected are the same"] += 1
            elif length > stage.max_length:
                reason = f"longer than {stage.max_length} tokens"
                report.drop_or_raise(reason, where, length, stage.max_length, stage.too_long)
            else:
                learnt = len(pair.chosen_ids) + len(pair.rejected_ids)
                report.keep(pair.source, 2 * len(pair.prompt_ids) + learnt, learnt)
                kept.append(replace(pair, where=where))
    report.require_rows(stage.name)
    return kept, report


def _sampled(
    entry: DataSource, seed: int, stage_rows: Callable[[str], Path] | None
) -> list[tuple[str, PairExample]]:
    assert entry.stage is not None
    if stage_rows is None:
        raise TuluLiteError(
            f"the pairs of stage {entry.stage!r} are not there yet", cure="run that stage first"
        )
    path = stage_rows(entry.stage)
    pairs = select(list(enumerate(read_pairs(path), start=1)), entry, seed, lambda item: item[1].prompt.user)
    return [
        (
            f"{path}:{line}",
            PairExample(
                pair.prompt.token_ids,
                pair.chosen.token_ids,
                pair.rejected.token_ids,
                entry.source or pair.prompt.source,
            ),
        )
        for line, pair in pairs
    ]


def _of_text(entry: DataSource, template: ChatTemplate, seed: int) -> list[tuple[str, PairExample]]:
    rows = load_rows([entry], seed=seed)
    places = [row.where for row in rows]
    prompts = [prompt_of_text(row) for row in rows]
    sides = []
    for field in ("chosen", "rejected"):
        turns = [[*prompt, response_of_text(row, field)] for prompt, row in zip(prompts, rows, strict=True)]
        sides.append([_split(*encoded) for encoded in template.conversations(turns, places)])
    return [
        (row.where, _join(row, chosen, rejected)) for row, chosen, rejected in zip(rows, *sides, strict=True)
    ]


def _split(token_ids: list[int], mask: list[bool]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Prompt and response; what a template writes after the end token belongs to neither."""
    first = mask.index(True)
    return tuple(token_ids[:first]), tuple(
        i for i, learnt in zip(token_ids[first:], mask[first:], strict=True) if learnt
    )


def _join(
    row: Row, chosen: tuple[tuple[int, ...], ...], rejected: tuple[tuple[int, ...], ...]
) -> PairExample:
    if chosen[0] != rejected[0]:
        raise TuluLiteError(
            f"{row.where}: the prompt has other tokens before the chosen than before the rejected response",
            why="the template or the tokenizer changes the prompt by what follows it",
            cure="remove white space at the start of both responses, or use `chat_template: tulu`",
        )
    return PairExample(chosen[0], chosen[1], rejected[1], row.source)


def _pair_json(pair: PreferencePair) -> dict[str, Any]:
    return {
        "prompt": {field.name: getattr(pair.prompt, field.name) for field in fields(Prompt)},
        "chosen": rollout_json(pair.chosen),
        "rejected": rollout_json(pair.rejected),
        "provenance": dict(pair.provenance),
    }


def _parse_pair(data: Any, where: str) -> PreferencePair:
    try:
        prompt = dict(data["prompt"])
        prompt["token_ids"] = whole_numbers(prompt["token_ids"])
        provenance = dict(data["provenance"])
        return PreferencePair(
            Prompt(**prompt), parse_rollout(data["chosen"]), parse_rollout(data["rejected"]), provenance
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) and error.args else str(error)
        raise TuluLiteError(
            f"{where}: this is not a pair that a preferences stage wrote: {reason}",
            cure="run the preferences stage again; for pairs of your own, name the file with `path:` and "
            "its columns",
        ) from None
