"""Preference pairs: written by a preferences stage, read by a dpo or reward stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import TuluLiteError
from ..files import atomic_file
from ..recipe import DataSource, Mix
from ..records import PreferencePair, Prompt
from .bad import BadRow
from .cache import TokenCache
from .chat import ChatTemplate
from .prepared import Plan, Prepared, Rows, prepare
from .report import DataReport
from .responses import parse_rollout, rollout_json, whole_numbers
from .rows import Item, Kind
from .sources import read_jsonl, select
from .store import Encoded
from .turns import pair_turns


@dataclass(frozen=True, slots=True)
class PairExample:
    """A pair to train on: token ids of the prompt [P] and of both responses [T], with their end tokens."""

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    source: str
    file: str = ""
    line: int = 0
    tags: tuple[str, ...] = ()
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
    stage: Any,
    template: ChatTemplate,
    *,
    seed: int,
    stage_rows: Callable[[str], Path] | None,
    cache: TokenCache | None = None,
    sources: Sequence[DataSource] | None = None,
) -> tuple[Sequence[PairExample], DataReport]:
    """The stage's pairs in order, and what was dropped. stage: one with `data`, `max_length` and `too_long`.

    Pairs of a preferences stage keep their token ids as they were sampled; rows of text go through the chat
    template. seed: of the choices of `limit` and of the mix. stage_rows: the file of an earlier stage's pairs. cache:
    where pairs lie tokenized; they are then read as they are used. sources: instead of the stage's own (its
    validation), without its mix.
    Raises TuluLiteError for a row that is no pair, or too long, where the stage says so; and if none is left.
    """
    plan = Plan(
        entries=stage.data if sources is None else sources,
        kind_name="pairs",
        kind=_kind(template),
        weights=(2, 1, 1),  # the prompt stands before both responses
        rules=stage,
        template=template,
        seed=seed,
        settings={},
        max_length=stage.max_length,
        too_long=stage.too_long,
        stage_rows=stage_rows,
        sampled=lambda entry: _sampled(entry, seed, stage_rows),
    )
    prepared = prepare(plan, stage.mix if sources is None else Mix(), cache)
    prepared.report.require_rows(stage.name)
    return Rows(prepared, _example), prepared.report


def _kind(template: ChatTemplate) -> Kind:
    def encode(items: Sequence[Item]) -> list[Encoded]:
        places = [item.where for item in items]
        sides = [
            template.conversations(
                [[*item.turns[0], item.turns[side]] for item in items], places, last_only=True
            )
            for side in (1, 2)
        ]
        return [
            _join(item.where, _split(*chosen), _split(*rejected))
            for item, chosen, rejected in zip(items, *sides, strict=True)
        ]

    return Kind(
        turns=pair_turns,
        messages=lambda turns: [*turns[0], turns[1], turns[2]],
        encode=encode,
        length=lambda encoded: len(encoded.parts[0]) + max(len(encoded.parts[1]), len(encoded.parts[2])),
        refuse=lambda encoded: (
            "chosen and rejected are the same" if tuple(encoded.parts[1]) == tuple(encoded.parts[2]) else None
        ),
    )


def _example(prepared: Prepared, row: int) -> PairExample:
    prompt, chosen, rejected = (tuple(part.tolist()) for part in prepared.store.parts(row))
    place = prepared.store.place(row)
    return PairExample(
        prompt, chosen, rejected, place.source, prepared.files[place.file], place.line, place.tags
    )


def _sampled(entry: DataSource, seed: int, stage_rows: Callable[[str], Path] | None) -> Iterator[Item]:
    assert entry.stage is not None
    if stage_rows is None:
        raise TuluLiteError(
            f"the pairs of stage {entry.stage!r} are not there yet", cure="run that stage first"
        )
    path = stage_rows(entry.stage)
    once = entry.model_copy(update={"repeat": 1})  # an epoch's repeats are the mix's
    numbered = list(enumerate(read_pairs(path), start=1))
    for line, pair in select(numbered, once, seed, lambda item: item[1].prompt.user):
        yield Item(
            entry.source or pair.prompt.source,
            str(path),
            line,
            users=[pair.prompt.user],
            text="\n".join([pair.prompt.user, pair.chosen.text, pair.rejected.text]),
            encoded=_encoded(pair.prompt.token_ids, pair.chosen.token_ids, pair.rejected.token_ids),
        )


def _encoded(prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int]) -> Encoded:
    learnt = [False] * len(prompt) + [True] * (len(chosen) + len(rejected))
    return Encoded((prompt, chosen, rejected), learnt)


def _split(token_ids: list[int], mask: list[bool]) -> tuple[list[int], list[int]]:
    """Prompt and response; what a template writes after the end token belongs to neither."""
    first = mask.index(True)
    return token_ids[:first], [i for i, on in zip(token_ids[first:], mask[first:], strict=True) if on]


def _join(where: str, chosen: tuple[list[int], list[int]], rejected: tuple[list[int], list[int]]) -> Encoded:
    if chosen[0] != rejected[0]:
        raise BadRow(
            "the prompt has other tokens before each response",
            f"{where}: the prompt has other tokens before the chosen than before the rejected response",
            why="the template or the tokenizer changes the prompt by what follows it",
            cure="remove white space at the start of both responses, or use `chat_template: tulu`",
        )
    return _encoded(chosen[0], chosen[1], rejected[1])


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
