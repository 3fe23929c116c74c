"""Saves from which a killed run goes on to the same bits: safetensors and JSON, no pickle."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig

from ..files import write_json
from .folders import new_folder, write_tensors
from .model import adapter_tensors, merged_weights, unwrapped
from .scalar import classifier_config, is_classifier, padding_token
from .sharding import agree, assign, from_all, is_main, rank, spread_like, whole
from .zero import is_zero, optimizer_tensors, set_optimizer_tensors, shape_of

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
FORMAT = 1
QUANTISED = ("qmap1", "qmap2", "absmax1", "absmax2")  # what bitsandbytes keeps beside 8-bit moments
SHARD_BYTES = 5 * 1000**3


@dataclass(frozen=True)
class Snapshot:
    """What a save holds, on the CPU of the process that writes: the trained weights (adapters alone under LoRA), the
    optimiser's tensors by parameter name, and the rest as JSON."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    content: dict[str, Any]


def snapshot(step: int, *, model: nn.Module, optimizer: Any, state: dict[str, Any], copy: bool) -> Snapshot:
    """Take it. copy: own memory for every tensor, so that training may go on before it is written.

    Holds every process's random states; every process calls it.
    """

    def kept(tensor: Tensor) -> Tensor:
        return tensor.to("cpu", copy=True) if copy else tensor

    parameters = _trained(model)
    weights = _kept({name: kept(whole(parameter)) for name, parameter in parameters.items()})
    moments = _kept({name: kept(value) for name, value in _optimizer_tensors(parameters, optimizer)})
    scaler = getattr(optimizer, "scaler", None)
    content = {
        "format": FORMAT,
        "step": step,
        "state": state,
        "rng": from_all(_rng_state()),
        "scaler": None if scaler is None else scaler.state_dict(),
    }
    return Snapshot(weights, moments, content)


def write_snapshot(target: Path, taken: Snapshot) -> None:
    """The folder `target`, whole or not at all. Raises TuluLiteError on a full disk."""
    with new_folder(target) as temporary:
        write_tensors(temporary / MODEL, taken.weights)
        write_tensors(temporary / OPTIMIZER, taken.moments)
        (temporary / STATE).write_text(json.dumps(taken.content), encoding="utf-8")


def step_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def keep_newest(folder: Path, keep: int) -> None:
    """Remove all saves but the newest `keep`."""
    for _, old in _saves(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)


def save_checkpoint(
    folder: Path, step: int, *, model: nn.Module, optimizer: Any, state: dict[str, Any], keep: int = 2
) -> Path:
    """Write folder/step-000123, whole or not at all, then remove all but the newest `keep`; returns when it is there.

    Every process calls it; the first one writes. Raises TuluLiteError on a full disk: what was saved before is still
    there.
    """
    taken = snapshot(step, model=model, optimizer=optimizer, state=state, copy=False)
    target = step_folder(folder, step)
    failure: Exception | None = None
    if is_main():
        try:
            write_snapshot(target, taken)
            keep_newest(folder, keep)
        except Exception as error:
            failure = error
    agree(failure)
    return target


def load_latest(folder: Path, *, model: nn.Module, optimizer: Any) -> dict[str, Any] | None:
    """Restore weights, optimiser and random states in place from the newest save that is whole and of this model.

    Returns its `state`, or None when there is no such save. A torn save, or one of another model, is passed over.
    Every process calls it.
    """
    parameters = _trained(model)
    for _, save in _saves(folder):
        content = _read(save, parameters)
        if content is None:
            continue
        _assign_all(save, parameters)
        _restore_optimizer(save / OPTIMIZER, parameters, optimizer)
        if content["scaler"] is not None and getattr(optimizer, "scaler", None) is not None:
            optimizer.scaler.load_state_dict(content["scaler"])
        own = content["rng"][rank()] if rank() < len(content["rng"]) else None
        if own is not None:
            _set_rng_state(own)
        return content["state"]
    return None


