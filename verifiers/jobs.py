"""One item, or one part of a composition, on its way to a verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from verifiers.base import Sample, Verdict
from verifiers.layout import Layout, labelled, references, step
from verifiers.spec import Spec, parts

Sink = Callable[[Verdict], None]


@dataclass(slots=True)
class Job:
    """What is to be judged, and who wants to know."""

    id: int
    spec: Spec
    spec_id: str  # the canonical spec
    sample: Sample
    size: int  # bytes, about
    key: bytes  # of the cache
    sink: Sink
    attempts: int = 0
    leads: bool = False  # others wait for its verdict, because they are the same
    followers: list[Job] = field(default_factory=list)

    def fields(self) -> list[Any]:
        return fields_of(self.sample)

    def label(self) -> str:
        """The verifier's name as far as the spec tells it."""
        spec = json.loads(self.spec_id)
        if isinstance(spec, dict):
            return str(spec.get("name") or spec.get("use") or next(iter(spec), ""))
        return str(spec)


def fields_of(sample: Sample) -> list[Any]:
    """A sample as JSON data. Raises TypeError when its response is no text."""
    if not isinstance(sample.response, str):
        raise TypeError(f"the response is {type(sample.response).__name__}, not text")
    return [sample.response, sample.reference, sample.prompt, bool(sample.finished), dict(sample.info)]


class Combining:
    """A composition whose parts are judged where each belongs, and then combined.

    `launch(spec, sample, sink)` starts a part; `finish(verdict)` is called once, when the whole is decided.
    """

    def __init__(
        self,
        layout: Layout,
        spec: Spec,
        sample: Sample,
        launch: Callable[[Spec, Sample, Sink], None],
        finish: Sink,
    ) -> None:
        self._layout, self._sample = layout, sample
        self._specs = parts(spec)
        self._references = references(layout, sample.reference)
        self._verdicts: list[Verdict | None] = [None] * len(layout.children)
        self._launched: set[int] = set()
        self._launch, self._finish = launch, finish
        self._decided = False

    def advance(self) -> None:
        """Start what can be judged now, or hand out the verdict."""
        if self._decided:
            return
        wanted = step(self._layout, self._sample, self._verdicts)
        if isinstance(wanted, Verdict):
            self._decided = True
            self._finish(labelled(self._layout, wanted, self._seconds()))
            return
        for index in wanted:
            if index not in self._launched:
                self._launched.add(index)
                part = replace(self._sample, reference=self._references[index])
                self._launch(self._specs[index], part, partial(self._judged, index))

    def _judged(self, index: int, verdict: Verdict) -> None:
        self._verdicts[index] = verdict
        self.advance()

    def _seconds(self) -> float:
        """Judging alone: the parts of a gate ran one after another, those of a sum side by side."""
        seconds = [verdict.seconds for verdict in self._verdicts if verdict is not None]
        return sum(seconds) if self._layout.how == "gate" else max(seconds, default=0.0)
