"""Prompts to sample responses for, with what their verifier needs."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..errors import TuluLiteError
from ..recipe import DataSource
from ..records import Prompt
from .chat import ChatTemplate
from .placeholders import require
from .sources import Row, load_rows
from .turns import prompt_turns


def load_prompts(
    sources: Sequence[DataSource], template: ChatTemplate, *, seed: int, max_prompt_tokens: int | None
) -> list[Prompt]:
    """The sources' rows as prompts, in order. seed: of the choice that `limit` makes.

    Raises TuluLiteError naming the file and line of a row with no prompt, verifier or reference column, or
    whose prompt has more than max_prompt_tokens tokens (None: no limit).
    """
    rows = load_rows(sources, seed=seed)
    turns = [prompt_turns(row) for row in rows]
    rendered = template.prompts(turns, [row.where for row in rows])
    seen: Counter[str] = Counter()
    prompts = []
    for row, messages, (text, token_ids) in zip(rows, turns, rendered, strict=True):
        if max_prompt_tokens is not None and len(token_ids) > max_prompt_tokens:
            raise TuluLiteError(
                f"{row.where}: the prompt has {len(token_ids)} tokens, more than the {max_prompt_tokens} "
                "that leave room for a response",
                cure="lower the stage's max_tokens, shorten or remove the row, or use a model of longer "
                "context",
            )
        reference = require(
            row.data, row.entry.reference, row.where, "the verifier's reference",
            "name the column in the data source: `reference: answer` (null in the row if the verifier "
            "needs none)",
        )  # fmt: skip
        id = prompt_id(row.source, text, reference)
        seen[id] += 1
        prompts.append(
            Prompt(
                id=id if seen[id] == 1 else f"{id}-{seen[id]}",
                text=text,
                token_ids=tuple(token_ids),
                source=row.source,
                verifier=_verifier(row),
                reference=reference,
                user=messages[-1]["content"],
            )
        )
    return prompts


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
        raise TuluLiteError(
            f"{row.where}: this row names no verifier, and its data source neither",
            why="without a verifier no response to it can be scored",
            cure="write `verifier: math` (or another name) in the data source, or a `verifier` column in "
            "the rows",
        )
    return spec if isinstance(spec, str) else canonical_json(spec)
