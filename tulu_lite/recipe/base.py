"""The base of every recipe model: no extra keys, frozen, each field documented where it stands."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Settings(BaseModel):
    """A frozen group of recipe fields. An unknown key is an error; a docstring under each field is its help."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True
    )


def Incidental(default: Any = ..., **constraints: Any) -> Any:
    """A field that changes how a step runs but not what it computes (to rounding).

    Such fields stay out of the step's key: changing them does not make a done step run again.
    """
    return Field(default, json_schema_extra={"incidental": True}, **constraints)


def Later(default: Any, **constraints: Any) -> Any:
    """A field that came after results were first kept. Its default is what was done before there was a choice.

    At its default it stays out of the step's key, so that what is done already need not be done again.
    """
    return Field(default, json_schema_extra={"later": True}, **constraints)


def _number_in_yaml(value: Any) -> Any:
    """YAML 1.1 reads 5e-6 (no dot) as a string; a person who wrote it meant a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Number = Annotated[float, BeforeValidator(_number_in_yaml)]


def identity(settings: BaseModel) -> dict[str, Any]:
    """What of the settings decides a step's result: all fields but the incidental ones, and the
    later ones at their defaults, as plain JSON data."""
    plain: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("incidental"):
            continue
        if isinstance(extra, dict) and extra.get("later") and getattr(settings, name) == field.default:
            continue
        plain[name] = _plain(getattr(settings, name))
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return identity(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


# What error messages need to know of the models


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`; did you mean x?`, or nothing when no known word is close."""
    close = difflib.get_close_matches(word, known, n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def first_model(annotation: Any) -> type[BaseModel] | None:
    """The first model in a field's annotation, however deep: of `tuple[DataSource, ...]` it is DataSource."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := first_model(part))), None)
