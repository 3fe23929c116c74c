"""A step of a supervised stage done again, and each sample's part in it: who blew it up.

The stage's own code runs, in this process, in a scratch folder that shows it the step's folder as it was before the
step: the newest save at or before it, so that the steps in between are done again, and whatever else the stage kept
(a reference's log-probabilities). Before the wanted step is done, each of its samples goes forward and backward by
itself; then the step is done as it was, and its loss and gradient norm are compared with those in metrics.jsonl. The
step's own folder, the ledger and the weights on disk stay as they are.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from ..errors import TuluLiteError
from ..pipeline.ledger import Ledger
from ..pipeline.protocol import read_metrics
from ..pipeline.steps import Step
from ..recipe import AccelerateSettings, Recipe
from ..stages.context import StepContext
from ..stages.metrics import MetricsLog
from ..training.culprits import place_of

COMPARED = ("loss", "grad_norm")
LEAST_SCALE = 0.01
ROUNDING = 1e-4  # relative: more between two computations of one step is not rounding
UNFINISHED = {"pending.jsonl.gz"}  # what a save of rlvr holds of batches to come: a replay samples nothing
NOT_SHOWN = {
    "metrics.jsonl", "spikes.jsonl", "warnings.jsonl", "result.json", "error.json", "progress.json", "log.txt",
    "model", "tensorboard", "wandb", "rollouts", ".lock",
}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One sample's part in a step.

    loss: its share of the step's loss, so that the shares add up to it. each: the loss as if it were the whole batch
    (sft: the mean over its own tokens). grad_norm: of its share's gradient. pull: its gradient's projection on the
    whole one as a share of it; the pulls of a step add up to 1, and a sample that pulls the other way has a negative
    one. what: numbers of its own, such as an advantage.
    """

    where: str
    loss: float
    each: float
    tokens: int
    loss_tokens: int
    grad_norm: float
    pull: float
    what: dict[str, Any] = field(default_factory=dict)


@dataclass
class Replay:
    """What a replay found."""

    step_id: str
    step: int
    started_from: str  # "step-000050", or "the initial model"
    again: int  # steps done again before the wanted one
    samples: list[Sample] = field(default_factory=list)
    replayed: dict[str, float] = field(default_factory=dict)
    logged: dict[str, float] = field(default_factory=dict)
    failure: str = ""  # what the step itself failed with
    notes: list[str] = field(default_factory=list)

    def gaps(self) -> dict[str, float]:
        """Relative difference of each compared metric; nan where one of the two is missing."""
        names = [name for name in COMPARED if name in self.logged or name in self.replayed]
        return {name: relative_gap(self.logged.get(name), self.replayed.get(name)) for name in names}

    @property
    def reproduced(self) -> bool | None:
        """Whether loss and gradient norm came out as logged, to rounding; None where the step was never logged."""
        if not self.logged:
            return None
        return all(gap <= ROUNDING for gap in self.gaps().values())


def relative_gap(logged: float | None, replayed: float | None) -> float:
    """|a - b| / max(|a|, |b|, 0.01), 0 for equal values (two that are no numbers included); nan where one is missing. (A
    loss of rlvr is a difference that may be all rounding: hence the least scale.)"""
    if logged is None or replayed is None:
        return math.nan
    if logged == replayed or (math.isnan(logged) and math.isnan(replayed)):
        return 0.0
    return abs(logged - replayed) / max(abs(logged), abs(replayed), LEAST_SCALE)


class Replayed(Exception):
    """The wanted step was done; raised to leave the stage's loop."""


