"""From hidden states to log-probabilities of given tokens, with few logits at a time.

N tokens, D hidden size, V vocabulary. A tile is the logits of a few tokens.

Where all logits together are few they are simply computed. Else they go tile by tile: the log-probabilities' backward
pass computes each tile again from the saved log-sum-exp, as flash attention does; a sum of them knows its gradient
while its logits are there, so that nothing is computed twice (the idea of Liger's fused linear cross-entropy, Hsu et
al. 2024, arXiv:2410.10989).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
TILE = {"cpu": 1 << 22, "cuda": 1 << 26}  # float32 logits of one tile: 16 MiB, 256 MiB
LEAST_ROWS = 64  # fewer tokens at once would read the head's weight from memory too often


@dataclass(frozen=True)
class Scaling:
    """What becomes of a model's logits z before the softmax: cap * tanh(z * factor / cap) / temperature."""

    factor: float = 1.0
    cap: float | None = None
    temperature: float = 1.0

    def apply_(self, z: Tensor) -> Tensor:
        """In place."""
        if self.factor != 1.0:
            z.mul_(self.factor)
        if self.cap is not None:
            z.div_(self.cap).tanh_().mul_(self.cap)
        return z if self.temperature == 1.0 else z.div_(self.temperature)

    def apply(self, z: Tensor) -> Tensor:
        z = z * self.factor if self.factor != 1.0 else z
        z = torch.tanh(z / self.cap) * self.cap if self.cap is not None else z
        return z if self.temperature == 1.0 else z / self.temperature

    def slope(self, scaled: Tensor) -> Tensor | float:
        """d scaled / d z, from the scaled logits."""
        straight = self.factor / self.temperature
        if self.cap is None:
            return straight
        return (1 - (scaled * (self.temperature / self.cap)).square_()).mul_(straight)


def logit_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_one_matrix(head: nn.Module) -> bool:
    """Whether a head is nothing but a matrix [V, D], with or without bias. One with adapters or in 4 bits is not."""
    return (
        isinstance(head, nn.Linear)
        and type(head).forward is nn.Linear.forward
        and head.weight.is_floating_point()
    )


def through(head: nn.Linear, hidden: Tensor, compute: Callable[[Tensor, Tensor, Tensor | None], T]) -> T:
    """compute(hidden, weight, bias) inside one call of the head as a module, so that an engine which spreads weights over
    processes gathers this one for it, and again for its backward pass: once on every process, however many tiles."""

    def forward(inputs: Tensor) -> T:
        return compute(inputs, head.weight, head.bias)

    head.forward = forward  # type: ignore[method-assign,assignment]
    try:
        found: T = head(hidden)
    finally:
        del head.forward
    return found


def tiled_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scaling: Scaling,
    rows: int | None = None,
    entropy: bool = False,
) -> tuple[Tensor, Tensor]:
    """[N] log-probability of each of targets [N] from hidden [N, D], weight [V, D], bias [V]; and with `entropy` the
    entropy of each distribution [N], else zeros. Both have gradients.

    rows: at most so many tokens in a tile.
    """
    size = chunk_rows(hidden, weight.shape[0], rows)
    return _Logprobs.apply(hidden, weight, bias, targets, scaling, size, entropy)  # type: ignore[no-any-return, no-untyped-call]


def tiled_sum(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scaling: Scaling,
    rows: int | None = None,
) -> Tensor:
    """The sum of tiled_logprobs, a scalar, whose gradient is computed along with it where one is wanted."""
    wanted = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (hidden, weight, bias)
    )
    return _Sum.apply(
        hidden, weight, bias, targets, scaling, chunk_rows(hidden, weight.shape[0], rows), wanted
    )  # type: ignore[no-any-return, no-untyped-call]


