"""Supervised fine-tuning: the next-token loss on the assistant's tokens, end token included.

1. for each batch of conversations: the sum of the log-probabilities of its loss tokens, divided once for the whole step
2. now and then: the mean loss of each held-out conversation
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..datasets.batching import pack_by_length, step_indices, steps_in_all, token_batches
from ..datasets.chat import ChatTemplate, load_tokenizer
from ..datasets.conversations import Example, load_conversations
from ..errors import TuluLiteError
from ..recipe import SftStage
from ..statistics import of_values
from ..training.culprits import places_of
from ..training.logprobs import summed_logprobs, token_logprobs
from ..training.loop import LossOf, Training
from ..training.sharding import from_all, rank
from .context import StepContext, step_context


def main() -> None:
    with step_context(SftStage) as ctx:
        train(ctx)


def train(ctx: StepContext) -> None:
    stage: SftStage = ctx.stage
    recipe = ctx.recipe
    template = ChatTemplate.load(
        recipe.chat_template, load_tokenizer(recipe.model, recipe.revision), recipe.model
    )
    template.check()
    examples, report = load_conversations(
        stage, template, seed=recipe.seed, stage_rows=ctx.stage_rows, cache=ctx.token_cache
    )
    ctx.tell_of_data(report)
    held_out = held_out_conversations(ctx, template, examples)

    steps, indices_of = batches(stage, examples, ctx.seed)
    training = Training(ctx, updates=steps)
    validation = Validation(ctx, training, held_out, template.pad_id)
    begun = training.resume()
    validation.resume(begun)
    for step in range(begun + 1, steps + 1):
        began = time.perf_counter()
        batch = [examples[i] for i in indices_of(step)]

        def loss_over(batch: Sequence[Example]) -> LossOf:
            # of the whole step, on all processes
            denominator = 1.0 if stage.loss == "token_sum" else float(loss_tokens(batch))

            def loss_of(items: Sequence[Example]) -> Tensor:
                ids_BT, attention_BT, mask_BT = collate(items, training.device, template.pad_id)
                total = summed_logprobs(
                    training.model,
                    ids_BT,
                    attention_BT,
                    chunk_tokens=stage.logits_chunk_tokens,
                    mask=mask_BT[:, 1:],
                )
                return -total / denominator

            return loss_of

        lengths = [len(example.token_ids) for example in batch]
        done = training.update(step, batch, lengths, loss_over)
        figures = training.figures(time.perf_counter() - began)
        counted = loss_tokens(done.batch)
        loss = done.loss if stage.loss == "token_mean" else done.loss / counted
        ctx.metrics.log(
            step, partial(places_of, batch), loss=loss, grad_norm=done.grad_norm, learning_rate=done.rate,
            tokens=sum(len(example.token_ids) for example in done.batch), loss_tokens=counted, dropped_rows=done.dropped,
            **figures, **validation.if_due(step, steps),
        )  # fmt: skip
        ctx.progress(step, steps, loss=loss, tokens_per_second=figures["tokens_per_second"])
        training.save_if_due(step, steps)
    summary = {
        "examples": len(examples),
        "loss": _last_loss(ctx),
        "updates": steps,
        "dropped": report.dropped.total() + ctx.metrics.total("dropped_rows"),
    }
    training.finish(template, summary | validation.summary(steps))


def loss_tokens(batch: Sequence[Example]) -> int:
    return sum(sum(example.loss_mask) for example in batch)


def batches(
    stage: SftStage, examples: Sequence[Example], seed: int
) -> tuple[int, Callable[[int], Sequence[int]]]:
    """Optimiser steps in all, and the examples of each, counted from 1: functions of the seed alone."""
    if stage.batch_tokens is not None:
        lengths = [len(example.token_ids) for example in examples]
        every = token_batches(lengths, stage.batch_tokens, stage.epochs, seed)
        return len(every), lambda step: every[step - 1]
    steps = steps_in_all(len(examples), stage.batch_size, stage.epochs)
    return steps, lambda step: step_indices(len(examples), stage.batch_size, stage.epochs, seed, step)


def collate(
    items: Sequence[Example], device: torch.device, pad_id: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded token ids, attention and loss mask [B, T] of B conversations (of one without loss when B is 0)."""
    longest = max((len(example.token_ids) for example in items), default=2)
    shape = (max(len(items), 1), longest)
    ids, attention, mask = (
        torch.full(shape, pad_id, dtype=torch.long),
        torch.zeros(shape, dtype=torch.long),
        torch.zeros(shape),
    )
    attention[:, 0] = 1
    for row, example in enumerate(items):
        end = len(example.token_ids)
        ids[row, :end] = torch.tensor(example.token_ids)
        attention[row, :end] = 1
        mask[row, :end] = torch.tensor(example.loss_mask, dtype=torch.float32)
    return ids.to(device), attention.to(device), mask.to(device)


