"""Prompts to sample responses for, with what their verifier needs."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import TuluLiteError
from ..recipe import DataSettings, DataSource
from ..records import Prompt
from .bad import BadRow
from .chat import ChatTemplate
from .mixing import mixed
from .placeholders import require
from .report import DataReport
from .rows import Item, Kind, usable
from .sources import Row
from .store import Encoded
from .turns import Message, prompt_turns


def load_prompts(
    sources: Sequence[DataSource],
    template: ChatTemplate,
    *,
    seed: int,
    max_prompt_tokens: int | None,
    rules: DataSettings | None = None,
) -> list[Prompt]:
    """The sources' rows as prompts, in order. seed: of the choices of `limit` and of the mix. rules: the stage's mix,
    its filters, what becomes of bad rows and what further makes one bad; by default all rows, and a bad one is an error.

    Raises TuluLiteError naming the file and line of a row with no prompt, verifier or reference column, or
    whose prompt has more than max_prompt_tokens tokens (None: no limit), where the rules say so.
    """
    return report_prompts(sources, template, seed=seed, max_prompt_tokens=max_prompt_tokens, rules=rules)[0]


def report_prompts(
    sources: Sequence[DataSource],
    template: ChatTemplate,
    *,
    seed: int,
    max_prompt_tokens: int | None,
    rules: DataSettings | None = None,
) -> tuple[list[Prompt], DataReport]:
    """As load_prompts, with what was dropped."""
    rules = DataSettings() if rules is None else rules
    report = DataReport(loses_characters=template.loses_characters)
    kept: list[list[_Found]] = [[] for _ in sources]
    for number, item, encoded in usable(
        sources, _kind(template, max_prompt_tokens, rules), rules, report, seed=seed
    ):
        assert item.row is not None and isinstance(encoded, _EncodedPrompt)
        kept[number].append(_Found(item.row, item.turns, encoded))
        if template.unknown_id is not None:
            report.see_unknown(item.source, list(encoded.parts[0]).count(template.unknown_id), item.where)
    report.distinct = sum(map(len, kept))
    seen: Counter[str] = Counter()
    prompts = []
    for number, indices in mixed(sources, [len(found) for found in kept], rules.mix, seed):
        for i in indices.tolist():
            prompts.append(_prompt(kept[number][i], seen))
            report.keep(prompts[-1].source, len(prompts[-1].token_ids), 0, kept[number][i].row.tags)
    if not prompts and sources:
        raise TuluLiteError(
            "all prompts were dropped", "; ".join(report.notes()), "use other data or filters"
        )
    return prompts, report


@dataclass(frozen=True, slots=True)
class _Found:
    row: Row
    turns: Sequence[Message]
    encoded: _EncodedPrompt


@dataclass(frozen=True, slots=True)
class _EncodedPrompt(Encoded):
    text: str = ""


def _kind(template: ChatTemplate, limit: int | None, rules: DataSettings) -> Kind:
    def turns(row: Row) -> list[Message]:
        made = prompt_turns(row)
        reference, verifier = _reference(row), _verifier(row)
        if rules.row_check is not None:
            rules.row_check(verifier, reference, row.source, not row.entry.verifier)
        return made

    def encode(items: Sequence[Item]) -> list[Encoded]:
        made = template.prompts([item.turns for item in items], [item.where for item in items])
        for item, (_, ids) in zip(items, made, strict=True):
            if limit is not None and len(ids) > limit:
                raise BadRow(
                    "a prompt that leaves no room for a response",
                    f"{item.where}: the prompt has {len(ids)} tokens, more than the {limit} "
                    "that leave room for a response",
                    cure="lower the stage's max_tokens, shorten or remove the row, or use a model of longer "
                    "context",
                )
        return [_EncodedPrompt((ids,), (), text) for text, ids in made]

    return Kind(
        turns=turns,
        messages=lambda messages: messages,
        encode=encode,
        length=lambda encoded: len(encoded.parts[0]),
    )


def _prompt(found: _Found, seen: Counter[str]) -> Prompt:
    """seen: how often each id was given; the second prompt of an id gets another."""
    row, reference = found.row, _reference(found.row)
    id = prompt_id(row.source, found.encoded.text, reference)
    seen[id] += 1
    return Prompt(
        id=id if seen[id] == 1 else f"{id}-{seen[id]}",
        text=found.encoded.text,
        token_ids=tuple(found.encoded.parts[0]),
        source=row.source,
        verifier=_verifier(row),
        reference=reference,
        user=found.turns[-1]["content"],
    )


def _reference(row: Row) -> Any:
    return require(
        row.data, row.entry.reference, row.where, "the verifier's reference",
        "name the column in the data source: `reference: answer` (null in the row if the verifier "
        "needs none)",
    )  # fmt: skip


def prompt_id(source: str, text: str, reference: Any) -> str:
    """16 hexadecimal digits that stay the same from run to run."""
    return hashlib.sha256(
        canonical_json([source, text, reference]).encode("utf-8", "surrogatepass")
    ).hexdigest()[:16]


def canonical_json(value: Any) -> str:
    """The same text for equal values: sorted keys, no spaces; what is not JSON as its str."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)


def _verifier(row: Row) -> str:
    spec = row.entry.verifier or row.data.get("verifier")
    if not spec:
        raise BadRow(
            "no verifier",
            f"{row.where}: this row names no verifier, and its data source neither",
            why="without a verifier no response to it can be scored",
            cure="write `verifier: math` (or another name) in the data source, or a `verifier` column in "
            "the rows",
        )
    return spec if isinstance(spec, str) else canonical_json(spec)
