"""From a recipe to its rehearsal: another recipe, of the same stages, that a laptop does in minutes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from verifiers.judges.prompts import ASPECTS, RULES

from ..errors import TuluLiteError
from ..files import write_atomic
from ..pipeline.judges import announce
from ..recipe import DataSource, Recipe
from ..recipe.judges import judge_variable
from ..recipe.stages import SOURCE_FIELDS, is_stage_name, split_revision
from .answers import ASKS_A_MODEL, Verifying
from .models import CONTEXT, TinyModel, own_template, tiny_config
from .rows import Row, RowMaker, Use
from .scale import ROWS, scale_stage, told

Say = Callable[[str], None]
STAND_IN = "rehearsal"  # the judge that stands in for those on endpoints of others
JUDGED = "judge_"  # verifiers that ask a language model


def rehearse(recipe: Recipe, say: Say = print) -> Recipe:
    """The recipe with tiny models, few rows, few steps and short lengths, and its output in `<output>-rehearsal`.

    What is changed is told to `say`; stages, objectives, schedules, seeds, templates and verifiers stay as written. The
    same recipe gives the same rehearsal. Raises TuluLiteError for what cannot be rehearsed.
    """
    return _Rehearsal(recipe, say).recipe()


class _Rehearsal:
    def __init__(self, recipe: Recipe, say: Say) -> None:
        self.given, self.say = recipe, say
        self.output = Path(recipe.output.rstrip("/") + "-rehearsal")
        self.data: dict[str, Any] = json.loads(recipe.model_dump_json())
        self.notes: list[str] = []
        self.made_up = self.local = 0  # data sources
        self.architectures: dict[str, str] = {}  # model -> what it became

    def recipe(self) -> Recipe:
        self.data |= {"output": str(self.output), "accelerate": {"device": "cpu", "threads": 1}}
        self.data |= {"server": {"max_model_len": CONTEXT, "kv_cache_mb": 128, "max_num_seqs": 64}}
        self.data |= {"watch": [], "verifier_timeout_s": max(self.given.verifier_timeout_s, 20.0)}
        self._judges()
        announce(Recipe.model_validate(self.data))  # verifiers that ask a model are built with its address
        rows = RowMaker(Verifying(Recipe.model_validate(self.data)), self.given.seed)
        self._sources(rows)
        self._models(rows.dialogues)
        for stage, given in zip(self.data["stages"], self.given.stages, strict=True):
            scale_stage(stage, given)
        self._tell()
        return Recipe.model_validate(self.data)

    # Judges

    def _judges(self) -> None:
        """Every judge is served here: endpoints of others cannot be asked in a rehearsal."""
        moved: list[str] = []

        def here(spec: Any) -> Any:
            if isinstance(spec, list):
                return [here(part) for part in spec]
            if not isinstance(spec, dict):
                return spec
            if not str(spec.get("use", "")).startswith(ASKS_A_MODEL):
                return {key: value if key == "args" else here(value) for key, value in spec.items()}
            args = dict(spec.get("args", {}))
            name = str(args.get("model", ""))
            if name not in self.given.judges:
                name = STAND_IN
                moved.append(str(args.get("base_url", "its endpoint")))
                args["base_url"], args["model"] = f"env:{judge_variable(STAND_IN)}", STAND_IN
                args.pop("api_key_env", None)
            if str(spec["use"]).startswith(JUDGED):
                # No seed: with the same draws a tiny judge says the same of everything
                args |= {"temperature": 1.0, "max_tokens": 1024, "cache": "", "extra_body": {}}
                args |= {"timeout_s": 600.0, "request_timeout_s": 300.0}
            return {**spec, "args": args}

        self.data["verifiers"] = {name: here(spec) for name, spec in self.data["verifiers"].items()}
        if moved:
            self.data["judges"][STAND_IN] = {"model": self.given.model}
            self.notes.append(
                f"judges: a tiny one is served here instead of {', '.join(dict.fromkeys(moved))}"
            )
        self.judged = bool(self.data["judges"])
        if self.judged:
            self.notes.append(
                "judges: what they say means nothing; they sample it, and any share of it may fail (max_error_share 1)"
            )
        for judge in self.data["judges"].values():
            # a reward model, perhaps a stage's, sees what the policy saw
            longest = CONTEXT if judge.get("kind") == "reward" else 2 * CONTEXT
            judge["server"] = {"max_model_len": longest, "kv_cache_mb": 128, "max_num_seqs": 32}

    # Rows

    def _sources(self, rows: RowMaker) -> None:
        for stage, given in zip(self.data["stages"], self.given.stages, strict=True):
            if self.judged and "max_error_share" in stage:
                stage["max_error_share"] = 1.0
            for field in SOURCE_FIELDS:
                for place, source in enumerate(getattr(given, field, ())):
                    file = self.output / "data" / f"{given.name}-{field}-{place}.jsonl"
                    use = use_of(given.kind, field)
                    stage[field][place] = self._source(rows, source, use, file) | {"stage": source.stage}
            self._swept_sources(rows, stage, given)
            against = ((stage.get("filters") or {}).get("decontaminate") or {}).get("against", [])
            for place, entry in enumerate(against):
                file = self.output / "data" / f"{given.name}-against-{place}.jsonl"
                against[place] = self._source(rows, DataSource.model_validate(entry), "conversations", file)

    def _swept_sources(self, rows: RowMaker, stage: dict[str, Any], given: Any) -> None:
        """Sources that a sweep compares, likewise; counts in it became weights."""
        sweep = stage.get("sweep")
        for number, setting in enumerate([sweep] if isinstance(sweep, dict) else sweep or []):
            for dotted, value in list(setting.items()):
                field, *inner = dotted.split(".")
                if field not in SOURCE_FIELDS:
                    continue
                if inner and inner[-1] in ("hub", "path", "split", "config"):
                    raise TuluLiteError(
                        f"cannot rehearse stage {given.name}: its sweep changes {dotted}, a part of a data source",
                        cure=f"let the sweep list whole sources: `{field}: [{{hub: ...}}, {{hub: ...}}]`",
                    )
                if inner and inner[-1] == "count":
                    setting[".".join([field, *inner[:-1], "weight"])] = setting.pop(dotted)
                elif not inner:
                    listed = value if isinstance(sweep, dict) else [value]
                    made = [
                        self._alternative(rows, one, given, field, f"{number}-{place}")
                        for place, one in enumerate(listed)
                    ]
                    setting[field] = made if isinstance(sweep, dict) else made[0]

    def _alternative(
        self, rows: RowMaker, value: Any, given: Any, field: str, mark: str
    ) -> list[dict[str, Any]]:
        """The sources of one setting of a sweep."""
        sources = [DataSource.model_validate(one) for one in (value if isinstance(value, list) else [value])]
        return [
            self._source(
                rows,
                source,
                use_of(given.kind, field),
                self.output / "data" / f"{given.name}-{field}-sweep-{mark}-{place}.jsonl",
            )
            for place, source in enumerate(sources)
        ]

    def _source(self, rows: RowMaker, source: DataSource, use: Use, file: Path) -> dict[str, Any]:
        """The source's settings with a small file in its place."""
        data = json.loads(source.model_dump_json())
        data |= {"limit": None, "count": None, "streaming": False}
        if source.stage is not None:
            return data
        if source.count is not None:  # counts become weights, which few rows can follow
            data["weight"] = float(source.count)
        verifier = None if use != "prompts" else source.verifier
        if source.hub is not None:
            made, self.made_up = rows.made_up(source, use, verifier, ROWS), self.made_up + 1
            data["source"] = source.source or source.hub
        else:
            made, self.local = rows.first_of(source, use, verifier, ROWS), self.local + 1
            data["source"] = source.source or Path(source.paths[0]).stem
            if source.source is None and any("source" in row for row in made):
                data["source"] = None
        data |= {
            "path": str(file),
            "hub": None,
            "config": None,
            "revision": None,
            "split": "train",
            "share": None,
        }
        data["max_repeat"] = 1000.0 if data["weight"] or data["fraction"] else 1.0
        _write_rows(file, made)
        return data

    # Models

    def _models(self, dialogues: list[list[dict[str, str]]]) -> None:
        """Every model by a tiny one of its architecture."""
        make = _Maker(self, dialogues)
        self.data["model"], self.data["revision"] = make(self.given.model, self.given.revision), None
        stages = {stage.name for stage in self.given.stages}
        for name, judge in self.given.judges.items():
            if judge.model not in stages:
                reward = judge.kind == "reward"
                entry = self.data["judges"][name]
                entry["model"], entry["revision"] = (
                    make(judge.model, judge.revision, judge=True, reward=reward),
                    None,
                )
        if STAND_IN in self.data["judges"] and STAND_IN not in self.given.judges:
            self.data["judges"][STAND_IN]["model"] = make(self.given.model, self.given.revision, judge=True)
        for stage, given in zip(self.data["stages"], self.given.stages, strict=True):
            if given.kind in ("preferences", "reject"):
                stage["models"] = [
                    name if is_stage_name(name) else make(*split_revision(name), seed=place + 1)
                    for place, name in enumerate(given.models)
                ]
            for holder, field, reward in (
                (stage, "reference", False),
                (stage.get("value") or {}, "init", True),
            ):
                named = holder.get(field)
                if isinstance(named, str) and "/" in named:
                    holder[field] = make(*split_revision(named), reward=reward)

    def _tell(self) -> None:
        models = ", ".join(f"{name}: {kind}" for name, kind in self.architectures.items())
        lines = [
            f"rehearsal of {self.given.name}: everything goes to {self.output}",
            f"models: tiny ones (2 layers, width 64), random but for a moment's training on the rows ({models})",
            f"rows: {self.made_up} hub data sets are made up, of {self.local} local files the first {ROWS} rows are used; "
            "counts became proportions, and limits and shares are gone",
            *told(self.given),
            *dict.fromkeys(self.notes),
            "processes: one on the CPU, in float32; settings for GPUs are left out",
            "as written: stages, objectives, schedules, learning rates, seeds and sweeps, chat template, verifiers",
        ]
        for line in lines:
            self.say(line)


