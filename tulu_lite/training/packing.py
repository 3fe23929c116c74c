"""Sequences packed end to end without padding, none of which sees another; positions restart with each.

N tokens of the row, H heads, D their size, T tokens of each of a part's pieces.

All of a layer but attention treats each token by itself, so a packed row [1, N] needs care in attention alone:

    varlen  each sequence by itself, what neighbours begin with in common but once (see row.py): torch's variable-length
            flash kernels for 16-bit types on a GPU, else scaled_dot_product_attention, those of the same length together
    block   one attention over all N tokens under a block-diagonal mask [N, N]: dear, but any architecture with
            transformers' masks can do it
    bucket  no packing: rows padded to the longest of a micro-batch of like lengths
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..datasets.batching import pack_by_length
from ..errors import TuluLiteError
from .row import LEAST_SHARED, Part, Segments

Packing = Literal["bucket", "varlen", "block"]
Beginning = tuple[Hashable, int]  # which, and its tokens
VARLEN = "tulu_lite_varlen"  # what transformers calls our attention
_packed: ContextVar[bool] = ContextVar("packed", default=False)


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
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [N, H, D]
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16):
        return _flash(q, k, v, segments, scaling, window)[None], None
    # split, not slices: the backward pass of each slice would fill a whole row with zeros
    queries, keys, values = (tensor.split(segments.sizes) for tensor in (q, k, v))
    found = [
        _alike(
            module,
            queries[number].unflatten(0, (part.count, part.length)),
            _seen(keys, number, part),
            _seen(values, number, part),
            segments.mask(part, window),
            scaling,
        )
        for number, part in enumerate(segments.parts)
    ]
    return torch.cat(found)[None], None


def _seen(pieces: Sequence[Tensor], number: int, part: Part) -> Tensor:
    """[count, tokens seen, H, D] what each piece of a part sees, of the parts [count * length, H, D] of a row."""
    own = pieces[number].unflatten(0, (part.count, part.length))
    if part.after is None:
        return own
    return torch.cat([pieces[part.after].expand(part.count, -1, -1, -1), own], 1)


def _alike(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """[count * T, H, D] attention of a part's queries [count, T, H, D] to keys and values [count, seen, H, D]."""
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    whole = None if mask is None else mask[None, None]
    out, _ = sdpa_attention_forward(module, query, key, value, whole, scaling=scaling, is_causal=True)
    return out.flatten(0, 1)


def _flash(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scaling: float | None, window: int | None
) -> Tensor:
    """[N, H, D] by torch's variable-length kernels (flash attention 2 and 3), which align queries and keys at their ends.
    A window of W tokens counts the token itself."""
    from torch.nn.attention.varlen import varlen_attn

    longest = segments.longest
    if segments.shares:
        k, v = (_all_seen(tensor, segments) for tensor in (k, v))
    out = varlen_attn(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        segments.edges(seen=False),
        segments.edges(seen=True),
        max(part.length for part in segments.parts),
        longest,
        scale=scaling,
        window_size=(-1 if window is None or window >= longest else window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(out, Tensor)
    return out


def _all_seen(row: Tensor, segments: Segments) -> Tensor:
    """[sum of what each piece sees, H, D] of a row [N, H, D]."""
    pieces = row.split(segments.sizes)
    return torch.cat(
        [_seen(pieces, number, part).flatten(0, 1) for number, part in enumerate(segments.parts)]
    )


def families(lengths: Sequence[int], begin: Sequence[Beginning] | None) -> list[list[int]]:
    """Indices of items that begin alike, and of others alone; within a family and of families the shortest first."""
    found: dict[Any, list[int]] = {}
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        shares = begin is not None and begin[i][1] >= LEAST_SHARED
        family = ("of", begin[i][0]) if begin is not None and shares else ("alone", i)
        found.setdefault(family, []).append(i)
    return list(found.values())


def micro_batches(
    lengths: Sequence[int], max_tokens: int, begin: Sequence[Beginning] | None = None
) -> list[list[int]]:
    """Indices of packed micro-batches of at most max_tokens real tokens, shortest first; a longer item is one by itself.

    begin: (which beginning, its tokens) of each item: items of the same one are kept together, and in a micro-batch it
    counts once. Like lengths come together, so that attention's parts are few.
    """
    full: list[list[int]] = []
    filled = 0
    for family in families(lengths, begin):
        shared = begin[family[0]][1] if begin is not None and len(family) > 1 else 0
        begun = False  # whether the micro-batch holds the family's beginning already
        for index in family:
            more = lengths[index] - (shared if begun else 0)
            if full and filled + more <= max_tokens:
                full[-1].append(index)
                filled += more
            else:
                full.append([index])
                filled = lengths[index]
            begun = True
    return full


def micro_batches_of(
    packing: Packing, lengths: Sequence[int], max_tokens: int, begin: Sequence[Beginning] | None = None
) -> list[list[int]]:
    """Indices of the items of each forward pass, of at most max_tokens as the packing counts them: padding included where
    rows are padded. begin: see micro_batches; it counts for varlen alone, since nothing else shares."""
    if packing == "bucket":
        return pack_by_length(lengths, max_tokens)
    return micro_batches(lengths, max_tokens, begin if packing == "varlen" else None)


def compiled_around() -> None:
    """For layers that are compiled: attention itself is not, since its groups differ from batch to batch."""
    AttentionInterface.register(VARLEN, torch.compiler.disable(_attention))


AttentionInterface.register(VARLEN, _attention)
AttentionMaskInterface.register(VARLEN, _mask)