def chunk_rows(hidden: Tensor, vocabulary: int, most: int | None) -> int:
    """Tokens of a tile."""
    tokens = max(LEAST_ROWS, TILE.get(hidden.device.type, TILE["cuda"]) // vocabulary)
    return tokens if most is None else max(1, min(tokens, most))


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    """In which the head multiplies: autocast's where it is on."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scaling: Scaling) -> Tensor:
    """A tile [n, V], float32 (float64), from hidden [n, D] and weight [V, D] of the type that multiplies."""
    z = (hidden @ weight.T).to(logit_dtype(hidden.dtype))
    if bias is not None:
        z += bias
    return scaling.apply_(z)


def _spans(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _softmax_(tile: Tensor) -> Tensor:
    """Makes the logits [n, V] exp(z - max) / their sum, in place; returns [n] log-sum-exp."""
    top = tile.amax(1, keepdim=True)
    sums = tile.sub_(top).exp_().sum(1, keepdim=True)
    tile.div_(sums)
    return (top + sums.log()).squeeze(1)


def _is_one(slope: Tensor | float) -> bool:
    return not isinstance(slope, Tensor) and slope == 1.0


class _Gradients:
    """Sums of what each tile adds to the gradients of hidden, weight and bias, where they are wanted."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: tuple[bool, ...]) -> None:
        def zeros(like: Tensor | None, wanted: bool) -> Tensor | None:
            if like is None or not wanted:
                return None
            return torch.zeros(like.shape, dtype=logit_dtype(like.dtype), device=like.device)

        self.hidden, self.weight, self.bias = (
            zeros(tensor, want) for tensor, want in zip((hidden, weight, bias), wanted, strict=True)
        )
        self.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype

    def add(self, tile: Tensor, rows: slice, hidden: Tensor, weight: Tensor) -> None:
        """tile: [n, V] gradient of the logits; hidden [n, D], weight [V, D]: in the type that multiplies."""
        narrow = tile.to(hidden.dtype)
        if self.hidden is not None:
            _add_product(self.hidden[rows], narrow, weight)
        if self.weight is not None:
            _add_product(self.weight, narrow.T, hidden)
        if self.bias is not None:
            self.bias += tile.sum(0)

    def result(self) -> tuple[Tensor | None, ...]:
        tensors = (self.hidden, self.weight, self.bias)
        return tuple(
            None if tensor is None else tensor.to(dtype)
            for tensor, dtype in zip(tensors, self.dtypes, strict=True)
        )


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, with float32 sums also of 16-bit factors."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += (left @ right).to(total.dtype)


class _Logprobs(torch.autograd.Function):
    """Log-probabilities [N] and, where asked for, entropies [N] (else zeros)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scaling: Scaling,
        size: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = _compute_dtype(hidden)
        logprobs = torch.empty(len(hidden), dtype=logit_dtype(dtype), device=hidden.device)
        log_z, entropy = torch.empty_like(logprobs), torch.zeros_like(logprobs)
        factor = weight.to(dtype)
        for rows in _spans(len(hidden), size):
            tile = _logits(hidden[rows].to(dtype), factor, bias, scaling)
            log_z[rows] = tile.logsumexp(1)
            logprobs[rows] = tile.gather(1, targets[rows, None]).squeeze(1) - log_z[rows]
            if with_entropy:
                tile.sub_(log_z[rows, None])  # log p
                entropy[rows] = -(tile.exp() * tile).sum(1)
        ctx.save_for_backward(hidden, weight, bias, targets, log_z, entropy)
        ctx.scaling, ctx.size, ctx.dtype = scaling, size, dtype
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_entropy: Tensor | None) -> Any:  # type: ignore[override]
        hidden, weight, bias, targets, log_z, entropy = ctx.saved_tensors
        gradients = _Gradients(hidden, weight, bias, ctx.needs_input_grad[:3])
        factor = weight.to(ctx.dtype)
        for rows in _spans(len(hidden), ctx.size):
            own = hidden[rows].to(ctx.dtype)
            tile = _logits(own, factor, bias, ctx.scaling)
            slope = ctx.scaling.slope(tile)
            tile.sub_(log_z[rows, None])  # log p
            # d H / d z = -p (log p + H)
            more = None
            if grad_entropy is not None:
                more = (tile + entropy[rows, None]).mul_(tile.exp()).mul_(-grad_entropy[rows, None])
            tile.exp_()
            if grad is None:
                tile.zero_()
            else:  # d log p(target) / d z = 1[target] - p
                tile.scatter_add_(1, targets[rows, None], tile.new_full((len(tile), 1), -1.0))
                tile.mul_(-grad[rows, None])
            if more is not None:
                tile.add_(more)
            gradients.add(tile if _is_one(slope) else tile.mul_(slope), rows, own, factor)
        return *gradients.result(), None, None, None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scaling: Scaling,
        size: int,
        wanted: bool,
    ) -> Tensor:
        needs = tuple(wanted and needed for needed in ctx.needs_input_grad[:3])
        dtype = _compute_dtype(hidden)
        gradients = _Gradients(hidden, weight, bias, needs)
        total = torch.zeros((), dtype=logit_dtype(dtype), device=hidden.device)
        factor = weight.to(dtype)
        for rows in _spans(len(hidden), size):
            own = hidden[rows].to(dtype)
            tile = _logits(own, factor, bias, scaling)
            picked = tile.gather(1, targets[rows, None]).squeeze(1)
            if any(needs):
                slope = scaling.slope(tile)
                log_z = _softmax_(tile)
                tile.scatter_add_(1, targets[rows, None], tile.new_full((len(tile), 1), -1.0)).neg_()
                gradients.add(tile if _is_one(slope) else tile.mul_(slope), rows, own, factor)
            else:
                log_z = tile.logsumexp(1)
            total += (picked - log_z).sum()
        ctx.gradients = gradients.result()
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        if ctx.gradients is None:
            raise RuntimeError("the gradient of a tiled sum was asked for twice")
        found, ctx.gradients = ctx.gradients, None
        return *(None if tensor is None else tensor.mul_(grad) for tensor in found), None, None, None, None
