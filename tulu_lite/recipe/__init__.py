"""The recipe: typed models, loading, overrides and the JSON schema. No torch."""

from .base import identity
from .data import DataSource
from .load import RecipeError, dump_recipe, load_recipe, recipe_schema
from .recipe import BASE, Recipe
from .server import ServerSettings
from .serving import serving
from .stages import (
    AnyStage,
    DpoStage,
    EvaluateStage,
    PoolStage,
    PreferencesStage,
    RejectStage,
    RlvrStage,
    SftStage,
)
from .training import AccelerateSettings, LoraSettings, TrainingSettings

__all__ = [
    "BASE",
    "AccelerateSettings",
    "AnyStage",
    "DataSource",
    "DpoStage",
    "EvaluateStage",
    "LoraSettings",
    "PoolStage",
    "PreferencesStage",
    "Recipe",
    "RecipeError",
    "RejectStage",
    "RlvrStage",
    "ServerSettings",
    "SftStage",
    "TrainingSettings",
    "dump_recipe",
    "identity",
    "load_recipe",
    "recipe_schema",
    "serving",
]
