"""Kernels that vLLM has for the CPU and uses on other devices alone: RMS norms and SwiGLU.  [vLLM 0.32]

Its CPU platform computes them by torch's operations, up to a dozen each, which cost more than the arithmetic of a
decoding step's few rows. These kernels are in its CPU build all the same. They serve float32 alone: in 16-bit types they
round once where the models' own code, which the trainer runs, rounds twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LANES = 16  # that a row must divide into: the widest vector of any build


def serves(*tensors: Tensor) -> bool:
    """Whether the kernels can do these [..., row]."""
    return all(
        one.dtype == torch.float32 and one.is_contiguous() and one.shape[-1] % LANES == 0 for one in tensors
    )


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight, of [tokens, hidden]."""
    out = torch.empty_like(x)
    torch.ops._C.rms_norm(out, x, weight, epsilon)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual) of [tokens, hidden], in the place of both."""
    torch.ops._C.fused_add_rms_norm(x, residual, weight, epsilon)
    return x, residual


def silu_and_mul(x: Tensor) -> Tensor:
    """silu(x[..., :d]) * x[..., d:] of [..., 2 d]."""
    out = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
    torch.ops._C.silu_and_mul(out, x)
    return out


def use_them() -> None:
    """Before the model is built."""
    from vllm.model_executor.layers.activation import SiluAndMul
    from vllm.model_executor.layers.layernorm import RMSNorm

    their_norm, their_silu = RMSNorm.forward_cpu, SiluAndMul.forward_cpu

    def norm(self: Any, x: Tensor, residual: Tensor | None = None) -> Any:
        usual = type(self) is RMSNorm and self.has_weight and self.variance_size_override is None
        both = (x,) if residual is None else (x, residual)
        if not usual or not serves(*both, self.weight):
            return their_norm(self, x, residual)
        if residual is None:
            return rms_norm(x, self.weight.data, self.variance_epsilon)
        return add_rms_norm(x, residual, self.weight.data, self.variance_epsilon)

    def silu(self: Any, x: Tensor) -> Tensor:
        halves = x.shape[-1] % (2 * LANES) == 0
        if type(self) is not SiluAndMul or not halves or not serves(x):
            return their_silu(self, x)
        return silu_and_mul(x)

    RMSNorm.forward_cpu = norm  # type: ignore[method-assign]
    SiluAndMul.forward_cpu = silu  # type: ignore[method-assign]
