"""A reward model: a number at the end token of a response, higher for the better of two (arXiv:2203.02155, eq. 1).

1. for each batch of pairs: the rewards of both responses, the Bradley-Terry loss on their difference
2. now and then: the share of held-out pairs whose chosen response has the higher reward
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..datasets.batching import steps_in_all
from ..objectives.reward import bradley_terry_losses
from ..recipe import RewardStage
from ..training.loop import Training
from ..training.scalar import load_scalar_model
from ..training.sequences import BothSides, scored_by_all, sequence_scalars
from .context import StepContext, step_context
from .pairing import PairLosses, Pairs, Scored, Validation, last_metrics, learn


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
        most, packing = stage.micro_batch_tokens, training.packing
        rewards_N2 = scored_by_all(training.model, rewards, sequences, most, packing).view(-1, 2)
        losses_N, margins_N, _ = losses_of(stage, rewards_N2)
        return margins_N, float(losses_N.mean())

    validation = Validation(ctx, training, pairs, margins)
    no_reference = torch.zeros(len(pairs.trained), 2)
    learn(ctx, training, pairs, validation, rewards, partial(losses_of, stage), no_reference, "reward")
    last = last_metrics(ctx, ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward"))
    figures = {"pairs": len(pairs.trained), **last, "updates": steps}
    training.finish(pairs.template, figures | validation.summary(steps))


def losses_of(stage: RewardStage, rewards_B2: Tensor, _: Sequence[Scored] = ()) -> PairLosses:
    """From the rewards of the chosen and the rejected responses."""
    chosen_B, rejected_B = rewards_B2.unbind(1)
    losses_B = bradley_terry_losses(chosen_B, rejected_B, stage.margin, stage.centring)
    return PairLosses(losses_B, (chosen_B - rejected_B).detach(), rewards_B2.detach())


if __name__ == "__main__":
    main()
