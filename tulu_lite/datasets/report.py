"""What became of a training stage's rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..errors import TuluLiteError


@dataclass
class DataReport:
    """Counts of rows and tokens (of one epoch, repeats counted)."""

    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> rows
    tokens: int = 0
    loss_tokens: int = 0  # the tokens that are learnt: those with a loss (sft), those of both responses (dpo)
    by_source: Counter[str] = field(default_factory=Counter)  # source -> rows kept

    def keep(self, source: str, tokens: int, loss_tokens: int) -> None:
        self.kept += 1
        self.tokens += tokens
        self.loss_tokens += loss_tokens
        self.by_source[source] += 1

    def drop_or_raise(self, reason: str, where: str, length: int, limit: int, too_long: str) -> None:
        """Count a row that is too long, or raise, as the stage's `too_long` says."""
        if too_long == "error":
            raise TuluLiteError(
                f"{where}: {length} tokens are more than max_length {limit}",
                cure="raise max_length, set `too_long: drop`, or remove the row",
            )
        self.dropped[reason] += 1

    def require_rows(self, stage: str) -> None:
        """Raises TuluLiteError when nothing is left to train on."""
        if not self.kept:
            raise TuluLiteError(
                f"stage {stage}: all rows were dropped",
                why="; ".join(self.notes()),
                cure="raise max_length, or use other data",
            )

    def notes(self) -> list[str]:
        """One line for each reason that rows were dropped for."""
        rows = self.kept + self.dropped.total()
        return [f"{count} of {rows} rows dropped: {reason}" for reason, count in self.dropped.items()]
