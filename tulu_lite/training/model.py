"""Models: loading them for training, their weights under checkpoint names, and what they were before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import logging as hf_logging

from ..errors import TuluLiteError
from ..recipe.training import LoraSettings
from .logprobs import LogprobModel
from .packing import compiled_around
from .proof import check_logprobs
from .quantised import dequantised, loading_options
from .sharding import whole
from .zero import gathered, is_zero

PEFT_PREFIX = "base_model.model."


def load_model(
    name: str | Path,
    device: torch.device | str,
    *,
    lora: LoraSettings | None = None,
    gradient_checkpointing: bool = False,
    revision: str | None = None,
) -> LogprobModel:
    """A causal language model in float32, in training mode, whose forward pass gives log-probabilities.

    name: a folder in Hugging Face format with safetensors, or a hub id. All dropout of the model itself is off: the
    trainer's policy must be the sampler's. With `lora` only adapters are trained. Raises TuluLiteError when it is
    no such model, lacks weights, or treats its logits in a way that token_logprobs does not know.
    """
    quantise = lora is not None and lora.quantise is not None
    model = _from_pretrained(str(name), revision, loading_options(device) if quantise else {})
    if not quantise:
        model.to(device)
    without_dropout(model)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    check_logprobs(model, str(name))
    if lora is None:
        return LogprobModel(model)
    return LogprobModel(_with_adapters(model, lora, str(name)))


def compile_layers(model: Any) -> None:
    """torch.compile each of the model's layers in place, names as they were. Shapes vary, so one compilation is for all."""
    layers = set(model._no_split_modules or ())
    found = [module for module in model.base.modules() if type(module).__name__ in layers]
    if not found:
        raise TuluLiteError(
            f"compile: a {type(model.base).__name__} does not say what its layers are",
            cure="set compile: false",
        )
    compiled_around()
    for layer in found:
        layer.compile(dynamic=True)


def _from_pretrained(name: str, revision: str | None, more: dict[str, Any]) -> Any:
    cure = "name a folder in Hugging Face format (config.json and *.safetensors), or a hub id"
    if not Path(name).exists() and name.startswith((".", "/", "~")):
        raise TuluLiteError(f"there is no model folder {name}", cure=cure)
    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    options |= {"revision": revision or "main", **more}
    load: Any = AutoModelForCausalLM.from_pretrained
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()  # a stage's output has its own
    try:
        try:
            model, report = load(name, attn_implementation="sdpa", **options)
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            model, report = load(name, attn_implementation="eager", **options)
        if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
            # Gemma 2: sdpa leaves the cap out, which is 5e-3 in a log-probability
            model.set_attn_implementation("eager")
    except (OSError, ValueError, KeyError) as error:
        why = str(error).strip().split("\n")[0]
        raise TuluLiteError(
            f"{name} is no causal language model that can be loaded", why=why, cure=cure
        ) from error
    finally:
        if bars:
            hf_logging.enable_progress_bar()
    if missing := sorted(report["missing_keys"]) + sorted(
        str(key) for key in report.get("mismatched_keys", ())
    ):
        raise TuluLiteError(
            f"{name} lacks {len(missing)} of the model's weights, the first being {missing[0]}",
            why="they would be trained from random values",
            cure="check that config.json and the safetensors files belong together",
        )
    return model


def without_dropout(model: nn.Module) -> None:
    """Attention reads its rate from an attribute of its own, so modules of class Dropout are not all there is."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _with_adapters(model: Any, lora: LoraSettings, name: str) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        task_type="CAUSAL_LM",
    )
    tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        linear = sorted(
            {key.rsplit(".", 1)[-1] for key, module in model.named_modules() if isinstance(module, nn.Linear)}
        )
        raise TuluLiteError(
            f"lora.targets does not fit {name}: {error}", cure=f"its linear modules are {', '.join(linear)}"
        ) from error
    layers = dict(_lora_layers(adapted))
    embeddings = [
        key
        for key in layers
        if key.rsplit(".", 1)[-1] in ("lm_head", "embed_tokens", "wte", "embed_in", "embed_out")
    ]
    if tied and embeddings:
        raise TuluLiteError(
            f"lora.targets names {embeddings[0]}, but {name} uses one matrix as embedding and as head",
            why="an adapter on one of the two cannot be merged into a matrix that both use",
            cure="take it out of lora.targets",
        )
    return adapted


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(module name, layer) of every adapted layer."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model or PeftModel inside DDP, DeepSpeed and LogprobModel or ScalarModel."""
    inner: Any = model
    while not hasattr(inner, "wrapped") and isinstance(getattr(inner, "module", None), nn.Module):
        inner = inner.module
    return getattr(inner, "wrapped", inner)


