"""Direct preference optimisation and its variants: see objectives/dpo.py. Length-normalised it is Tülu 3's
(arXiv:2411.15124, eq. 6).

1. the reference's log-probability of every response, once, kept in the output folder for whoever asks again
2. for each batch of pairs: log-probabilities under the policy, the loss on their difference to the reference's
3. now and then: the share of held-out pairs whose chosen response gained more than the rejected one
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..datasets.batching import steps_in_all
from ..datasets.pairs import PairExample
from ..objectives.dpo import REFERENCE_FREE, preference_losses
from ..recipe import DpoStage
from ..training.loop import Training
from ..training.reference import logprobs_under, reference_logprobs
from ..training.sequences import BothSides, response_logprobs, scored_by_all
from .context import StepContext, step_context
from .pairing import PairLosses, Pairs, Scored, Validation, last_metrics, learn, with_reference


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
            training.model, logprobs, BothSides(held_out), stage.micro_batch_tokens, training.packing
        ).view(-1, 2)
        losses_N, margins_N, _ = losses_of(stage, values_N2, with_reference(held_out, held_out_N2))
        return margins_N, float(losses_N.mean())

    validation = Validation(ctx, training, pairs, margins)
    learn(ctx, training, pairs, validation, logprobs, partial(losses_of, stage), reference_N2, "gain")
    figures = {
        "pairs": len(pairs.trained),
        **last_metrics(ctx, ("loss", "accuracy", "margin")),
        "updates": steps,
    }
    training.finish(pairs.template, figures | validation.summary(steps))


def losses_of(stage: DpoStage, logprobs_B2: Tensor, items: Sequence[Scored]) -> PairLosses:
    """From log pi [B, 2] of chosen and rejected; what is shown is each response's gain on the reference."""
    reference_B2 = torch.tensor([item.reference for item in items], device=logprobs_B2.device)
    gains_B2 = logprobs_B2 - reference_B2
    if stage.length_normalised:
        lengths = [[len(item.pair.chosen_ids), len(item.pair.rejected_ids)] for item in items]
        gains_B2 = gains_B2 / torch.tensor(lengths, device=logprobs_B2.device)
    losses_B, margins_B = preference_losses(
        stage.objective, gains_B2[:, 0] - gains_B2[:, 1], stage.beta,
        label_smoothing=stage.label_smoothing, gamma=stage.gamma,
    )  # fmt: skip
    return PairLosses(losses_B, margins_B, gains_B2.detach())


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
    how = (
        training.accelerator.mixed_precision, training.device.type, stage.micro_batch_tokens, training.packing,
        training.shares,
    )  # fmt: skip
    values = reference_logprobs(folder, inputs[name], how, sequences, compute)
    return values.view(-1, 2)


if __name__ == "__main__":
    main()
