"""A model's tokenizer, and what its other files say of its tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import TuluLiteError, first_line

_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model")


def _tokenizer_class(model: str) -> Any:
    """AutoTokenizer loads torch, which takes seconds. Where the folder says that its tokenizer is just what is in
    tokenizer.json, the class that AutoTokenizer would choose is loaded at once."""
    try:
        config = json.loads((Path(model) / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    plain = config.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast")
    if plain and (Path(model) / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def load_tokenizer(model: str, revision: str | None = None) -> Any:
    """The model's tokenizer. Raises TuluLiteError when the folder or hub id has none."""
    if model.startswith(("/", ".", "~")) and not Path(model).is_dir():
        raise TuluLiteError(
            f"there is no model folder {model}",
            cure="check `model`; relative paths are relative to the recipe file",
        )
    if Path(model).is_dir() and not any(next(Path(model).glob(name), None) for name in _TOKENIZER_FILES):
        raise TuluLiteError(
            f"the model folder {model} has no tokenizer (no {', '.join(_TOKENIZER_FILES)})",
            cure="copy the tokenizer's files of the original model into it",
        )
    try:
        return _tokenizer_class(model).from_pretrained(model, revision=revision)
    except Exception as error:  # OSError, ValueError, KeyError and hub errors, by the kind of fault
        raise TuluLiteError(
            f"cannot load a tokenizer from {model}: {first_line(error)}",
            cure="`model` is a folder in Hugging Face format (with tokenizer.json) or a hub id; without "
            "network, download it first and name the folder",
        ) from None


def generation_end_ids(model: str, tokenizer: Any) -> list[int]:
    """The eos ids of the model's generation_config.json, which may name more than the tokenizer does."""
    path: str | None = str(Path(model) / "generation_config.json")
    if not Path(model).is_dir():
        path = _hub_file(model, "generation_config.json", tokenizer)
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise TuluLiteError(f"cannot read {path}: {error}", cure="mend the file, or remove it") from None
    ids = data.get("eos_token_id") if isinstance(data, dict) else None
    return [int(i) for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int)]


def _hub_file(model: str, name: str, tokenizer: Any) -> str | None:
    """The file of a hub model, in the tokenizer's revision; None when it has no such file."""
    if not model:
        return None
    from transformers.utils import cached_file

    revision = getattr(tokenizer, "init_kwargs", {}).get("_commit_hash")
    return cached_file(
        model,
        name,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def embedding_rows(model: str) -> int | None:
    """Tokens that the model in this folder has, by its config.json; None where there is no such file."""
    try:
        config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8")) if model else {}
    except (OSError, ValueError):
        return None
    size = (config.get("text_config") or config).get("vocab_size")
    return size if isinstance(size, int) else None
