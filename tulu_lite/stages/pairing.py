"""What the stages that learn from pairs do alike: their pairs, the loop over them, how well they rank those held out.

B pairs of a micro-batch, N pairs in all; 2 is chosen, rejected.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..datasets.batching import step_indices
from ..datasets.chat import ChatTemplate, load_tokenizer
from ..datasets.held_out import held_out_pairs
from ..datasets.pairs import PairExample, load_pairs
from ..pipeline.protocol import write_validation
from ..statistics import of_values
from ..training.culprits import places_of
from ..training.loop import LossOf, Training
from ..training.row import LEAST_SHARED
from ..training.sequences import BothSides, PromptResponse
from .context import StepContext


@dataclass(frozen=True)
class Pairs:
    """The pairs of a stage, and those held out by id."""

    template: ChatTemplate
    trained: Sequence[PairExample]
    held_out: dict[str, PairExample]

    @classmethod
    def of(cls, ctx: StepContext) -> Pairs:
        recipe = ctx.recipe
        template = ChatTemplate.load(
            recipe.chat_template, load_tokenizer(recipe.model, recipe.revision), recipe.model
        )
        how: Any = {"seed": recipe.seed, "stage_rows": ctx.stage_rows, "cache": ctx.token_cache}
        trained, report = load_pairs(ctx.stage, template, **how)
        ctx.tell_of_data(report)
        held_out = held_out_pairs(ctx.stage, template, trained, **how)
        return cls(template, trained, held_out)


@dataclass(frozen=True, slots=True)
class Scored:
    """A pair with the reference's log-probabilities of its chosen and rejected response (0 without a reference)."""

    pair: PairExample
    reference: tuple[float, float] = (0.0, 0.0)


class PairLosses(NamedTuple):
    """Of B pairs."""

    losses_B: Tensor
    margins_B: Tensor  # above 0: ranked right
    sides_B2: Tensor  # what is shown of each response, without a gradient


def with_reference(pairs: Sequence[PairExample], reference_N2: Tensor) -> list[Scored]:
    return [
        Scored(pair, (chosen, rejected))
        for pair, (chosen, rejected) in zip(pairs, reference_N2.tolist(), strict=True)
    ]


def learn(
    ctx: StepContext,
    training: Training,
    pairs: Pairs,
    validation: Validation,
    scores: Callable[[Sequence[PromptResponse]], Tensor],
    losses_of: Callable[[Tensor, Sequence[Scored]], PairLosses],
    reference_N2: Tensor,
    sides: str,
) -> None:
    """All optimiser steps that are not done yet, each with its metrics, validation and save.

    scores: the model's numbers [S] of sequences. losses_of: of such numbers [B, 2] and their pairs. sides: what the
    metrics call the numbers of each side.
    """
    stage, total = ctx.stage, training.updates
    sums = torch.zeros(
        4, device=training.device
    )  # pairs ranked right, margins, sides of chosen and of rejected

    def loss_over(batch: Sequence[Scored]) -> LossOf:
        sums.zero_()

        def loss_of(items: Sequence[Scored]) -> Tensor:
            if not items:  # another process has one micro-batch more
                pad = (pairs.template.pad_id,)
                return scores([(pad, pad)]).sum() * 0.0
            values_B2 = scores(BothSides([item.pair for item in items])).view(-1, 2)
            losses_B, margins_B, sides_B2 = losses_of(values_B2, items)
            sums.add_(torch.stack([(margins_B > 0).sum(), margins_B.sum(), *sides_B2.sum(0)]).detach())
            return losses_B.sum() / len(batch)

        return loss_of

    for step in range(validation.resume(training.resume()) + 1, total + 1):
        began = time.perf_counter()
        indices = step_indices(len(pairs.trained), stage.batch_size, stage.epochs, ctx.seed, step)
        batch = with_reference([pairs.trained[i] for i in indices], reference_N2[indices])
        lengths = [tokens_of(item.pair) - saved_by(item.pair, training.shares) for item in batch]
        done = training.update(step, batch, lengths, loss_over)
        means = training.accelerator.reduce(sums, "sum") / len(done.batch)
        right, margin, chosen, rejected = means.tolist()
        seconds = time.perf_counter() - began
        ctx.metrics.log(
            step, partial(places_of, batch), loss=done.loss, grad_norm=done.grad_norm, learning_rate=done.rate,
            accuracy=right, margin=margin, tokens=sum(tokens_of(item.pair) for item in done.batch), pairs_per_second=len(done.batch) / seconds,
            dropped_rows=done.dropped, **{f"chosen_{sides}": chosen, f"rejected_{sides}": rejected},
            **training.figures(seconds), **validation.if_due(step, total),
        )  # fmt: skip
        ctx.progress(step, total, loss=done.loss, accuracy=right)
        training.save_if_due(step, total)


