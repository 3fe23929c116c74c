"""What the recipe's stages ask of its server, beyond the server's own settings."""

from __future__ import annotations

from .recipe import Recipe
from .runs import runs_of
from .server import ServerSettings
from .stages import RlvrStage

SERVED_RANK = 512  # the largest rank that vLLM has room for; adapters above it are merged into the weights


def serving(recipe: Recipe) -> ServerSettings:
    """The server settings with what follows from the stages filled in: room for the adapters that rlvr trains."""
    settings = recipe.server
    adapted = [stage for stage in recipe.stages if isinstance(stage, RlvrStage)]
    runs = [
        run.stage
        for stage in adapted
        for run in runs_of(stage)
        if run.stage.lora is not None and run.stage.lora.rank <= SERVED_RANK
    ]
    # One more than train at once: a new version is loaded while responses of the one before still run.
    loras = max((max(stage.at_once, len(stage.seeds)) for stage in runs), default=-1) + 1
    return settings.model_copy(
        update={
            "max_loras": loras if settings.max_loras is None else settings.max_loras,
            "max_lora_rank": settings.max_lora_rank or max((stage.lora.rank for stage in runs), default=16),
        }
    )
