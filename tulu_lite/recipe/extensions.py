"""What `tulu-lite extend` recorded in the output folder: which runs go on, and by how many steps.

`extend.yaml` there, {stage: [{run: seed-2, steps: 200}, ...]}, is read with every recipe that writes into the folder, as
if its stages had these lines under `extend`. Delete a line to undo it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ..errors import TuluLiteError, first_line
from ..files import write_atomic
from .recipe import Recipe
from .runs import runs_of
from .stages.common import Extension

FILE = "extend.yaml"


def with_recorded(recipe: Recipe) -> Recipe:
    """The recipe with the extensions recorded in its output folder. Those of runs that it no longer has are left out."""
    recorded = read_recorded(Path(recipe.output))
    stages = []
    for stage in recipe.stages:
        extend = getattr(stage, "extend", None)
        if extend is not None and recorded.get(stage.name):
            known = {run.name for run in runs_of(stage)}
            more = [one for one in recorded[stage.name] if one.run in known and one not in extend]
            stage = stage.model_copy(update={"extend": (*extend, *more)})
        stages.append(stage)
    return recipe.model_copy(update={"stages": tuple(stages)})


def read_recorded(output: Path) -> dict[str, list[Extension]]:
    """The extensions of each stage. Raises TuluLiteError for a file that is none of ours."""
    file = output / FILE
    try:
        data: Any = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        return {
            str(stage): [Extension.model_validate(one) for one in listed] for stage, listed in data.items()
        }
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, yaml.YAMLError, ValidationError, AttributeError, TypeError, UnicodeDecodeError) as error:
        raise TuluLiteError(
            f"cannot read {file}: {first_line(error)}",
            "it holds what `tulu-lite extend` recorded, as {stage: [{run: seed-2, steps: 200}]}",
            "mend or delete it; without it no run goes on beyond its stage's steps",
        ) from None


def record(output: Path, stage: str, extensions: list[Extension]) -> None:
    """Add extensions of a stage to those recorded."""
    recorded = read_recorded(output)
    listed = recorded.setdefault(stage, [])
    listed += [one for one in extensions if one not in listed]
    plain = {name: [one.model_dump() for one in each] for name, each in recorded.items()}
    write_atomic(output / FILE, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