class _Maker:
    """Makes tiny models, each once."""

    def __init__(self, rehearsal: _Rehearsal, dialogues: list[list[dict[str, str]]]) -> None:
        self.rehearsal, self.dialogues = rehearsal, dialogues

    def __call__(
        self, model: str, revision: str | None, *, judge: bool = False, reward: bool = False, seed: int = 0
    ) -> str:
        config, where = tiny_config(model, revision)
        template, special = own_template(model)
        chat = "model" if judge or seed else self.rehearsal.given.chat_template
        if judge and not reward:
            config = config | {"max_position_embeddings": 2 * CONTEXT}
        tiny = TinyModel(
            config=config,
            dialogues=list(judgements()) if judge and not reward else self.dialogues,
            chat_template=chat,
            own_template=template,
            special_tokens=special,
            texts=(RULES, *ASPECTS.values())
            if judge and not reward
            else (),  # or questions are twice as long
            reward=reward,
            steps=40 if judge or seed else 100,
            seed=seed,
        )
        self.rehearsal.architectures[Path(model).name] = f"{config['model_type']}, by {where}"
        return str(tiny.make(self.rehearsal.output / "models"))


def use_of(kind: str, field: str) -> Use:
    """What a stage of this kind takes the rows of this field for."""
    if kind in ("dpo", "reward"):
        return "pairs"
    return "conversations" if kind == "sft" or field == "general" else "prompts"


def judgements() -> Iterator[list[dict[str, str]]]:
    """Replies as a judge is asked for them, so that a tiny one soon ends its sentences."""
    for score in range(1, 6):
        for words in ("It is so.", "It is not so.", "It is fine.", "It is plain."):
            reply = {"mark": "0a1b2c3d", "analysis": words, "score": score}
            yield [
                {"role": "system", "content": "You grade text."},
                {"role": "user", "content": f"Grade it: {words}"},
                {"role": "assistant", "content": json.dumps(reply)},
            ]


def _write_rows(file: Path, rows: list[Row]) -> None:
    if not rows:
        raise TuluLiteError(f"cannot rehearse: a data source gave no row for {file.name}")
    content = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    if not file.exists() or file.read_text(encoding="utf-8") != content:
        write_atomic(file, content)


__all__ = ["judgements", "rehearse", "use_of"]
