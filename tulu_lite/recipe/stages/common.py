"""What every stage has, and how it names its data."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from ..base import Incidental, Later, Number, Settings
from ..data import DataSettings, DataSource
from ..runs import SweepValues, combinations, names_of, runs_of


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, (str, dict)) else value


_Short = str | DataSource  # as it may be written in YAML
Sources = Annotated[
    tuple[DataSource, ...],
    BeforeValidator(_as_list, json_schema_input_type=_Short | list[_Short]),
    Field(min_length=1),
]
MoreSources = Annotated[
    tuple[DataSource, ...],
    BeforeValidator(_as_list, json_schema_input_type=_Short | list[_Short]),
]  # as Sources, and there may be none
SOURCE_FIELDS = ("data", "validation", "general", "general_prompts")  # the fields of stages that hold sources
StageName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,40}$")]


class Stage(DataSettings):
    """What every stage has."""

    name: StageName
    """How other stages and the command line refer to this stage: lower case, digits, - and _."""


class StopEarly(Settings):
    """When a run has no hope left of being the best of its stage."""

    after_steps: int = Field(ge=1)
    """No run is stopped before it has made so many steps."""
    margin: Number = Field(gt=0)
    """A run ends when its validation is worse than that of the best other run at the same step by more than this (in the
    metric's own unit: 0.1 is ten points of accuracy), and the paired 95 % interval of the difference excludes 0."""


class Extension(Settings):
    """A run that goes on from where it ended."""

    run: str = Field(min_length=1)
    """`seed-2` (with a sweep `kl_coefficient=0.05/seed-2`), `all`, or `best`: the one that is best by validation before
    any is extended."""
    steps: int = Field(ge=1)
    """Steps beyond the stage's own `steps`. Several extensions of one run each go on from the one before."""


class TrainingStage(Stage):
    """A stage that trains: one run of it, or one for each setting of a sweep and each seed, of which the best goes on."""

    seeds: tuple[int, ...] | None = Field(None, min_length=1)
    """One run each, the best by validation goes on; by default one run, with the stage's seed."""
    sweep: SweepValues | None = None
    """Values to compare: {learning_rate: [1e-4, 3e-4], beta: [1, 5]} runs every combination, [{learning_rate: 1e-4,
    beta: 1}, {learning_rate: 3e-4, beta: 5}] those listed. Fields of this stage, deeper ones by a dotted path
    (sampling.temperature). The setting with the best validation, on average over its seeds, goes on."""
    at_once: int = Incidental(1, ge=1, le=64)
    """How many runs of this stage train at the same time, each on GPUs of its own where the server's are set aside
    (server.devices), and all on the one rollout server."""
    validation: MoreSources = Later(())
    """Rows of the same form as `data`, never trained on, by which runs are compared."""

    @model_validator(mode="before")
    @classmethod
    def _swept_fields_need_no_value(cls, data: Any) -> Any:
        """A required field that the sweep gives may be left out: the first setting stands in for it."""
        sweep = data.get("sweep") if isinstance(data, dict) else None
        first = (
            sweep if isinstance(sweep, dict) else next(iter(sweep), None) if isinstance(sweep, list) else None
        )
        if not isinstance(first, dict):
            return data
        given = {
            name: value[:1] if isinstance(sweep, dict) and isinstance(value, list) else [value]
            for name, value in first.items()
        }
        return {name: value[0] for name, value in given.items() if value and name in cls.model_fields} | data

    @model_validator(mode="after")
    def _runs_are_valid(self) -> TrainingStage:
        if self.sweep is not None and not combinations(self.sweep):
            raise ValueError("sweep: there is nothing to compare; give a list of values for each field")
        if self.seeds is not None and len(set(self.seeds)) != len(self.seeds):
            raise ValueError(
                f"seeds {list(self.seeds)} holds one twice; two runs of one seed give the same bits, so remove it"
            )
        if self.seeds is not None and getattr(self, "seed", None) is not None:
            raise ValueError("`seed` is for one run and `seeds` for several; leave one of the two out")
        runs = runs_of(self)
        if runs[0].name and not self.validation:
            raise ValueError(
                "runs are compared by `validation`, and there is none; name rows that are not trained on, "
                "for example by share: `data: {path: x.jsonl, share: [0, 0.95]}`, `validation: {path: x.jsonl, share: [0.95, 1]}`"
            )
        known = [run.name for run in runs]
        for extension in getattr(self, "extend", ()):
            if extension.run not in ("best", "all", *known):
                raise ValueError(
                    f"extend: there is no run {extension.run!r}; there are best, all, {names_of(runs)}"
                )
        return self
