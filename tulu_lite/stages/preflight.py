"""Before the first step: does the server sample from the very model that is trained? On some of the first batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..doctor.causes import Case, diagnose
from ..doctor.figures import limits_for
from ..doctor.parity import held_files, resolved_dtype
from ..doctor.trainer import Said, said
from ..errors import TuluLiteError
from ..objectives.kl import kl_estimate
from ..records import RolloutGroup
from ..training.logprobs import LogprobModel, token_logprobs
from ..training.policy_batch import Answered, collate
from .context import StepContext
from .sampling import Sampler

RESPONSES = 8  # of each process; each is a forward pass of its own
MEAN_32, MEAN_16 = 1e-3, 0.05  # `auto`


def limit_of(setting: float | str | None, *dtypes: str) -> float | None:
    """The limit on the mean gap for these types; None: no check."""
    if setting != "auto":
        return None if setting is None else float(setting)
    return MEAN_32 if all(dtype == "float32" for dtype in dtypes) else MEAN_16


def preflight(
    ctx: StepContext, accelerator: Any, model: nn.Module, sampler: Sampler, groups: Sequence[RolloutGroup]
) -> dict[str, float]:
    """{preflight_gap_mean, preflight_gap_max, preflight_kl} over all processes. Every process calls it.

    Raises TuluLiteError, with the cause where one is found, when the mean is above the stage's limit.
    """
    stage = ctx.stage
    server_dtype = resolved_dtype(ctx.recipe, ctx.init_model)
    settings = stage.accelerate or ctx.recipe.accelerate
    trainer_dtype = {"bf16": "bfloat16", "fp16": "float16"}.get(settings.mixed_precision, "float32")
    limit = limit_of(stage.preflight_logprob_gap, server_dtype, trainer_dtype)
    if limit is None:
        return {}
    responses = said(groups)[:RESPONSES]
    sums, largest = _sums(accelerator, model, sampler.pad_id, groups, stage)
    tokens, total, kl = accelerator.reduce(
        torch.tensor(sums, dtype=torch.float64, device=accelerator.device), "sum"
    ).tolist()
    mean = total / max(tokens, 1.0)
    figures = {
        "preflight_gap_mean": mean,
        "preflight_gap_max": largest,
        "preflight_kl": kl / max(tokens, 1.0),
    }
    if not mean <= limit:  # NaN too
        raise TuluLiteError(
            f"before the first step: sampler and trainer disagree by {mean:.3g} in log-probability on average, more "
            f"than preflight_logprob_gap {limit:g}",
            _why(ctx, accelerator, model, sampler, responses, server_dtype, trainer_dtype),
            "tulu-lite doctor parity looks into it; nothing was trained yet. preflight_logprob_gap: null skips this check",
        )
    return figures


@torch.no_grad()
def _sums(
    accelerator: Any, model: nn.Module, pad_id: int, groups: Sequence[RolloutGroup], stage: Any
) -> tuple[list[float], float]:
    """([tokens, sum of gaps, sum of k3], largest gap) of this process. As many forward passes on every process:
    engines that gather weights in it would wait for each other for ever otherwise."""
    items = [Answered(group.prompt.token_ids, rollout, 0.0) for group in groups for rollout in group.rollouts]
    sums, largest = [0.0, 0.0, 0.0], 0.0
    for slot in range(RESPONSES):
        ids, attention, mask, old, _ = collate(items[slot : slot + 1], accelerator.device, pad_id)
        scored = mask[:, 1:]
        new = token_logprobs(
            model, ids, attention, chunk_tokens=stage.logits_chunk_tokens, temperature=stage.sampling.temperature, mask=scored
        )  # fmt: skip
        gap = (new - old[:, 1:]).abs() * scored
        k3 = kl_estimate(old[:, 1:], new, "k3") * scored
        sums = [
            have + float(more) for have, more in zip(sums, (scored.sum(), gap.sum(), k3.sum()), strict=True)
        ]
        largest = max(largest, float(gap.max()))
    return sums, largest


def _why(
    ctx: StepContext,
    accelerator: Any,
    model: nn.Module,
    sampler: Sampler,
    responses: Sequence[Said],
    server_dtype: str,
    trainer_dtype: str,
) -> str:
    """What the doctor says of it: on the main process, where the whole model is there."""
    inner: Any = accelerator.unwrap_model(model)
    sharded = any(hasattr(weight, "ds_id") or hasattr(weight, "full_tensor") for weight in model.parameters())
    if not accelerator.is_main_process or sharded or not isinstance(inner, LogprobModel) or not responses:
        return "the server does not sample from the model that is trained, so the gradient would be of another policy"
    versions = {version for item in responses for version in item.versions}
    case = Case(
        inner,
        responses,
        ctx.stage.sampling.temperature,
        server_dtype=server_dtype,
        trainer_dtype=trainer_dtype,
        tokenizer_size=len(sampler.template.tokenizer),
        bos_id=sampler.template.tokenizer.bos_token_id,
        version=max(versions, default=None),
        server_files=_files(sampler),
    )
    found = diagnose(case, limits_for(server_dtype, trainer_dtype))
    tried = ", ".join(dict.fromkeys(trial.cause for trial in found.trials))
    if found.cause is None:
        return f"none of the likely causes explains it (tried: {tried})"
    return f"likely cause: {found.cause.cause}: {found.cause.says}" + (
        f" ({found.cause.cure})" if found.cause.cure else ""
    )


def _files(sampler: Sampler) -> tuple[Any, ...]:
    """The server's weight files, where there is one server that holds whole weights."""
    if sampler.client.adapter is not None:
        return ()
    try:
        return held_files(sampler.client.folder, sampler.client.state())
    except TuluLiteError:  # several servers
        return ()
