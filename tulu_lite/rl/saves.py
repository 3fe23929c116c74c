"""What a save holds besides the policy and its optimiser: value model, refreshed reference, batches that were sampled.

In the step's folder: checkpoints/step-000050 (the policy; what is there counts), critic/step-000050 (the value model and
its optimiser), beside/step-000050 (reference.safetensors, pending.jsonl). The latter two are written first, so that a save
of the policy always has them; what a kill left without one is removed.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import TuluLiteError
from ..training.checkpoint import load_latest, save_checkpoint
from ..training.folders import new_folder
from ..training.sharding import agree, from_all, is_main
from .collect import Collected
from .learner import Learner
from .recorded import groups_of, rollout_rows

PENDING = "pending.jsonl.gz"


def save_all(
    folder: Path, step: int, learner: Learner, state: dict[str, Any], pending: Sequence[Collected], keep: int
) -> Path:
    """Write the save of a step into the step's folder, and keep the newest `keep`; returns the policy's part. Every
    process calls it."""
    if learner.critic is not None:
        save_checkpoint(
            folder / "critic",
            step,
            model=learner.critic.model,
            optimizer=learner.critic.optimizer,
            state={},
            keep=keep,
        )
    _save_beside(folder / "beside", step, learner, pending, keep)
    return save_checkpoint(
        folder / "checkpoints",
        step,
        model=learner.model,
        optimizer=learner.optimizer,
        state=state,
        keep=keep,
    )


def _save_beside(folder: Path, step: int, learner: Learner, pending: Sequence[Collected], keep: int) -> None:
    shares = from_all([_pending_row(batch) for batch in pending])
    refreshed = learner.reference is not None and learner.reference.refreshed > 0
    if not refreshed and not any(shares):
        return
    failure: Exception | None = None
    target = folder / _name(step)
    if is_main():
        try:
            with new_folder(target) as temporary:
                if refreshed and learner.reference is not None:
                    learner.reference.save(learner.model, temporary)
                text = "".join(json.dumps(row) + "\n" for share in shares for row in share)
                (temporary / PENDING).write_bytes(gzip.compress(text.encode(), 1))
            for old in sorted(folder.glob("step-*"))[:-keep]:
                shutil.rmtree(old, ignore_errors=True)
        except Exception as error:
            failure = error
    elif refreshed and learner.reference is not None:
        learner.reference.save(learner.model, target)  # gathers, where adapters are spread
    agree(failure)


def load_all(saves: Path, learner: Learner) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """Restore everything from the newest whole save below the folder of a step: (its state, its pending rows).

    None when there is no save. Every process calls it.
    """
    state = load_latest(saves / "checkpoints", model=learner.model, optimizer=learner.optimizer)
    if state is None:
        return None
    step = int(state["step"])
    if learner.critic is not None:
        _drop_newer(saves / "critic", step)
        found = load_latest(saves / "critic", model=learner.critic.model, optimizer=learner.critic.optimizer)
        if found is None:
            raise TuluLiteError(
                f"the save of step {step} in {saves} has no value model that fits",
                why="the policy would go on with values of another state",
                cure=f"remove {saves / 'checkpoints'} to begin anew",
            )
    beside = saves / "beside" / _name(step)
    if learner.reference is not None:
        learner.reference.restore(learner.model, beside, int(state["reference"]))
    return state, read_pending(beside)


def _drop_newer(folder: Path, step: int) -> None:
    """Remove what was written for a save that never came to be."""
    if is_main():
        for path in folder.glob("step-*"):
            if path.name > _name(step):
                shutil.rmtree(path, ignore_errors=True)
    agree(None)  # the others wait for it


def _pending_row(batch: Collected) -> dict[str, Any]:
    return {
        "step": batch.step,
        "prompts": {place: prompt.id for place, prompt in batch.prompts.items()},
        "tried": batch.tried,
        "refilled": batch.refilled,
        "rows": rollout_rows(batch.groups),
    }


def read_pending(folder: Path) -> list[dict[str, Any]]:
    """The pending rows of a save, of all processes that wrote it; none where there is no such file."""
    path = folder / PENDING
    if not path.exists():
        return []
    text = gzip.decompress(path.read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()]


def pending_batches(
    rows: Sequence[dict[str, Any]], prompts: dict[str, Any], rank: int, world: int
) -> list[Collected]:
    """A process's share of batches that were begun: every world-th place, whichever processes had sampled it.

    prompts: by id. What was measured is counted once, by the first process.
    """
    found: dict[int, Collected] = {}
    for row in sorted(rows, key=lambda row: row["step"]):
        batch = found.setdefault(row["step"], Collected(row["step"], {}))
        batch.taken |= set(row["prompts"].values())  # of all processes
        mine = {int(place): prompts[id] for place, id in row["prompts"].items() if int(place) % world == rank}
        batch.prompts |= mine
        groups = groups_of(row["rows"])
        batch.groups |= {place: group for place, group in groups.items() if place in mine}
        if rank == 0:
            batch.tried += [(id, share, responses) for id, share, responses in row["tried"]]
            batch.refilled += row["refilled"]
    return list(found.values())


def _name(step: int) -> str:
    return f"step-{step:06d}"
