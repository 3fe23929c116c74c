"""A step: what one process does, in one folder. `expand` takes a recipe apart into all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import read_json
from ..recipe import BASE, AnyStage, Recipe


@dataclass(frozen=True, eq=False)
class Step:
    """One unit of work: what one process does, in one folder."""

    id: str  # "sft", "rlvr/seed-2", "rlvr" (the choice among its runs), "rlvr/seed-2+200", "test/rlvr/seed-2"
    kind: str  # the stage's kind, or "select"
    stage: AnyStage
    seed: int
    model: str  # step id whose model it starts from or samples, or "base"
    inputs: tuple[str, ...]  # ids of all steps whose output it reads
    identity: dict[str, Any]  # what decides the result
    key: str  # hash of the identity and of the inputs' keys
    folder: Path
    setting: str = ""  # of its stage's sweep
    extends: str | None = None  # step id of the run that it goes on from
    waits_for: str | None = (
        None  # the choice that its model hangs on, while that is not made: its key is not known yet
    )

    @property
    def result_file(self) -> Path:
        return self.folder / "result.json"

    @property
    def result(self) -> dict[str, Any] | None:
        return read_json(self.result_file)

    @property
    def outcome(self) -> dict[str, Any]:
        """The result of a step that is done."""
        result = self.result
        if result is None:
            raise FileNotFoundError(f"{self.id} is not done: there is no {self.result_file}")
        return result

    @property
    def summary(self) -> dict[str, Any]:
        return self.outcome["summary"]

    @property
    def done(self) -> bool:
        return self.result_file.exists()

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def samples(self) -> bool:
        """Whether it needs the rollout server. What is trained on recorded rollouts does not."""
        recorded = getattr(self.stage, "replay", None) is not None
        return self.kind in ("preferences", "reject", "rlvr", "evaluate") and not recorded

    @property
    def trains(self) -> bool:
        return self.kind in ("sft", "dpo", "reward", "rlvr")

    @property
    def shares(self) -> bool:
        """Whether other runs of its stage may train and sample at the same time."""
        return self.trains and self.samples and self.stage.at_once > 1  # type: ignore[union-attr]

    def origins(self, steps: Mapping[str, Step]) -> list[tuple[str, str]]:
        """(key, role) of all that it was made from, for the ledger."""
        if self.kind == "select":
            return [(steps[name].key, "candidate") for name in self.inputs]
        roles = {self.model: "model", self.extends: "start"}
        found = [(steps[name].key, roles.get(name, "rows")) for name in self.inputs]
        return found if self.model in steps else [*found, (self.identity["inputs"][BASE], "model")]


def model_path(steps: dict[str, Step], recipe: Recipe, name: str) -> str:
    """Where the model of a done step (or `base`) lies: a folder, or for `base` perhaps a hub id."""
    if name == BASE:
        return recipe.model
    step = steps[name]
    return str((step.folder / step.outcome["model"]).resolve())
