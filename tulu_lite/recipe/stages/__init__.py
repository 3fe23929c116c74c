"""The stage kinds, one file each. A stage names what it starts from (`init`) by stage name; `base` is the recipe's own
model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .common import SOURCE_FIELDS, Extension, Stage, StopEarly, TrainingStage
from .dpo import DpoStage
from .evaluate import EvaluateStage
from .pairs import PairStage
from .pool import PoolStage, is_stage_name, split_revision
from .preferences import PreferencesStage
from .reject import RejectStage
from .reward import RewardStage
from .rlvr import RlvrStage
from .sft import SftStage

AnyStage = Annotated[
    SftStage | PreferencesStage | RejectStage | DpoStage | RewardStage | RlvrStage | EvaluateStage,
    Field(discriminator="kind"),
]

__all__ = [
    "SOURCE_FIELDS",
    "AnyStage",
    "DpoStage",
    "EvaluateStage",
    "Extension",
    "PairStage",
    "PoolStage",
    "PreferencesStage",
    "RejectStage",
    "RewardStage",
    "RlvrStage",
    "SftStage",
    "Stage",
    "StopEarly",
    "TrainingStage",
    "is_stage_name",
    "split_revision",
]