def replay(
    recipe: Recipe, steps: dict[str, Step], step: Step, number: int, say: Callable[[str], None]
) -> Replay:
    """Do optimiser step `number` of a done or begun sft, dpo or reward step again.

    Raises TuluLiteError where there is no such step, or what it starts from is not there.
    """
    start = newest_save(step.folder / "checkpoints", number - 1)
    found = start_of(step, number, start)
    say(f"loading {found.started_from}; {found.again} steps are done again before step {number}")
    with tempfile.TemporaryDirectory(prefix="tulu-lite-replay-") as scratch:
        shown = scratch_step(step, Path(scratch), start)
        ctx = replay_context(recipe, steps, shown, found)
        ctx.look = lambda training, at, batch, loss_of: (
            found.samples.extend(samples_of(training, batch, loss_of)) if at == number else None
        )
        ctx.metrics = Recorder(ctx.dir / "metrics.jsonl", number, found, say)
        stage = importlib.import_module(f"tulu_lite.stages.{step.kind}")
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # what the stage says was said when it ran
                stage.train(ctx)
            raise TuluLiteError(
                f"{step.id} has no step {number}", cure="its steps are those in its metrics.jsonl"
            )
        except Replayed:
            pass
        except TuluLiteError as error:
            if not found.samples:
                raise
            found.failure = "; ".join(part for part in (error.what, error.why) if part)
    return found


def start_of(step: Step, number: int, start: Path | None) -> Replay:
    """What is known before: where the replay begins, and what the step logged."""
    begun = int(start.name.removeprefix("step-")) if start is not None else 0
    origin = start.name if start is not None else "the initial model"
    logged = next((row for row in read_metrics(step.folder / "metrics.jsonl") if row["step"] == number), {})
    return Replay(step.id, number, origin, number - 1 - begun, logged=logged)


