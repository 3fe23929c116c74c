"""A recipe taken apart into steps: one for each stage, seed and evaluated model, keyed by content."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import read_json
from ..recipe import BASE, AnyStage, EvaluateStage, PoolStage, Recipe, RlvrStage, identity
from ..recipe.stages import SOURCE_FIELDS, is_stage_name, split_revision
from .fingerprint import digest, file_hash, model_hash, verifier_files
from .ledger import Ledger

# Raised when a stage's meaning changes, so that results of the old meaning are not taken for the new.
FORMAT = 1


@dataclass(frozen=True, eq=False)
class Step:
    """One unit of work: what one process does, in one folder."""

    id: str  # "sft", "rlvr/seed-2", "rlvr" (the choice among seeds), "test/rlvr/seed-2"
    kind: str  # the stage's kind, or "select"
    stage: AnyStage
    seed: int
    model: str  # step id whose model it starts from or samples, or "base"
    inputs: tuple[str, ...]  # ids of all steps whose output it reads
    identity: dict[str, Any]  # what decides the result
    key: str  # hash of the identity and of the inputs' keys
    folder: Path

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
        """Whether it needs the rollout server."""
        return self.kind in ("preferences", "reject", "rlvr", "evaluate")

    @property
    def trains(self) -> bool:
        return self.kind in ("sft", "dpo", "rlvr")


def model_path(steps: dict[str, Step], recipe: Recipe, name: str) -> str:
    """Where the model of a done step (or `base`) lies: a folder, or for `base` perhaps a hub id."""
    if name == BASE:
        return recipe.model
    step = steps[name]
    return str((step.folder / step.outcome["model"]).resolve())


def expand(recipe: Recipe, ledger: Ledger) -> list[Step]:
    """All steps in the order in which they run. An evaluation follows right after the model it is of."""
    return _Expansion(recipe, ledger).steps()


class _Expansion:
    def __init__(self, recipe: Recipe, ledger: Ledger) -> None:
        self.recipe, self.ledger = recipe, ledger
        self.output = Path(recipe.output)
        self.base_key = model_hash(recipe.model, recipe.revision, ledger)
        self.shared = self._shared_identity()
        self.keys: dict[str, str] = {BASE: self.base_key}
        self.order: list[Step] = []

    def steps(self) -> list[Step]:
        evaluations = [stage for stage in self.recipe.stages if isinstance(stage, EvaluateStage)]
        self._evaluate(BASE, evaluations)
        for stage in self.recipe.stages:
            if isinstance(stage, EvaluateStage):
                continue
            if isinstance(stage, RlvrStage):
                for seed in stage.seeds:
                    self._add(f"{stage.name}/seed-{seed}", stage.kind, stage, seed, stage.init)
                    self._evaluate(f"{stage.name}/seed-{seed}", evaluations, stage.name)
                runs = tuple(f"{stage.name}/seed-{seed}" for seed in stage.seeds)
                self._add(stage.name, "select", stage, stage.seeds[0], runs[0], inputs=runs)
            else:
                self._add(stage.name, stage.kind, stage, self._seed(stage), _starts_from(stage))
                self._evaluate(stage.name, evaluations)
        return self.order

    def _evaluate(self, model: str, evaluations: list[EvaluateStage], stage_name: str | None = None) -> None:
        for evaluation in evaluations:
            if (stage_name or model) in evaluation.models:
                self._add(f"{evaluation.name}/{model}", "evaluate", evaluation, self._seed(evaluation), model)

    def _seed(self, stage: AnyStage) -> int:
        seed = getattr(stage, "seed", None)
        return self.recipe.seed if seed is None else seed

    def _add(
        self,
        id: str,
        kind: str,
        stage: AnyStage,
        seed: int,
        model: str,
        inputs: tuple[str, ...] | None = None,
    ) -> None:
        if inputs is None:
            rows_from = [source.stage for source in getattr(stage, "data", ()) if source.stage]
            others = [name for name in getattr(stage, "pool", ()) if is_stage_name(name)]
            inputs = tuple(dict.fromkeys([model, *others, *rows_from]))
        if kind == "select":
            what: dict[str, Any] = {"format": FORMAT, "kind": kind, "select": getattr(stage, "select", None)}
        else:
            what = {
                "format": FORMAT,
                "kind": kind,
                "seed": seed,
                **self.shared,
                "stage": self._stage_identity(stage),
            }
        what["inputs"] = {name: self.keys[name] for name in inputs}
        key = digest(what)
        self.keys[id] = key
        folder = self.output / "steps" / id.replace("/", ".") / key[:12]
        step_inputs = tuple(name for name in inputs if name != BASE)
        self.order.append(Step(id, kind, stage, seed, model, step_inputs, what, key, folder))

    def _shared_identity(self) -> dict[str, Any]:
        template = self.recipe.chat_template
        return {
            "chat_template": file_hash(Path(template), self.ledger)
            if template.endswith(".jinja")
            else template
        }

    def _stage_identity(self, stage: AnyStage) -> dict[str, Any]:
        """The stage's own fields with data files and verifiers by content; names of stages and seeds apart."""
        plain = identity(stage)
        for apart in ("name", "init", "seed", "seeds", "models"):
            plain.pop(apart, None)
        if isinstance(stage, PoolStage) and stage.models:
            plain["models"] = [self._pool_key(name) for name in stage.models]
        judged = False
        for field in SOURCE_FIELDS:
            for source, entry in zip(getattr(stage, field, ()), plain.get(field, ()), strict=True):
                entry.pop("stage", None)
                if source.path is not None:
                    entry["path"] = {
                        "file": Path(source.path).name,
                        "sha256": file_hash(Path(source.path), self.ledger),
                    }
                judged = judged or stage.kind in ("preferences", "reject", "rlvr", "evaluate")
        if judged:
            plain["verifiers"] = json.loads(json.dumps(self.recipe.verifiers))
            plain["verifier_timeout_s"] = self.recipe.verifier_timeout_s
            files = verifier_files([*self.recipe.verifiers.values(), *self._source_verifiers(stage)])
            plain["verifier_files"] = {path.name: file_hash(path, self.ledger) for path in files}
            plain["server_dtype"] = self.recipe.server.dtype
            if self.recipe.judges:
                plain["judges"] = {
                    name: model_hash(judge.model, judge.revision, self.ledger)
                    for name, judge in self.recipe.judges.items()
                }
        return plain

    def _pool_key(self, name: str) -> str:
        """Of a model of a pool: the key of its stage, or the hash of its files."""
        if is_stage_name(name):
            return self.keys[name]
        return model_hash(*split_revision(name), self.ledger)

    def _source_verifiers(self, stage: AnyStage) -> list[Any]:
        named = [source.verifier for field in SOURCE_FIELDS for source in getattr(stage, field, ())]
        return [verifier for verifier in [*named, getattr(stage, "rank_by", None)] if verifier]


def _starts_from(stage: Any) -> str:
    """The stage (or `base`) whose model the stage starts from, or of a pool the first that is one."""
    if not isinstance(stage, PoolStage):
        return str(stage.init)
    return next((name for name in stage.pool if is_stage_name(name)), BASE)
