"""The recipe's model as a folder on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import TuluLiteError, first_line
from ..recipe import Recipe


def local_model(recipe: Recipe) -> Path:
    """The folder of the recipe's model; a hub model is downloaded (once) first."""
    return hub_or_local(recipe.model, recipe.revision)


def hub_or_local(model: str, revision: str | None) -> Path:
    """The folder of a model; one from the hub is downloaded (once) first."""
    if Path(model).is_absolute():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub raises errors of many kinds: no network, no such model, no access
        raise _not_from_hub(model, error) from None


def model_config(recipe: Recipe) -> dict[str, Any]:
    """config.json of the recipe's model, read without transformers, which would load torch."""
    if Path(recipe.model).is_absolute():
        file = Path(recipe.model) / "config.json"
    else:
        from huggingface_hub import hf_hub_download

        try:
            file = Path(hf_hub_download(recipe.model, "config.json", revision=recipe.revision))
        except Exception as error:  # as above
            raise _not_from_hub(recipe.model, error) from None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TuluLiteError(
            f"cannot read {file}: {error}", cure="`model` is a folder in Hugging Face format, or a hub id"
        ) from None


def _not_from_hub(model: str, error: Exception) -> TuluLiteError:
    return TuluLiteError(
        f"cannot download the model {model} from the hub: {first_line(error)}",
        cure="check the id, your network and access token; or download it elsewhere and set `model` to the folder",
    )
