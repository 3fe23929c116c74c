"""Content hashes of a step's inputs, so that a step's key changes exactly when its result would."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ..datasets.cache import TokenCache
from ..errors import TuluLiteError
from ..recipe import Recipe
from .ledger import Ledger

# What of a model folder decides what is trained or sampled. Notes, cards and logs do not.
MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "*.jinja",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
)


def digest(data: Any) -> str:
    """sha256, in hex, of JSON data in canonical form."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_hash(path: Path, ledger: Ledger) -> str:
    """sha256 of a file's content; remembered by path, size and modification time, since models are large."""
    try:
        status = path.stat()
        known = ledger.cached_hash(str(path), status.st_size, status.st_mtime_ns)
        if known is not None:
            return known
        with path.open("rb") as file:
            value = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise TuluLiteError(
            f"there is no file {path}",
            cure="check the path in the recipe; relative paths are relative to the recipe file",
        ) from None
    except OSError as error:
        raise TuluLiteError(f"cannot read {path}: {error.strerror}") from None
    ledger.cache_hash(str(path), status.st_size, status.st_mtime_ns, value)
    return value


def model_hash(model: str, revision: str | None, ledger: Ledger) -> str:
    """Of a local folder: its weights, config, tokenizer and template. Of a hub id: the id and revision."""
    folder = Path(model)
    if not folder.is_absolute():
        return digest({"hub": model, "revision": revision})
    if not folder.is_dir():
        raise TuluLiteError(
            f"the model folder {folder} does not exist",
            cure="check `model` in the recipe: a folder in Hugging Face format, or a hub id",
        )
    files = sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern) if file.is_file()})
    names = {file.name for file in files}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        missing = "config.json" if "config.json" not in names else "*.safetensors"
        raise TuluLiteError(
            f"{folder} is no model: it holds no {missing}",
            why="a model folder in Hugging Face format has config.json, *.safetensors and the tokenizer's files",
            cure="check `model` in the recipe; convert .bin weights with save_pretrained (pickled weights are not loaded)",
        )
    return digest({file.name: file_hash(file, ledger) for file in files})


def token_cache(recipe: Recipe, ledger: Ledger) -> TokenCache:
    """Where the recipe's rows lie tokenized, for the plan and its steps alike."""
    return TokenCache(Path(recipe.output) / "cache" / "tokens", lambda path: file_hash(path, ledger))


def verifier_files(spec: Any) -> list[Path]:
    """The users' own Python files that a verifier spec names."""
    if isinstance(spec, str):
        file = spec if spec.endswith(".py") else spec.rpartition(":")[0]
        return [Path(file)] if file.endswith(".py") else []
    if isinstance(spec, list):
        return [path for item in spec for path in verifier_files(item)]
    if isinstance(spec, dict):
        return [path for key, item in spec.items() if key != "args" for path in verifier_files(item)]
    return []
