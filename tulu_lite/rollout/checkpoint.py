"""Checkpoint folders in Hugging Face format, read and written without torch (tensors excepted, when given)."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import TuluLiteError
from .digest import tensor_bytes

if TYPE_CHECKING:
    import torch

Shapes = dict[str, tuple[int, ...]]

# Of config.json: what does not change the model's shape or what it computes.
_INCIDENTAL = {
    "_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "bos_token_id", "eos_token_id",
    "pad_token_id", "_attn_implementation", "attention_dropout", "initializer_range", "pretraining_tp",
    "output_attentions", "output_hidden_states", "return_dict", "problem_type", "id2label", "label2id",
}  # fmt: skip

DTYPES = {
    "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


def read_config(model_dir: Path) -> dict[str, Any]:
    try:
        return json.loads((model_dir / "config.json").read_text())
    except FileNotFoundError:
        raise TuluLiteError(
            f"{model_dir} has no config.json", cure="give a folder in Hugging Face format"
        ) from None
    except ValueError as error:
        raise TuluLiteError(f"{model_dir / 'config.json'} is not JSON: {error}") from None


def config_differences(served: Path, wanted: Path) -> list[str]:
    """Names of config.json fields that make the two different models. A field that is null counts as absent."""
    one, other = read_config(served), read_config(wanted)
    names = sorted((one.keys() | other.keys()) - _INCIDENTAL)
    return [name for name in names if one.get(name) != other.get(name)]


def checkpoint_files(model_dir: Path) -> list[Path]:
    """The safetensors files of a checkpoint, sharded or not. Raises TuluLiteError naming what is missing."""
    index = model_dir / "model.safetensors.index.json"
    if index.exists():
        files = [
            model_dir / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))
        ]
    else:
        files = [model_dir / "model.safetensors"]
    for file in files:
        if not file.is_file():
            raise TuluLiteError(
                f"{model_dir} has no {file.name}",
                "the checkpoint is not whole, or is not in safetensors format",
                "save it with save_pretrained",
            )
    return files


def checkpoint_shapes(model_dir: Path) -> Shapes:
    """{name: shape} of a checkpoint, from its files' headers."""
    shapes: Shapes = {}
    for file in checkpoint_files(model_dir):
        shapes |= {name: tuple(entry["shape"]) for name, entry in _header(file).items()}
    return shapes


def _header(file: Path) -> dict[str, Any]:
    """A safetensors file's header: 8 bytes of length (little-endian), then JSON."""
    with file.open("rb") as handle:
        try:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(length))
        except (struct.error, ValueError, MemoryError, OverflowError) as error:
            raise TuluLiteError(f"{file} is not a safetensors file: {error}") from None
    header.pop("__metadata__", None)
    return header


def write_safetensors(path: Path, tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
    """Write contiguous CPU tensors, each straight from its own memory, to a new file."""
    header: dict[str, Any] = {}
    offset = 0
    for name, tensor in tensors:
        end = offset + tensor.nbytes
        dtype = DTYPES[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8 bytes
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in tensors:
            file.write(tensor_bytes(tensor))
