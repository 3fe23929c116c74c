"""A reward model: a number at the end token of a response, higher for the better of two (arXiv:2203.02155, eq. 1).

1. for each batch of pairs: the rewards of both responses, the Bradley-Terry loss on their difference
2. now and then: the share of held-out pairs whose chosen response has the higher reward
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..datasets.batching import step_indices, steps_in_all
from ..datasets.pairs import PairExample
from ..objectives.reward import bradley_terry_losses
from ..recipe import RewardStage
from ..training.culprits import places_of
from ..training.loop import Training
from ..training.scalar import load_scalar_model
from ..training.sequences import BothSides, scored_by_all, sequence_scalars
from .context import StepContext, step_context
from .pairing import Pairs, Validation, last_metrics, tokens_of


def main() -> None:
    with step_context(RewardStage) as ctx:
        train(ctx)


def train(ctx: StepContext) -> None:
    stage: RewardStage = ctx.stage
    pairs = Pairs.of(ctx)
    steps = steps_in_all(len(pairs.trained), stage.batch_size, stage.epochs)
    training = Training(
        ctx, updates=steps, load=partial(load_scalar_model, fresh_head="normal"), sequences_per_item=2
    )
    rewards = partial(sequence_scalars, training.model, device=training.device, pad_id=pairs.template.pad_id)

    def margins() -> tuple[Tensor, float]:
        sequences = BothSides(list(pairs.held_out.values()))
        rewards_N2 = scored_by_all(training.model, rewards, sequences, stage.micro_batch_tokens).view(-1, 2)
        return rewards_N2[:, 0] - rewards_N2[:, 1], float(losses_of(stage, rewards_N2).mean())

    validation = Validation(ctx, training, pairs, margins)
    for step in range(validation.resume(training.resume()) + 1, steps + 1):
        began = time.perf_counter()
        order = step_indices(len(pairs.trained), stage.batch_size, stage.epochs, ctx.seed, step)
        batch = [pairs.trained[i] for i in order]
        # pairs ranked right, margins, rewards of chosen and of rejected
        sums = torch.zeros(4, device=training.device)

        def loss_of(items: Sequence[PairExample], n: int = len(batch), sums: Tensor = sums) -> Tensor:
            if not items:  # another process has one micro-batch more
                return rewards([((pairs.template.pad_id,), (pairs.template.pad_id,))]).sum() * 0.0
            rewards_B2 = rewards(BothSides(items)).view(-1, 2)
            margin_B = rewards_B2.detach()[:, 0] - rewards_B2.detach()[:, 1]
            sums += torch.stack([(margin_B > 0).sum(), margin_B.sum(), *rewards_B2.detach().sum(0)])
            return losses_of(stage, rewards_B2).sum() / n

        lengths = [tokens_of(pair) for pair in batch]
        loss, norm, rate = training.update(step, batch, lengths, loss_of)
        right, margin, chosen, rejected = (training.accelerator.reduce(sums, "sum") / len(batch)).tolist()
        seconds = time.perf_counter() - began
        ctx.metrics.log(
            step, partial(places_of, batch), loss=loss, grad_norm=norm, learning_rate=rate, accuracy=right, margin=margin,
            chosen_reward=chosen, rejected_reward=rejected, tokens=sum(lengths),
            pairs_per_second=len(batch) / seconds, **training.figures(seconds), **validation.if_due(step, steps),
        )  # fmt: skip
        ctx.progress(step, steps, loss=loss, accuracy=right)
        training.save_if_due(step, steps)
    last = last_metrics(ctx, ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward"))
    figures = {"pairs": len(pairs.trained), **last, "updates": steps}
    training.finish(pairs.template, figures | validation.summary(steps))


def losses_of(stage: RewardStage, rewards_B2: Tensor) -> Tensor:
    """[B] from the rewards [B, 2] of the chosen and the rejected responses."""
    return bradley_terry_losses(rewards_B2[:, 0], rewards_B2[:, 1], stage.margin, stage.centring)


if __name__ == "__main__":
    main()
