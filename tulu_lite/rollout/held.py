"""Whether a vLLM model holds the tensors that were loaded into it, told from the layers themselves."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

_PROBE_TOLERANCE = {torch.float32: 1e-5}  # relative L2 of a layer's output; measured 1e-7 to 1e-6
_PROBE_TOLERANCE_16_BIT = 2e-2


class HeldWeights:
    """Notes each tensor as it is loaded, then compares with what the layers hold.

    Of a tensor [out, in] two things are kept: a checksum of the bits, and its product with a fixed probe vector [in].
    sharded: the model is split over workers, which is not checked here.
    """

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype, sharded: bool) -> None:
        self.model, self.dtype, self.sharded = model, dtype, sharded
        self._packed: dict[str, list[str]] = getattr(model, "packed_modules_mapping", None) or {}
        self._mapper = getattr(model, "hf_to_vllm_mapper", None)
        if self._mapper is not None:  # names as they are before parts are stacked into one layer
            self._mapper = dataclasses.replace(self._mapper, orig_to_new_stacked={})
        self._bits: dict[str, torch.Tensor] = {}  # name -> checksum of each row, [out], int64
        self._products: dict[str, torch.Tensor] = {}  # name -> W x, [out], float32

    def expect(self, name: str, tensor: torch.Tensor) -> None:
        """Note one tensor of the update, by its name in the checkpoint."""
        if self.sharded:
            return
        if self._mapper is not None:
            name = self._mapper.map_name(name) or name
        value = tensor.to(self.dtype)
        self._bits[name] = _row_sums(value)
        if value.ndim == 2:
            self._products[name] = value.float() @ _probe(value.shape[1]).to(self.dtype).float()

    def compare(self) -> tuple[list[str], int, list[str]]:
        """(layers that differ, how many layers were compared, layers that could not be)."""
        wrong, checked, unchecked = [], 0, []
        for name, layer in self.model.named_modules():
            weight = layer._parameters.get("weight")
            if weight is None:
                continue
            same = self._same(name, layer, weight)
            if same is None:
                unchecked.append(name)
            else:
                checked += 1
                if not same:
                    wrong.append(name)
        return wrong, checked, unchecked

    def _same(self, name: str, layer: Any, weight: torch.Tensor) -> bool | None:
        """Whether the layer holds what was sent; None: cannot be told."""
        parent, _, last = name.rpartition(".")
        prefix = f"{parent}." if parent else ""
        parts = [f"{prefix}{part}.weight" for part in self._packed.get(last, [last])]
        if self.sharded or any(part not in self._bits for part in parts):
            return None
        if weight.numel() > 0 and weight.dtype == self.dtype:
            sent = torch.cat([self._bits[part] for part in parts])
            return torch.equal(_row_sums(weight)[: len(sent)], sent)  # rows beyond are padding
        method = getattr(layer, "quant_method", None)
        if type(method).__name__ != "UnquantizedLinearMethod" or any(
            part not in self._products for part in parts
        ):
            return None
        sent_product = torch.cat([self._products[part] for part in parts])
        probe = _probe(layer.input_size).to(weight.device, self.dtype)
        held_product = method.apply(layer, probe[None], None)[0].float().cpu()
        error = (held_product - sent_product).norm() / sent_product.norm().clamp_min(1e-30)
        return bool(error < _PROBE_TOLERANCE.get(self.dtype, _PROBE_TOLERANCE_16_BIT))


def _probe(size: int) -> torch.Tensor:
    """A fixed vector [size] of values of order one that no layer's weights know."""
    return torch.cos(torch.arange(size, dtype=torch.float64) * 1.6180339887).float() + 0.25


def _row_sums(tensor: torch.Tensor) -> torch.Tensor:
    """Of each row, the sum of its elements' bits weighted by position, mod 2^64: [rows], int64, on the CPU.

    Each element of a vector is a row.
    """
    rows = tensor.detach().reshape(tensor.shape[0], -1)
    bits = rows.contiguous().view(torch.int32 if tensor.element_size() == 4 else torch.int16)
    weights = torch.arange(1, 2 * bits.shape[1], 2, device=bits.device, dtype=torch.int64)
    sums = [(chunk.to(torch.int64) * weights).sum(dim=1) for chunk in bits.split(4096)]
    return torch.cat(sums).cpu()
