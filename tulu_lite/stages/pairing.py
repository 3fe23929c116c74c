"""What the stages that learn from pairs do alike: their pairs, and how well they rank those held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..datasets.chat import ChatTemplate, load_tokenizer
from ..datasets.held_out import held_out_pairs
from ..datasets.pairs import PairExample, load_pairs
from ..pipeline.protocol import write_validation
from ..statistics import of_values
from ..training.loop import Training
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


def tokens_of(pair: PairExample) -> int:
    """Of both sides, each with the prompt."""
    return 2 * len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids)


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
    """The last step's metrics of these names."""
    rows = ctx.metrics.rows()
    return {name: rows[-1][name] for name in names} if rows else {}