def newest_save(folder: Path, most: int) -> Path | None:
    """The save step-NNNNNN of the highest number that is at most `most`."""
    found = [
        path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit() and path.is_dir()
    ]
    before = [path for path in found if int(path.name.removeprefix("step-")) <= most]
    return max(before, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def scratch_step(step: Step, scratch: Path, start: Path | None) -> Step:
    """The step with a folder of its own: links to the files that the stage kept, and of its saves one alone.

    Folders are made anew, so that what a stage writes, renames or removes in them is never the step's own.
    """
    folder = scratch / "step"
    folder.mkdir(parents=True)
    for path in step.folder.iterdir() if step.folder.exists() else ():
        best = path.name.startswith("best-")  # a model of rlvr's `select: best`
        if not best and path.name not in NOT_SHOWN and not path.name.endswith(".tmp"):
            _link(path, folder / path.name, start.name if start is not None else "")
    return replace(step, folder=folder)


def _link(path: Path, target: Path, save: str) -> None:
    """Links to the file, or to the files below the folder; saves (step-*) of another name than `save` are left out."""
    if not path.is_dir():
        target.symlink_to(path.resolve())
        return
    target.mkdir()
    for inner in path.iterdir():
        other_save = inner.is_dir() and inner.name.startswith("step-") and inner.name != save
        if not other_save and inner.name not in UNFINISHED:
            _link(inner, target / inner.name, save)


def replay_context(
    recipe: Recipe, steps: dict[str, Step], shown: Step, found: Replay, changes: dict[str, Any] | None = None
) -> StepContext:
    """The stage's context: one process, no saves, no validation but the last step's, nothing written outside the scratch
    folder. changes: of the stage's fields."""
    settings = getattr(shown.stage, "accelerate", None) or recipe.accelerate
    rarely = {"save_every_steps": 10**9, "validate_every_steps": 10**9, "export": "last"}
    fields = type(shown.stage).model_fields
    update = {name: value for name, value in rarely.items() if name in fields} | (changes or {})
    update["accelerate"] = one_process(settings, found.notes)
    stage = shown.stage.model_copy(update=update)
    plain = recipe.model_copy(update={"watch": ()})
    ledger = Ledger(shown.folder.parent / "ledger")
    return StepContext(plain, stage, shown, steps, ledger, is_main=True)


def one_process(settings: AccelerateSettings, notes: list[str]) -> AccelerateSettings:
    """The settings for this one process, with the precision that the step had. What changes is added to notes."""
    precision = settings.mixed_precision
    if settings.config_file is not None:
        config = yaml.safe_load(Path(settings.config_file).read_text(encoding="utf-8")) or {}
        precision = precision if precision != "no" else config.get("mixed_precision", "no")
        notes.append(
            f"one process without {Path(settings.config_file).name}: equal to rounding, not to the bit, where that starts several or an engine"
        )
    elif (settings.num_processes or 1) > 1:
        notes.append(f"one process instead of {settings.num_processes}: equal to rounding, not to the bit")
    return settings.model_copy(update={"config_file": None, "num_processes": 1, "mixed_precision": precision})


class Recorder(MetricsLog):
    """Takes what the wanted step logs, and ends the replay with it."""

    def __init__(self, path: Path, number: int, found: Replay, say: Callable[[str], None]) -> None:
        super().__init__(path)
        self.number, self.found, self.say = number, found, say

    def log(self, step: int, /, places: Any = None, **values: float) -> None:
        if step == self.number:
            self.found.replayed = dict(values)
            raise Replayed
        self.say(f"step {step} done again")


def samples_of(
    training: Any, batch: Sequence[Any], loss_of: Callable[[Sequence[Any]], torch.Tensor]
) -> list[Sample]:
    """Each item's part in the step. The weights, their gradients and the random states are as before afterwards.

    One backward pass an item more than the step itself has, and memory for two gradients more than it.
    """
    parameters = [parameter for parameter in training.model.parameters() if parameter.requires_grad]
    with kept_random_states():
        gradients = _sum_of_gradients(training, parameters, batch, loss_of)
        size = dot(gradients, gradients)
        samples = []
        for item in batch:
            loss, own = _gradient(training, parameters, [item], loss_of)
            pull = dot(own, gradients) / size if size > 0 and math.isfinite(size) else math.nan
            tokens, learnt = tokens_of(item)
            each = loss * _scale(training.stage, batch, learnt)
            norm = math.sqrt(dot(own, own))
            samples.append(Sample(place_of(item), loss, each, tokens, learnt, norm, pull))
    training.optimizer.zero_grad()
    return samples


def _sum_of_gradients(
    training: Any,
    parameters: Sequence[torch.Tensor],
    batch: Sequence[Any],
    loss_of: Callable[[Sequence[Any]], torch.Tensor],
) -> list[torch.Tensor]:
    """Of the whole step, one item after the other."""
    whole = [torch.zeros_like(parameter) for parameter in parameters]
    for item in batch:
        _, own = _gradient(training, parameters, [item], loss_of)
        for total, gradient in zip(whole, own, strict=True):
            total += gradient
    return whole


def _gradient(
    training: Any,
    parameters: Sequence[torch.Tensor],
    items: Sequence[Any],
    loss_of: Callable[[Sequence[Any]], torch.Tensor],
) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradient of the items' share of the step's loss; unscaled, also where fp16 would scale it."""
    for parameter in parameters:
        parameter.grad = None
    loss = loss_of(items)
    loss.backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return float(loss.detach()), found


def dot(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> float:
    """The inner product of two gradients, summed in double precision."""
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(left, right, strict=True))


def tokens_of(item: Any) -> tuple[int, int]:
    """(all tokens, tokens that are learnt) of a conversation or a pair."""
    pair = getattr(item, "pair", item)
    if hasattr(pair, "loss_mask"):
        return len(pair.token_ids), sum(map(bool, pair.loss_mask))
    learnt = len(pair.chosen_ids) + len(pair.rejected_ids)
    return 2 * len(pair.prompt_ids) + learnt, learnt


def _scale(stage: Any, batch: Sequence[Any], learnt: int) -> float:
    """What makes of an item's share its loss by itself: tokens of the step over its own (sft), or the items."""
    if stage.kind != "sft":
        return float(len(batch))
    whole = sum(tokens_of(item)[1] for item in batch) if stage.loss == "token_mean" else 1
    return whole / learnt if learnt else math.nan


@contextlib.contextmanager
def kept_random_states() -> Iterator[None]:
    """Python's, numpy's and torch's random states are afterwards as before."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


__all__ = ["Replay", "Sample", "newest_save", "replay", "samples_of"]
