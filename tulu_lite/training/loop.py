"""What one optimiser step is, for the stages that learn from fixed data: micro-batches, one denominator, resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from accelerate.utils import DistributedType

from .accelerator import make_accelerator
from .checkpoint import export_model, load_latest, load_weights
from .culprits import loss_not_finite, named_rows, rows_not_finite
from .figures import ModelFlops, peak_flops, peak_memory_gb
from .logprobs import LogprobModel
from .model import compile_layers, load_model
from .optim import accumulating, backward, finish_update, make_optimizer
from .packing import micro_batches_of
from .proof import choose_liger, choose_packing
from .saver import BEST, Saver

LossOf = Callable[[Sequence[Any]], torch.Tensor]


class Updated(NamedTuple):
    """What an optimiser step was made of."""

    loss: float
    grad_norm: float  # before clipping
    rate: float
    batch: Sequence[Any]  # the items it learnt from
    dropped: int  # items left out, since their loss was not finite


class Training:
    """Model, optimiser and accelerator of one supervised stage.

    ctx: a stages.context.StepContext whose stage has TrainingSettings. updates: optimiser steps in all. load: makes the
    model from the stage's init, as load_model does. sequences_per_item: of a batch's items (2 of pairs), for the FLOPs of
    attention.
    """

    def __init__(
        self,
        ctx: Any,
        updates: int,
        load: Callable[..., Any] = load_model,
        sequences_per_item: int = 1,
    ) -> None:
        stage = ctx.stage
        self.ctx, self.stage, self.updates = ctx, stage, updates
        self.sequences_per_item = sequences_per_item
        self.accelerator = make_accelerator(stage.accelerate or ctx.recipe.accelerate, seed=ctx.seed)
        self.device = self.accelerator.device
        model = load(
            ctx.init_model, self.device, lora=stage.lora, gradient_checkpointing=stage.gradient_checkpointing
        )
        precision = str(self.accelerator.mixed_precision)
        self.packing, note = choose_packing(model, stage.packing, precision, ctx.init_model)
        self.shares: bool = model.shares
        if isinstance(model, LogprobModel):
            model.liger = choose_liger(stage.logits, self.device)
        if stage.compile:
            compile_layers(model)
        if ctx.is_main:
            print(note, flush=True)
        optimizer, self.rate = make_optimizer(model, stage, updates)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.saver = Saver(ctx.checkpoints, stage.keep_saves, ctx.saved)
        self.flops = ModelFlops(self.model)
        self.peak = peak_flops(self.device, precision)
        self._lengths: Sequence[int] = ()
        self._computed = 0

    def resume(self) -> int:
        """Load the last save, if there is one; returns its step, or 0."""
        self.saver.clean()
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
        loss_over: Callable[[Sequence[Any]], LossOf],
    ) -> Updated:
        """One optimiser step on the whole batch.

        loss_over: given the step's items, the function that gives some items' share of the step's loss; shares add up,
        since each is divided by the step's one denominator. It is called with no items where another process has one
        micro-batch more; then it is 0. lengths: tokens of each item
        that go through the model.

        Rows whose loss is not finite are named in a TuluLiteError or, with `bad_rows: drop`, left out: the step is then
        made of the others, as if it had never had them. Every process calls it.
        """
        self.saver.check()
        if self.ctx.look is not None:  # a replay looks at each item by itself before the step is done
            self.ctx.look(self, step, batch, loss_over(batch))
        where = f"stage {self.stage.name}, step {step}"
        asked = len(batch)
        while not math.isfinite(loss := self._add_gradients(batch, lengths, loss_of := loss_over(batch))):
            self.optimizer.zero_grad()
            culprits = rows_not_finite(self.accelerator, batch, loss_of)
            if not self._may_drop(culprits, batch):
                raise loss_not_finite(batch, culprits, loss, where)
            if self.ctx.is_main:
                rows = named_rows(batch, culprits)
                print(f"{where}: left out, since their loss is not finite: {rows}", flush=True)
            good = [i for i in range(len(batch)) if i not in culprits]
            batch, lengths = [batch[i] for i in good], [lengths[i] for i in good]
        rate = self.rate(step)
        limit = self.stage.max_grad_norm
        norm = finish_update(self.accelerator, self.model, self.optimizer, rate, limit, where)
        return Updated(loss, norm, rate, batch, asked - len(batch))

    def _add_gradients(self, batch: Sequence[Any], lengths: Sequence[int], loss_of: LossOf) -> float:
        """The step's loss, summed over micro-batches and processes, its gradient added to what is there."""
        own = range(self.accelerator.process_index, len(batch), self.accelerator.num_processes)
        most = self.stage.micro_batch_tokens
        split = micro_batches_of(self.packing, [lengths[i] for i in own], most)
        parts = [[own[i] for i in indices] for indices in split]
        self._lengths = lengths
        self._computed = sum(self._size([lengths[i] for i in indices]) for indices in parts)
        counts = self.accelerator.gather(torch.tensor([len(parts)], device=self.device))
        parts += [[]] * (max(1, int(counts.max())) - len(parts))
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, indices in enumerate(parts, 1):
            with accumulating(self.accelerator, self.model, last=number == len(parts)):
                loss = loss_of([batch[i] for i in indices])
                total += loss.detach().double()
                backward(self.accelerator, self.model, loss)
        return float(self.accelerator.reduce(total, "sum"))

    def _may_drop(self, culprits: Sequence[int], batch: Sequence[Any]) -> bool:
        """Whether the step can be done again without these rows. DeepSpeed has their gradients in sums of its own."""
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        return self.stage.bad_rows == "drop" and 0 < len(culprits) < len(batch) and not deepspeed

    def _size(self, lengths: Sequence[int]) -> int:
        """Tokens of a forward pass of items of these lengths, padding included."""
        return max(lengths) * len(lengths) if self.packing == "bucket" else sum(lengths)

    def figures(self, seconds: float) -> dict[str, float]:
        """Of the last update, which took so many seconds: tokens a second over all processes, this process's share of
        padding and peak memory in GB, and MFU where the device's peak is known."""
        tokens, processes = sum(self._lengths), self.accelerator.num_processes
        own = sum(self._lengths[self.accelerator.process_index :: processes])
        found = {
            "tokens_per_second": tokens / seconds,
            "padding_share": 1 - own / max(self._computed, own, 1),
            "peak_memory_gb": peak_memory_gb(self.device),
        }
        n = self.sequences_per_item
        needed = self.flops.of([length / n for length in self._lengths for _ in range(n)])
        if self.peak is not None and needed is not None:
            found["mfu"] = needed / seconds / (self.peak * processes)
        return found

    def save_if_due(self, step: int, steps: int) -> None:
        """Begin a save, which is written while training goes on; the last step's is waited for."""
        if step % self.stage.save_every_steps == 0 or step == steps:
            self.saver.save(step, model=self.model, optimizer=self.optimizer, state={"step": step})

    def save_best(self, step: int, value: float) -> None:
        """Keep these weights as those of the best validation so far, beside the newest saves."""
        state = {"step": step, "value": value}
        self.saver.save(step, model=self.model, optimizer=self.optimizer, state=state, name=BEST)

    def load_best(self) -> int | None:
        """Make the weights those of the best validation; returns its step, or None where none was kept."""
        self.saver.wait()
        state = load_weights(self.ctx.checkpoints / BEST, self.model)
        return None if state is None else int(state["step"])

    def finish(self, template: Any, summary: dict[str, Any]) -> None:
        """Wait for the last save, export the model and declare the step done."""
        self.saver.wait()
        folder = self.ctx.dir / "model"
        card = self.ctx.model_card(summary)
        export_model(folder, self.model, init_model=self.ctx.init_model, template=template, card=card)
        self.ctx.finish(model=folder, summary=summary)
