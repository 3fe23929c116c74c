"""Direct preference optimisation and its variants: see objectives/dpo.py. Length-normalised it is Tülu 3's
(arXiv:2411.15124, eq. 6).

1. the reference's log-probability of every response, once, kept in the output folder for whoever asks again
2. for each batch of pairs: log-probabilities under the policy, the loss on their difference to the reference's
3. now and then: the share of held-out pairs whose chosen response gained more than the rejected one
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..datasets.batching import step_indices, steps_in_all
from ..datasets.pairs import PairExample
from ..objectives.dpo import REFERENCE_FREE, preference_losses
from ..recipe import DpoStage
from ..training.culprits import places_of
from ..training.loop import Training
from ..training.reference import logprobs_under, reference_logprobs
from ..training.sequences import BothSides, response_logprobs, scored_by_all
from .context import StepContext, step_context
from .pairing import Pairs, Validation, last_metrics, tokens_of


@dataclass(frozen=True, slots=True)
class Scored:
    """A pair with the reference's log-probabilities of its chosen and rejected response (0 without a reference)."""

    pair: PairExample
    reference: tuple[float, float]


def main() -> None:
    with step_context(DpoStage) as ctx:
        train(ctx)


def train(ctx: StepContext) -> None:
    stage: DpoStage = ctx.stage
    pairs = Pairs.of(ctx)
    steps = steps_in_all(len(pairs.trained), stage.batch_size, stage.epochs)
    training = Training(ctx, updates=steps, sequences_per_item=2)
    pad_id = pairs.template.pad_id
    held_out = list(pairs.held_out.values())
    # before any weight changes
    reference_N2, held_out_N2 = (
        reference_of(ctx, training, some, pad_id) for some in (pairs.trained, held_out)
    )
    logprobs = partial(
        response_logprobs, training.model, device=training.device, pad_id=pad_id, chunk_tokens=stage.logits_chunk_tokens
    )  # fmt: skip

    def margins() -> tuple[Tensor, float]:
        values_N2 = scored_by_all(
            training.model, logprobs, BothSides(held_out), stage.micro_batch_tokens
        ).view(-1, 2)
        losses_N, margin_N, _ = losses_of(stage, values_N2, with_reference(held_out, held_out_N2))
        return margin_N, float(losses_N.mean())

    validation = Validation(ctx, training, pairs, margins)
    for step in range(validation.resume(training.resume()) + 1, steps + 1):
        began = time.perf_counter()
        indices = step_indices(len(pairs.trained), stage.batch_size, stage.epochs, ctx.seed, step)
        batch = with_reference([pairs.trained[i] for i in indices], reference_N2[indices])
        # pairs ranked right, margins, gains of chosen and of rejected
        sums = torch.zeros(4, device=training.device)

        def loss_of(items: Sequence[Scored], n: int = len(batch), sums: Tensor = sums) -> Tensor:
            if not items:  # another process has one micro-batch more
                return logprobs([((pad_id,), (pad_id,))]).sum() * 0.0
            values_B2 = logprobs(BothSides([item.pair for item in items])).view(-1, 2)
            losses_B, margin_B, gains_B2 = losses_of(stage, values_B2, items)
            sums += torch.stack([(margin_B > 0).sum(), margin_B.sum(), *gains_B2.sum(0)])
            return losses_B.sum() / n

        lengths = [tokens_of(item.pair) for item in batch]
        loss, norm, rate = training.update(step, batch, lengths, loss_of)
        right, margin, chosen, rejected = (training.accelerator.reduce(sums, "sum") / len(batch)).tolist()
        seconds = time.perf_counter() - began
        ctx.metrics.log(
            step, partial(places_of, batch), loss=loss, grad_norm=norm, learning_rate=rate, accuracy=right, margin=margin,
            chosen_gain=chosen, rejected_gain=rejected, tokens=sum(lengths),
            pairs_per_second=len(batch) / seconds, **training.figures(seconds), **validation.if_due(step, steps),
        )  # fmt: skip
        ctx.progress(step, steps, loss=loss, accuracy=right)
        training.save_if_due(step, steps)
    figures = {
        "pairs": len(pairs.trained),
        **last_metrics(ctx, ("loss", "accuracy", "margin")),
        "updates": steps,
    }
    training.finish(pairs.template, figures | validation.summary(steps))


def losses_of(stage: DpoStage, logprobs_B2: Tensor, items: Sequence[Scored]) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [B], margins [B] and each response's gain on the reference [B, 2], from log pi [B, 2] of chosen, rejected."""
    reference_B2 = torch.tensor([item.reference for item in items], device=logprobs_B2.device)
    gains_B2 = logprobs_B2 - reference_B2
    if stage.length_normalised:
        lengths = [[len(item.pair.chosen_ids), len(item.pair.rejected_ids)] for item in items]
        gains_B2 = gains_B2 / torch.tensor(lengths, device=logprobs_B2.device)
    losses_B, margin_B = preference_losses(
        stage.objective, gains_B2[:, 0] - gains_B2[:, 1], stage.beta,
        label_smoothing=stage.label_smoothing, gamma=stage.gamma,
    )  # fmt: skip
    return losses_B, margin_B, gains_B2.detach()


def with_reference(pairs: Sequence[PairExample], reference_N2: Tensor) -> list[Scored]:
    return [
        Scored(pair, (chosen, rejected))
        for pair, (chosen, rejected) in zip(pairs, reference_N2.tolist(), strict=True)
    ]


def reference_of(ctx: StepContext, training: Training, pairs: Sequence[PairExample], pad_id: int) -> Tensor:
    """[N, 2] log-probabilities of each pair's chosen and rejected response under the reference; 0 where there is none."""
    stage: DpoStage = ctx.stage
    if stage.objective in REFERENCE_FREE or not pairs:
        return torch.zeros(len(pairs), 2)
    inputs, name = ctx.step.identity["inputs"], stage.reference or ctx.step.model
    other = inputs[name] != inputs[ctx.step.model]  # than the model that training starts from
    sequences = BothSides(pairs)

    def compute() -> Tensor:
        return logprobs_under(
            training, ctx.model_of(name) if other else None, sequences, pad_id,
            lambda done: ctx.progress(done // 2, len(pairs), "reference pairs"),
        )  # fmt: skip

    folder = Path(ctx.recipe.output) / "cache" / "reference"
    # what the last bits hang on too
    how = (training.accelerator.mixed_precision, training.device.type, stage.micro_batch_tokens)
    values = reference_logprobs(folder, inputs[name], how, sequences, compute)
    return values.view(-1, 2)


if __name__ == "__main__":
    main()
