"""The recipe: one file that describes a whole post-training run."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .base import Incidental, Settings
from .judges import JudgeSettings
from .runs import runs_of, settings_of
from .server import ServerSettings
from .stages import (
    SOURCE_FIELDS,
    AnyStage,
    DpoStage,
    EvaluateStage,
    PoolStage,
    RewardStage,
    RlvrStage,
    SftStage,
    TrainingStage,
    is_stage_name,
)
from .training import AccelerateSettings
from .watching import Sink, WarningSettings

BASE = "base"  # the name by which stages refer to the recipe's own model

READS_ROWS = {
    "sft": "reject",
    "dpo": "preferences",
    "reward": "preferences",
}  # by kind: what makes the rows of `data: {stage: ...}`
MAKES_MODEL = (SftStage, DpoStage, RlvrStage)


class Recipe(Settings):
    """A whole run: a model, stages in order, and what they share."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,80}$")
    """Name of the run in tables and plots."""
    model: str = Field(min_length=1)
    """The model to start from, called `base` by the stages: a folder in Hugging Face format (relative to the
    recipe file), or a hub id."""
    revision: str | None = None
    """Hub models only: a commit or tag."""
    output: str = Incidental(min_length=1)
    """The folder that everything is written into; relative to the recipe file."""
    seed: int = 0
    """Seed of every stage that names none of its own."""
    chat_template: str = "model"
    """How conversations become text: `model` (the tokenizer's own), `tulu`, `olmo`, `chatml`, `llama3`, `r1`,
    `r1_zero`, or a .jinja file. It is saved with every model."""
    verifiers: dict[str, Any] = Field(default_factory=dict)
    """Verifiers of this recipe's own, by name: a registered name, path/to/file.py:function, {use: ..., args: ...} or
    a composition ({all_of: [...]}, {weighted: [...]}, {gate: [...]}, {scale: ..., by: 10}, {choose: {...}, by: source}).
    A judge model is one too: {use: judge_reference, args: {base_url: "http://127.0.0.1:8000/v1", model: ...}}."""
    verifier_workers: int = Incidental(2, ge=1, le=256)
    """Processes that judge responses."""
    verifier_timeout_s: float = Field(5.0, gt=0, le=3600)
    """Seconds one judgement may take, where its verifier names no deadline of its own; past it the verdict is an
    error, never a score."""
    verifier_sandbox: Literal["bubblewrap", "namespaces", "landlock", "limits"] | None = Incidental(None)
    """The least isolation that programs written by the model may run in, strongest first: a machine that does not give
    it stops the run. null: the strongest that the machine gives, but never resource limits alone."""
    verifier_allow_weak_sandbox: bool = Incidental(False)
    """Consent to run such programs under resource limits alone where the machine gives nothing better."""
    server: ServerSettings = Incidental(default_factory=ServerSettings)
    """The vLLM server that all stages sample from."""
    judges: dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,40}$")], JudgeSettings] = Field(
        default_factory=dict
    )
    """Models that judge responses, by name. They are served while steps judge; verifiers name them (`judge_reference`
    and its kin, with `base_url: env:TULU_LITE_JUDGE_<NAME>` and `model: <name>`)."""
    accelerate: AccelerateSettings = Incidental(default_factory=AccelerateSettings)
    """How training processes are started."""
    watch: tuple[Sink, ...] = Incidental(())
    """Where metrics go besides metrics.jsonl: `tensorboard` (event files in the step's folder), `wandb` (offline without
    an account). Both are packages of the extra `tulu-lite[watch]`."""
    warnings: WarningSettings = Incidental(default_factory=WarningSettings)
    """When metrics are said to look wrong: spikes, collapses, rewards that are gamed."""
    stages: tuple[AnyStage, ...] = Field(min_length=1)
    """What is done, in order."""

    @model_validator(mode="after")
    def _names_resolve(self) -> Recipe:
        earlier: dict[str, AnyStage] = {}
        later = [stage.name for stage in self.stages]
        for index, stage in enumerate(self.stages):
            if stage.name == BASE:
                raise ValueError(
                    f"stages.{index}.name: `{BASE}` is the recipe's own model; choose another name"
                )
            if stage.name in earlier:
                raise ValueError(
                    f"stages.{index}.name: there are two stages named {stage.name!r}; names must differ"
                )
            where = f"stages.{index} ({stage.name})"
            wanted = list(stage.models) if isinstance(stage, EvaluateStage) else [str(stage.init)]
            if isinstance(stage, PoolStage):
                wanted = [name for name in stage.pool if is_stage_name(name)]
            for name in wanted:
                field = "models" if getattr(stage, "models", None) else "init"
                kinds = (*MAKES_MODEL, RewardStage) if isinstance(stage, RewardStage) else MAKES_MODEL
                _check_name(where, field, name, earlier, later, kinds, "a model")
            if isinstance(stage, DpoStage) and stage.reference is not None:
                _check_name(where, "reference", stage.reference, earlier, later, MAKES_MODEL, "a model")
            if isinstance(stage, RlvrStage):
                for name in (name for name in stage.other_models if is_stage_name(name)):
                    field = "reference" if name == stage.reference else "value.init"
                    kinds = MAKES_MODEL if field == "reference" else (*MAKES_MODEL, RewardStage)
                    _check_name(where, field, name, earlier, later, kinds, "a model")
            settings = settings_of(stage) if isinstance(stage, TrainingStage) else [("", stage)]
            for field, (_, one) in itertools.product(SOURCE_FIELDS, settings):
                for source in getattr(one, field, ()):
                    if source.stage is not None:
                        _check_rows(f"{where}.{field}", stage, source.stage, earlier, later)
            if isinstance(stage, RlvrStage):
                for _, one in settings_of(stage):
                    _check_rhythm(where, one, stage, self.server, stage.accelerate or self.accelerate)
            if self.server.colocate and isinstance(stage, RlvrStage) and stage.at_once > 1:
                raise ValueError(
                    f"{where}.at_once: with server.colocate the server sleeps while a run trains, so no other can sample; "
                    "set at_once to 1, or give the server GPUs of its own (server.devices)"
                )
            earlier[stage.name] = stage
        for name, judge in self.judges.items():
            made = earlier.get(judge.model)
            if made is not None and (judge.kind != "reward" or not isinstance(made, RewardStage)):
                raise ValueError(
                    f"judges.{name}.model: {judge.model!r} is a stage of kind {made.kind} and the judge of kind {judge.kind}; "
                    "of stages, those of kind reward alone can be served as judges, with `kind: reward`"
                )
        return self

    def judge_stages(self) -> dict[str, str]:
        """The reward stages that judges serve, by the judge's name."""
        stages = {stage.name for stage in self.stages}
        return {name: judge.model for name, judge in self.judges.items() if judge.model in stages}


