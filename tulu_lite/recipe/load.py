"""From a YAML file (and overrides) to a checked, frozen Recipe, or a clear error that names every wrong field."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from ..errors import TuluLiteError
from .base import did_you_mean, first_model
from .extensions import with_recorded
from .recipe import Recipe
from .runs import check_path
from .stages import SOURCE_FIELDS, AnyStage, is_stage_name

STAGE_KINDS: dict[str, type[BaseModel]] = {
    get_args(model.model_fields["kind"].annotation)[0]: model for model in get_args(get_args(AnyStage)[0])
}


class RecipeError(TuluLiteError):
    """A recipe that cannot run; `problems` has a line for each wrong field."""

    def __init__(self, file: str, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        count = "a problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__(
            f"{file}: {count} in the recipe\n" + "\n".join(f"  - {problem}" for problem in self.problems)
        )


def load_recipe(file: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe. Relative paths in it come back absolute.

    overrides: "dotted.path=value" each, the value in YAML; a stage is named by its name or position:
    "stages.sft.epochs=3", "seed=7", "stages.rlvr.seeds=[4,5,6]".
    What `tulu-lite extend` recorded in the output folder is part of it.
    Raises RecipeError with every problem found.
    """
    path = Path(file)
    data = _read_yaml(path)
    _write_out_sources(data)
    for override in overrides:
        _apply_override(data, override, str(file))
    data = resolve_paths(data, path.resolve().parent)
    try:
        return with_recorded(Recipe.model_validate(data))
    except ValidationError as error:
        raise RecipeError(str(file), _problems(_own_faults(error.errors()), data)) from None


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML that load_recipe reads back to an equal Recipe."""
    return yaml.safe_dump(
        json.loads(recipe.model_dump_json()), sort_keys=False, allow_unicode=True, width=110
    )


def recipe_schema() -> dict[str, Any]:
    """JSON schema of a recipe, for editors."""
    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "tulu_lite recipe"
    return schema


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TuluLiteError(
            f"there is no recipe {path}", cure="check the path; shipped recipes are in recipes/"
        ) from None
    except IsADirectoryError:
        raise TuluLiteError(
            f"{path} is a folder, not a recipe",
            cure=f"of an output folder the recipe as it ran is a file in it: {path / 'recipe.yaml'}",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise TuluLiteError(f"cannot read the recipe {path}: {error}") from None
    try:
        data = yaml.load(text, Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise TuluLiteError(
            f"{where}: this is not valid YAML: {getattr(error, 'problem', None) or error}",
            cure="indent with spaces, put a space after each colon, and quote text that holds ': ' or starts with { [ * & ! %",
        ) from None
    if not isinstance(data, dict):
        raise TuluLiteError(
            f"{path}: a recipe is a mapping with keys such as name, model and stages, but this file holds {_kind(data)}"
        )
    return data


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key given twice: plain YAML silently keeps the last."""


