"""LoRA products on the CPU, in place of vLLM's own.  [vLLM 0.32: lora/punica_wrapper/punica_cpu.py]

vLLM's gather one copy of the adapter's matrix for every token of the batch, and give a token without an adapter
(index -1) that of the last slot. Here two products do for all adapters of a small layer, and for all its slices (q, k
and v in one): the A's of all slots side by side, of whose results every row keeps its own adapter's, and the B's below
each other. At small batches it is the number of operations that costs, and theirs does not grow with the adapters. In a
large layer each adapter is multiplied with its own rows.

Rows are filled up to a multiple of 16, because matrix kernels for very few rows round otherwise: so a response does not
depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 16
WIDE = 256  # columns of all the A's side by side: more of them cost more than the operations saved
SMALL = 1 << 18  # elements of a matrix that is made of several

Slices = list[tuple[Tensor, ...]]  # per slice of the output: what the rows are multiplied by in turn


class Batch:
    """Which row of a step's batch has which adapter.

    indices: [tokens], the slot of each token, -1: none. Rows beyond them are nobody's.
    """

    def __init__(self, indices: Tensor, rows: int) -> None:
        self._slots = indices[:rows].tolist()
        self._rows = rows
        self._others: dict[tuple[int, int], Tensor] = {}

    @cached_property
    def own(self) -> list[tuple[int, slice | Tensor]]:
        """The slots that occur, each with its rows: neighbours, or their numbers."""
        rows_of: dict[int, list[int]] = {}
        for row, slot in enumerate(self._slots):
            if slot >= 0:
                rows_of.setdefault(slot, []).append(row)
        return [(slot, _neighbours(numbers)) for slot, numbers in sorted(rows_of.items())]

    def others(self, slots: int, width: int) -> Tensor:
        """[rows, filled up; slots * width]: whether a column is of another slot than the row's."""
        if (slots, width) not in self._others:
            own = self._slots + [-1] * (_filled(self._rows) - len(self._slots))
            other = torch.tensor(own)[:, None] != torch.arange(slots)
            self._others[slots, width] = other.repeat_interleave(width, 1)
        return self._others[slots, width]


def _neighbours(numbers: list[int]) -> slice | Tensor:
    """Requests of one seed come together, so that their rows mostly lie together and need not be gathered."""
    if numbers[-1] - numbers[0] + 1 == len(numbers):
        return slice(numbers[0], numbers[-1] + 1)
    return torch.tensor(numbers)


def _filled(rows: int) -> int:
    return rows + -rows % ROWS


def _fill(x: Tensor) -> Tensor:
    """x [rows, in] with rows of zeros to a multiple of ROWS."""
    missing = -len(x) % ROWS
    return F.pad(x, (0, 0, 0, missing)) if missing else x


class Together(NamedTuple):
    """All adapters of a layer in two products.

    down: [in, slots * width]; up: [slots * width, columns]; width: the ranks of a slot's slices added up.
    bad: the slots that hold something not finite, which are zeros here: 0 * inf would harm the others' rows.
    """

    down: Tensor
    up: Tensor
    width: int
    bad: frozenset[int]


class Layer:
    """What one layer holds.

    stacks: A's, then B's (or B's alone), per slice of the output [slots, 1, out, in]; their memory is vLLM's.
    columns: of the output, which can be fewer than the slices'.
    loads: a list whose length says how often an adapter has been loaded into any slot: what was made before is stale.
    """

    def __init__(self, stacks: Sequence[Sequence[Tensor]], columns: int, loads: list[None]) -> None:
        slices = list(zip(*stacks, strict=True))
        # Transposed, as views: what is loaded into a slot later shows in them.
        self.slots: list[Slices] = [
            [tuple(matrix[slot, 0].T for matrix in matrices) for matrices in slices]
            for slot in range(len(stacks[0][0]))
        ]
        self._columns, self._loads = columns, loads
        width = sum(matrices[0].shape[1] for matrices in self.slots[0])
        across = len(self.slots) * width
        deep = max(len(self.slots[0][0][0]), columns)
        self._small = len(stacks) == 2 and across <= WIDE and across * deep <= SMALL
        self._made: tuple[int, Together] | None = None

    @property
    def together(self) -> Together | None:
        """None: too large for its zeros to cost nothing."""
        if not self._small:
            return None
        if self._made is None or self._made[0] != len(self._loads):
            self._made = len(self._loads), _together(self.slots, self._columns)
        return self._made[1]


def _together(slots: Sequence[Slices], columns: int) -> Together:
    bad = frozenset(
        number
        for number, slices in enumerate(slots)
        if not all(m.isfinite().all() for ms in slices for m in ms)
    )
    downs = [torch.cat([a for a, _ in slices], 1) for slices in slots]
    ups = [torch.block_diag(*(b for _, b in slices))[:, :columns] for slices in slots]
    for number in bad:
        downs[number], ups[number] = torch.zeros_like(downs[number]), torch.zeros_like(ups[number])
    return Together(torch.cat(downs, 1), torch.cat(ups).contiguous(), downs[0].shape[1], bad)


def add_products(output: Tensor, x: Tensor, layer: Layer, batch: Batch, scaling: float = 1.0) -> None:
    """output[:, slice] += scaling * x A^T B^T of each row's own adapter, slice by slice, in place.

    output: [rows, columns]; x: [rows, in]. Rows of other adapters and of none are left as they are, to the bit and
    whatever this adapter holds: one that has become NaN harms its own alone.
    """
    if not batch.own:
        return
    together = layer.together
    if together is not None:
        low = _fill(x).to(together.down.dtype) @ together.down
        # Filled, not multiplied by zero: what overflowed in another adapter's columns would become NaN.
        low.masked_fill_(batch.others(len(layer.slots), together.width), 0.0)
        if scaling != 1.0:
            low *= scaling
        output[:, : together.up.shape[1]] += (low @ together.up)[: len(x)]
    for slot, rows in batch.own:
        if together is None or slot in together.bad:
            _add_one(output, x, layer.slots[slot], rows, scaling)


def _add_one(output: Tensor, x: Tensor, slices: Slices, rows: slice | Tensor, scaling: float) -> None:
    """One adapter's products with its own rows."""
    own = x[rows]
    padded, start = _fill(own), 0
    for matrices in slices:
        product = padded
        for matrix in matrices:
            product = product.to(matrix.dtype) @ matrix
        width = min(product.shape[1], output.shape[1] - start)
        product = product[: len(own), :width]
        if scaling != 1.0:
            product *= scaling
        columns = output.narrow(1, start, width)
        if isinstance(rows, slice):
            columns[rows].add_(product)
        else:
            columns[rows] = columns[rows].add_(product)
        start += width


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
            self.batches[which, len(x)] = Batch(getattr(self, which), len(x))
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