def tokens_of(pair: PairExample) -> int:
    """Of both sides, each with the prompt."""
    return 2 * len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids)


def saved_by(pair: PairExample, shares: bool) -> int:
    """Tokens less that go through a model which computes what both sides begin with once."""
    return len(pair.prompt_ids) if shares and len(pair.prompt_ids) >= LEAST_SHARED else 0


class Validation:
    """Accuracy on held-out pairs: the share whose chosen response is ranked higher; one of equal rank counts half.

    margins: gives the margin [N] of the held-out pairs, in order, under the model as it is, and the loss on them.
    """

    def __init__(
        self, ctx: StepContext, training: Training, pairs: Pairs, margins: Callable[[], tuple[Tensor, float]]
    ) -> None:
        self.ctx, self.training, self.ids, self.margins = ctx, training, list(pairs.held_out), margins
        self.best = -math.inf
        self.last: dict[str, Any] = {}
        self.at, self.values = 0, {}  # type: tuple[int, dict[str, float]]

    def resume(self, begun: int) -> int:
        """Know the best so far, if it was before the save that training goes on from (else it is found again)."""
        for row in self.ctx.metrics.rows():
            if row["step"] <= begun:
                self.best = max(self.best, row.get("validation_accuracy", -math.inf))
        return begun

    def if_due(self, step: int, steps: int) -> dict[str, float]:
        """Metrics of this step's validation; none where there is none."""
        stage = self.ctx.stage
        if not self.ids or (step % stage.validate_every_steps and step != steps):
            return {}
        loss = self._look(step)
        accuracy = self.last["value"]
        if stage.export == "best" and accuracy > self.best:
            self.training.save_best(step, accuracy)
        self.best = max(self.best, accuracy)
        return {"validation_accuracy": accuracy, "validation_loss": loss}

    def _look(self, step: int) -> float:
        margins, loss = self.margins()
        self.at, self.values = step, dict(zip(self.ids, _ranked_right(margins), strict=True))
        self.last = self.ctx.validated(step, "accuracy", self.values)
        return loss

    def summary(self, steps: int) -> dict[str, Any]:
        """What the step's result says of the weights that go on. With `export: best` they are loaded first."""
        if not self.ids:
            return {}
        wanted = steps
        if self.ctx.stage.export == "best":
            wanted = self.training.load_best() or steps
        if (
            self.at != wanted
        ):  # other weights than those validated last, or a kill came between that and the end
            self._look(wanted)
        if self.ctx.is_main:
            write_validation(self.ctx.dir / "validation.jsonl", self.values)
        accuracy = of_values(list(self.values.values()))
        return {"validation": self.last, "held_out_accuracy": accuracy.to_json(), "step": wanted}


def _ranked_right(margins: Tensor) -> list[float]:
    return (0.5 + 0.5 * torch.sign(margins)).tolist()


def last_metrics(ctx: StepContext, names: Sequence[str]) -> dict[str, float]:
    """The last step's metrics of these names, and how many rows training left out, if any."""
    rows = ctx.metrics.rows()
    dropped = ctx.metrics.total("dropped_rows")
    found = {name: rows[-1][name] for name in names} if rows else {}
    return found | ({"dropped_rows": dropped} if dropped else {})