def _check_rhythm(
    where: str, one: RlvrStage, stage: RlvrStage, server: ServerSettings, accelerate: AccelerateSettings
) -> None:
    """A stage that samples ahead of training can do so on the server it has. one: of the stage's settings."""
    if not one.ahead:
        return
    if server.colocate:
        raise ValueError(
            f"{where}.rhythm: {one.rhythm} samples while it trains, and with server.colocate the server sleeps meanwhile; "
            "use on_policy, or give the server GPUs of its own (server.devices)"
        )
    by_turns = stage.at_once > 1 and len(runs_of(stage)) > 1 and one.lora is None
    if by_turns and (one.rhythm == "async" or (accelerate.num_processes or 1) > 1):
        raise ValueError(
            f"{where}.rhythm: {one.rhythm}{'' if one.rhythm == 'async' else ' with several processes'} cannot take turns on "
            "a server with other runs that train all weights, since its samples would go on while the server holds those of "
            "another; use on_policy, train LoRA adapters, or set at_once to 1"
        )


def _check_rows(
    where: str, stage: AnyStage, name: str, earlier: dict[str, AnyStage], later: list[str]
) -> None:
    """The stage can read the rows of the stage `name`: pairs of token ids, or responses as token ids."""
    makes = READS_ROWS.get(stage.kind)
    if makes is None:
        raise ValueError(
            f"{where}: a stage of kind {stage.kind} cannot read the rows of another stage; only "
            + ", ".join(f"{reader} can (of {made})" for reader, made in READS_ROWS.items())
            + "; name a file or a hub data set here"
        )
    kinds = tuple(type(one) for one in earlier.values() if one.kind == makes)
    place, _, field = where.rpartition(".")
    _check_name(place, field, name, earlier, later, kinds, f"rows that a stage of kind {stage.kind} can read")


def _check_name(
    where: str,
    field: str,
    name: str,
    earlier: dict[str, AnyStage],
    later: list[str],
    kinds: tuple[type, ...],
    what: str,
) -> None:
    if name == BASE and what == "a model":
        return
    if name in earlier:
        if isinstance(earlier[name], kinds):
            return
        if isinstance(earlier[name], RewardStage):
            raise ValueError(
                f"{where}.{field}: stage {name!r} makes a reward model, which gives numbers and answers no prompts; its "
                "accuracy is measured on the pairs of its own `validation`, and `judges` serve it to other stages"
            )
        raise ValueError(
            f"{where}.{field}: stage {name!r} is of kind {earlier[name].kind}, which makes no such thing as {what}"
        )
    usable = [known for known, stage in earlier.items() if isinstance(stage, kinds)]
    if what == "a model":
        usable.insert(0, BASE)
    choice = f"it can name {', '.join(usable)}" if usable else f"no earlier stage makes {what}"
    if name in later:
        raise ValueError(
            f"{where}.{field}: {name!r} comes later in the list, or is this stage itself, and cannot be used yet; {choice}, "
            "or move the stage"
        )
    raise ValueError(f"{where}.{field}: there is no stage {name!r}; {choice}")
