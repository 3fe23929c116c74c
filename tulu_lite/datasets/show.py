"""Rows as the model sees them: every token's text, special tokens visible, what is learnt coloured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from .chat import ChatTemplate
from .report import DataReport, Dropped, Tally

LEARNT, SPECIAL, UNKNOWN, READ = "green", "bold cyan", "bold white on red", "default"
LEGEND = "learnt tokens are green (between « and » where there is no colour), special tokens cyan, unknown ones red"


def token_runs(
    template: ChatTemplate, token_ids: Sequence[int], learnt: Sequence[bool]
) -> Iterator[tuple[str, bool, str]]:
    """(text, whether it is learnt, "special", "unknown" or "text") of neighbouring tokens that are alike."""
    special = set(template.tokenizer.all_special_ids) | set(template.end_token_ids)

    def kind(place: int) -> tuple[bool, str]:
        id = token_ids[place]
        what = "unknown" if id == template.unknown_id else "special" if id in special else "text"
        return bool(learnt[place]), what

    for (on, what), places in groupby(range(len(token_ids)), key=kind):
        ids = [token_ids[place] for place in places]
        whole = template.exact_text(ids)
        yield whole or "".join(map(str, template.tokenizer.convert_ids_to_tokens(ids))), on, what


def coloured(
    template: ChatTemplate, token_ids: Sequence[int], learnt: Sequence[bool], *, marks: bool = False
) -> Text:
    """The tokens' text. marks: also put guillemets around what is learnt, for where there are no colours."""
    shown, before = Text(), False
    for text, on, what in token_runs(template, token_ids, learnt):
        if marks and on != before:
            shown.append("«" if on else "»", style="dim")
        before = on
        style = {"special": SPECIAL, "unknown": UNKNOWN}.get(what, LEARNT if on else READ)
        shown.append(_visible(text), style=f"{style} underline" if on and what == "special" else style)
    if marks and before:
        shown.append("»", style="dim")
    return shown


def _visible(text: str) -> str:
    """Control characters, which could play tricks on a terminal, as escapes; line breaks and tabs as they are."""
    return "".join(
        char if char in "\n\t" or char.isprintable() else char.encode("unicode_escape").decode()
        for char in text
    )


def tally_table(title: str, name: str, tallies: dict[str, Tally]) -> Table:
    """Rows and tokens of each source or tag, the most tokens first."""
    table = Table(title=title, title_justify="left", pad_edge=False)
    table.add_column(name, overflow="fold")
    for column in ("rows", "tokens", "share", "learnt", "tokens a row"):
        table.add_column(column, justify="right", no_wrap=True)
    whole = sum(tally.tokens for tally in tallies.values())
    for key, tally in sorted(tallies.items(), key=lambda item: (-item[1].tokens, item[0])):
        table.add_row(
            Text(key), f"{tally.rows:,}", f"{tally.tokens:,}", f"{100 * tally.tokens / max(whole, 1):.1f} %",
            f"{tally.loss_tokens:,}", f"{tally.tokens / max(tally.rows, 1):.1f}",
        )  # fmt: skip
    return table


def dropped_table(report: DataReport) -> Table:
    """Rows that are not used, by source and reason, with the first places."""
    table = Table("source", "reason", title="Dropped", title_justify="left", pad_edge=False)
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("first at", overflow="fold")
    for source, reasons in report.dropped_of.items():
        for reason, count in reasons.items():
            places = [r.where for r in report.rows_dropped if (r.source, r.reason) == (source, reason)][:3]
            table.add_row(Text(source), reason, f"{count:,}", Text("\n".join(places)))
    return table


def dropped_rows(rows: Iterable[Dropped]) -> Iterator[Text]:
    """Each row that is not used, with why, and how it begins."""
    for row in rows:
        head = Text(f"{row.where}  ", style="bold").append(f"{row.source}: ").append(row.reason, style="red")
        yield head.append(f" ({row.why})" if row.why else "").append(f"\n{_visible(row.text)}", style="dim")


def spread(n: int, wanted: int) -> list[int]:
    """At most `wanted` of range(n), evenly spread from the first on."""
    if n <= wanted:
        return list(range(n))
    return [i * n // wanted for i in range(wanted)]


def sides(item: Any) -> list[tuple[str, Sequence[int], Sequence[bool]]]:
    """(name, token ids, which have a loss) of what the model sees of a row: one conversation, both sides of a pair, or
    a prompt."""
    if hasattr(item, "loss_mask"):
        return [("", item.token_ids, item.loss_mask)]
    if hasattr(item, "chosen_ids"):
        return [
            (name, [*item.prompt_ids, *ids], [False] * len(item.prompt_ids) + [True] * len(ids))
            for name, ids in (("chosen", item.chosen_ids), ("rejected", item.rejected_ids))
        ]
    return [("", item.token_ids, [False] * len(item.token_ids))]