def _unique_mapping(loader: _UniqueKeys, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *anchor`: its keys may be given anew beside it
            continue
        key = loader.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
        if isinstance(key, (str, int, float, bool)) and key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} is given twice", key_node.start_mark
            )
        seen.add(key if isinstance(key, (str, int, float, bool)) else str(key))
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)  # type: ignore[arg-type]


def _write_out_sources(data: dict[str, Any]) -> None:
    """`data: rows.jsonl` and `data: {...}` as the list that they are short for, so that overrides reach into it."""
    stages = data.get("stages")
    for stage in stages if isinstance(stages, list) else []:
        for field in SOURCE_FIELDS if isinstance(stage, dict) else ():
            given = stage.get(field)
            if isinstance(given, (str, dict)):
                given = [given]
            if isinstance(given, list):
                stage[field] = [{"path": item} if isinstance(item, str) else item for item in given]


def _apply_override(data: dict[str, Any], override: str, file: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise TuluLiteError(
            f"the override {override!r} is not of the form path=value",
            cure="write for example seed=7 or stages.sft.epochs=3",
        )
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError as error:
        raise TuluLiteError(
            f"the override {override!r} has a value that is not YAML: {error}", cure="quote it"
        ) from None
    *parents, last = dotted.split(".")
    here: Any = data
    walked: list[str] = []
    for part in parents:
        here = _step_into(here, part, walked, override, file, create=True)
        walked.append(part)
    if isinstance(here, dict):
        here[last] = value
    elif isinstance(here, list):
        here[_index(here, last, walked, override, file)] = value
    else:
        raise TuluLiteError(
            f"the override {override!r} does not fit {file}: {'.'.join(walked)} is {_kind(here)}, which has no fields"
        )


def _step_into(here: Any, part: str, walked: list[str], override: str, file: str, create: bool) -> Any:
    if isinstance(here, list):
        return here[_index(here, part, walked, override, file)]
    if isinstance(here, dict):
        if create and here.get(part) is None:
            here[part] = {}
        return here[part]
    raise TuluLiteError(
        f"the override {override!r} does not fit {file}: {'.'.join(walked)} is {_kind(here)}, which has no fields"
    )


def _index(items: list[Any], part: str, walked: list[str], override: str, file: str) -> int:
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if part in names:
        return names.index(part)
    if part.lstrip("-").isdigit() and -len(items) <= int(part) < len(items):
        return int(part)
    known = [str(name) for name in names if name] or [str(i) for i in range(len(items))]
    raise TuluLiteError(
        f"the override {override!r} does not fit {file}: {'.'.join(walked)} has no {part!r}{did_you_mean(part, known)}",
        cure=f"it has {', '.join(known)}",
    )


PATH_FIELDS = ("output",)


def resolve_paths(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The recipe's data with paths relative to `folder` (the recipe file's) made absolute."""
    data = json.loads(json.dumps(data, default=str))
    for field in PATH_FIELDS:
        if isinstance(data.get(field), str):
            data[field] = _absolute(data[field], folder)
    if isinstance(data.get("model"), str) and _is_local_model(data["model"], folder):
        data["model"] = _absolute(data["model"], folder)
    listed = data["stages"] if isinstance(data.get("stages"), list) else []
    names = {stage.get("name") for stage in listed if isinstance(stage, dict)}
    for judge in data["judges"].values() if isinstance(data.get("judges"), dict) else ():
        if (
            isinstance(judge, dict)
            and isinstance(judge.get("model"), str)
            and judge["model"] not in names  # a reward stage's
            and _is_local_model(judge["model"], folder)
        ):
            judge["model"] = _absolute(judge["model"], folder)
    template = data.get("chat_template")
    if isinstance(template, str) and template.endswith(".jinja"):
        data["chat_template"] = _absolute(template, folder)
    if isinstance(data.get("verifiers"), dict):
        data["verifiers"] = {
            name: _resolve_verifier(spec, folder) for name, spec in data["verifiers"].items()
        }
    _resolve_accelerate(data, folder)
    stages = data.get("stages")
    for stage in stages if isinstance(stages, list) else []:
        if not isinstance(stage, dict):
            continue
        _resolve_accelerate(stage, folder)
        if stage.get("kind") in ("preferences", "reject") and isinstance(stage.get("models"), list):
            stage["models"] = [
                _absolute(name, folder)
                if isinstance(name, str) and not is_stage_name(name) and _is_local_model(name, folder)
                else name
                for name in stage["models"]
            ]
        named_in: list[tuple[Any, str]] = [(stage, "reference"), (stage.get("value"), "init")]
        for holder, field in named_in:
            named = holder.get(field) if isinstance(holder, dict) else None
            if isinstance(named, str) and not is_stage_name(named) and _is_local_model(named, folder):
                holder[field] = _absolute(named, folder)
        if stage.get("kind") == "rlvr":
            _resolve_models(stage, folder)
        if isinstance(stage.get("rank_by"), str):
            stage["rank_by"] = _resolve_verifier(stage["rank_by"], folder)
        for field in SOURCE_FIELDS:
            stage[field] = _resolve_sources(stage[field], folder) if field in stage else None
            if stage[field] is None:
                del stage[field]
        _resolve_decontamination(stage.get("filters"), folder)
        _resolve_sweep(stage.get("sweep"), folder)
    return data


def _resolve_models(stage: dict[str, Any], folder: Path) -> None:
    """Folders of the other models of an rlvr stage, and of recorded rollouts, made absolute."""
    value = stage.get("value")
    for settings, field in ((stage, "reference"), (value, "init"), (stage, "replay")):
        name = settings.get(field) if isinstance(settings, dict) else None
        if isinstance(name, str) and (
            field == "replay" or (not is_stage_name(name) and _is_local_model(name, folder))
        ):
            settings[field] = _absolute(name, folder)  # type: ignore[index]


def _resolve_sweep(sweep: Any, folder: Path) -> None:
    """Paths of data in the settings of a sweep, {data: [a.jsonl, b.jsonl]} or [{data: a.jsonl}, ...], made absolute."""
    for values in [sweep] if isinstance(sweep, dict) else sweep if isinstance(sweep, list) else ():
        for dotted, value in values.items() if isinstance(values, dict) else ():
            if dotted in SOURCE_FIELDS:
                values[dotted] = _resolve_sources(value, folder)
            elif dotted.split(".")[0] in SOURCE_FIELDS and dotted.endswith(".path"):
                one = [_absolute(item, folder) for item in (value if isinstance(sweep, dict) else [value])]
                values[dotted] = one if isinstance(sweep, dict) else one[0]


def _resolve_decontamination(filters: Any, folder: Path) -> None:
    """The evaluation sets that a stage's rows must not overlap, with their paths made absolute."""
    sets = filters.get("decontaminate") if isinstance(filters, dict) else None
    if isinstance(sets, dict) and "against" in sets:
        sets["against"] = _resolve_sources(sets["against"], folder)
    elif sets is not None:
        filters["decontaminate"] = _resolve_sources(sets, folder)


def _resolve_sources(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_resolve_sources(item, folder) for item in value]
    if isinstance(value, str):
        return {"path": _absolute(value, folder)}
    if isinstance(value, dict):
        value = dict(value)
        if isinstance(value.get("path"), str):
            value["path"] = _absolute(value["path"], folder)
        elif isinstance(value.get("path"), list):
            value["path"] = [_absolute(p, folder) if isinstance(p, str) else p for p in value["path"]]
        if isinstance(value.get("verifier"), str):
            value["verifier"] = _resolve_verifier(value["verifier"], folder)
    return value


def _resolve_verifier(spec: Any, folder: Path) -> Any:
    """path/to/file.py or path/to/file.py:name inside a verifier spec, made absolute."""
    if isinstance(spec, str):
        if spec.endswith(".py"):
            return _absolute(spec, folder)
        file, colon, name = spec.rpartition(":")
        return f"{_absolute(file, folder)}:{name}" if colon and file.endswith(".py") else spec
    if isinstance(spec, list):
        return [_resolve_verifier(item, folder) for item in spec]
    if isinstance(spec, dict):
        return {
            key: value if key == "args" else _resolve_verifier(value, folder) for key, value in spec.items()
        }
    return spec


def _resolve_accelerate(data: dict[str, Any], folder: Path) -> None:
    settings = data.get("accelerate")
    if isinstance(settings, dict) and isinstance(settings.get("config_file"), str):
        settings["config_file"] = _absolute(settings["config_file"], folder)


def _is_local_model(model: str, folder: Path) -> bool:
    """A path is what looks like one (./x, ../x, /x, ~) or is there; all else (one slash at most) is a hub id."""
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or (folder / model).exists()


def _absolute(path: str, folder: Path) -> str:
    expanded = Path(path).expanduser()
    joined = expanded if expanded.is_absolute() else folder / expanded
    return str(Path(*_normal_parts(joined)))


def _normal_parts(path: Path) -> list[str]:
    """Without `..` and `.`, and without following links: what a person would write."""
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and len(parts) > 1:
            parts.pop()
        elif part not in ("..", "."):
            parts.append(part)
    return parts


def _own_faults(errors: Sequence[Any]) -> list[Any]:
    """Without a list said to be too short only because its items are wrong."""
    places = [error["loc"] for error in errors]
    return [
        error
        for error in errors
        if error["type"] != "too_short"
        or not any(place != error["loc"] and place[: len(error["loc"])] == error["loc"] for place in places)
    ]


def _problems(errors: Sequence[Any], data: dict[str, Any]) -> list[str]:
    """A line for each fault. A field of a sweep that does not exist is one also where the stage is not valid anyway: it
    may be why another is missing, which is then not said."""
    misspelt = {
        at: faults
        for at, stage in enumerate(data["stages"] if isinstance(data.get("stages"), list) else ())
        if (faults := _sweep_faults(stage))
    }
    told = []
    for error in errors:
        place = error["loc"]
        in_stage = error["type"] == "missing" and len(place) > 2 and place[0] == "stages"
        meant = misspelt.get(place[1], []) if in_stage else []
        if not any(f"did you mean {place[-1]}?" in fault for fault in meant):
            told.append(_explain(error, data))
    more = [
        f"{_dotted(['stages', at], data)}.{fault}"
        for at, faults in misspelt.items()
        for fault in faults
        if not any(fault in line for line in told)
    ]
    return [*more, *told]


def _sweep_faults(stage: Any) -> list[str]:
    """What is wrong with the names of the fields that a stage's sweep differs in."""
    kind = STAGE_KINDS.get(str(stage.get("kind"))) if isinstance(stage, dict) else None
    sweep = stage.get("sweep") if kind is not None and "sweep" in kind.model_fields else None
    listed = [sweep] if isinstance(sweep, dict) else sweep if isinstance(sweep, list) else []
    faults: dict[str, None] = {}
    for dotted in (name for one in listed if isinstance(one, dict) for name in one):
        try:
            check_path(kind, str(dotted))
        except ValueError as fault:
            faults[str(fault)] = None
    return list(faults)


def _explain(error: Any, data: dict[str, Any]) -> str:
    """One pydantic error as `field: reason; cure`."""
    location = [part for part in error["loc"] if part not in STAGE_KINDS]
    model = _model_at(error["loc"], data)
    where = _dotted(location, data)
    kind, given = error["type"], error.get("input")
    if kind == "extra_forbidden":
        key, known = str(location[-1]), sorted(model.model_fields) if model else []
        hint = did_you_mean(key, known)
        return f"{where}: there is no such field{hint}" + (
            "" if hint or not known else f"; the fields here are {', '.join(known)}"
        )
    if kind == "missing":
        field = model.model_fields.get(str(location[-1])) if model else None
        meaning = f": {field.description.splitlines()[0]}" if field is not None and field.description else ""
        return f"{where}: this field is missing; add it{meaning}"
    if kind == "union_tag_not_found":
        return f"{where}.kind: this field is missing; it is one of {', '.join(STAGE_KINDS)}"
    if kind == "union_tag_invalid":
        tag = str(given.get("kind")) if isinstance(given, dict) else str(given)
        return f"{where}.kind: there is no stage kind {tag!r}{did_you_mean(tag, list(STAGE_KINDS))}; it is one of {', '.join(STAGE_KINDS)}"
    message = error["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{where}: {message}" if location else message
    return f"{where}: {message[0].lower() + message[1:]}, but it is {_show(given)}"


def _dotted(location: Sequence[Any], data: dict[str, Any]) -> str:
    """stages.1.epochs, with the stage's name beside its position."""
    text = ""
    here: Any = data
    for part in location:
        text += f".{part}" if text else str(part)
        try:
            here = here[part]
        except (KeyError, IndexError, TypeError):
            here = None
        if isinstance(part, int) and isinstance(here, dict) and isinstance(here.get("name"), str):
            text += f" ({here['name']})"
    return text or "the recipe"


def _model_at(location: Sequence[Any], data: dict[str, Any]) -> type[BaseModel] | None:
    """The model whose field the last part of the location names."""
    model: Any = Recipe
    for part in location[:-1]:
        if part in STAGE_KINDS:
            model = STAGE_KINDS[str(part)]
        elif isinstance(part, str) and isinstance(model, type) and issubclass(model, BaseModel):
            field = model.model_fields.get(part)
            model = first_model(field.annotation) if field is not None else None
            if model is None and part != "stages":
                return None
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


def _kind(value: Any) -> str:
    names = {
        dict: "a mapping",
        list: "a list",
        str: "text",
        int: "a number",
        float: "a number",
        bool: "true or false",
        type(None): "nothing",
    }
    return names.get(type(value), type(value).__name__)


def _show(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
