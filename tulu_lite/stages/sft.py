"""Supervised fine-tuning: the next-token loss on the assistant's tokens, end token included."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import torch

from ..datasets.batching import step_indices, steps_in_all
from ..datasets.chat import ChatTemplate, load_tokenizer
from ..datasets.conversations import Example, load_conversations
from ..objectives.sft import token_loss
from ..recipe import SftStage
from ..training.culprits import places_of
from ..training.logprobs import token_logprobs
from ..training.loop import Training
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

    steps = steps_in_all(len(examples), stage.batch_size, stage.epochs)
    training = Training(ctx, updates=steps)
    for step in range(training.resume() + 1, steps + 1):
        began = time.perf_counter()
        batch = [
            examples[i] for i in step_indices(len(examples), stage.batch_size, stage.epochs, ctx.seed, step)
        ]
        loss_tokens = sum(sum(example.loss_mask) for example in batch)
        denominator = (
            1.0 if stage.loss == "token_sum" else float(loss_tokens)
        )  # of the whole step, on all processes

        def loss_of(items: Sequence[Example], denominator: float = denominator) -> torch.Tensor:
            ids_BT, attention_BT, mask_BT = collate(items, training.device, template.pad_id)
            logprobs = token_logprobs(
                training.model,
                ids_BT,
                attention_BT,
                chunk_tokens=stage.logits_chunk_tokens,
                mask=mask_BT[:, 1:],
            )
            return token_loss(logprobs, mask_BT[:, 1:], denominator)

        loss, norm, rate = training.update(
            step, batch, [len(example.token_ids) for example in batch], loss_of
        )
        tokens = sum(len(example.token_ids) for example in batch)
        seconds = time.perf_counter() - began
        shown = loss if stage.loss == "token_mean" else loss / loss_tokens
        ctx.metrics.log(
            step,
            partial(places_of, batch),
            loss=shown,
            grad_norm=norm,
            learning_rate=rate,
            tokens=tokens,
            loss_tokens=loss_tokens,
            tokens_per_second=tokens / seconds,
        )
        ctx.progress(step, steps, loss=shown, tokens_per_second=tokens / seconds)
        training.save_if_due(step, steps)
    training.finish(
        template,
        {
            "examples": len(examples),
            "loss": _last_loss(ctx),
            "updates": steps,
            "dropped": report.dropped.total(),
        },
    )


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


def _last_loss(ctx: StepContext) -> float | None:
    rows = ctx.metrics.rows()
    return rows[-1]["loss"] if rows else None


if __name__ == "__main__":
    main()
