"""What stands in a packed row: every token of each sequence once, common beginnings once for all who share them."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tulu_lite.training import row as module
from tulu_lite.training.row import Row, clusters, row_of, segments_of

CPU = torch.device("cpu")
# a beginning, one of three of some length, and what comes after it
sequence = st.tuples(
    st.integers(0, 2), st.integers(0, 40), st.lists(st.integers(1, 2), min_size=1, max_size=8)
)
sequences = st.lists(sequence, min_size=1, max_size=14)


def batch(drawn: list[tuple[int, int, list[int]]]) -> tuple[Tensor, Tensor]:
    """Padded on the right."""
    rows = [[10 + which] * begin + rest for which, begin, rest in drawn]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


def seen_by(row: Row, window: int | None = None) -> list[list[int]]:
    """For each token of the row: the places in the row that it sees, in their order."""
    segments, at, found = row.segments, 0, []
    starts = [sum(segments.sizes[:n]) for n in range(len(segments.parts))]
    for part in segments.parts:
        for _ in range(part.count):
            keys = list(range(at, at + part.length))
            if part.after is not None:
                first = starts[part.after]
                keys = list(range(first, first + segments.parts[part.after].length)) + keys
            mask = segments.mask(part, window)
            if mask is None:
                mask = torch.ones(part.length, part.length).tril().bool()
            found += [[key for key, sees in zip(keys, line, strict=True) if sees] for line in mask.tolist()]
            at += part.length
    return found


@settings(max_examples=200, deadline=None)
@given(sequences, st.booleans(), st.none() | st.integers(1, 12))
def test_each_token_sees_its_own_sequence_up_to_itself(
    drawn: list[tuple[int, int, list[int]]], shares: bool, window: int | None
) -> None:
    ids, attention = batch(drawn)
    row = row_of(ids, attention, shares)
    tokens, seen, longest = ids.reshape(-1)[row.places], seen_by(row, window), ids.shape[1]
    for number in range(len(ids)):
        for position in range(int(attention[number].sum())):
            place = int(row.where[number * longest + position])
            assert row.places[place] % longest == position
            first = 0 if window is None else max(0, position - window + 1)
            assert tokens[seen[place]].tolist() == ids[number, first : position + 1].tolist()
    if not shares:
        assert len(row.places) == attention.sum()


@settings(max_examples=100, deadline=None)
@given(sequences, st.booleans())
def test_edges_say_what_the_parts_say(drawn: list[tuple[int, int, list[int]]], shares: bool) -> None:
    row = row_of(*batch(drawn), shares)
    own, seen = row.segments.edges(seen=False).tolist(), row.segments.edges(seen=True).tolist()
    assert own[-1] == len(row.places) == sum(row.segments.sizes)
    last = [end - 1 for end in own[1:]]
    found = seen_by(row)
    assert [len(found[place]) for place in last] == [end - begin for begin, end in pairwise(seen)]
    assert row.segments.longest == max(end - begin for begin, end in pairwise(seen))
    assert row.segments.shares == (len(own) - 1 > len(drawn))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.data())
def test_no_division_leaves_fewer_tokens(lengths: list[int], data: st.DataObject) -> None:
    common = [data.draw(st.integers(0, min(pair))) for pair in pairwise(lengths)]
    found = clusters(lengths, common)
    assert [row for rows, _ in found for row in rows] == list(range(len(lengths)))
    for rows, shared in found:
        between = [common[n] for n in rows[:-1]]
        assert (shared == 0) if len(rows) == 1 else module.LEAST_SHARED <= shared <= min(between)
        assert all(shared < lengths[n] for n in rows)

    def best(begin: int) -> int:
        """Tokens saved of the sequences from `begin` on, by trying everything."""
        if begin == len(lengths):
            return 0
        options = [best(begin + 1)]
        for end in range(begin + 2, len(lengths) + 1):
            shared = min(min(common[begin : end - 1]), min(lengths[begin:end]) - 1)
            if shared >= module.LEAST_SHARED:
                options.append((end - begin - 1) * shared + best(end))
        return max(options)

    assert sum((len(rows) - 1) * shared for rows, shared in found) == best(0)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=30))
def test_neighbours_of_one_length_are_one_part(lengths: list[int]) -> None:
    segments = segments_of(lengths, CPU)
    assert segments.edges(seen=False).tolist() == [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    assert [part.length for part in segments.parts for _ in range(part.count)] == lengths
    assert all(one.length != other.length for one, other in pairwise(segments.parts))


def test_a_row_by_hand() -> None:
    """Two responses of 2 and one of 1 to a prompt of 16, then one that shares nothing."""
    prompt = list(range(100, 116))
    rows = [[*prompt, 1, 2], [*prompt, 3, 4], [*prompt, 5], [7, 8]]
    ids = torch.tensor([row + [0] * (18 - len(row)) for row in rows])
    attention = (torch.arange(18) < torch.tensor([len(row) for row in rows])[:, None]).long()
    row = row_of(ids, attention, shares=True)
    assert ids.reshape(-1)[row.places].tolist() == [*prompt, 1, 2, 3, 4, 5, 7, 8]
    assert [(part.count, part.length, part.after) for part in row.segments.parts] == [
        (1, 16, None), (2, 2, 0), (1, 1, 0), (1, 2, None),
    ]  # fmt: skip
    assert row.where.view(4, 18)[2].tolist() == [*range(16), 20, 0]
    mask = row.segments.mask(row.segments.parts[1], None)
    assert mask is not None
    assert mask.int().sum(1).tolist() == [17, 18]