@torch.no_grad()
def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(checkpoint name, tensor) of every weight, as save_pretrained would write them, tied copies left out.

    Adapters are merged in one layer at a time: W + (alpha / rank) B A; the trained module is not changed. What is
    not adapted is given as it is, not copied: use or copy each tensor before the next is asked for and before the
    next optimiser step. Sharded weights are gathered one by one (of a mixture of experts layer by layer), so every
    process must run through the iterator.
    """
    inner: Any = unwrapped(model)
    if hasattr(inner, "peft_config"):
        base, prefix, layers = inner.get_base_model(), PEFT_PREFIX, dict(_lora_layers(inner))
    else:
        base, prefix, layers = inner, "", {}
    tied = set(getattr(base, "all_tied_weights_keys", None) or {})
    pending: dict[str, Tensor] = {}
    layer_of_pending = None
    converted = getattr(base, "_weight_conversions", None)
    for key, value in inner.state_dict(keep_vars=True).items():
        owner, _, leaf = key.rpartition(".")
        layer = layers.get(owner.removesuffix(".base_layer"))
        if "lora_" in key or ".weight." in key:  # the latter: how a 4-bit weight is scaled
            continue
        name = f"{owner.removesuffix('.base_layer')}.{leaf}".removeprefix(prefix)
        if name in tied:
            continue
        if pending and _block(name) != layer_of_pending:
            yield from revert_weight_conversion(base, pending).items()
            pending = {}
        with _merged(value, layer if leaf == "weight" else None) as tensor:
            if converted:  # such as experts in one tensor: the conversion needs several of a layer at once
                pending[name] = tensor.clone() if hasattr(value, "ds_id") else tensor
                layer_of_pending = _block(name)
            else:
                yield name, tensor
    if pending:
        yield from revert_weight_conversion(base, pending).items()


def _block(name: str) -> str:
    """What a weight's layer is called: its name up to the first number, such as model.layers.3; "" outside of layers."""
    parts = name.split(".")
    place = next((number for number, part in enumerate(parts) if part.isdigit()), None)
    return "" if place is None else ".".join(parts[: place + 1])


@contextmanager
def _merged(value: Tensor, layer: Any = None) -> Iterator[Tensor]:
    """The whole of a weight that may be sharded, with its layer's adapters (if any) merged in."""
    factors = [] if layer is None else [p for n, p in layer.named_parameters() if "lora_" in n]
    with gathered([value, *factors]):
        if is_zero(value) and value.requires_grad:
            yield whole(value)
            return
        tensor = dequantised(value)
        if layer is not None:
            for adapter in layer.active_adapters:
                tensor = tensor + layer.get_delta_weight(adapter).to(tensor.dtype)
        yield whole(tensor)


@torch.no_grad()
def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's tensors, whole and on the CPU, under the names that peft saves them by; empty without LoRA.

    Every process calls it where weights are sharded.
    """
    inner: Any = unwrapped(model)
    if not hasattr(inner, "peft_config"):
        return {}
    from peft import get_peft_model_state_dict

    trained = {
        name: whole(parameter).cpu() for name, parameter in inner.named_parameters() if "lora_" in name
    }
    return get_peft_model_state_dict(inner, state_dict=trained)


def adapter_config(model: nn.Module) -> dict[str, Any]:
    """peft's configuration of the adapter, as it goes into adapter_config.json."""
    inner: Any = unwrapped(model)
    return inner.peft_config["default"].to_dict()


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[nn.Module]:
    """The model that training started from, where adapters are trained; the model as it is where there are none."""
    inner: Any = unwrapped(model)
    with inner.disable_adapter() if hasattr(inner, "peft_config") else nullcontext():
        yield model
