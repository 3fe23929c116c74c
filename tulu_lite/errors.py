"""The error that is shown to a user without a traceback."""

from __future__ import annotations


class TuluLiteError(Exception):
    """Something a user can mend: `what` is wrong and where, `why` it matters, and the `cure`."""

    def __init__(self, what: str, why: str = "", cure: str = "") -> None:
        self.what, self.why, self.cure = what, why, cure
        super().__init__(" ".join(part for part in (what, why, cure) if part))

    def lines(self) -> list[str]:
        """What is printed: one line each for the fault, its reason and its cure."""
        lines = [self.what]
        if self.why:
            lines.append(f"  why:  {self.why}")
        if self.cure:
            lines.append(f"  cure: {self.cure}")
        return lines


def first_line(error: BaseException) -> str:
    """What another library's error says, in short: the first line of its message, or its type where it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


class ServerError(TuluLiteError):
    """The rollout server failed: it died, did not answer in time, or refused a request."""
