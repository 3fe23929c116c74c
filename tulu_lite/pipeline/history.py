"""Which steps an rlvr run did, and what is true of one that it has no samples of. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import TuluLiteError
from .protocol import read_metrics
from .steps import Step


def last_step(step: Step) -> int:
    """The last step of training that the run logged, those of the runs before it included; 0 where there is none."""
    return max((int(row["step"]) for row in read_metrics(step.folder / "metrics.jsonl")), default=0)


def first_step(step: Step, steps: Mapping[str, Step]) -> int:
    """The first step that is the run's own: of one that goes on from another, the one after that one's last."""
    return 1 if step.extends is None else last_step(steps[step.extends]) + 1


def owner(step: Step, steps: Mapping[str, Step], number: int) -> Step:
    """The run that did the step: this one, or one that it goes on from."""
    while step.extends is not None and number < first_step(step, steps):
        step = steps[step.extends]
    return step


def runs_before(step: Step, steps: Mapping[str, Step]) -> list[Step]:
    """The runs that this one goes on from, the first of all first."""
    found: list[Step] = []
    while step.extends is not None:
        step = steps[step.extends]
        found.insert(0, step)
    return found


def check_has(step: Step, number: int) -> None:
    """Raise TuluLiteError where the run has not, or will never have, done the step."""
    last, all_steps = last_step(step), int(step.stage.steps)  # type: ignore[union-attr]
    if number <= last:
        return
    stopped = step.summary.get("stopped_early") if step.done else None
    what = f"{step.id} has no step {number}"
    if stopped:
        raise TuluLiteError(what, f"it was stopped early at step {last}: {stopped}", _up_to(last))
    if step.done or number > all_steps:
        raise TuluLiteError(what, f"it has {all_steps} steps", _up_to(last))
    raise TuluLiteError(
        f"{step.id} has not done step {number}: it is at step {last} of {all_steps}",
        cure="run the recipe again to go on (tulu-lite run), where it does not run now",
    )


def _up_to(last: int) -> str:
    return f"name a step from 1 to {last}" if last else ""
