"""Direct preference optimisation, length-normalised as in Tülu 3 (arXiv:2411.15124, eq. 6) or standard
(Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

1. the reference's log-probability of every response, once, kept in the step's folder
2. for each batch of pairs: log-probabilities under the policy, the loss on their difference to the reference's
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from ..datasets.batching import pack_by_length, step_indices, steps_in_all
from ..datasets.chat import ChatTemplate, load_tokenizer
from ..datasets.pairs import PairExample, load_pairs
from ..files import write_atomic
from ..objectives.dpo import dpo_losses, sequence_logprob
from ..recipe import DpoStage
from ..training.culprits import places_of
from ..training.logprobs import token_logprobs
from ..training.loop import Training
from .context import StepContext, step_context


@dataclass(frozen=True)
class Scored:
    """A pair with its reference's log-probabilities (divided by length if the stage says so)."""

    pair: PairExample
    reference_chosen: float
    reference_rejected: float

    @property
    def tokens(self) -> int:
        """Of the longer side, with the prompt."""
        return len(self.pair.prompt_ids) + max(len(self.pair.chosen_ids), len(self.pair.rejected_ids))


def main() -> None:
    with step_context(DpoStage) as ctx:
        train(ctx)


def train(ctx: StepContext) -> None:
    stage: DpoStage = ctx.stage
    recipe = ctx.recipe
    template = ChatTemplate.load(
        recipe.chat_template, load_tokenizer(recipe.model, recipe.revision), recipe.model
    )
    pairs, report = load_pairs(stage, template, seed=recipe.seed, stage_rows=ctx.stage_rows)
    for note in report.notes():
        print(note, flush=True)

    steps = steps_in_all(len(pairs), stage.batch_size, stage.epochs)
    training = Training(ctx, updates=steps)
    scored = _with_reference(ctx, training, pairs, template.pad_id)  # before any weight changes
    for step in range(training.resume() + 1, steps + 1):
        began = time.perf_counter()
        batch = [scored[i] for i in step_indices(len(scored), stage.batch_size, stage.epochs, ctx.seed, step)]
        sums = {"correct": 0.0, "margin": 0.0, "chosen": 0.0, "rejected": 0.0}

        def loss_of(
            items: Sequence[Scored], pairs_in_all: int = len(batch), sums: dict[str, float] = sums
        ) -> torch.Tensor:
            chosen_B, rejected_B = _both_sides(
                training, stage, [item.pair for item in items], template.pad_id
            )
            reference = torch.tensor(
                [[item.reference_chosen, item.reference_rejected] for item in items] or [[0.0, 0.0]],
                device=training.device,
            )
            losses_B, margin_B = dpo_losses(
                chosen_B, rejected_B, reference[:, 0], reference[:, 1], stage.beta
            )
            if not items:  # another process has one micro-batch more
                return losses_B.sum() * 0.0
            sums["correct"] += float((margin_B > 0).sum())
            sums["margin"] += float(margin_B.detach().sum())
            sums["chosen"] += float((chosen_B.detach() - reference[:, 0]).sum())
            sums["rejected"] += float((rejected_B.detach() - reference[:, 1]).sum())
            return losses_B.sum() / pairs_in_all

        loss, norm, rate = training.update(step, batch, [2 * item.tokens for item in batch], loss_of)
        totals = training.accelerator.reduce(
            torch.tensor(list(sums.values()), dtype=torch.float64).to(training.device), "sum"
        ).tolist()
        correct, margin, chosen, rejected = (total / len(batch) for total in totals)
        tokens = sum(
            2 * len(i.pair.prompt_ids) + len(i.pair.chosen_ids) + len(i.pair.rejected_ids) for i in batch
        )
        ctx.metrics.log(
            step, partial(places_of, batch), loss=loss, grad_norm=norm, learning_rate=rate, accuracy=correct, margin=margin, chosen_gain=chosen,
            rejected_gain=rejected, tokens=tokens, tokens_per_second=tokens / (time.perf_counter() - began),
        )  # fmt: skip
        ctx.progress(step, steps, loss=loss, accuracy=correct)
        training.save_if_due(step, steps)
    rows = ctx.metrics.rows()
    last = {name: rows[-1][name] for name in ("loss", "accuracy", "margin")} if rows else {}
    training.finish(template, {"pairs": len(pairs), **last, "updates": steps})


def _both_sides(
    training: Training, stage: DpoStage, pairs: Sequence[PairExample], pad_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities [B] of the chosen and the rejected responses, in one forward pass over both."""
    sequences = [(pair.prompt_ids, pair.chosen_ids) for pair in pairs] + [
        (pair.prompt_ids, pair.rejected_ids) for pair in pairs
    ]
    ids_BT, attention_BT, mask_BT = collate(
        sequences or [((pad_id,), (pad_id,))] * 2, training.device, pad_id
    )
    logprobs = token_logprobs(
        training.model, ids_BT, attention_BT, chunk_tokens=stage.logits_chunk_tokens, mask=mask_BT[:, 1:]
    )
    both = sequence_logprob(logprobs, mask_BT[:, 1:], stage.length_normalised)
    half = len(both) // 2
    return both[:half], both[half:]


def _with_reference(
    ctx: StepContext, training: Training, pairs: Sequence[PairExample], pad_id: int
) -> list[Scored]:
    """The pairs with the reference's log-probabilities: those of the model before training, computed once."""
    file = ctx.dir / "reference.safetensors"
    if not file.exists():
        values = torch.zeros(len(pairs), 2)
        lengths = [2 * Scored(pair, 0.0, 0.0).tokens for pair in pairs]
        done = 0
        with torch.no_grad():
            for indices in pack_by_length(lengths, ctx.stage.micro_batch_tokens):
                chosen, rejected = _both_sides(training, ctx.stage, [pairs[i] for i in indices], pad_id)
                values[indices] = torch.stack([chosen, rejected], dim=1).cpu()
                done += len(indices)
                ctx.progress(done, len(pairs), "reference pairs")
        if ctx.is_main:
            write_atomic(file, save({"logprobs": values}))
        training.accelerator.wait_for_everyone()
    return [Scored(pair, float(row[0]), float(row[1])) for pair, row in zip(pairs, _read(file), strict=True)]


def _read(file: Path) -> torch.Tensor:
    with safe_open(file, "pt") as tensors:
        return tensors.get_tensor("logprobs")


def collate(
    sequences: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], device: torch.device, pad_id: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded token ids, attention and response mask [B, T] of B (prompt, response)."""
    longest = max(len(prompt) + len(response) for prompt, response in sequences)
    shape = (len(sequences), longest)
    ids, attention, mask = (
        torch.full(shape, pad_id, dtype=torch.long),
        torch.zeros(shape, dtype=torch.long),
        torch.zeros(shape),
    )
    for row, (prompt, response) in enumerate(sequences):
        end = len(prompt) + len(response)
        ids[row, :end] = torch.tensor(prompt + response)
        attention[row, :end] = 1
        mask[row, len(prompt) : end] = 1
    return ids.to(device), attention.to(device), mask.to(device)


if __name__ == "__main__":
    main()
