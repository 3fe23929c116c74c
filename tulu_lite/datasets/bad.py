"""A row that cannot be used, and why in a few words: what reports count by. Other errors are no row's: they always stop."""

from __future__ import annotations

from ..errors import TuluLiteError


class BadRow(TuluLiteError):
    """One row's fault. reason: the same words for all rows of the same fault."""

    def __init__(self, reason: str, what: str, why: str = "", cure: str = "") -> None:
        self.reason = reason
        super().__init__(what, why, cure)
