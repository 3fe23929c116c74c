"""The recipe's model as a folder on this machine."""

from __future__ import annotations

from pathlib import Path

from ..errors import TuluLiteError
from ..recipe import Recipe


def local_model(recipe: Recipe) -> str:
    """The folder of the recipe's model; a hub model is downloaded (once) first."""
    if Path(recipe.model).is_absolute():
        return recipe.model
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(recipe.model, revision=recipe.revision, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"])
    except Exception as error:  # the hub raises errors of many kinds: no network, no such model, no access
        raise TuluLiteError(
            f"cannot download the model {recipe.model} from the hub: {str(error).splitlines()[0]}",
            cure="check the id, your network and access token; or download it elsewhere and set `model` to the folder",
        ) from None
