"""The adapters' products against the plain formula, and against themselves in other company."""

from __future__ import annotations

import pytest
import torch

from tulu_lite.rollout.adapter_kernels import expand, expand_slice, shrink


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