def load_weights(save: Path, model: nn.Module) -> dict[str, Any] | None:
    """Restore the trained weights alone from one save; returns its `state`, or None (and nothing is changed) where it is
    not there, torn, or of another model. Every process calls it."""
    parameters = _trained(model)
    content = _read(save, parameters)
    if content is None:
        return None
    _assign_all(save, parameters)
    state: dict[str, Any] = content["state"]
    return state


def _assign_all(save: Path, parameters: dict[str, Tensor]) -> None:
    with safe_open(save / MODEL, "pt") as weights, torch.no_grad():
        for name, parameter in parameters.items():
            assign(parameter, weights.get_tensor(name))


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter for name, parameter in unwrapped(model).named_parameters() if parameter.requires_grad
    }


def _kept(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the process that writes; the others took part in gathering them only."""
    return tensors if is_main() else {}


def _saves(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of what looks like saves, newest first."""
    found = []
    for path in folder.glob("step-*") if folder.is_dir() else ():
        number = path.name.removeprefix("step-")
        if number.isdigit() and path.is_dir():
            found.append((int(number), path))
    return sorted(found, reverse=True)


def _read(save: Path, parameters: dict[str, Tensor]) -> dict[str, Any] | None:
    """state.json of a save whose tensors are all there and fit the model, else None."""
    try:
        content = json.loads((save / STATE).read_text(encoding="utf-8"))
        if content["format"] != FORMAT or not {"state", "rng", "scaler"} <= content.keys():
            return None
        shapes = _shapes(save / MODEL)
        moments = _shapes(save / OPTIMIZER)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
    if shapes != {name: shape_of(parameter) for name, parameter in parameters.items()}:
        return None
    fits = all(
        name in shapes and (shape in ([], shapes[name]) or kind in QUANTISED)
        for (kind, _, name), shape in ((key.partition("|"), shape) for key, shape in moments.items())
    )
    return content if fits else None


def _shapes(path: Path) -> dict[str, list[int]]:
    with safe_open(path, "pt") as file:  # refuses a file that is shorter or longer than its header says
        return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


# Optimiser


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser inside accelerate's."""
    while not isinstance(optimizer, torch.optim.Optimizer) or hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def _optimizer_tensors(parameters: dict[str, Tensor], optimizer: Any) -> Iterator[tuple[str, Tensor]]:
    """("exp_avg|NAME", tensor) and so on. A parameter that was never stepped has none."""
    if any(is_zero(parameter) for parameter in parameters.values()):
        yield from optimizer_tensors(parameters, optimizer)
        return
    states = _inner(optimizer).state
    for name, parameter in parameters.items():
        for key, value in states.get(parameter, {}).items():
            tensor = whole(value) if isinstance(value, Tensor) else torch.tensor(float(value))
            # bitsandbytes has one map for all parameters; a file of tensors holds none that share memory
            yield f"{key}|{name}", tensor.clone() if key in QUANTISED else tensor


def _restore_optimizer(path: Path, parameters: dict[str, Tensor], optimizer: Any) -> None:
    if any(is_zero(parameter) for parameter in parameters.values()):
        set_optimizer_tensors(parameters, optimizer, load_file(path))
        return
    inner = _inner(optimizer)
    names = {id(parameter): name for name, parameter in parameters.items()}
    order = [names[id(parameter)] for group in inner.param_groups for parameter in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118
            kind, _, name = key.partition("|")
            value = file.get_tensor(key)
            own = states.setdefault(order.index(name), {})
            own[kind] = spread_like(value, parameters[name])
    if any("qmap1" in own for own in states.values()):  # bitsandbytes counts its steps in plain numbers
        for own in states.values():
            own["step"] = int(own["step"])  # type: ignore[assignment]
    inner.load_state_dict({"state": states, "param_groups": inner.state_dict()["param_groups"]})


# Random states


def _rng_state() -> dict[str, Any]:
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, gauss],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": torch.cuda.get_rng_state().numpy().tobytes().hex() if torch.cuda.is_available() else None,
    }


