"""What the recipe's stages ask of its server, beyond the server's own settings."""

from __future__ import annotations

from .recipe import Recipe
from .server import ServerSettings
from .stages import RlvrStage


def serving(recipe: Recipe) -> ServerSettings:
    """The server settings with what follows from the stages filled in: room for the adapters that rlvr trains."""
    settings = recipe.server
    adapted = [stage for stage in recipe.stages if isinstance(stage, RlvrStage) and stage.lora is not None]
    ranks = [stage.lora.rank for stage in adapted if stage.lora is not None]
    # One more than there are seeds: a new version is loaded while responses of the one before still run.
    loras = max((len(stage.seeds) for stage in adapted), default=-1) + 1
    return settings.model_copy(
        update={
            "max_loras": loras if settings.max_loras is None else settings.max_loras,
            "max_lora_rank": settings.max_lora_rank or max(ranks, default=16),
        }
    )
