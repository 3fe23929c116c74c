"""The stage kinds, one file each. A stage names what it starts from (`init`) by stage name; `base` is the recipe's own
model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .common import Stage
from .dpo import DpoStage
from .evaluate import EvaluateStage
from .preferences import PreferencesStage
from .rlvr import RlvrStage
from .sft import SftStage

AnyStage = Annotated[
    SftStage | PreferencesStage | DpoStage | RlvrStage | EvaluateStage, Field(discriminator="kind")
]

__all__ = [
    "AnyStage",
    "DpoStage",
    "EvaluateStage",
    "PreferencesStage",
    "RlvrStage",
    "SftStage",
    "Stage",
]
