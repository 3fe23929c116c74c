"""LoRA products on the CPU, in place of vLLM's own.  [vLLM 0.32: lora/punica_wrapper/punica_cpu.py]

vLLM's gather one copy of the adapter's matrix for every token of the batch, and give a token without an adapter
(index -1) that of the last slot. Here the rows of a batch are gathered by their adapter, each adapter is multiplied with
all its own, and the products are put back: one gathering and one putting back for all adapters together, since at small
sizes it is the number of operations that costs. How is worked out once a step. An adapter's rows are filled up to a
multiple of 16, because matrix kernels for very few rows round otherwise: so a response does not depend on how many
others of its adapter are in the batch. Of a small layer with several slices (q, k and v in one) two products do for all
of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROWS = 16

Slices = list[tuple[Tensor, ...]]  # per slice of the output: what the rows are multiplied by in turn
Factors = Sequence[Slices] | Mapping[int, Slices]  # by slot
SMALL = 1 << 18  # elements of a matrix that is made of several


class Batch(NamedTuple):
    """Where the rows of a batch go.

    blocks: (slot, from, to) of each adapter that occurs, in gathered rows; none: nothing is to be done.
    gathered: how many rows those are, each block filled up.
    take: [gathered], the row of the batch that each is; None: they are the batch as it is.
    back: [rows], the gathered row of each, `gathered` itself for a row without an adapter; None: the first ones.
    """

    blocks: list[tuple[int, int, int]]
    gathered: int
    take: Tensor | None
    back: Tensor | None


def batch_of(indices: Tensor, rows: int) -> Batch:
    """What to do with a batch of `rows`.

    indices: [tokens], the slot of each token, -1: none. Rows beyond them are nobody's.
    """
    slots = indices[:rows].long()
    order = torch.argsort(slots, stable=True)
    blocks: list[tuple[int, int, int]] = []
    take: list[Tensor] = []
    back, gathered, begin = torch.full((rows,), -1), 0, 0
    for slot, count in zip(*(each.tolist() for each in slots.unique(return_counts=True)), strict=True):
        own = order[begin : begin + count]
        begin += count
        if slot < 0:
            continue
        filled = count + -count % ROWS
        take += [own, own[:1].expand(filled - count)]  # any row does: these products go nowhere
        back[own] = torch.arange(gathered, gathered + count)
        blocks.append((slot, gathered, gathered + filled))
        gathered += filled
    if not blocks:
        return Batch([], 0, None, None)
    back[back < 0] = gathered
    in_order = count == rows  # one adapter has every row
    return Batch(
        blocks,
        gathered,
        None if in_order and gathered == rows else torch.cat(take),
        None if in_order else back,
    )


def factors_of(*stacks: Sequence[Tensor]) -> list[Slices]:
    """The transposed matrices of each slot and slice, as views: what is loaded into a slot later shows in them.

    stacks: A's, then B's (or B's alone), per slice of the output [slots, 1, out, in].
    """
    slices = list(zip(*stacks, strict=True))
    return [
        [tuple(w[slot, 0].T for w in matrices) for matrices in slices] for slot in range(len(stacks[0][0]))
    ]


def in_one(slices: Slices, columns: int) -> Slices:
    """The same as one slice of at most `columns`: the A's side by side, the B's as blocks of one matrix. Copies: they do
    not change with what is loaded later. Slices that are alone, or too large for zeros to cost nothing, stay as they are.
    """
    if len(slices) == 1 or len(slices[0]) != 2:
        return slices
    wide = min(sum(b.shape[1] for _, b in slices), columns)
    if wide * sum(len(b) for _, b in slices) > SMALL:
        return slices
    blocks = torch.block_diag(*(b for _, b in slices))[:, :wide].contiguous()
    return [(torch.cat([a for a, _ in slices], 1), blocks)]


class Layer(Mapping[int, Slices]):
    """What one layer holds, by slot, for an output of `columns`.

    loads: a list whose length says how often an adapter has been loaded into any slot: what was made before is stale.
    """

    def __init__(self, stacks: Sequence[Sequence[Tensor]], columns: int, loads: list[None]) -> None:
        self._views, self._columns, self._loads = factors_of(*stacks), columns, loads
        self._made: dict[int, tuple[int, Slices]] = {}

    def __getitem__(self, slot: int) -> Slices:
        made = self._made.get(slot)
        if made is None or made[0] != len(self._loads):
            made = self._made[slot] = len(self._loads), in_one(self._views[slot], self._columns)
        return made[1]

    def __len__(self) -> int:
        return len(self._views)

    def __iter__(self) -> Any:
        return iter(range(len(self)))


def add_products(output: Tensor, x: Tensor, factors: Factors, batch: Batch, scaling: float = 1.0) -> None:
    """output[:, slice] += scaling * x A^T B^T of each row's own adapter, slice by slice, in place.

    output: [rows, columns]; x: [rows, in]. Rows of other adapters and of none keep their values, whatever this adapter
    holds: one that has become NaN harms its own alone.
    """
    if not batch.blocks:
        return
    slices = factors[batch.blocks[0][0]]
    columns = min(output.shape[1], sum(matrices[-1].shape[1] for matrices in slices))
    x = x.to(slices[0][0].dtype)
    gathered = x if batch.take is None else x.index_select(0, batch.take)
    products = gathered.new_empty(batch.gathered + 1, columns)
    for slot, begin, end in batch.blocks:
        start = 0
        for matrices in factors[slot]:
            low = gathered[begin:end]
            for matrix in matrices[:-1]:
                low = low @ matrix
            last = matrices[-1][:, : columns - start]
            torch.mm(low, last, out=products[begin:end, start : start + last.shape[1]])
            start += last.shape[1]
    if scaling != 1.0:
        products *= scaling
    if batch.back is None:
        own = products[: len(x)]
    else:
        products[-1] = 0.0  # of the rows without an adapter
        own = products.index_select(0, batch.back)
    output[:, :columns].add_(own)


def use_them() -> None:
    """Have vLLM's CPU backend use these."""
    from vllm.lora.model_manager import LoRAModelManager
    from vllm.lora.punica_wrapper import punica_cpu

    wrapper: Any = punica_cpu.PunicaWrapperCPU
    manager: Any = LoRAModelManager
    activate = manager.activate_adapter
    loads: list[None] = []

    def activate_adapter(self: Any, lora_id: int) -> bool:
        """Every adapter that comes into a slot comes this way; those that are there already are asked for too, each step."""
        came = True
        try:
            came = activate(self, lora_id)
        finally:
            if came:
                loads.append(None)
        return came

    init, update_metadata = wrapper.__init__, wrapper.update_metadata

    def make(self: Any, *arguments: Any, **named: Any) -> None:
        init(self, *arguments, **named)
        self.batches = {}  # {(tokens or samples, rows): Batch} of this step
        self.layers = {}  # {id of what a layer holds: (that, Layer)}; vLLM allocates them once

    def update(self: Any, *arguments: Any, **named: Any) -> None:
        """Before a step: vLLM says which token has which slot."""
        update_metadata(self, *arguments, **named)
        self.batches.clear()

    def add(
        self: Any, which: str, y: Tensor, x: Tensor, scale: float, layer: Any, *stacks: Sequence[Tensor]
    ) -> None:
        """which: the indices that count, of tokens or of samples; layer: what the layer holds for good."""
        x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        if (which, len(x)) not in self.batches:
            self.batches[which, len(x)] = batch_of(getattr(self, which), len(x))
        if id(layer) not in self.layers:
            self.layers[id(layer)] = layer, Layer(stacks, y.shape[-1], loads)
        add_products(y, x, self.layers[id(layer)][1], self.batches[which, len(x)], scale)

    def add_lora_linear(
        self: Any, y: Tensor, x: Tensor, a: Any, b: Any, scale: float, *_: Any, **__: Any
    ) -> None:
        add(self, "token_lora_indices", y, x, scale, b, a, b)

    def add_lora_embedding(
        self: Any, y: Tensor, x: Tensor, lora_b_stacked: Tensor, *_: Any, **__: Any
    ) -> None:
        add(self, "token_lora_indices", y, x, 1.0, lora_b_stacked, [lora_b_stacked])

    def add_lora_logits(
        self: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, **_: Any
    ) -> None:
        add(self, "sampler_indices", y, x, scale, b, [a], [b])

    manager.activate_adapter = activate_adapter
    wrapper.__init__ = make
    wrapper.update_metadata = update
    wrapper.add_lora_linear = add_lora_linear
    wrapper.add_lora_embedding = add_lora_embedding
    wrapper.add_lora_logits = add_lora_logits
