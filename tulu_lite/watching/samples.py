"""Recorded samples to read: which of a step's rows, and how they look on a terminal of any width."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .terminal import safe_line, safe_text

Row = Mapping[str, Any]
VERDICTS = ("correct", "partial", "incorrect", "unverifiable", "error", "unjudged", "unfinished")
COLOURS = {
    "correct": "green",
    "partial": "yellow",
    "incorrect": "red",
    "unverifiable": "magenta",
    "error": "magenta",
}
NARROWEST = 44  # columns of text beside one another; with less room they come below one another


def status_of(row: Row) -> str:
    """A verdict's status; "unjudged" where there is no verdict."""
    return str(row["verdict"]["status"]) if row.get("verdict") else "unjudged"


def chosen_rows(
    rows: Sequence[Row],
    *,
    verdict: str | None = None,
    source: str | None = None,
    prompt: str | None = None,
    count: int,
) -> list[Row]:
    """At most `count` rows that fit, one of each prompt before a second of any, in the order of the batch.

    verdict: a status, or `unfinished` for those that reached their budget. prompt: the beginning of its id.
    """
    fitting = [
        row
        for row in rows
        if (
            verdict is None
            or verdict == status_of(row)
            or (verdict == "unfinished" and row["finish_reason"] != "stop")
        )
        and (source is None or row["source"] == source)
        and (prompt is None or row["prompt_id"].startswith(prompt))
    ]
    return _one_of_each_first(fitting)[:count]


def _one_of_each_first(rows: Sequence[Row]) -> list[Row]:
    """In rounds: the first row of every prompt, then the second, and so on."""
    seen: Counter[str] = Counter()
    ranked = []
    for row in rows:
        ranked.append((seen[row["prompt_id"]], row))
        seen[row["prompt_id"]] += 1
    return [row for _, row in sorted(ranked, key=lambda item: item[0])]


def summary_line(rows: Sequence[Row]) -> str:
    """192 samples of 24 prompts: 96 correct, 90 incorrect, 6 error; sources gsm8k 100, ifeval 92."""
    statuses = Counter(map(status_of, rows))
    sources = Counter(row["source"] for row in rows)
    parts = ", ".join(f"{statuses[name]} {name}" for name in VERDICTS if statuses[name])
    where = ", ".join(f"{safe_line(name)} {count}" for name, count in sources.most_common())
    prompts = len({row["prompt_id"] for row in rows})
    return f"{len(rows)} samples of {prompts} prompts: {parts}; sources {where}"


def sample_view(row: Row, longest: int, title: str = "", with_prompt: bool = True) -> RenderableType:
    """One sample: its prompt, response, verdict and figures. longest: characters of each text that are shown."""
    status = status_of(row)
    verdict = row.get("verdict") or {}
    colour = COLOURS.get(status, "white")
    head = Text.assemble((title, "bold"), "  " if title else "", (status, f"bold {colour}"), *_figures(row))
    parts: list[RenderableType] = []
    if with_prompt:
        parts += [Text(_cut(row["prompt"], longest), style="dim"), Text("")]
    parts.append(Text(_cut(row["response"], longest)))
    if row["finish_reason"] != "stop":
        parts.append(Text("(cut: the response budget ran out)", style="yellow"))
    told = [
        ("reference", _plain(row.get("reference"))),
        ("extracted", _plain(verdict.get("extracted"))),
        ("reason", _plain(verdict.get("reason"))),
    ]
    lines = [Text.assemble((f"{name}: ", "dim"), safe_line(text)[:longest]) for name, text in told if text]
    return Panel(
        Group(*parts, *([Text("")] if lines else []), *lines),
        title=head,
        title_align="left",
        border_style=colour,
    )


def _figures(row: Row) -> Iterator[tuple[str, str]]:
    yield f"  {safe_line(str(row['source']))}", "cyan"
    yield f"  {row['tokens']} tokens", "dim"
    for name in ("reward", "advantage"):
        value = row.get(name)
        if isinstance(value, (int, float)):
            yield f"  {name} {value:+.3g}" if name == "advantage" else f"  {name} {value:.3g}", "dim"
    yield f"  {safe_line(row['prompt_id'])}", "dim"


def side_by_side(
    steps: Mapping[int, Sequence[Row]], longest: int, width: int, count: int
) -> list[RenderableType]:
    """For each prompt that is in all steps, the first sample of each step beside one another. width: of the terminal;
    where it has no room for that, below one another. count: prompts at most."""
    beside = width // max(1, len(steps)) >= NARROWEST
    shown: list[RenderableType] = []
    for prompt in common_prompts(steps)[:count]:
        firsts = {
            step: next(row for row in rows if row["prompt_id"] == prompt) for step, rows in steps.items()
        }
        any_row = next(iter(firsts.values()))
        head = Text.assemble(
            (f"{safe_line(prompt)}  {safe_line(any_row['source'])}\n", "cyan"),
            (_cut(any_row["prompt"], longest), "dim"),
        )
        views = [sample_view(row, longest, f"step {step}", with_prompt=False) for step, row in firsts.items()]
        if beside:
            table = Table(box=None, show_header=False, expand=True, pad_edge=False, padding=(0, 1, 0, 0))
            for _ in views:
                table.add_column(ratio=1, overflow="fold")
            table.add_row(*views)
            views = [table]
        shown.append(Group(head, *views, Text("")))
    return shown


def common_prompts(steps: Mapping[int, Sequence[Row]]) -> list[str]:
    """Prompt ids that every step has, in the order of the first."""
    sets = [{row["prompt_id"] for row in rows} for rows in steps.values()]
    first = next(iter(steps.values()), ())
    return [id for id in dict.fromkeys(row["prompt_id"] for row in first) if all(id in one for one in sets)]


def _cut(text: str, longest: int) -> str:
    text = safe_text(text)
    return text if len(text) <= longest else f"{text[:longest]} … ({len(text) - longest} more characters)"


def _plain(value: Any) -> str:
    if value is None or value == "":
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


__all__ = ["chosen_rows", "common_prompts", "sample_view", "side_by_side", "status_of", "summary_line"]
