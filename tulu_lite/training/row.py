"""The packed row of a batch: which tokens stand in it, where each sequence begins, and what a token may look back on.

B sequences, T positions of the padded batch, N tokens of the row.

Attention is causal, so what a model computes at a token depends on that token and those before it alone. Neighbouring
sequences that begin alike (the responses to one prompt, both sides of a pair) therefore have their common beginning in
the row once: each of the rest looks back on it and on itself. It is exact, forwards and backwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

LEAST_SHARED = 16  # tokens: a shorter common beginning saves less than another part of attention costs
MOST_SHARING = 64  # sequences that are looked at together for a common beginning


@dataclass(frozen=True)
class Part:
    """count neighbouring pieces of a row, each of length tokens, that go through attention together.

    A piece sees itself and, before it, the piece that is part number `after`; nothing else.
    """

    count: int
    length: int
    after: int | None = None


@dataclass(frozen=True)
class Segments:
    """The parts of a packed row, in its order. Each piece that others come after is a part by itself."""

    parts: tuple[Part, ...]
    device: torch.device
    masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict)  # made once for all layers

    @property
    def sizes(self) -> list[int]:
        """Tokens of each part."""
        return [part.count * part.length for part in self.parts]

    @property
    def shares(self) -> bool:
        return any(part.after is not None for part in self.parts)

    @property
    def longest(self) -> int:
        """Tokens that the last token of some piece sees, itself included."""
        return max(map(self.seen, self.parts), default=0)

    def seen(self, part: Part) -> int:
        """Tokens that the last token of a piece of this part sees."""
        return part.length + (0 if part.after is None else self.parts[part.after].length)

    def edges(self, seen: bool) -> Tensor:
        """[pieces + 1] int32: where each piece begins and ends in the row or, with `seen`, what it sees in a row of that."""
        lengths = [self.seen(part) if seen else part.length for part in self.parts for _ in range(part.count)]
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=self.device)

    def mask(self, part: Part, window: int | None) -> Tensor | None:
        """[length, seen], true where a token of a piece sees another; None where plain causal attention says as much."""
        length, seen = part.length, self.seen(part)
        window = None if window is None or window >= seen else window
        if window is None and part.after is None:
            return None
        key = (length, seen, window)
        if key not in self.masks:
            ones = torch.ones(length, seen, dtype=torch.bool, device=self.device)
            mask = ones.tril(seen - length)
            self.masks[key] = mask if window is None else mask & ~ones.tril(seen - length - window)
        return self.masks[key]


@dataclass(frozen=True)
class Row:
    """places: [N] of the row's tokens in [B * T]. where: [B * T] of each real token in the row, 0 for padding."""

    places: Tensor
    where: Tensor
    segments: Segments


def row_of(ids: Tensor, attention: Tensor, shares: bool) -> Row:
    """Of a batch [B, T] padded on the right. shares: whether common beginnings stand in the row once."""
    longest = ids.shape[1]
    lengths: list[int] = attention.sum(1).tolist()
    common = _common(ids, attention) if shares else [0] * max(len(lengths) - 1, 0)
    places: list[int] = []
    where = [0] * ids.numel()
    parts: list[Part] = []

    def put(row: int, begin: int, end: int) -> None:
        first = row * longest
        where[first + begin : first + end] = range(len(places), len(places) + end - begin)
        places.extend(range(first + begin, first + end))

    for rows, shared in clusters(lengths, common):
        after = None
        if shared:
            after = len(parts)
            parts.append(Part(1, shared))
            put(rows[0], 0, shared)
            begins = where[rows[0] * longest : rows[0] * longest + shared]
        for row in rows:
            if shared:
                where[row * longest : row * longest + shared] = begins
            put(row, shared, lengths[row])
            _append(parts, Part(1, lengths[row] - shared, after))
    on = ids.device
    return Row(torch.tensor(places, device=on), torch.tensor(where, device=on), Segments(tuple(parts), on))


def segments_of(lengths: Sequence[int], device: torch.device) -> Segments:
    """Of sequences that lie one after another in a row and share nothing."""
    parts: list[Part] = []
    for length in lengths:
        _append(parts, Part(1, length))
    return Segments(tuple(parts), device)


def _append(parts: list[Part], part: Part) -> None:
    """Make it one with the last if they are alike."""
    last = parts[-1] if parts else None
    if last is not None and (last.length, last.after) == (part.length, part.after):
        parts[-1] = Part(last.count + part.count, last.length, last.after)
    else:
        parts.append(part)


def _common(ids: Tensor, attention: Tensor) -> list[int]:
    """[B - 1]: how many first tokens each sequence has in common with the one before it."""
    both = (attention[1:] * attention[:-1]).bool()
    return ((ids[1:] == ids[:-1]) & both).cumprod(1).sum(1).tolist()


def clusters(lengths: Sequence[int], common: Sequence[int]) -> list[tuple[range, int]]:
    """Neighbours that share a beginning, and its length: the division that leaves fewest tokens in the row.

    common: [B - 1] of each sequence and the one before it. Of each at least one token stays its own. Sequences that
    share nothing are alone, with 0.
    """
    saved, begins, sharing = (
        [0],
        [0],
        [0],
    )  # of the first n sequences; where the last cluster begins, what it shares
    for end in range(1, len(lengths) + 1):
        best = (saved[end - 1], end - 1, 0)
        shared = lengths[end - 1] - 1
        for begin in range(end - 2, max(end - MOST_SHARING, 0) - 1, -1):
            shared = min(shared, common[begin], lengths[begin] - 1)
            if shared < LEAST_SHARED:
                break
            best = max(best, (saved[begin] + (end - begin - 1) * shared, begin, shared))
        for found, value in zip((saved, begins, sharing), best, strict=True):
            found.append(value)
    found_rows: list[tuple[range, int]] = []
    end = len(lengths)
    while end:
        found_rows.append((range(begins[end], end), sharing[end]))
        end = begins[end]
    return found_rows[::-1]
