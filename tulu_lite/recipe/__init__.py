"""The recipe: typed models, loading, overrides and the JSON schema. No torch."""

from .base import identity
from .data import DataSettings, DataSource, Decontamination, Filters, Mix, RowFilters
from .extensions import record
from .load import RecipeError, dump_recipe, load_recipe, recipe_schema
from .recipe import BASE, Recipe
from .runs import Run, runs_of
from .server import ServerSettings
from .serving import serving
from .stages import (
    AnyStage,
    DpoStage,
    EvaluateStage,
    Extension,
    PairStage,
    PoolStage,
    PreferencesStage,
    RejectStage,
    RewardStage,
    RlvrStage,
    SftStage,
    TrainingStage,
)
from .training import AccelerateSettings, LoraSettings, TrainingSettings

__all__ = [
    "BASE",
    "AccelerateSettings",
    "AnyStage",
    "DataSettings",
    "DataSource",
    "Decontamination",
    "DpoStage",
    "EvaluateStage",
    "Extension",
    "Filters",
    "LoraSettings",
    "Mix",
    "PairStage",
    "PoolStage",
    "PreferencesStage",
    "Recipe",
    "RecipeError",
    "RejectStage",
    "RewardStage",
    "RlvrStage",
    "RowFilters",
    "Run",
    "ServerSettings",
    "SftStage",
    "TrainingSettings",
    "TrainingStage",
    "dump_recipe",
    "identity",
    "load_recipe",
    "recipe_schema",
    "record",
    "runs_of",
    "serving",
]
