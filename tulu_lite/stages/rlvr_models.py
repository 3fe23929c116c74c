"""The models that an rlvr stage reads besides the one it trains: its reference, and what its value model starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..datasets.chat import ChatTemplate
from ..errors import TuluLiteError
from ..pipeline.models import hub_or_local, local_model
from ..pipeline.steps import model_path
from ..recipe import BASE, RlvrStage
from ..recipe.stages import is_stage_name, split_revision
from ..rl.reference import check_vocabulary
from .context import StepContext


def model_of(ctx: StepContext, name: str) -> str:
    """The folder of a model that the recipe names: a stage, `base`, a folder or a hub id."""
    if name == BASE:
        return str(local_model(ctx.recipe))
    if is_stage_name(name):
        return model_path(ctx.steps, ctx.recipe, name)
    return str(hub_or_local(*split_revision(name)))


def check_models(ctx: StepContext, template: ChatTemplate) -> None:
    """Raise TuluLiteError, before anything is spent, when a reference or value model does not fit the policy: other
    tokens, or, where the policy's weights are to become the reference's, another architecture."""
    stage: RlvrStage = ctx.stage
    policy = _config(ctx.init_model)
    for what, name in _others(stage):
        folder = model_of(ctx, name)
        config = _config(folder)
        check_vocabulary(folder, f"{what} ({name})", template.tokenizer, config, policy)
        if what == "reference" and stage.reference_refresh_steps:
            _check_architecture(name, config, policy)


def _others(stage: RlvrStage) -> list[tuple[str, str]]:
    found = [] if stage.reference is None else [("reference", stage.reference)]
    if stage.critic is not None and stage.critic.init != "policy":
        found.append(("value.init", stage.critic.init))
    return found


def _config(folder: str) -> dict[str, Any]:
    try:
        return json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TuluLiteError(
            f"{folder} is no model's folder: {error}",
            cure="name a folder in Hugging Face format, or a hub id",
        ) from None


def _check_architecture(name: str, config: dict[str, Any], policy: dict[str, Any]) -> None:
    shape = ("architectures", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")  # fmt: skip
    differs = [field for field in shape if config.get(field) != policy.get(field)]
    if differs:
        raise TuluLiteError(
            f"reference ({name}) has another architecture than the policy: {', '.join(differs)} differ",
            why="with reference_refresh_steps the policy's weights are put into the reference",
            cure="name a reference of the policy's own architecture, or leave reference_refresh_steps out",
        )
