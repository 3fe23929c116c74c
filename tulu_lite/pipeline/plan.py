"""What a run will do: each step with its state, the reason, and its size, before anything is spent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..recipe import Recipe
from ..watching.sinks import check_sinks
from .expand import expand
from .judges import announce
from .ledger import Ledger
from .sizes import Size, StepSizes
from .steps import Step


@dataclass(frozen=True)
class PlannedStep:
    """A step and what becomes of it."""

    step: Step
    state: str  # "done", "resume" (was begun) or "run"
    reason: str
    size: Size | None  # None for a choice among seeds, which costs nothing


def make_plan(recipe: Recipe, *, sizes: bool = True) -> list[PlannedStep]:
    """Expand the recipe and look at what is there.

    With sizes, the data of every step that is not done is read and checked (fields, references, lengths), so that
    a mistake in the last stage's data shows before the first stage starts. Raises TuluLiteError.
    """
    announce(recipe)
    check_sinks(recipe.watch)
    ledger = Ledger(Path(recipe.output))
    steps = expand(recipe, ledger)
    measure = StepSizes(recipe, ledger)
    planned: list[PlannedStep] = []
    for step in steps:
        state, reason = _state(step, ledger)
        size = measure(step) if sizes and step.kind != "select" else None
        planned.append(PlannedStep(step, state, reason, size))
    return planned


def _state(step: Step, ledger: Ledger) -> tuple[str, str]:
    if step.done:
        return "done", "result is there"
    if step.waits_for is not None:
        return "run", f"once {step.waits_for} is chosen"
    saves = sorted((step.folder / "checkpoints").glob("step-*")) if step.folder.exists() else []
    if step.folder.exists():
        return (
            "resume",
            f"was begun; goes on from {saves[-1].name}"
            if saves
            else "was begun; starts over, nothing was saved",
        )
    old = ledger.last_identity(step.id, step.key)
    if old is not None:
        return "run", "changed: " + "; ".join(_changes(old, step.identity)[:4])
    return "run", "new"


def _changes(old: Any, new: Any, path: str = "") -> list[str]:
    """What differs between two identities, in words: `stage.learning_rate 0.001 -> 0.002`."""
    if isinstance(old, dict) and isinstance(new, dict):
        changes: list[str] = []
        for key in sorted(set(old) | set(new), key=lambda name: (name == "inputs", name)):
            inner = f"{path}.{key}" if path else key
            if path == "inputs" and key in old and key in new:
                changes += [f"the result of {key}"] if old[key] != new[key] else []
            else:
                changes += _changes(old.get(key), new.get(key), inner)
        return changes
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            change
            for i, (a, b) in enumerate(zip(old, new, strict=True))
            for change in _changes(a, b, f"{path}.{i}")
        ]
    if old == new:
        return []
    name = path.removeprefix("stage.")
    if name.endswith(".sha256"):
        return [f"the content of {name.removesuffix('.path.sha256')}"]
    return [f"{name} {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 30 else text[:27] + "..."
