"""The choice among the seeds of an rlvr stage."""

from __future__ import annotations

import math
import os
from typing import Any

from .steps import Step


def choose_seed(step: Step, runs: list[Step]) -> dict[str, Any]:
    """The result of the stage as a whole: the model of the seed with the best validation accuracy.

    Only validation prompts decide, never those of an evaluate stage. Of equal seeds the first listed wins.
    """
    validation = {run: float(run.summary["validation_accuracy"]) for run in runs}
    # a seed whose validation has no score at all (NaN) is the last to be chosen
    best = max(runs, key=lambda run: -math.inf if math.isnan(validation[run]) else validation[run])
    return {
        "step": step.id,
        "key": step.key,
        "model": os.path.relpath(best.folder / best.outcome["model"], step.folder),
        "summary": {
            "chosen": best.id,
            "seed": best.seed,
            "validation_accuracy": validation[best],
            "candidates": {run.id: validation[run] for run in runs},
        },
        "seconds": 0.0,
    }