def _set_rng_state(saved: dict[str, Any]) -> None:
    version, internal, gauss = saved["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = saved["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_bytes(saved["torch"]))
    if saved["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_bytes(saved["cuda"]))


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


# The finished model


class Template(Protocol):
    """What export needs of a chat template."""

    tokenizer: Any
    source: str
    end_token_ids: tuple[int, ...]


def export_model(
    out_dir: Path,
    model: nn.Module,
    *,
    init_model: str,
    template: Template,
    card: str,
    revision: str | None = None,
) -> None:
    """Write a folder that transformers and vLLM load: merged float32 weights, the initial model's config, generation
    config with all end tokens, tokenizer with the chat template that was trained with, and `card` as README.md.
    Under LoRA the adapter is kept in out_dir/adapter too. A ScalarModel becomes a sequence-classification folder,
    merged alone.

    Whole or not at all; one that a killed run left is replaced. Every process calls it; the first one writes.
    """
    failure: Exception | None = None
    inner: Any = unwrapped(model)
    # a reward model's adapter without its head would be of no use
    adapter = {} if is_classifier(inner) else _kept(adapter_tensors(model))
    weights = merged_weights(model)
    if is_main():
        try:
            with new_folder(out_dir) as folder:
                _write_shards(folder, weights)
                _write_configs(folder, inner, init_model, revision, template)
                (folder / "README.md").write_text(card, encoding="utf-8")
                if adapter:
                    (folder / "adapter").mkdir()
                    write_tensors(folder / "adapter" / "adapter_model.safetensors", adapter)
                    inner.peft_config["default"].base_model_name_or_path = init_model
                    inner.peft_config["default"].save_pretrained(str(folder / "adapter"))
        except Exception as error:
            failure = error
    for _ in weights:
        pass  # sharded weights are gathered by all processes together, also when the writer gave up
    agree(failure)


def _write_shards(folder: Path, weights: Iterator[tuple[str, Tensor]]) -> None:
    """model.safetensors, or numbered parts of at most SHARD_BYTES with their index."""
    shard: dict[str, Tensor] = {}
    parts: list[list[str]] = []
    size = total = 0

    def flush() -> None:
        write_tensors(folder / f"part-{len(parts)}", shard)
        parts.append(list(shard))
        shard.clear()

    for name, tensor in weights:
        if shard and size + tensor.nbytes > SHARD_BYTES:
            flush()
            size = 0
        shard[name] = tensor.to("cpu", copy=tensor.device.type != "cpu")
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    if len(parts) == 1:
        (folder / "part-0").rename(folder / MODEL)
        return
    index: dict[str, str] = {}
    for number, names in enumerate(parts):
        file = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        (folder / f"part-{number}").rename(folder / file)
        index |= dict.fromkeys(names, file)
    write_json(folder / f"{MODEL}.index.json", {"metadata": {"total_size": total}, "weight_map": index})


def _write_configs(
    folder: Path, inner: Any, init_model: str, revision: str | None, template: Template
) -> None:
    # The initial model's own file, so that the architecture is the same to the letter and a server can tell.
    config, _ = PretrainedConfig.get_config_dict(init_model, revision=revision)
    config = {
        name: value
        for name, value in config.items()
        if name not in ("torch_dtype", "_commit_hash", "_name_or_path")
    }
    config |= classifier_config(inner, template) if is_classifier(inner) else {}
    write_json(folder / "config.json", config | {"dtype": "float32"})
    if not is_classifier(inner):
        _write_generation_config(folder, inner, template)
    tokenizer = template.tokenizer
    before = (tokenizer.chat_template, tokenizer.pad_token_id)
    tokenizer.chat_template = template.source
    if is_classifier(inner):
        tokenizer.pad_token_id = padding_token(tokenizer, template.end_token_ids)
    try:
        tokenizer.save_pretrained(str(folder))
    finally:
        tokenizer.chat_template, tokenizer.pad_token_id = before


def _write_generation_config(folder: Path, inner: Any, template: Template) -> None:
    generation = GenerationConfig.from_dict(inner.generation_config.to_dict())
    generation.eos_token_id = list(template.end_token_ids)
    if generation.pad_token_id is None:
        generation.pad_token_id = template.tokenizer.pad_token_id
    generation.do_sample = (
        generation.do_sample
        or generation.temperature not in (None, 1.0)
        or generation.top_p not in (None, 1.0)
    )
    generation.save_pretrained(str(folder))
