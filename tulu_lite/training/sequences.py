"""Prompts with their responses as batches of tokens, for the stages that learn from pairs.

S sequences, T positions. Both sides of a pair are sequences of their own. Those of one prompt are put next to one
another, since packed rows have it once; else those that are about as long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .logprobs import token_logprobs
from .packing import Beginning, Packing, families, micro_batches_of
from .scalar import at_last
from .sharding import from_all, rank

PromptResponse = tuple[tuple[int, ...], tuple[int, ...]]  # token ids
NO_GRADIENT_FACTOR = 4  # so many times more tokens fit one pass when nothing is kept for the backward pass


def length_of(sequence: PromptResponse) -> int:
    return len(sequence[0]) + len(sequence[1])


def beginnings(sequences: Sequence[PromptResponse]) -> list[Beginning]:
    """[S] each sequence's prompt, as micro_batches takes it."""
    return [(prompt, len(prompt)) for prompt, _ in sequences]


class BothSides(Sequence[PromptResponse]):
    """Chosen and rejected of each pair, one after the other: what is made of these [2 B] is viewed as [B, 2].

    Made as they are asked for: pairs may lie on disk."""

    def __init__(self, pairs: Sequence[Any]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return 2 * len(self.pairs)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        pair = self.pairs[index // 2]
        return pair.prompt_ids, pair.rejected_ids if index % 2 else pair.chosen_ids

    def __iter__(self) -> Iterator[PromptResponse]:
        for pair in self.pairs:
            yield pair.prompt_ids, pair.chosen_ids
            yield pair.prompt_ids, pair.rejected_ids


def collate(
    sequences: Sequence[PromptResponse], device: torch.device, pad_id: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention and response mask [S, T], padded on the right."""
    longest = max(map(length_of, sequences))
    shape = (len(sequences), longest)
    ids = torch.full(shape, pad_id, dtype=torch.long)
    attention, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
    for row, (prompt, response) in enumerate(sequences):
        end = len(prompt) + len(response)
        ids[row, :end] = torch.tensor(prompt + response)
        attention[row, :end] = 1
        mask[row, len(prompt) : end] = 1
    return ids.to(device), attention.to(device), mask.to(device)


def response_logprobs(
    model: nn.Module,
    sequences: Sequence[PromptResponse],
    *,
    device: torch.device,
    pad_id: int,
    chunk_tokens: int,
) -> Tensor:
    """[S] log pi(response | prompt), the sum over the response's tokens. Logits are made for these alone."""

    def score(ids: Tensor, attention: Tensor, mask: Tensor) -> Tensor:
        logprobs = token_logprobs(model, ids, attention, chunk_tokens=chunk_tokens, mask=mask[:, 1:])
        return (logprobs * mask[:, 1:]).sum(-1)

    return _sorted(score, sequences, device, pad_id)


def sequence_scalars(
    model: nn.Module, sequences: Sequence[PromptResponse], *, device: torch.device, pad_id: int
) -> Tensor:
    """[S] a ScalarModel's number at the last token of each response."""

    def score(ids: Tensor, attention: Tensor, mask: Tensor) -> Tensor:
        return at_last(model(ids, attention), attention.sum(1))

    return _sorted(score, sequences, device, pad_id)


def _sorted(
    score: Callable[[Tensor, Tensor, Tensor], Tensor],
    sequences: Sequence[PromptResponse],
    device: torch.device,
    pad_id: int,
) -> Tensor:
    """[S] scores in the sequences' own order, of a batch in which neighbours begin alike or are about as long: what
    packs them takes neighbours through attention together."""
    in_order = families([length_of(sequence) for sequence in sequences], beginnings(sequences))
    order = [i for family in in_order for i in family]
    scores = score(*collate([sequences[i] for i in order], device, pad_id))
    return scores.index_select(0, torch.argsort(torch.tensor(order, device=device)))


@torch.no_grad()
def scored_by_all(
    model: nn.Module,
    score: Callable[[Sequence[PromptResponse]], Tensor],
    sequences: Sequence[PromptResponse],
    max_tokens: int,
    packing: Packing = "bucket",
    on_progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """[S] float32 on the CPU: the scores of many sequences, each made by one of the processes, known to all.

    score: of one batch, by `model`, whose dropout (of adapters) is off meanwhile. Every process makes as many passes as the others: what spreads weights over processes needs
    all of them in each. Nothing is kept for a backward pass, so batches are large.
    """
    lengths, most = [length_of(sequence) for sequence in sequences], NO_GRADIENT_FACTOR * max_tokens
    batches = micro_batches_of(packing, lengths, most, beginnings(sequences))
    processes = len(from_all(None))
    own = batches[rank() :: processes]
    found: list[tuple[list[int], list[float]]] = []
    training = model.training
    model.eval()
    done = 0
    for number in range(-(-len(batches) // processes)):
        batch = own[number] if number < len(own) else []
        scores = score([sequences[i] for i in batch or [0]])
        if batch:
            found.append((batch, scores.float().tolist()))
        done += processes * len(batch)
        on_progress(min(done, len(sequences)))
    model.train(training)
    values = torch.zeros(len(sequences))
    for part in from_all(found):
        for batch, numbers in part:
            values[batch] = torch.tensor(numbers)
    return values
