"""The runs of a training stage: every setting of its sweep with every one of its seeds.

A run's name is made of what tells it from the others, is the same wherever else the list changes, and can be a file's
name: `seed-2`, `learning_rate=1e-4`, `kl_coefficient=0.05/seed-2`, and `seed-2+200` for one that went on 200 steps.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ValidationError

from .base import did_you_mean, first_model


def _form(value: Any) -> Any:
    """Said in one sentence, where the two forms would be two errors."""
    lists = isinstance(value, dict) and all(isinstance(one, (list, tuple)) for one in value.values())
    listed = isinstance(value, (list, tuple)) and all(isinstance(one, dict) for one in value)
    if value is None or lists or listed:
        return value
    raise ValueError(
        "a sweep is {field: [value, value], ...}, every combination, or [{field: value, ...}, ...], those listed; "
        f"it is {value!r:.60}"
    )


SweepValues = Annotated[dict[str, list[Any]] | tuple[dict[str, Any], ...], BeforeValidator(_form)]
FIXED = ("name", "kind", "init", "seed", "seeds", "sweep", "extend", "at_once", "validation")
LONGEST_NAME = 80


@dataclass(frozen=True)
class Run:
    """One training of a stage."""

    name: str  # "" when the stage is a single run
    setting: str  # of the sweep, "" without one
    seed: int | None  # None: the stage's own
    stage: Any  # the stage with the setting's values in their places, and without the sweep


def runs_of(stage: Any) -> list[Run]:
    """All runs of a training stage, settings outermost, in the order of the recipe. Raises ValueError."""
    return [
        Run("/".join(part for part in (setting, "" if seed is None else f"seed-{seed}") if part), setting, seed, one)
        for setting, one in settings_of(stage)
        for seed in stage.seeds or (None,)
    ]  # fmt: skip


def settings_of(stage: Any) -> list[tuple[str, Any]]:
    """(name, stage) of each combination of the sweep; [("", stage)] without one.

    Raises ValueError for a field that the stage does not have, a combination that is no valid stage, or one listed
    twice.
    """
    if stage.sweep is None:
        return [("", _alone(stage))]
    found: dict[str, Any] = {}
    for values in combinations(stage.sweep):
        one = _with_values(stage, values)
        name = _setting_name(one, values)
        if name in found:
            raise ValueError(
                f"sweep: two combinations are called {name}; remove one, or give the files that differ different names"
            )
        found[name] = one
    return list(found.items())


def combinations(sweep: SweepValues) -> list[dict[str, Any]]:
    """Those of a product of lists, {field: [value, ...], ...}, the last field changing fastest; or the listed ones."""
    if not isinstance(sweep, Mapping):
        return [dict(one) for one in sweep]
    return [dict(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())]


def _alone(stage: Any) -> Any:
    """The stage as one of its runs is: nothing left of the others."""
    apart: dict[str, Any] = {"sweep": None}
    if "extend" in type(stage).model_fields:
        apart["extend"] = ()
    return stage.model_copy(update=apart)


def _with_values(stage: Any, values: Mapping[str, Any]) -> Any:
    """The stage with the values of one combination, checked as if the recipe had them. Raises ValueError."""
    if not values:
        raise ValueError("sweep: a combination names no field; write for example {learning_rate: 1e-4}")
    data = stage.model_dump(mode="json", exclude_unset=True, exclude={"sweep", "extend"})
    for dotted, value in values.items():
        check_path(type(stage), dotted)
        _put(data, dotted, value)
    try:
        return type(stage).model_validate(data)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg'].removeprefix('Value error, ')}".lstrip(
                ": "
            )
            for fault in error.errors()
        )
        shown = ", ".join(f"{name}: {value}" for name, value in values.items())
        raise ValueError(f"sweep: the combination {{{shown}}} is no valid stage: {faults}") from None


def check_path(model: Any, dotted: str) -> None:
    """Raise ValueError unless the dotted path names a field, and one that may differ between runs."""
    first, *_ = dotted.split(".")
    if first in FIXED:
        raise ValueError(
            f"sweep.{dotted}: {first} cannot differ between the settings of one sweep"
            + ("; all are compared on the same rows" if first == "validation" else "")
            + ("; write `seeds: [...]` beside the sweep" if first in ("seed", "seeds") else "")
        )
    for part in dotted.split("."):
        if isinstance(model, type) and issubclass(model, BaseModel) and not part.isdigit():
            if part not in model.model_fields:
                raise ValueError(
                    f"sweep.{dotted}: there is no such field{did_you_mean(part, list(model.model_fields))}"
                )
            model = first_model(model.model_fields[part].annotation)


def _put(data: Any, dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    here: Any = data
    try:
        for part in parents:
            if isinstance(here, list):
                here = here[int(part)]
            else:
                here[part] = here[part] if here.get(part) is not None else {}
                here = here[part]
        here[int(last) if isinstance(here, list) else last] = value
    except (IndexError, ValueError, TypeError, AttributeError):
        raise ValueError(f"sweep.{dotted}: the stage has no such place") from None


# Names


def _setting_name(stage: Any, values: Mapping[str, Any]) -> str:
    """learning_rate=1e-4, beta=5 and so on, by field, of the values as the stage holds them."""
    name = ",".join(f"{dotted}={_short(_value_at(stage, dotted))}" for dotted in sorted(values))
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 7]}-{_mark(name)}"


def _value_at(stage: Any, dotted: str) -> Any:
    here = stage
    for part in dotted.split("."):
        here = here[int(part)] if isinstance(here, (list, tuple)) else getattr(here, part)
    return here


def _short(value: Any) -> str:
    """A value in a few letters that a file's name may hold; a function of the value alone."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return short_float(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        plain = re.sub(r"[^A-Za-z0-9._+-]+", "-", Path(value).name if value.startswith("/") else value)
        return plain if plain == value else f"{plain}-{_mark(value)}"
    if isinstance(value, (list, tuple)):
        return "+".join(_short(item) for item in value)
    return _short_settings(value)


def _short_settings(value: BaseModel) -> str:
    """A source by its file's or data set's name, with a mark of what else is said of it; others by their numbers or a
    mark."""
    plain = value.model_dump(mode="json", exclude_defaults=True)
    origin = plain.get("path") or plain.get("hub") or plain.get("stage")
    if not isinstance(origin, str):
        scalars = all(isinstance(item, (bool, int, float)) for item in plain.values())
        return (
            "+".join(f"{key}-{_short(item)}" for key, item in plain.items())
            if plain and scalars
            else _mark(plain)
        )
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(origin).stem if "path" in plain else origin)
    more = {key: item for key, item in plain.items() if item != origin}
    return f"{stem}-{_mark(more)}" if more else stem


def short_float(value: float) -> str:
    """1e-4, 2.5e-6, 0.05, 5: the shortest that reads back as the same number."""
    number = Decimal(repr(value))
    sign, digits, exponent = number.normalize().as_tuple()
    if not isinstance(exponent, int):
        return str(value)  # nan, inf
    power = len(digits) + exponent - 1
    if value != 0 and (power < -3 or power >= 6):
        text = "".join(map(str, digits))
        return f"{'-' if sign else ''}{text[0]}{'.' + text[1:] if text[1:] else ''}e{power}"
    return f"{number.normalize():f}"


def _mark(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def swept_number(setting: str) -> float | None:
    """The number in a setting of one field, learning_rate=1e-4; None for any other."""
    try:
        return float(setting.partition("=")[2]) if "," not in setting else None
    except ValueError:
        return None


def names_of(runs: Sequence[Run]) -> str:
    """The runs' names, for a message."""
    return ", ".join(run.name for run in runs)
