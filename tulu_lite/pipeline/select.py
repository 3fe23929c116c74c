"""The choice among the runs of a stage, and when one of them has no hope left. By validation alone: what an evaluate
stage measures has no say here."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import TuluLiteError
from ..statistics import Estimate, paired
from .steps import Step


@dataclass(frozen=True)
class Candidate:
    """A run as the choice sees it."""

    id: str
    setting: str
    value: float  # of its validation; NaN: nothing of it has a score
    stopped: bool = False  # early, as hopeless
    extended: bool = False


def choose(candidates: Sequence[Candidate], higher: bool) -> Candidate:
    """The run that goes on.

    First the setting: the one with the best mean over its seeds, at the steps that all were given (runs that were let go
    on longer have no say here). Then the best run of that setting, longer ones included. A run without a score (NaN)
    counts as worse than any with one, so the setting with fewest of them is preferred; runs that were stopped early are
    chosen only where all were. Of equals the first wins.
    """
    settings = dict.fromkeys(one.setting for one in candidates)

    def goodness(value: float) -> float:
        return -math.inf if math.isnan(value) else value if higher else -value

    def of_setting(setting: str) -> tuple[bool, int, float]:
        runs = [one for one in candidates if one.setting == setting and not one.extended]
        known = [goodness(one.value) for one in runs if not math.isnan(one.value)]
        average = sum(known) / len(known) if known else -math.inf
        return (not all(one.stopped for one in runs), len(known) - len(runs), average)

    best = max(settings, key=of_setting)  # of equals max gives the first
    return max(
        (one for one in candidates if one.setting == best),
        key=lambda one: (not one.stopped, goodness(one.value)),
    )


def choice_result(step: Step, runs: Sequence[Step]) -> dict[str, Any]:
    """The result of the stage as a whole: the model of the run that goes on. Raises TuluLiteError where the runs cannot
    be compared. A run alone goes on whether it was validated or not."""
    if len(runs) == 1 and "validation" not in runs[0].summary:
        return _result(step, runs[0], {"candidates": {runs[0].id: None}})
    validation = {run.id: validation_of(run) for run in runs}
    metrics = {(one["metric"], one["better"]) for one in validation.values()}
    if len(metrics) > 1:
        raise TuluLiteError(
            f"the runs of {step.id} cannot be compared: their validation is "
            + " or ".join(sorted(f"{name} ({better} is better)" for name, better in metrics)),
            cure="sweep fields that leave the metric as it is",
        )
    ((metric, better),) = metrics
    candidates = [
        Candidate(
            run.id,
            run.setting,
            float(validation[run.id]["value"]),
            "stopped_early" in run.summary,
            run.extends is not None,
        )
        for run in runs
    ]
    best = next(run for run in runs if run.id == choose(candidates, better == "higher").id)
    told = {"metric": metric, "value": validation[best.id]["value"], "better": better}
    values = {run.id: validation[run.id]["value"] for run in runs}
    return _result(step, best, {"validation": told, "candidates": values})


def _result(step: Step, best: Step, summary: dict[str, Any]) -> dict[str, Any]:
    return {
        "step": step.id,
        "key": step.key,
        "model": os.path.relpath(best.folder / best.outcome["model"], step.folder),
        "summary": {"chosen": best.id, "seed": best.seed, "setting": best.setting, **summary},
        "seconds": 0.0,
    }


def validation_of(run: Step) -> dict[str, Any]:
    """{"metric", "value", "better"} of a run that is done. Raises TuluLiteError where it has none."""
    found = run.summary.get("validation")
    if not isinstance(found, dict):
        raise TuluLiteError(
            f"{run.id} has no validation to be compared by",
            f"its {run.result_file} names none",
            "a stage with `seeds` or `sweep` needs `validation`",
        )
    return found


def hopeless(
    own: Mapping[str, float], others: Mapping[str, Mapping[str, float]], margin: float, higher: bool
) -> tuple[str, Estimate] | None:
    """(best other run, how far ahead it is) when this run has no hope, else None.

    own and others: validation values by prompt, at the same step. No hope: the best other is ahead by more than `margin`
    on the prompts of both, and the paired 95 % interval of the difference excludes 0.
    """
    best: tuple[str, Estimate] | None = None
    for name, theirs in others.items():
        ahead = paired(theirs, own)
        if ahead is None:
            continue
        if not higher:
            ahead = Estimate(-ahead.value, -ahead.high, -ahead.low, ahead.n)
        if best is None or ahead.value > best[1].value:
            best = (name, ahead)
    return best if best is not None and best[1].value > margin and best[1].low > 0 else None
