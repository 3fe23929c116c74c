"""A step of an rlvr run trained on again from its recorded samples, and each response's part in it. No server.

As doctor/replay.py: the stage's own code, in a scratch folder, from the newest save before the step (of a run that goes
on from another and has none of its own there, that one's last); what it would have sampled is read from the run's
rollouts.
"""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..errors import TuluLiteError
from ..pipeline.history import check_has, first_step, owner
from ..pipeline.steps import Step
from ..recipe import Recipe
from ..rl.recorded import read_rows
from ..rl.rollout_files import parts_of
from ..stages.context import last_save
from ..training.policy_batch import collate
from .replay import (
    Recorder,
    Replay,
    Replayed,
    Sample,
    dot,
    kept_random_states,
    newest_save,
    replay_context,
    scratch_step,
    start_of,
)


def replay_rlvr(
    recipe: Recipe, steps: dict[str, Step], step: Step, number: int, say: Callable[[str], None]
) -> Replay:
    """Train on the recorded samples of step `number` again, and on those of the steps between it and the save before.

    Raises TuluLiteError where one of these steps' samples is not kept.
    """
    folder = step.folder / "rollouts"
    _check_exists(steps, step, folder, number)
    start = newest_save(step.folder / "checkpoints", number - 1)
    found = _start_of(steps, step, number, start)
    _check_recorded(step, folder, number - found.again, number)
    names = _names(folder, number)
    say(f"loading {found.started_from}; {found.again} steps are done again before step {number}")
    with tempfile.TemporaryDirectory(prefix="tulu-lite-replay-") as scratch:
        shown = scratch_step(step, Path(scratch), start)
        ctx = replay_context(recipe, steps, shown, found, {"replay": str(folder)})
        ctx.metrics = Recorder(ctx.dir / "metrics.jsonl", number, found, say)
        with contextlib.redirect_stdout(io.StringIO()):  # what the stage says was said when it ran
            _train(ctx, number, found, names)
    return found


def _train(ctx: Any, number: int, found: Replay, names: dict[tuple[int, int], str]) -> None:
    from ..stages.rlvr import Trainer
    from ..stages.sampling import Unserved

    nobody: Any = None  # nothing is judged
    trainer = Trainer(ctx, Unserved.of(ctx), nobody)
    trainer.learner.look = lambda step, share, responses, tokens: (
        found.samples.extend(responses_of(trainer.learner, share, responses, tokens, names))
        if step == number
        else None
    )
    try:
        trainer.train()
        raise TuluLiteError(
            f"{ctx.step.id} has no step {number}", cure="its steps are those in its metrics.jsonl"
        )
    except Replayed:
        pass
    except TuluLiteError as error:
        if not found.samples:
            raise
        found.failure = "; ".join(part for part in (error.what, error.why) if part)
    finally:
        trainer.close()


def _start_of(steps: dict[str, Step], step: Step, number: int, start: Path | None) -> Replay:
    """As start_of; without a save of its own, a run that goes on from another begins at that one's last."""
    if start is not None or step.extends is None:
        return start_of(step, number, start)
    before = steps[step.extends]
    found = start_of(step, number, last_save(before, step))
    return replace(found, started_from=f"{found.started_from} of {before.id}")


def _check_exists(steps: dict[str, Step], step: Step, folder: Path, number: int) -> None:
    """Raise TuluLiteError for a step that the run never did, or that is of the run that it goes on from."""
    if number in parts_of(folder):  # one that failed is not logged
        return
    did = owner(step, steps, number)
    if did is not step:
        raise TuluLiteError(
            f"step {number} is none of {step.id}'s own: that goes on from {step.extends}, and begins at step "
            f"{first_step(step, steps)}",
            cure=f"replay it where it was done: --stage {did.id} --step {number}",
        )
    check_has(step, number)


def _check_recorded(step: Step, folder: Path, first: int, last: int) -> None:
    kept = parts_of(folder)
    missing = [number for number in range(first, last + 1) if number not in kept]
    if missing:
        raise TuluLiteError(
            f"the samples of {step.id}, step {missing[0]}, are not kept in {folder}",
            why=f"the replay starts from the newest save before step {last}, and needs the steps {first} to {last}",
            cure="replay a step that is nearer behind a save; raise keep_rollouts_mb, or save more often (save_every_steps)",
        )


def _names(folder: Path, number: int) -> dict[tuple[int, int], str]:
    """What each response of the step is called: its prompt's id and its number in the group."""
    rows = read_rows(parts_of(folder)[number][0])
    return {
        (row["place"], row["sample"]): f"{row['prompt_id']} sample {row['sample']} ({row['source']})"
        for row in rows
    }


def responses_of(
    learner: Any, share: Sequence[Any], responses: float, tokens: float, names: dict[tuple[int, int], str]
) -> list[Sample]:
    """Each response's part in one optimiser step on `share`, of a step of so many responses and tokens.

    The weights, their gradients and the random states are as before afterwards.
    """
    parameters = [parameter for parameter in learner.model.parameters() if parameter.requires_grad]
    with kept_random_states():
        whole = [torch.zeros_like(parameter) for parameter in parameters]
        for item in share:
            for total, gradient in zip(
                whole, _gradient(learner, parameters, item, responses, tokens)[1], strict=True
            ):
                total += gradient
        size = dot(whole, whole)
        found = []
        for item in share:
            loss, own, figures = _gradient(learner, parameters, item, responses, tokens)
            pull = dot(own, whole) / size if size > 0 and math.isfinite(size) else math.nan
            length = len(item.rollout.token_ids)
            what = {
                "reward": float(item.reward),
                "advantage": float(item.advantage),
                "ratio": figures["ratio"],
                "clipped": figures["clipped"],
                "update": learner.state["updates"] + 1,
            }
            name = names.get((item.place, item.sample), f"group {item.place} sample {item.sample}")
            found.append(
                Sample(
                    name, loss, loss * responses, item.tokens, length, math.sqrt(dot(own, own)), pull, what
                )
            )
    learner.optimizer.zero_grad()
    return found


def _gradient(
    learner: Any, parameters: Sequence[torch.Tensor], item: Any, responses: float, tokens: float
) -> tuple[float, list[torch.Tensor], dict[str, float]]:
    """Loss and gradient of one response's share of the step's loss, and means over its tokens."""
    for parameter in parameters:
        parameter.grad = None
    inputs = collate([item], learner.device, learner.pad_id)
    loss, sums = learner._policy_loss([item], inputs, responses, tokens)
    loss.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    length = max(1, len(item.rollout.token_ids))
    means = {name: float(sums[name].sum()) / length for name in ("ratio", "clipped")}
    return float(loss.detach()), gradients, means
