"""Whether a vLLM model holds the tensors that were loaded into it, told from its layers themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from .fingerprint import fingerprint
from .held_experts import expert_sources, held_parts, is_experts

_PROBE_TOLERANCE = {torch.float32: 1e-5}  # relative L2 of a layer's output; measured 1e-7 to 1e-6
_PROBE_TOLERANCE_16_BIT = 2e-2


class Sent(NamedTuple):
    """What is noted of a tensor when it is loaded."""

    shape: torch.Size
    bits: int  # fingerprint of it in the model's type
    product: torch.Tensor | None  # [out], float32: a matrix [out, in] times the probe [in]; CPU only


class Verdict(NamedTuple):
    wrong: list[str]  # parameters that hold something else than what was sent, or got nothing
    checked: int  # parameters that were compared, and buffers
    unchecked: list[str]  # parameters that could not be


class HeldWeights:
    """Notes each tensor as it is loaded, then compares every parameter and buffer with what it should hold.

    Parameters that keep their elements are compared by bits, whatever they are (embeddings, norms, biases, fused
    projections, experts); linear layers that the CPU's kernels keep packed by their product with a fixed probe vector.
    Buffers (rope tables, scales) must be as they were before the update, or what was sent for them.
    To be made before the update begins. tied: tied_layers of the model. sharded: the model is split over workers,
    where nothing is compared.
    """

    def __init__(
        self, model: torch.nn.Module, dtype: torch.dtype, tied: dict[str, str], sharded: bool
    ) -> None:
        self.model, self.dtype, self._tied, self.sharded = model, dtype, tied, sharded
        self._packed: dict[str, list[str]] = getattr(model, "packed_modules_mapping", None) or {}
        self._mapper = getattr(model, "hf_to_vllm_mapper", None)
        if self._mapper is not None:  # names as they are before parts are stacked into one layer
            self._mapper = dataclasses.replace(self._mapper, orig_to_new_stacked={})
        self._sent: dict[str, Sent] = {}
        self._buffers = {name: fingerprint(buffer) for name, buffer in _buffers(model)}

    def expect(self, name: str, tensor: torch.Tensor, bits: int | None = None) -> None:
        """Note one tensor of the update, by its name in the checkpoint. bits: its fingerprint, where known."""
        if self.sharded or tensor.numel() == 0:
            return
        if self._mapper is not None:
            name = self._mapper.map_name(name) or name
        value = tensor if tensor.dtype == self.dtype else tensor.to(self.dtype)
        if bits is None or value is not tensor:
            bits = fingerprint(value)
        product = None
        if value.ndim == 2 and value.device.type == "cpu":  # the CPU's kernels alone keep weights packed
            product = value.float() @ _probe(value.shape[1]).to(self.dtype).float()
        self._sent[name] = Sent(value.shape, bits, product)

    def compare(self) -> Verdict:
        wrong: list[str] = []
        unchecked: list[str] = []
        checked = 0
        for name, layer in _layers(self.model):
            for parameter in [key for key, value in layer._parameters.items() if value is not None]:
                full = f"{name}.{parameter}" if name else parameter
                same = None if self.sharded else self._same(name, layer, parameter)
                if same is None:
                    unchecked.append(full)
                else:
                    checked += 1
                    if not same:
                        wrong.append(full)
        for name, buffer in _buffers(self.model):
            sent = self._sent.get(name)
            now = fingerprint(buffer if sent is None else buffer.to(self.dtype))
            checked += 1
            if now != (self._buffers.get(name) if sent is None else sent.bits):
                wrong.append(name)
        return Verdict(wrong, checked, unchecked)

    def _same(self, name: str, layer: Any, parameter: str) -> bool | None:
        """Whether a parameter holds, and its layer computes with, what was sent; None: cannot be told."""
        if is_experts(layer) and parameter[:3] in ("w13", "w2_"):
            return self._same_experts(layer, parameter, expert_sources(name, layer)[parameter])
        parts = [self._sent.get(source) for source in self._sources(name, parameter)]
        given = [part for part in parts if part is not None]
        if len(given) < len(parts):
            return False  # nothing, or only a part, was sent for it
        held = layer._parameters[parameter].detach()
        verdicts = []
        if held.numel() > 0 and held.dtype.is_floating_point and held.dtype.itemsize >= 2:
            verdicts.append(self._same_rows(held, given))
        if parameter == "weight" and hasattr(layer, "cpu_linear"):
            products = [part.product for part in given if part.product is not None]
            if len(products) == len(given):
                verdicts.append(self._computes(layer, torch.cat(products)))
        return all(verdicts) if verdicts else None

    def _same_rows(self, held: torch.Tensor, parts: list[Sent]) -> bool:
        """Whether the parts lie one after the other in the parameter's rows; what follows is padding."""
        start = 0
        for part in parts:
            rows = part.shape[0] if part.shape else 1
            piece = held.reshape(-1)[start : start + rows] if held.ndim < 2 else held[start : start + rows]
            if piece.numel() != part.shape.numel() or fingerprint(piece.to(self.dtype)) != part.bits:
                return False
            start += rows
        return True

    def _same_experts(
        self, layer: Any, parameter: str, sources: list[tuple[int, tuple[str, ...]]]
    ) -> bool | None:
        expected = [[self._sent.get(name) for name in names] for _, names in sources]
        if any(part is None for parts in expected for part in parts):
            return False
        shapes = [part.shape for part in expected[0] if part is not None]
        held = held_parts(layer, parameter, shapes)
        if held is None:
            return None
        return all(
            part is not None and piece.shape == part.shape and fingerprint(piece.to(self.dtype)) == part.bits
            for pieces, parts in zip(held, expected, strict=True)
            for piece, part in zip(pieces, parts, strict=True)
        )

    def _sources(self, name: str, parameter: str) -> list[str]:
        """Names of the tensors that a layer's parameter is made of, in order."""
        name = self._tied.get(name, name) if parameter == "weight" else name
        parent, _, last = name.rpartition(".")
        prefix = f"{parent}." if parent else ""
        return [f"{prefix}{part}.{parameter}" for part in self._packed.get(last, [last])]

    def _computes(self, layer: Any, sent: torch.Tensor) -> bool:
        """Whether the layer's kernel, which may hold a packed copy, maps the probe to what the sent weights map it to.

        sent: [out], the product of the sent weights and the probe.
        """
        width = getattr(layer, "input_size", None) or layer.embedding_dim
        output = layer.quant_method.apply(layer, _probe(width).to(self.dtype)[None], None)
        held = output[0].float()[: len(sent)]
        error = (held - sent).norm() / sent.norm().clamp_min(1e-30)
        return bool(error < _PROBE_TOLERANCE.get(self.dtype, _PROBE_TOLERANCE_16_BIT))


def _layers(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """The model's modules by name; a layer inside vLLM's wrapper for adapters has the name it would have without it."""
    for name, layer in model.named_modules():
        yield name.replace(".base_layer", ""), layer


def tied_layers(model: torch.nn.Module) -> dict[str, str]:
    """{name of a layer: name of the earlier layer whose very weight it uses}, such as lm_head: model.embed_tokens.

    To be asked before an update begins: while it lasts, vLLM has put placeholders in the weights' places.
    """
    first: dict[int, str] = {}
    tied = {}
    for name, layer in _layers(model):
        weight = layer._parameters.get("weight")
        if weight is not None and weight.numel() > 0:
            owner = first.setdefault(id(weight), name)
            if owner != name:
                tied[name] = owner
    return tied


def _buffers(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """(name, tensor) of each buffer with elements; one that several layers share is named once."""
    return [(name, buffer) for name, buffer in model.named_buffers() if buffer.numel() > 0]


def _probe(size: int) -> torch.Tensor:
    """A fixed vector [size] of values of order one that no layer's weights know."""
    return torch.cos(torch.arange(size, dtype=torch.float64) * 1.6180339887).float() + 0.25
