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
from ..training.loop import Training
from ..training.reference import logprobs_under, reference_logprobs
from ..training.sequences import both_sides, response_logprobs, scored_by_all
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
    training = Training(ctx, updates=steps)
    scored = with_reference(ctx, training, pairs)  # before any weight changes
    trained, held_out = scored[: len(pairs.trained)], scored[len(pairs.trained) :]
    logprobs = partial(
        response_logprobs, training.model, device=training.device, pad_id=pairs.template.pad_id,
        chunk_tokens=stage.logits_chunk_tokens,
    )  # fmt: skip

    def margins() -> tuple[Tensor, float]:
        values = scored_by_all(logprobs, both_sides([s.pair for s in held_out]), stage.micro_batch_tokens)
        losses_N, margin_N, _ = losses_of(stage, values.view(-1, 2), held_out)
        return margin_N, float(losses_N.mean())

    validation = Validation(ctx, pairs, margins)
    for step in range(training.resume() + 1, steps + 1):
        began = time.perf_counter()
        batch = [
            trained[i] for i in step_indices(len(trained), stage.batch_size, stage.epochs, ctx.seed, step)
        ]
        sums = torch.zeros(
            4, dtype=torch.float64
        )  # pairs ranked right, margins, gains of chosen and of rejected

        def loss_of(items: Sequence[Scored], n: int = len(batch), sums: Tensor = sums) -> Tensor:
            if not items:  # another process has one micro-batch more
                return logprobs([((pairs.template.pad_id,), (pairs.template.pad_id,))]).sum() * 0.0
            values_B2 = logprobs(both_sides([item.pair for item in items])).view(-1, 2)
            losses_B, margin_B, gains_B2 = losses_of(stage, values_B2, items)
            sums += torch.stack([(margin_B > 0).sum(), margin_B.sum(), *gains_B2.sum(0)]).double().cpu()
            return losses_B.sum() / n

        tokens = sum(tokens_of(item.pair) for item in batch)
        loss, norm, rate = training.update(step, batch, [tokens_of(item.pair) for item in batch], loss_of)
        totals = training.accelerator.reduce(sums.to(training.device), "sum") / len(batch)
        right, margin, chosen, rejected = totals.tolist()
        seconds = time.perf_counter() - began
        ctx.metrics.log(
            step, loss=loss, grad_norm=norm, learning_rate=rate, accuracy=right, margin=margin, chosen_gain=chosen,
            rejected_gain=rejected, tokens=tokens, tokens_per_second=tokens / seconds, pairs_per_second=len(batch) / seconds,
            **validation.if_due(step, steps),
        )  # fmt: skip
        ctx.progress(step, steps, loss=loss, accuracy=right)
        training.save_if_due(step, steps)
    figures = {"pairs": len(trained), **last_metrics(ctx, ("loss", "accuracy", "margin")), "updates": steps}
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


def with_reference(ctx: StepContext, training: Training, pairs: Pairs) -> list[Scored]:
    """All pairs, those held out last, with the reference's log-probabilities."""
    stage: DpoStage = ctx.stage
    every = [*pairs.trained, *pairs.held_out.values()]
    if stage.objective in REFERENCE_FREE:
        return [Scored(pair, (0.0, 0.0)) for pair in every]
    name = stage.reference or ctx.step.model
    key = ctx.step.identity["inputs"][name]
    folder = None  # where the reference lies when it is another than what training starts from
    if key != ctx.step.identity["inputs"][ctx.step.model]:
        folder = ctx.model_of(name)
    sequences = both_sides(every)
    values = reference_logprobs(
        Path(ctx.recipe.output) / "cache" / "reference",
        key,
        sequences,
        lambda: logprobs_under(
            training, folder, sequences, pairs.template.pad_id,
            lambda done: ctx.progress(done // 2, len(every), "reference pairs"),
        ),
        training.accelerator.mixed_precision,
    )  # fmt: skip
    return [
        Scored(pair, (chosen, rejected))
        for pair, (chosen, rejected) in zip(every, values.view(-1, 2).tolist(), strict=True)
    ]


if __name__ == "__main__":
    main()
