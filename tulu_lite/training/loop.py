"""What one optimiser step is, for the stages that learn from fixed data: micro-batches, one denominator, resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..datasets.batching import pack_by_length
from .accelerator import make_accelerator
from .checkpoint import export_model, load_latest, save_checkpoint
from .culprits import loss_not_finite
from .model import load_model
from .optim import accumulating, backward, finish_update, make_optimizer


class Training:
    """Model, optimiser and accelerator of one supervised stage.

    ctx: a stages.context.StepContext whose stage has TrainingSettings. updates: optimiser steps in all. load: makes the
    model from the stage's init, as load_model does.
    """

    def __init__(self, ctx: Any, updates: int, load: Callable[..., nn.Module] = load_model) -> None:
        stage = ctx.stage
        self.ctx, self.stage, self.updates = ctx, stage, updates
        self.accelerator = make_accelerator(stage.accelerate or ctx.recipe.accelerate, seed=ctx.seed)
        self.device = self.accelerator.device
        model = load(
            ctx.init_model, self.device, lora=stage.lora, gradient_checkpointing=stage.gradient_checkpointing
        )
        optimizer, self.rate = make_optimizer(model, stage, updates)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)

    def resume(self) -> int:
        """Load the last save, if there is one; returns its step, or 0."""
        state = load_latest(self.ctx.checkpoints, model=self.model, optimizer=self.optimizer)
        step = 0 if state is None else int(state["step"])
        self.ctx.metrics.resume(step)
        self.ctx.progress(step, self.updates)
        return step

    def update(
        self,
        step: int,
        batch: Sequence[Any],
        lengths: Sequence[int],
        loss_of: Callable[[Sequence[Any]], torch.Tensor],
    ) -> tuple[float, float, float]:
        """One optimiser step on the whole batch: (loss summed over micro-batches and processes, gradient norm, rate).

        loss_of: this many items' share of the step's loss; shares add up, since each is divided by the step's one
        denominator. Called with no items where another process has one micro-batch more; then it is 0.
        """
        own = range(self.accelerator.process_index, len(batch), self.accelerator.num_processes)
        micro_batches = [
            [own[i] for i in indices]
            for indices in pack_by_length([lengths[i] for i in own], self.stage.micro_batch_tokens)
        ]
        if self.ctx.look is not None:  # a replay looks at each item by itself before the step is done
            self.ctx.look(self, step, batch, loss_of)
        counts = self.accelerator.gather(torch.tensor([len(micro_batches)], device=self.device))
        micro_batches += [[]] * (max(1, int(counts.max())) - len(micro_batches))
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, indices in enumerate(micro_batches, 1):
            with accumulating(self.accelerator, self.model, last=number == len(micro_batches)):
                loss = loss_of([batch[i] for i in indices])
                total += loss.detach().double()
                backward(self.accelerator, self.model, loss)
        whole = float(self.accelerator.reduce(total, "sum"))
        where = f"stage {self.stage.name}, step {step}"
        if not math.isfinite(whole):
            self.optimizer.zero_grad()
            raise loss_not_finite(self.accelerator, batch, loss_of, whole, where)
        rate = self.rate(step)
        norm = finish_update(
            self.accelerator,
            self.model,
            self.optimizer,
            rate,
            self.stage.max_grad_norm,
            where,
        )
        return whole, norm, rate

    def save_if_due(self, step: int, steps: int) -> None:
        if step % self.stage.save_every_steps and step != steps:
            return
        path = save_checkpoint(
            self.ctx.checkpoints, step, model=self.model, optimizer=self.optimizer, state={"step": step}
        )
        self.ctx.saved(step, path)

    def finish(self, template: Any, summary: dict[str, Any]) -> None:
        """Export the model and declare the step done."""
        folder = self.ctx.dir / "model"
        card = self.ctx.model_card(summary)
        export_model(folder, self.model, init_model=self.ctx.init_model, template=template, card=card)
        self.ctx.finish(model=folder, summary=summary)
