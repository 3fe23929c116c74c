"""The adapters' products against the plain formula, and against themselves in other company."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tulu_lite.rollout import adapter_kernels
from tulu_lite.rollout.adapter_kernels import Layer, add_products, batch_of, factors_of


@pytest.fixture(params=["in one", "slice by slice"])
def size(request, monkeypatch):
    """Layers with several slices, small ones and others."""
    if request.param == "slice by slice":
        monkeypatch.setattr(adapter_kernels, "SMALL", 0)


@pytest.fixture
def parts(size) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [40, 64], A [3, 1, 8, 64], B [3, 1, 48, 8]"""
    torch.manual_seed(0)
    return torch.randn(40, 64), torch.randn(3, 1, 8, 64), torch.randn(3, 1, 48, 8)


def two_slices(x, a, b, indices, scale=1.0):
    """To a [rows, 60] of ones: A and B in the first 48 columns, in the rest A and twice B's first rows."""
    out = torch.ones(len(x), 60)
    layer = Layer([[a, a], [b, 2 * b[:, :, :12]]], 60, [])
    add_products(out, x, layer, batch_of(indices, len(x)), scale)
    return out


@pytest.mark.parametrize("count", [1, 16, 40])
@pytest.mark.parametrize("slots", [[0], [2], [0, 1, 2], [-1], [-1, 2]])
def test_equals_the_formula_slice_by_slice_and_leaves_tokens_without_an_adapter_alone(parts, slots, count):
    x, a, b = parts
    indices = torch.tensor([slots[i % len(slots)] for i in range(count)])
    out = two_slices(x[:count], a, b, indices, scale=2.0)
    want = torch.ones(count, 60)
    for row, slot in enumerate(indices.tolist()):
        if slot >= 0:
            product = 2.0 * x[row] @ a[slot, 0].T @ b[slot, 0].T
            want[row] += torch.cat([product, 2 * product[:12]])
    assert torch.allclose(out, want, atol=1e-4)


def test_a_row_is_the_same_to_the_bit_whatever_else_is_in_the_batch(parts):
    x, a, b = parts
    mixed = torch.tensor([i % 3 for i in range(40)])
    whole = two_slices(x, a, b, mixed)
    for count in (1, 2, 3, 5, 17):
        assert torch.equal(two_slices(x[:count], a, b, mixed[:count]), whole[:count])
    for slot in range(3):  # and alone with its like
        own = mixed == slot
        assert torch.equal(two_slices(x[own], a, b, mixed[own]), whole[own])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38])
def test_an_adapter_that_diverged_harms_its_own_rows_alone(parts, bad):
    x, a, b = parts
    indices = torch.tensor([(0, 1, -1)[i % 3] for i in range(40)])
    before = two_slices(x, a, b, indices)
    a[1], b[1] = bad, bad
    after = two_slices(x, a, b, indices)
    assert torch.equal(after[indices != 1], before[indices != 1])
    assert not after[indices == 1].isfinite().all()


def test_what_is_loaded_into_a_slot_later_counts(parts):
    x, a, b = parts
    held = factors_of([a], [b])
    a[1].zero_()
    out = torch.ones(40, 48)
    add_products(out, x, held, batch_of(torch.full((40,), 1), 40))
    assert torch.equal(out, torch.ones(40, 48))


def test_what_is_loaded_counts_in_a_layer_of_slices_too(parts):
    x, a, b = parts
    loads = []
    layer = Layer([[a, a], [b, b]], 80, loads)  # of 96 columns, which the output is padded to
    batch = batch_of(torch.full((40,), 1), 40)

    def output():
        out = torch.ones(40, 80)
        add_products(out, x, layer, batch)
        return out

    before = output()
    want = 1 + x @ a[1, 0].T @ b[1, 0].T
    assert torch.allclose(before, torch.cat([want, want[:, :32]], 1), atol=1e-4)
    a[1] *= 2
    loads.append(None)
    assert torch.allclose(output() - 1, 2 * (before - 1), atol=1e-4)
    assert len(layer[1]) == (2 if adapter_kernels.SMALL == 0 else 1)


def test_one_matrix_alone_as_for_embeddings_and_only_the_columns_that_both_have(parts):
    x, _, b = parts
    small, out = x[:, :8], torch.zeros(40, 40)
    add_products(out, small, factors_of([b]), batch_of(torch.full((40,), 1), 40))
    assert torch.allclose(out, (small @ b[1, 0].T)[:, :40], atol=1e-5)


def test_rows_beyond_the_tokens_are_nobodys(parts):
    x, a, b = parts
    out = torch.ones(40, 48)
    add_products(out, x, factors_of([a], [b]), batch_of(torch.full((30,), 1), 40))
    assert torch.equal(out[30:], torch.ones(10, 48)) and not torch.equal(out[:30], torch.ones(30, 48))


@pytest.mark.parametrize("slot", [0, 1, 2])
def test_an_adapter_has_the_same_bits_in_any_slot(parts, slot):
    """A server that restarts loads its adapters in another order."""
    x, a, b = parts
    first = two_slices(x, a, b, torch.zeros(40, dtype=torch.long))
    others_a, others_b = torch.randn_like(a), torch.randn_like(b)
    others_a[slot], others_b[slot] = a[0], b[0]
    assert torch.equal(two_slices(x, others_a, others_b, torch.full((40,), slot)), first)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_token_that_diverged_harms_its_own_row_alone(parts, bad):
    x, a, b = parts
    indices = torch.tensor([(0, 1, -1)[i % 3] for i in range(40)])
    before = two_slices(x, a, b, indices)
    x[0], x[5], x[7] = (
        bad,
        bad,
        bad,
    )  # of the first, whose rows are filled up with it, of none, and of the second
    after = two_slices(x, a, b, indices)
    rest = torch.ones(40, dtype=torch.bool)
    rest[[0, 7]] = False
    assert torch.equal(after[rest], before[rest])
    assert not after[~rest].isfinite().any()


@example([0] * 16 + [-1])  # filled up, the adapter has as many rows as come before the last
@given(st.lists(st.integers(-1, 2), min_size=1, max_size=70))
def test_rows_are_gathered_by_their_adapter_and_put_back(slots):
    batch = batch_of(torch.tensor(slots), len(slots))
    if max(slots) < 0:
        assert batch.blocks == []  # and nothing is done
        return
    assert batch.back is not None or len(set(slots)) == 1  # with None nothing is set to zero for rows of none
    taken = range(len(slots)) if batch.take is None else batch.take.tolist()
    assert len(taken) == batch.gathered == sum(end - begin for _, begin, end in batch.blocks)
    held = {place: slot for slot, begin, end in batch.blocks for place in range(begin, end)}
    assert all((end - begin) % 16 == 0 and slot >= 0 for slot, begin, end in batch.blocks)
    assert all(slots[taken[place]] == slot for place, slot in held.items())
    for row, slot in enumerate(slots):
        place = row if batch.back is None else int(batch.back[row])
        assert (place == batch.gathered) if slot < 0 else (taken[place] == row and held[place] == slot)
