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
) -> tuple[torch.optim.Optimizer, Callable[[int], float]]:
    """AdamW over the trained weights, decay on matrices only (biases and norms have none), and the learning rate of
    each update, counted from 1. Raises TuluLiteError where 8-bit moments are asked for and bitsandbytes is not there."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if len(shape_of(p)) >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if len(shape_of(p)) < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    options: dict[str, Any] = {"lr": settings.learning_rate, "betas": settings.betas}
    rate = rate_of(settings, total_updates)
    if settings.optimizer == "adamw_8bit":
        return bitsandbytes("optimizer: adamw_8bit").optim.AdamW8bit(groups, **options), rate
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in trained)
    return torch.optim.AdamW(groups, fused=fused, **options), rate


def bitsandbytes(what: str) -> Any:
    """The library, or the error that says what needs it."""
    try:
        import bitsandbytes as found
    except ImportError as error:
        raise TuluLiteError(
            f"{what} needs bitsandbytes, which is not installed",
            cure="pip install bitsandbytes (it is part of the cuda extra), or leave it out of the recipe",
        ) from error
    return found


def rate_of(settings: TrainingSettings, total_updates: int) -> Callable[[int], float]:
    """The learning rate of update u = 1 ... total, as a share of the peak.

    u / W in the first W = warmup_steps or ceil(warmup_ratio total). Then, with s = (u - 1 - W) / (total - W) the share
    of the rest that is done and r = min_rate_ratio: linear r + (1 - r)(1 - s), cosine r + (1 - r)(1 + cos(pi s)) / 2,
    constant 1. wsd: 1, and in the last D = ceil(decay_ratio total) linear with s = (u - 1 - (total - D)) / D.
    """
    given = settings.warmup_steps
    warmup = math.ceil(settings.warmup_ratio * total_updates) if given is None else given
    start = warmup
    if settings.schedule == "wsd":
        start = max(warmup, total_updates - math.ceil(settings.decay_ratio * total_updates))

    def share_of_peak(update: int) -> float:
        if update <= warmup:
            return update / warmup
        done = min(1.0, max(0, update - 1 - start) / max(1, total_updates - start))
        if settings.schedule == "constant":
            return 1.0
        left = (1 + math.cos(math.pi * done)) / 2 if settings.schedule == "cosine" else 1 - done
        return settings.min_rate_ratio + (1 - settings.min_rate_ratio) * left

    return lambda update: settings.learning_rate * share_of_peak(update)


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
