"""Weights and optimiser state that DeepSpeed ZeRO spreads over processes, as whole tensors. Every process calls these.

DeepSpeed is imported only when an engine runs. Written for version 0.19.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")  # of the Adam that make_optimizer makes


def is_zero(parameter: Any) -> bool:
    """Whether a ZeRO engine holds this parameter. (Stage 3 marks it by `ds_id`, stages 1 and 2 by a mapping to this
    process's share, which is None where it has none.)"""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def shape_of(parameter: Any) -> list[int]:
    """The shape of the whole parameter, as it was before any engine or quantisation."""
    state = getattr(parameter, "quant_state", None)
    return list(getattr(parameter, "ds_shape", parameter.shape) if state is None else state.shape)


def gathered(parameters: Iterable[Any], written_by: int | None = None) -> AbstractContextManager[Any]:
    """Under ZeRO-3 a context in which the parameters are whole; elsewhere they are so already.

    written_by: the process whose changes count; None: they are only read.
    """
    spread = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not spread:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(spread, modifier_rank=written_by)


def master_weight(parameter: Any) -> Tensor | None:
    """The float32 weight that the engine updates; None for one that is not trained."""
    from deepspeed.utils import safe_get_full_fp32_param

    return safe_get_full_fp32_param(parameter) if parameter.requires_grad else None


@torch.no_grad()
def set_weight(parameter: Any, value: Tensor) -> None:
    """Overwrite the weight that the engine updates and the copy that the forward pass uses."""
    from deepspeed.utils import safe_set_full_fp32_param

    value = value.to(parameter.device)
    safe_set_full_fp32_param(parameter, value)
    with gathered([parameter], written_by=0):
        parameter.data.copy_(value)


def optimizer_tensors(parameters: dict[str, Any], optimizer: Any) -> Iterator[tuple[str, Tensor]]:
    """("exp_avg|NAME", tensor), and "step|NAME", of every trained parameter."""
    from deepspeed.utils import safe_get_full_optimizer_state

    steps = [float(state["step"]) for state in _flat_states(optimizer)]
    for name, parameter in parameters.items():
        for key in MOMENTS:
            yield f"{key}|{name}", safe_get_full_optimizer_state(parameter, key)
        yield f"step|{name}", torch.tensor(steps[0])  # the engine steps all of them together


@torch.no_grad()
def set_optimizer_tensors(parameters: dict[str, Any], optimizer: Any, saved: dict[str, Tensor]) -> None:
    """What optimizer_tensors gave, put back."""
    from deepspeed.utils import safe_set_full_optimizer_state

    states = _flat_states(optimizer)
    for name, parameter in parameters.items():
        for key in MOMENTS:
            safe_set_full_optimizer_state(parameter, saved[f"{key}|{name}"].to(parameter.device), key)
        for state in states:
            state["step"].fill_(float(saved[f"step|{name}"]))


def _flat_states(optimizer: Any) -> list[dict[str, Tensor]]:
    """AdamW's state of each flat tensor of the engine, made where the engine has not stepped yet, and linked to the
    parameters: stages 1 and 2 do that for their first group alone."""
    engine = optimizer
    while not hasattr(engine, "fp32_partitioned_groups_flat") and not hasattr(
        engine, "single_partition_of_fp32_groups"
    ):
        engine = engine.optimizer
    spread = getattr(engine, "fp32_partitioned_groups_flat", None)
    flats = engine.single_partition_of_fp32_groups if spread is None else spread
    states = engine.optimizer.state
    for flat in flats:
        if not states.get(flat):
            zeros = {key: torch.zeros_like(flat, requires_grad=False) for key in MOMENTS}
            states[flat] = {"step": torch.zeros((), device=flat.device), **zeros}
    if spread is None:
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        for parameters, flat in zip(engine.bit16_groups, flats, strict=True):
            lazy_init_hp_params_optimizer_state(parameters, flat, states)
    return [states[flat] for flat in flats]
