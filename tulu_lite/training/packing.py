"""Sequences packed end to end without padding, none of which sees another; positions restart with each.

B sequences, N their tokens in all, H heads, D their size, T tokens of the longest sequence of a group.

All of a layer but attention treats each token by itself, so a packed row [1, N] needs care in attention alone:

    varlen  each sequence by itself: torch's variable-length flash kernels for 16-bit types on a GPU, else through
            scaled_dot_product_attention, those of the same length together
    block   one attention over all N tokens under a block-diagonal mask [N, N]: dear, but any architecture with
            transformers' masks can do it
    bucket  no packing: rows padded to the longest of a micro-batch of like lengths
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..datasets.batching import pack_by_length
from ..errors import TuluLiteError

Packing = Literal["bucket", "varlen", "block"]
VARLEN = "tulu_lite_varlen"  # what transformers calls our attention
_packed: ContextVar[bool] = ContextVar("packed", default=False)


@dataclass(frozen=True)
class Group:
    """count neighbouring sequences of a packed row that have the same length, and go through attention together."""

    count: int
    length: int


@dataclass(frozen=True)
class Segments:
    """Where the sequences of a packed row begin and end. edges: [B + 1] int32, from 0 to N."""

    edges: Tensor
    longest: int
    groups: tuple[Group, ...]


def segments_of(lengths: Sequence[int], device: torch.device) -> Segments:
    """Of sequences that lie one after another in a row. Best where those of the same length are neighbours."""
    edges = [0, *accumulate(lengths)]
    groups = tuple(Group(len(list(same)), length) for length, same in groupby(lengths))
    return Segments(torch.tensor(edges, dtype=torch.int32, device=device), max(lengths, default=0), groups)


@contextmanager
def packed_row(without_mask: bool) -> Iterator[None]:
    """Within it, models with our attention make no mask: each layer is given `segments` instead."""
    token = _packed.set(without_mask)
    try:
        yield
    finally:
        _packed.reset(token)


def _mask(*args: Any, **kwargs: Any) -> Any:
    return None if _packed.get() else sdpa_mask(*args, **kwargs)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, H, N, D], key and value [1, fewer H, N, D] -> [1, N, H, D].

    Without `segments` (rows that are not packed) it is transformers' own sdpa.
    """
    segments: Segments | None = options.pop("segments", None)
    if segments is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise TuluLiteError(
                f"variable-length attention does not know {name} of {type(module).__name__}",
                cure="set packing: bucket",
            )
    window = options.get("sliding_window")
    window = window if window is not None and window < segments.longest else None
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [N, H, D]
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16):
        return _flash(q, k, v, segments, scaling, window)[None], None
    # split, not slices: the backward pass of each slice would fill a whole row with zeros
    sizes = [group.count * group.length for group in segments.groups]
    parts = [
        _grouped(module, own, group, scaling, window)
        for *own, group in zip(q.split(sizes), k.split(sizes), v.split(sizes), segments.groups, strict=True)
    ]
    return torch.cat(parts)[None], None


def _flash(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scaling: float | None, window: int | None
) -> Tensor:
    """[N, H, D] by torch's variable-length kernels (flash attention 2 and 3). A window of W tokens counts the token itself."""
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        segments.edges,
        segments.edges,
        segments.longest,
        segments.longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(out, Tensor)
    return out


def _grouped(
    module: Any, qkv: Sequence[Tensor], group: Group, scaling: float | None, window: int | None
) -> Tensor:
    """[count * T, H, D] of one group's sequences of T tokens; qkv of the same shape."""
    query, key, value = (
        own.unflatten(0, (group.count, group.length)).transpose(1, 2) for own in qkv
    )  # [count, H, T, D]
    mask = None
    if window is not None and window < group.length:
        ones = torch.ones(group.length, group.length, dtype=torch.bool, device=query.device)
        mask = (ones.tril() & ~ones.tril(-window))[None, None]
    out, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, is_causal=True)
    return out.flatten(0, 1)


def micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of packed micro-batches of at most max_tokens real tokens, shortest first; a longer item is one by itself.

    Like lengths come together, so that attention's groups are few. The number of micro-batches is the least that a
    budget of this size allows in this order, and their sizes are near one another.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    full: list[list[int]] = []
    filled = 0
    for index in order:
        if full and filled + lengths[index] <= max_tokens:
            full[-1].append(index)
            filled += lengths[index]
        else:
            full.append([index])
            filled = lengths[index]
    return full


def micro_batches_of(packing: Packing, lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of the items of each forward pass, of at most max_tokens as the packing counts them: padding included where
    rows are padded."""
    split = pack_by_length if packing == "bucket" else micro_batches
    return split(lengths, max_tokens)


def compiled_around() -> None:
    """For layers that are compiled: attention itself is not, since its groups differ from batch to batch."""
    AttentionInterface.register(VARLEN, torch.compiler.disable(_attention))


AttentionInterface.register(VARLEN, _attention)
AttentionMaskInterface.register(VARLEN, _mask)
