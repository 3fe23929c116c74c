"""A recipe taken apart into steps: one for each run of a stage, each choice and each evaluated model, keyed by content."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..datasets.readers import data_files
from ..recipe import (
    BASE,
    AnyStage,
    DataSource,
    EvaluateStage,
    PoolStage,
    Recipe,
    Run,
    TrainingStage,
    identity,
    runs_of,
)
from ..recipe.stages import SOURCE_FIELDS, Stage, is_stage_name, split_revision
from .fingerprint import digest, file_hash, model_hash, verifier_files
from .ledger import Ledger
from .steps import Step

# Raised when a stage's meaning changes, so that results of the old meaning are not taken for the new.
FORMAT = 2
FORMAT_OF = {"rlvr": 3}  # of kinds whose meaning changed by itself
APART = (
    "name",
    "init",
    "seed",
    "seeds",
    "models",
    "sweep",
    "extend",
)  # of a stage's fields, no part of its identity


def expand(recipe: Recipe, ledger: Ledger) -> list[Step]:
    """All steps in the order in which they run. An evaluation follows right after the model it is of.

    What hangs on a choice among runs (an evaluation of the chosen one, a later stage) is keyed by the run that was
    chosen, so that another candidate that loses changes nothing. Until the choice is made such steps have a key of
    their own that no result has, and say so by `waits_for`.
    """
    return _Expansion(recipe, ledger).steps()


class _Expansion:
    def __init__(self, recipe: Recipe, ledger: Ledger) -> None:
        self.recipe, self.ledger = recipe, ledger
        self.output = Path(recipe.output)
        self.base_key = model_hash(recipe.model, recipe.revision, ledger)
        self.shared = self._shared_identity()
        self.keys: dict[str, str] = {BASE: self.base_key}
        self.waits: dict[
            str, str
        ] = {}  # ids whose result hangs on a choice that is not made, with the choice's id
        self.order: dict[str, Step] = {}
        self.evaluations = [stage for stage in recipe.stages if isinstance(stage, EvaluateStage)]

    def steps(self) -> list[Step]:
        self._evaluate(BASE)
        for stage in self.recipe.stages:
            if isinstance(stage, EvaluateStage):
                continue
            if isinstance(stage, TrainingStage) and runs_of(stage)[0].name:
                self._compared(stage)
            else:
                one = runs_of(stage)[0].stage if isinstance(stage, TrainingStage) else stage
                self._add(stage.name, stage.kind, one, self._seed(stage), _starts_from(stage))
                self._evaluate(stage.name)
        return list(self.order.values())

    # A stage of several runs

    def _compared(self, stage: TrainingStage) -> None:
        """All runs, those that go on longer, the choice among them, and the evaluations."""
        runs = runs_of(stage)
        mine = [one for one in self.evaluations if stage.name in one.models]
        early = [one for one in mine if one.runs == "all" or (one.runs == "seeds" and not stage.sweep)]
        first = self._each(stage, [partial(self._run, stage, run) for run in runs], early)
        starts = self._targets(stage, runs, first)
        longer = self._each(
            stage, [partial(self._extended, *one) for one in self._lengths(stage, starts)], early
        )
        candidates = [*first, *longer]
        chosen = self._choice(stage, stage.name, candidates)
        for evaluation in mine:
            if evaluation not in early:
                self._evaluate_chosen(stage, evaluation, chosen, candidates)

    def _each(
        self, stage: TrainingStage, runs: Sequence[Callable[[], Step]], early: Sequence[EvaluateStage]
    ) -> list[Step]:
        """The runs, each followed by its evaluations; those that train at once are evaluated when all have ended."""
        made = []
        for run in runs:
            made.append(run())
            if stage.at_once == 1:
                self._evaluate(made[-1].id, early)
        if stage.at_once > 1:
            for step in made:
                self._evaluate(step.id, early)
        return made

    def _run(self, stage: TrainingStage, run: Run) -> Step:
        seed = self._seed(stage) if run.seed is None else run.seed
        return self._add(
            f"{stage.name}/{run.name}", run.stage.kind, run.stage, seed, run.stage.init, setting=run.setting
        )

    def _targets(
        self, stage: TrainingStage, runs: Sequence[Run], first: Sequence[Step]
    ) -> list[tuple[Step, int]]:
        """(run, steps beyond its own) of every extension; that of the best, before it is known, of the choice itself."""
        found: list[tuple[Step, int]] = []
        for extension in getattr(stage, "extend", ()):
            if extension.run == "best":
                choice = self.order.get(f"{stage.name}/best") or self._choice(
                    stage, f"{stage.name}/best", first
                )
                best = self.chosen(choice)
                found.append((choice if best is None else self.order[best], extension.steps))
            else:
                named = [
                    step for run, step in zip(runs, first, strict=True) if extension.run in ("all", run.name)
                ]
                # one that was stopped early as hopeless does not go on
                found += [(step, extension.steps) for step in named if not _stopped(step)]
        return found

    def _lengths(
        self, stage: TrainingStage, starts: Sequence[tuple[Step, int]]
    ) -> list[tuple[Step, int, int]]:
        """(run, steps beyond its own, those it had gone before), shortest first for each run."""
        by_run: dict[str, set[int]] = {}
        for step, more in starts:
            by_run.setdefault(step.id, set()).add(more)
        return [
            (self.order[id], more, before)
            for id, lengths in by_run.items()
            for before, more in pairwise([0, *sorted(lengths)])
        ]

    def _extended(self, start: Step, more: int, before: int) -> Step:
        """The run gone on to `more` steps beyond its own, from where it had been at `before`."""
        stage = start.stage.model_copy(update={"steps": start.stage.steps + more})  # type: ignore[union-attr]
        name = f"{stage.name}/(best)" if start.kind == "select" else start.id
        origin = f"{name}+{before}" if before else start.id
        return self._add(
            f"{name}+{more}",
            stage.kind,
            stage,
            start.seed,
            _starts_from(stage),
            setting=start.setting,
            extends=origin,
        )

    # Choices

    def _choice(self, stage: TrainingStage, id: str, candidates: Sequence[Step]) -> Step:
        """The choice among the candidates. What reads its model is keyed by the run that was chosen, once one is."""
        inputs = tuple(step.id for step in candidates)
        what = {"format": FORMAT, "kind": "select", "select": getattr(stage, "select", None)}
        step = self._put(id, "select", stage, candidates[0].seed, inputs[0], inputs, what)
        chosen = self.chosen(step)
        if chosen is None:
            self.waits[id] = id
            return step
        self.keys[id] = self.keys[chosen]
        self.order[id] = replace(step, model=chosen)
        return self.order[id]

    def chosen(self, choice: Step) -> str | None:
        """The id of the run that was chosen, once one is."""
        result = choice.result if choice.waits_for is None else None
        id = result["summary"]["chosen"] if result is not None else None
        return id if id in choice.inputs else None

    def _evaluate_chosen(
        self, stage: TrainingStage, evaluation: EvaluateStage, choice: Step, candidates: Sequence[Step]
    ) -> None:
        """The chosen run, or all of its setting: known once the choice is made, until then so many as it will be."""
        chosen = self.chosen(choice)
        if chosen is not None:
            setting = self.order[chosen].setting
            of = (
                [chosen]
                if evaluation.runs == "chosen"
                else [s.id for s in candidates if s.setting == setting]
            )
            for id in of:
                self._evaluate(id, [evaluation])
            return
        seeds = (stage.seeds or (None,)) if evaluation.runs == "seeds" else (None,)
        for seed in seeds:
            which = "(chosen)" if seed is None else f"(chosen)/seed-{seed}"
            self._add(
                f"{evaluation.name}/{stage.name}/{which}",
                "evaluate",
                evaluation,
                self._seed(evaluation),
                stage.name,
            )

    # Steps

    def _evaluate(self, model: str, evaluations: Sequence[EvaluateStage] | None = None) -> None:
        """Evaluations of a model: these, or all that name it."""
        if evaluations is None:
            evaluations = [one for one in self.evaluations if model in one.models]
        for evaluation in evaluations:
            self._add(f"{evaluation.name}/{model}", "evaluate", evaluation, self._seed(evaluation), model)

    def _seed(self, stage: Stage) -> int:
        seed = getattr(stage, "seed", None)
        return self.recipe.seed if seed is None else seed

    def _add(
        self,
        id: str,
        kind: str,
        stage: Any,
        seed: int,
        model: str,
        *,
        setting: str = "",
        extends: str | None = None,
    ) -> Step:
        """A step of a process of its own, with what decides its result."""
        rows_from = [source.stage for source in getattr(stage, "data", ()) if source.stage]
        others = [name for name in getattr(stage, "pool", ()) if is_stage_name(name)]
        reference = getattr(stage, "reference", None)
        other_models = getattr(stage, "other_models", (reference,) if reference else ())
        judges = [
            name for name in self.recipe.judge_stages().values() if name in self.keys and _judged(stage)
        ]
        more = [
            *(name for name in other_models if is_stage_name(name)),
            *judges,
            *([extends] if extends else []),
        ]
        inputs = tuple(dict.fromkeys([model, *others, *rows_from, *more]))
        what = {
            "format": FORMAT_OF.get(kind, FORMAT),
            "kind": kind,
            "seed": seed,
            **self.shared,
            "stage": self._stage_identity(stage),
        }
        if seed != self.recipe.seed and _chooses_rows(stage):
            what["rows_seed"] = self.recipe.seed  # which rows are used is the same for all runs
        step = self._put(id, kind, stage, seed, model, inputs, what)
        self.order[id] = replace(step, setting=setting, extends=extends)
        return self.order[id]

    def _put(
        self,
        id: str,
        kind: str,
        stage: Any,
        seed: int,
        model: str,
        inputs: tuple[str, ...],
        what: dict[str, Any],
    ) -> Step:
        what["inputs"] = {name: self.keys[name] for name in inputs}
        waits = next((self.waits[name] for name in inputs if name in self.waits), None)
        if waits is not None:
            what["waits_for"] = waits  # so that nothing done has this key
            self.waits[id] = waits
        self.keys[id] = digest(what)
        folder = self.output / "steps" / id.replace("/", ".") / self.keys[id][:12]
        step_inputs = tuple(name for name in inputs if name != BASE)
        step = Step(id, kind, stage, seed, model, step_inputs, what, self.keys[id], folder, waits_for=waits)
        self.order[id] = step
        return step

    # What decides a result

    def _shared_identity(self) -> dict[str, Any]:
        template = self.recipe.chat_template
        return {
            "chat_template": file_hash(Path(template), self.ledger)
            if template.endswith(".jinja")
            else template
        }

    def _files_by_content(self, source: DataSource, entry: dict[str, Any]) -> None:
        """Replace the entry's path by the names and contents of the files that it names."""
        files = [{"file": path.name, "sha256": file_hash(path, self.ledger)} for path in data_files(source)]
        if files:
            entry["path"] = files[0] if isinstance(source.path, str) and len(files) == 1 else files

    def _stage_identity(self, stage: AnyStage) -> dict[str, Any]:
        """The stage's own fields with data files and verifiers by content; names of stages and seeds apart."""
        plain = identity(stage)
        for apart in APART:
            plain.pop(apart, None)
        if isinstance(stage, PoolStage) and stage.models:
            plain["models"] = [self._pool_key(name) for name in stage.models]
        folders = [name for name in getattr(stage, "other_models", ()) if not is_stage_name(name)]
        if folders:
            plain["other_models"] = [self._pool_key(name) for name in folders]
        if (replay := getattr(stage, "replay", None)) is not None:
            recorded = sorted(Path(replay).glob("step-*.jsonl*"))
            plain["replay"] = [
                {"file": path.name, "sha256": file_hash(path, self.ledger)} for path in recorded
            ]
        judged = False
        for field in SOURCE_FIELDS:
            for source, entry in zip(getattr(stage, field, None) or (), plain.get(field, ()), strict=True):
                entry.pop("stage", None)
                self._files_by_content(source, entry)
                judged = judged or _judged(stage)
        against = stage.filters.decontaminate.against if stage.filters.decontaminate else ()
        for source, entry in zip(against, _against(plain), strict=True):
            self._files_by_content(source, entry)
        if judged:
            plain["verifiers"] = json.loads(json.dumps(self.recipe.verifiers))
            plain["verifier_timeout_s"] = self.recipe.verifier_timeout_s
            files = verifier_files([*self.recipe.verifiers.values(), *self._source_verifiers(stage)])
            plain["verifier_files"] = _by_name(files, [file_hash(path, self.ledger) for path in files])
            plain["server_dtype"] = self.recipe.server.dtype
            if self.recipe.judges:
                plain["judges"] = {
                    name: model_hash(judge.model, judge.revision, self.ledger)
                    for name, judge in self.recipe.judges.items()
                    if name not in self.recipe.judge_stages()  # those are among the step's inputs
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


def _by_name(files: Sequence[Path], hashes: Sequence[str]) -> dict[str, str | list[str]]:
    """The hash of each file by its name; of several that have one name, the hashes of all in the order of the specs."""
    found: dict[str, list[str]] = {}
    for path, hashed in zip(files, hashes, strict=True):
        same = found.setdefault(path.name, [])
        if hashed not in same:
            same.append(hashed)
    return {name: same[0] if len(same) == 1 else same for name, same in found.items()}


def _stopped(step: Step) -> bool:
    """Whether a run is done, and ended early."""
    result = step.result
    return result is not None and "stopped_early" in result["summary"]


def _chooses_rows(stage: Any) -> bool:
    """Whether which of its sources' rows the stage uses, or how often, hangs on a seed: a limit, or parts of a mix."""
    decontaminate = stage.filters.decontaminate
    sources = [source for field in SOURCE_FIELDS for source in getattr(stage, field, None) or ()]
    return any(
        (source.limit is not None and not source.streaming)
        or not (source.count is None and source.fraction is None and source.weight is None)
        for source in [*sources, *(decontaminate.against if decontaminate else ())]
    )


def _judged(stage: AnyStage) -> bool:
    """Whether the stage's responses go to verifiers, and so perhaps to judges."""
    return stage.kind in ("preferences", "reject", "rlvr", "evaluate")


def _against(plain: dict[str, Any]) -> list[dict[str, Any]]:
    """The evaluation sets in a stage's identity that its rows must not overlap."""
    return ((plain.get("filters") or {}).get("decontaminate") or {}).get("against", [])


def _starts_from(stage: Any) -> str:
    """The stage (or `base`) whose model the stage starts from, or of a pool the first that is one."""
    if not isinstance(stage, PoolStage):
        return str(stage.init)
    return next((name for name in stage.pool if is_stage_name(name)), BASE)
