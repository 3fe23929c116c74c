"""Where the parts of a verifier run, and how their verdicts become one: plain data and pure rules.

A pool judges each part where it belongs (here, in a worker, in a confined worker, in an event loop) and needs
to know of a verifier only this; the verifier itself may live in another process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from verifiers.base import Sample, Verdict, error, incorrect, scored

Runs = Literal["inline", "worker", "sandbox", "async"]
Place = Literal["inline", "worker", "sandbox", "async", "mixed"]
How = Literal["leaf", "all_of", "weighted", "gate", "scale", "choose"]
CONCURRENCY = 32  # of an async verifier that names none
MAX_TIMEOUT_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Layout:
    """A verifier as the pool sees it. `children` are in the order of the spec's parts."""

    name: str
    version: str
    runs: Place
    cache: bool = True  # the same sample always gets the same verdict
    timeout_s: float | None = None  # its own deadline; None: the pool's
    concurrency: int = CONCURRENCY  # async only
    how: How = "leaf"
    weights: tuple[float, ...] = ()  # weighted: sum to 1; scale: the factor
    keys: tuple[str, ...] = ()  # choose: the value of `by` that each child is for, "" for any other
    by: str = ""  # choose: a column of the row
    children: tuple[Layout, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Layout:
        """Raises ValueError, TypeError or KeyError when `data` is not what `to_json` returns."""
        children = tuple(cls.from_json(child) for child in data["children"])
        fields = {
            **data,
            "children": children,
            "weights": tuple(data["weights"]),
            "keys": tuple(data["keys"]),
        }
        made = cls(**fields)
        if made.runs not in get_args(Place) or made.how not in get_args(How):
            raise ValueError(f"no layout: runs {made.runs!r}, how {made.how!r}")
        if made.timeout_s is not None and not 0 < made.timeout_s <= MAX_TIMEOUT_S:
            raise ValueError(f"no layout: timeout_s {made.timeout_s!r}")
        return made


def place_of(children: Sequence[Layout]) -> Place:
    """Where a whole of several parts runs; "mixed" when they must be judged apart and combined."""
    places = {child.runs for child in children}
    if "async" in places or "mixed" in places or {"worker", "sandbox"} <= places:
        return "mixed"
    return next((place for place in ("worker", "sandbox") if place in places), "inline")  # type: ignore[return-value]


def allowed_seconds(layout: Layout, default: float) -> float:
    """The deadline of one judgement in one place, where parts run one after another.

    Parts that name a deadline add it; all that name none share one `default`. Of a choice the longest counts.
    """
    declared, undeclared = _declared(layout)
    return declared + default if undeclared or not declared else declared


def _declared(layout: Layout) -> tuple[float, bool]:
    if layout.timeout_s is not None:
        return layout.timeout_s, False
    if not layout.children:
        return 0.0, True
    parts = [_declared(child) for child in layout.children]
    seconds = [part[0] for part in parts]
    return max(seconds) if layout.how == "choose" else math.fsum(seconds), any(part[1] for part in parts)


# ---------------------------------------------------------------- the rules of composition


def references(layout: Layout, reference: Any) -> list[Any]:
    """What each child compares with: its own entry where the reference has one for every child's name."""
    if (
        layout.how in ("all_of", "weighted", "gate")
        and isinstance(reference, Mapping)
        and all(child.name in reference for child in layout.children)
    ):
        return [reference[child.name] for child in layout.children]
    return [reference] * len(layout.children)


def chosen(layout: Layout, info: Mapping[str, Any]) -> int | None:
    """Which child of a choice is for this row; None when none is."""
    value = info.get(layout.by)
    if isinstance(value, str) and value and value in layout.keys:
        return layout.keys.index(value)
    return layout.keys.index("") if "" in layout.keys else None


def nobody_for(layout: Layout, info: Mapping[str, Any]) -> str:
    known = ", ".join(key for key in layout.keys if key)
    return f"no verifier for {layout.by} {info.get(layout.by)!r}; there is one for {known}"


def step(layout: Layout, sample: Sample, verdicts: Sequence[Verdict | None]) -> Verdict | list[int]:
    """The whole's verdict, or else which children to judge next; `verdicts` are the children's so far."""
    if layout.how == "choose":
        index = chosen(layout, sample.info)
        if index is None:
            return error(nobody_for(layout, sample.info))
        return verdicts[index] or [index]
    for child, verdict in zip(layout.children, verdicts, strict=True):
        if verdict is not None and verdict.score is None:
            return replace(verdict, reason=f"{child.name}: {verdict.reason}")
    if layout.how == "gate":
        for index, verdict in enumerate(verdicts):
            if verdict is None:
                return [index]
            if (verdict.score or 0.0) < 1.0 and index < len(verdicts) - 1:
                return incorrect(f"gate {layout.children[index].name}: {verdict.reason or verdict.status}")
    missing = [index for index, verdict in enumerate(verdicts) if verdict is None]
    if missing:
        return missing
    return _combined(layout, [verdict for verdict in verdicts if verdict is not None])


def _combined(layout: Layout, verdicts: Sequence[Verdict]) -> Verdict:
    if layout.how == "scale":
        return replace(verdicts[0], scale=verdicts[0].scale * layout.weights[0])
    reason = "; ".join(
        f"{child.name}={verdict.score:g}{' (' + verdict.reason + ')' if verdict.reason else ''}"
        for child, verdict in zip(layout.children, verdicts, strict=True)
    )
    extracted = next((v.extracted for v in reversed(verdicts) if v.extracted is not None), None)
    tier = ", ".join(sorted({v.tier for v in verdicts if v.tier}))
    made = scored(_score(layout, [float(v.score or 0.0) for v in verdicts]), reason, extracted)
    return replace(made, tier=tier)


def _score(layout: Layout, scores: Sequence[float]) -> float:
    if layout.how == "gate":
        return scores[-1]
    if layout.how == "all_of":
        return min(scores)
    if min(scores) == max(scores):
        return scores[0]  # exact: full marks stay full marks whatever the weights round to
    return math.fsum(weight * score for weight, score in zip(layout.weights, scores, strict=True))


def labelled(layout: Layout, verdict: Verdict, seconds: float) -> Verdict:
    return replace(verdict, seconds=seconds, verifier=layout.name, version=layout.version)
