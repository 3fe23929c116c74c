"""A row that cannot be used, and why in a few words: what reports count by."""

from __future__ import annotations

from ..errors import TuluLiteError


class BadRow(TuluLiteError):
    """One row's fault. reason: the same words for all rows of the same fault."""

    def __init__(self, reason: str, what: str, why: str = "", cure: str = "") -> None:
        self.reason = reason
        super().__init__(what, why, cure)


def reason_of(error: TuluLiteError) -> str:
    """The reason by which the row is counted."""
    return error.reason if isinstance(error, BadRow) else "cannot be read or rendered"
