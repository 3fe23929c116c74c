"""What every stage has, and how it names its data."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ..base import Settings
from ..data import DataSource


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


class Stage(Settings):
    """What every stage has."""

    name: StageName
    """How other stages and the command line refer to this stage: lower case, digits, - and _."""
