"""The adapters' products against the plain formula, and against themselves in other company."""

from __future__ import annotations

import pytest
import torch

from tulu_lite.rollout.adapter_kernels import add_low_rank, expand, expand_slice, matrices, shrink, whose


@pytest.fixture
def parts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [40, 64], A [3, 1, 8, 64], B [3, 1, 48, 8]"""
    torch.manual_seed(0)
    return torch.randn(40, 64), torch.randn(3, 1, 8, 64), torch.randn(3, 1, 48, 8)


def low_rank(x, a, b, indices, scale=1.0):
    small = torch.zeros(len(x), 8)
    shrink(x, a, small, indices, scale)
    out = torch.ones(len(x), 60)
    expand_slice(small, b, out, indices, 10, 48)
    return out


def linear_layer(x, a, b, indices, scale=1.0):
    """As low_rank, by the way of linear layers: two slices, of which the second is the first's twice."""
    out = torch.ones(len(x), 60)
    add_low_rank(out, x, matrices([a, a], [b, 2 * b[:, :, :12]]), whose(indices, len(x)), scale)
    return out


@pytest.mark.parametrize("count", [1, 16, 40])
@pytest.mark.parametrize("slots", [[0], [2], [0, 1, 2], [-1], [-1, 2]])
def test_a_linear_layer_equals_the_formula_slice_by_slice(parts, slots, count):
    x, a, b = parts
    indices = torch.tensor([slots[i % len(slots)] for i in range(count)])
    out = linear_layer(x[:count], a, b, indices, scale=2.0)
    want = torch.ones(count, 60)
    for row, slot in enumerate(indices.tolist()):
        if slot >= 0:
            product = 2.0 * x[row] @ a[slot, 0].T @ b[slot, 0].T
            want[row] += torch.cat([product, 2 * product[:12]])
    assert torch.allclose(out, want, atol=1e-4)


def test_a_row_of_a_linear_layer_is_the_same_to_the_bit_whatever_else_is_in_the_batch(parts):
    x, a, b = parts
    mixed = torch.tensor([i % 3 for i in range(40)])
    whole = linear_layer(x, a, b, mixed)
    for count in (1, 2, 3, 5, 17):
        assert torch.equal(linear_layer(x[:count], a, b, mixed[:count]), whole[:count])
    for slot in range(3):  # and alone with its like
        own = mixed == slot
        assert torch.equal(linear_layer(x[own], a, b, mixed[own]), whole[own])


def test_what_is_loaded_into_a_slot_later_counts(parts):
    x, a, b = parts
    held = matrices([a], [b])
    a[1].zero_()
    out = torch.ones(40, 48)
    add_low_rank(out, x, held, whose(torch.full((40,), 1), 40))
    assert torch.equal(out, torch.ones(40, 48))


@pytest.mark.parametrize("slots", [[0], [2], [0, 1, 2], [-1], [-1, 2]])
def test_equals_the_formula_and_leaves_tokens_without_an_adapter_alone(parts, slots):
    x, a, b = parts
    indices = torch.tensor([slots[i % len(slots)] for i in range(40)])
    out = low_rank(x, a, b, indices, scale=2.0)
    want = torch.ones(40, 60)
    for row, slot in enumerate(indices.tolist()):
        if slot >= 0:
            want[row, 10:58] += 2.0 * x[row] @ a[slot, 0].T @ b[slot, 0].T
    assert torch.allclose(out, want, atol=1e-4)


def test_a_row_is_the_same_to_the_bit_whatever_else_is_in_the_batch(parts):
    x, a, b = parts
    indices = torch.tensor([i % 3 for i in range(40)])
    whole = low_rank(x, a, b, indices)
    for count in (1, 2, 3, 5, 17):
        assert torch.equal(low_rank(x[:count], a, b, indices[:count]), whole[:count])


def test_expand_takes_all_columns_that_both_have(parts):
    x, _, b = parts
    small = x[:, :8].contiguous()
    out = torch.zeros(40, 40)
    expand(small, b, out, torch.full((40,), 1))
    assert torch.allclose(out, (small @ b[1, 0].T)[:, :40], atol=1e-5)
    expand(small, b, out, torch.full((40,), 1), add_inputs=False)
    assert torch.allclose(out, (small @ b[1, 0].T)[:, :40], atol=1e-5)
