"""Whether a vLLM model holds the tensors that were loaded into it, told from the layers themselves."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

_PROBE_TOLERANCE = {torch.float32: 1e-5}  # relative L2 of a layer's output; measured 1e-7 to 1e-6
_PROBE_TOLERANCE_16_BIT = 2e-2
_ELEMENTS_AT_ONCE = 1 << 23  # 64 MiB as int64


class HeldWeights:
    """Notes each tensor as it is loaded, then compares with what the layers hold.

    Of a tensor [out, in] two things are kept: a checksum of the bits, and its product with a fixed probe vector [in].
    tied: tied_layers of the model. sharded: the model is split over workers, which is not checked here.
    """

    def __init__(
        self, model: torch.nn.Module, dtype: torch.dtype, tied: dict[str, str], sharded: bool
    ) -> None:
        self.model, self.dtype, self._tied, self.sharded = model, dtype, tied, sharded
        self._packed: dict[str, list[str]] = getattr(model, "packed_modules_mapping", None) or {}
        self._mapper = getattr(model, "hf_to_vllm_mapper", None)
        if self._mapper is not None:  # names as they are before parts are stacked into one layer
            self._mapper = dataclasses.replace(self._mapper, orig_to_new_stacked={})
        self._bits: dict[str, torch.Tensor] = {}  # name -> checksum of each row, [out], int64
        self._products: dict[str, torch.Tensor] = {}  # name -> W x, [out], float32

    def expect(self, name: str, tensor: torch.Tensor) -> None:
        """Note one tensor of the update, by its name in the checkpoint."""
        if self.sharded or tensor.numel() == 0:
            return
        if self._mapper is not None:
            name = self._mapper.map_name(name) or name
        value = tensor.to(self.dtype)
        self._bits[name] = _row_sums(value)
        if value.ndim == 2 and value.device.type == "cpu":  # the CPU's kernels alone keep weights packed
            self._products[name] = value.float() @ _probe(value.shape[1]).to(self.dtype).float()

    def compare(self) -> tuple[list[str], int, list[str]]:
        """(layers that differ, how many layers were compared, layers that could not be)."""
        wrong, checked, unchecked = [], 0, []
        for name, layer in self.model.named_modules():
            if layer._parameters.get("weight") is None:
                continue
            same = self._same(name, layer)
            if same is None:
                unchecked.append(name)
            else:
                checked += 1
                if not same:
                    wrong.append(name)
        return wrong, checked, unchecked

    def _same(self, name: str, layer: Any) -> bool | None:
        """Whether the layer holds, and computes with, what was sent; None: cannot be told."""
        parts = self._sources(name)
        if self.sharded or any(part not in self._bits for part in parts):
            return None
        verdicts = []
        if layer.weight.numel() > 0 and layer.weight.dtype == self.dtype:
            sent = torch.cat([self._bits[part] for part in parts])
            verdicts.append(
                torch.equal(_row_sums(layer.weight)[: len(sent)], sent)
            )  # rows beyond are padding
        if hasattr(layer, "cpu_linear") and all(part in self._products for part in parts):
            verdicts.append(self._computes(layer, torch.cat([self._products[part] for part in parts])))
        return all(verdicts) if verdicts else None

    def _sources(self, name: str) -> list[str]:
        """Names of the tensors that a layer's weight is made of, in order."""
        name = self._tied.get(name, name)
        parent, _, last = name.rpartition(".")
        prefix = f"{parent}." if parent else ""
        return [f"{prefix}{part}.weight" for part in self._packed.get(last, [last])]

    def _computes(self, layer: Any, sent: torch.Tensor) -> bool:
        """Whether the layer's kernel, which may hold a packed copy, maps the probe to what the sent weights map it to.

        sent: [out], the product of the sent weights and the probe.
        """
        width = getattr(layer, "input_size", None) or layer.embedding_dim
        held = layer.quant_method.apply(layer, _probe(width).to(self.dtype)[None], None)[0].float()[
            : len(sent)
        ]
        error = (held - sent).norm() / sent.norm().clamp_min(1e-30)
        return bool(error < _PROBE_TOLERANCE.get(self.dtype, _PROBE_TOLERANCE_16_BIT))


def tied_layers(model: torch.nn.Module) -> dict[str, str]:
    """{name of a layer: name of the earlier layer whose very weight it uses}, such as lm_head: model.embed_tokens.

    To be asked before an update begins: while it lasts, vLLM has put placeholders in the weights' places.
    """
    first: dict[int, str] = {}
    tied = {}
    for name, layer in model.named_modules():
        weight = layer._parameters.get("weight")
        if weight is not None and weight.numel() > 0:
            owner = first.setdefault(id(weight), name)
            if owner != name:
                tied[name] = owner
    return tied


def _probe(size: int) -> torch.Tensor:
    """A fixed vector [size] of values of order one that no layer's weights know."""
    return torch.cos(torch.arange(size, dtype=torch.float64) * 1.6180339887).float() + 0.25


def _row_sums(tensor: torch.Tensor) -> torch.Tensor:
    """Of each row, the sum of its elements' bits weighted by position, mod 2^64: [rows], int64, on the CPU.

    Each element of a vector is a row.
    """
    rows = tensor.detach().reshape(tensor.shape[0] if tensor.ndim else 1, -1)
    bits = rows.contiguous().view(torch.int32 if tensor.element_size() == 4 else torch.int16)
    weights = torch.arange(1, 2 * bits.shape[1], 2, device=bits.device, dtype=torch.int64)
    some = max(1, _ELEMENTS_AT_ONCE // bits.shape[1])
    sums = [(chunk.to(torch.int64) * weights).sum(dim=1) for chunk in bits.split(some)]
    return torch.cat(sums).cpu()
