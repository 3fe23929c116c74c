"""AdamW, the learning rate of each update, and one update with its checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..errors import TuluLiteError
from ..recipe.training import TrainingSettings
from .zero import shape_of


def make_optimizer(
    model: nn.Module, settings: TrainingSettings, total_updates: int
) -> tuple[torch.optim.AdamW, Callable[[int], float]]:
    """AdamW over the trained weights, decay on matrices only (biases and norms have none), and the learning rate of
    each update, counted from 1."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if len(shape_of(p)) >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if len(shape_of(p)) < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
        fused=all(parameter.device.type in ("cpu", "cuda") for parameter in trained),
    )
    return optimizer, rate_of(settings, total_updates)


def rate_of(settings: TrainingSettings, total_updates: int) -> Callable[[int], float]:
    """The learning rate of update u = 1 ... total: u/W of the peak in the first W = ceil(warmup_ratio * total), then
    with s = (u - 1 - W) / (total - W) the share of the rest that is done: linear 1 - s, cosine (1 + cos(pi s)) / 2."""
    warmup = math.ceil(settings.warmup_ratio * total_updates)
    peak, schedule = settings.learning_rate, settings.schedule

    def rate(update: int) -> float:
        if update <= warmup:
            return peak * update / warmup
        share = min(1.0, (update - 1 - warmup) / max(1, total_updates - warmup))
        if schedule == "linear":
            return peak * (1 - share)
        if schedule == "cosine":
            return peak * (1 + math.cos(math.pi * share)) / 2
        return peak

    return rate


@contextmanager
def accumulating(accelerator: Accelerator, model: nn.Module, last: bool) -> Iterator[None]:
    """Around forward and backward of each micro-batch of an update: gradients are exchanged after the last alone.

    Under DeepSpeed no update happens before finish_update either, which accelerate would otherwise start by itself.
    """
    if _is_deepspeed(model):
        engine: Any = model
        engine.set_gradient_accumulation_boundary(last)
        yield
    else:
        with nullcontext() if last else accelerator.no_sync(model):
            yield


def backward(accelerator: Accelerator, model: nn.Module, loss: Tensor) -> None:
    """Add this process's share of the step's loss to the gradients.

    Shares are parts of a sum (each divided by the denominator of the whole step), while engines take the mean over
    processes: hence the factor.
    """
    loss = loss * accelerator.num_processes
    if _is_deepspeed(model):
        engine: Any = model
        engine.backward(loss)
    else:
        accelerator.backward(loss)


def finish_update(
    accelerator: Accelerator, model: nn.Module, optimizer: Any, rate: float, max_grad_norm: float, where: str
) -> float:
    """Clip the gradients to a global norm, step at the learning rate, clear them; returns the norm before clipping.

    where: the stage and step, for the message. Raises TuluLiteError when the norm is not finite; the weights are then
    as before. (fp16's loss scale is tried too high now and then: such an update is skipped, and its norm returned.)
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    if _is_deepspeed(model):
        return _finish_deepspeed(model, max_grad_norm, where)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norm = float(_whole_norm(accelerator.clip_grad_norm_(trained, max_grad_norm)))
    scale = 1.0 if accelerator.scaler is None else float(accelerator.scaler.get_scale())
    if not math.isfinite(norm) and scale <= 1.0:
        optimizer.zero_grad(set_to_none=True)
        raise _not_finite(norm, where, "the weights were not updated")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def _finish_deepspeed(engine: Any, max_grad_norm: float, where: str) -> float:
    engine.optimizer.clip_grad = max_grad_norm
    engine.step()
    norm = float(engine.get_global_grad_norm())
    if not math.isfinite(norm):
        error = _not_finite(
            norm, where, "DeepSpeed knows the norm only after the update, so go on from the last save"
        )
        error.updated = True
        raise error
    return norm


def _whole_norm(norm: Any) -> Any:
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


class NotFinite(TuluLiteError):
    """A gradient that is NaN or infinite. `updated`: the engine had stepped already when it told."""

    updated = False


def _not_finite(norm: float, where: str, state: str) -> NotFinite:
    return NotFinite(
        f"{where}: the norm of the gradient is {norm}",
        why=f"some loss or activation overflowed; {state}",
        cure="lower learning_rate or lengthen the warm-up; with fp16, use bf16",
    )


def _is_deepspeed(model: Any) -> bool:
    return hasattr(model, "set_gradient_accumulation_boundary")