# Held-out conversations


def held_out_conversations(
    ctx: StepContext, template: ChatTemplate, trained: Sequence[Example]
) -> dict[str, Example]:
    """The conversations of the stage's `validation` by id, which follows from their tokens alone; none where it names
    none. Raises TuluLiteError for one that is trained on too."""
    stage: SftStage = ctx.stage
    if not stage.validation:
        return {}
    found, _ = load_conversations(
        stage, template, seed=ctx.recipe.seed, stage_rows=ctx.stage_rows, cache=ctx.token_cache, sources=stage.validation
    )  # fmt: skip
    by_id = {_id(example): example for example in found}
    if both := by_id.keys() & {_id(example) for example in trained}:
        raise TuluLiteError(
            f"stage {stage.name}: {len(both)} conversations are in its data and in its validation",
            why="the loss on what was trained on says nothing",
            cure="split the rows by `share: [0, 0.95]` and `share: [0.95, 1]`, which goes by the prompt's hash",
        )
    return by_id


def _id(example: Example) -> str:
    """16 hexadecimal digits of a hash of the conversation's tokens."""
    return hashlib.sha256(repr(tuple(example.token_ids)).encode()).hexdigest()[:16]


class Validation:
    """The mean loss of each held-out conversation over its loss tokens; the metric is the mean of these."""

    def __init__(
        self, ctx: StepContext, training: Training, held_out: dict[str, Example], pad_id: int
    ) -> None:
        self.ctx, self.training, self.pad_id = ctx, training, pad_id
        self.held_out = held_out
        self.best: float | None = None
        self.last: dict[str, Any] = {}
        self.at, self.values = 0, {}  # type: tuple[int, dict[str, float]]

    def resume(self, begun: int) -> None:
        """Know the best so far, if it was before the save that training goes on from (else it is found again)."""
        known = [
            row["validation_loss"]
            for row in self.ctx.metrics.rows()
            if "validation_loss" in row and row["step"] <= begun
        ]
        self.best = min(known, default=None)

    def if_due(self, step: int, steps: int) -> dict[str, float]:
        """Metrics of this step's validation; none where there is none."""
        stage: SftStage = self.ctx.stage
        if not self.held_out or (step % stage.validate_every_steps and step != steps):
            return {}
        self._look(step)
        if stage.export == "best" and (self.best is None or self.last["value"] < self.best):
            self.training.save_best(step, self.last["value"])
        self.best = min(self.last["value"], self.best) if self.best is not None else self.last["value"]
        return {"validation_loss": self.last["value"]}

    def _look(self, step: int) -> None:
        losses = held_out_losses(self.training, list(self.held_out.values()), self.pad_id)
        self.at, self.values = step, dict(zip(self.held_out, losses, strict=True))
        self.last = self.ctx.validated(step, "loss", self.values, better="lower")

    def summary(self, steps: int) -> dict[str, Any]:
        """What the step's result says of the weights that go on. With `export: best` they are loaded first."""
        if not self.held_out:
            return {}
        wanted = steps
        if self.ctx.stage.export == "best":
            wanted = self.training.load_best() or steps
        if (
            self.at != wanted
        ):  # other weights than those validated last, or a kill came between that and the end
            self._look(wanted)
        loss = of_values(list(self.values.values()))
        return {"validation": self.last, "held_out_loss": loss.to_json(), "step": wanted}


@torch.no_grad()
def held_out_losses(training: Training, examples: Sequence[Example], pad_id: int) -> list[float]:
    """The mean loss of each conversation over its loss tokens, shared out over the processes, known to all."""
    stage = training.stage
    training.model.eval()  # without the dropout of adapters
    parts = pack_by_length([len(example.token_ids) for example in examples], stage.micro_batch_tokens)
    processes = len(from_all(None))
    found: dict[int, float] = {}
    for number in range(-(-len(parts) // processes)):  # as many passes on every process
        place = number * processes + rank()
        indices = parts[place] if place < len(parts) else []
        ids_BT, attention_BT, mask_BT = collate([examples[i] for i in indices], training.device, pad_id)
        logprobs = token_logprobs(
            training.model, ids_BT, attention_BT, chunk_tokens=stage.logits_chunk_tokens, mask=mask_BT[:, 1:]
        )
        counts = mask_BT[:, 1:].sum(1).clamp(min=1)
        for index, value in zip(indices, (-logprobs.sum(1) / counts).tolist(), strict=False):
            found[index] = value
    training.model.train()
    every = {index: value for part in from_all(found) for index, value in part.items()}
    return [every[index] for index in range(len(examples))]


def _last_loss(ctx: StepContext) -> float | None:
    rows = ctx.metrics.rows()
    return rows[-1]["loss"] if rows else None


if __name__ == "__main__":
    main()
