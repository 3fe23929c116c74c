"""What every verifier takes and returns: Sample -> Verdict.

A score is a number in [0, 1] that the verifier stands behind. When the verifier itself fails (an
exception, a time-out, a reference it cannot read) there is no score: `score` is None and the status says
why. An error scored 0 would teach the policy to avoid whatever broke the verifier.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

MAX_REASON = 2000  # characters kept of a reason or an extracted answer


class Status(StrEnum):
    """How a verdict came about. The last two have no score."""

    CORRECT = "correct"  # score 1
    INCORRECT = "incorrect"  # score 0
    PARTIAL = "partial"  # a score between
    UNVERIFIABLE = "unverifiable"  # the verifier ran and says that it cannot judge this
    ERROR = "error"  # the verifier, its reference or its worker failed


SCORELESS = frozenset({Status.UNVERIFIABLE, Status.ERROR})


@dataclass(frozen=True, slots=True)
class Verdict:
    """One judged sample. score is None exactly when status is unverifiable or error.

    Raises ValueError when score and status contradict each other.
    """

    score: float | None
    status: Status
    reason: str = ""
    extracted: str | None = None  # the answer that was found in the response
    seconds: float = 0.0  # wall time of the judging alone, without queueing
    verifier: str = ""
    version: str = ""
    tier: str = ""  # the sandbox tier that the candidate's code ran in; "" when none was run
    scale: float = 1.0  # what a reward is multiplied with (a `scale` spec); the score stays in [0, 1]

    def __post_init__(self) -> None:
        object.__setattr__(self, "status", Status(self.status))
        if self.status in SCORELESS:
            if self.score is not None:
                raise ValueError(f"a verdict of status {self.status} has no score, got {self.score!r}")
        elif not _is_score(self.score):
            raise ValueError(f"a verdict's score must be a number in [0, 1], got {self.score!r}")
        elif self.status is not status_of(float(self.score)):  # type: ignore[arg-type]
            raise ValueError(f"score {self.score} is not of status {self.status}")
        if isinstance(self.scale, bool) or not 0.0 < self.scale < math.inf:
            raise ValueError(f"a verdict's scale must be a number above 0, got {self.scale!r}")
        object.__setattr__(self, "reason", _clip(self.reason) or "")
        object.__setattr__(self, "extracted", _clip(self.extracted))

    @property
    def scored(self) -> bool:
        return self.score is not None

    @property
    def reward(self) -> float | None:
        """score x scale; None without a score."""
        return None if self.score is None else self.score * self.scale

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping; `from_json` is its inverse."""
        return {
            "score": self.score,
            "status": str(self.status),
            "reason": self.reason,
            "extracted": self.extracted,
            "seconds": self.seconds,
            "verifier": self.verifier,
            "version": self.version,
            "tier": self.tier,
            "scale": self.scale,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Verdict:
        """Raises ValueError or TypeError when `data` is not what `to_json` returns."""
        return cls(**{**data, "status": Status(data["status"])})


@dataclass(frozen=True, slots=True)
class Sample:
    """What is judged: one response, with what its row says about the right answer."""

    response: str
    reference: Any = None
    prompt: str = ""
    finished: bool = True  # False when the token budget cut the response off
    info: Mapping[str, Any] = field(default_factory=dict)  # further columns of the row


def _is_score(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and 0.0 <= value <= 1.0


def _clip(text: str | None) -> str | None:
    if text is None or len(text) <= MAX_REASON:
        return text
    return text[: MAX_REASON - 3] + "..."


def status_of(score: float) -> Status:
    if score == 1.0:
        return Status.CORRECT
    return Status.INCORRECT if score == 0.0 else Status.PARTIAL


def scored(score: float | bool, reason: str = "", extracted: str | None = None) -> Verdict:
    """A verdict whose status follows from its score. Raises ValueError outside [0, 1]."""
    if not _is_score(score):
        raise ValueError(f"a score must be a number in [0, 1], got {score!r}")
    return Verdict(float(score), status_of(float(score)), reason, extracted)


def correct(reason: str = "", extracted: str | None = None) -> Verdict:
    return Verdict(1.0, Status.CORRECT, reason, extracted)


def incorrect(reason: str = "", extracted: str | None = None) -> Verdict:
    return Verdict(0.0, Status.INCORRECT, reason, extracted)


def unverifiable(reason: str) -> Verdict:
    return Verdict(None, Status.UNVERIFIABLE, reason)


def error(reason: str) -> Verdict:
    return Verdict(None, Status.ERROR, reason)


def as_verdict(returned: object) -> Verdict:
    """What a verifier function returned, as a Verdict: bool, number, Verdict, (score, reason), mapping.

    Never raises: what is none of these, NaN, or out of [0, 1] becomes an error.
    """
    if isinstance(returned, Verdict):
        return returned
    try:
        if isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], str):
            return replace(as_verdict(returned[0]), reason=returned[1])
        if isinstance(returned, Mapping):
            return _from_mapping(returned)
        number = _as_number(returned)
        if number is None:
            return error(f"the verifier returned {type(returned).__name__}, not a bool, number or Verdict")
        return scored(number)
    except (ValueError, TypeError, KeyError) as fault:
        return error(f"the verifier returned no valid verdict: {fault}")


def _as_number(value: object) -> float | None:
    if type(value).__module__.split(".")[0] == "numpy" and hasattr(value, "item"):
        value = value.item()
    return float(value) if isinstance(value, (bool, numbers.Real)) else None


def _from_mapping(data: Mapping[str, Any]) -> Verdict:
    extra = set(data) - {"score", "status", "reason", "extracted"}
    if extra or not {"score", "status"} & set(data):
        raise ValueError(
            f"a mapping must have score (and reason, extracted, status), got {sorted(map(str, data))}"
        )
    score = None if data.get("score") is None else _as_number(data["score"])
    if data.get("score") is not None and score is None:
        raise ValueError(f"score is {type(data['score']).__name__}, not a number")
    if "status" not in data and score is None:
        raise ValueError("score is None; say why with status: unverifiable or error")
    status = Status(data["status"]) if "status" in data else status_of(scored(score or 0.0).score or 0.0)
    return Verdict(score, status, str(data.get("reason", "")), data.get("extracted"))


_THINK_TAG = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)


def strip_thinking(response: str) -> str | None:
    """The response without its <think>...</think> reasoning; None when a <think> is never closed.

    A template may have opened the tag in the prompt, so a closing tag without an opening one ends a
    reasoning that began with the response. Inside reasoning a further <think> is text.
    """
    if "think" not in response and "THINK" not in response.upper():
        return response
    kept: list[str] = []
    position, inside = 0, False
    for tag in _THINK_TAG.finditer(response):
        closing = bool(tag.group(1))
        if closing:
            if not inside:
                kept.clear()
            inside, position = False, tag.end()
        elif not inside:
            kept.append(response[position : tag.start()])
            inside = True
    if inside:
        return None
    kept.append(response[position:])
    return "".join(kept)
