"""Where stretches of a text begin and end among its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Encoding:
    """A tokenized text. offsets: [T] (first, last) characters of each token, if the tokenizer tells them."""

    ids: list[int]
    offsets: Sequence[tuple[int, int]] | None


class UnevenTokens(Exception):
    """A token spans the edge, and the text cannot be tokenized in parts; `edge` is the character."""

    def __init__(self, edge: int) -> None:
        self.edge = edge
        super().__init__(f"no token begins at character {edge}")


def split_tokens(
    text: str,
    edges: Sequence[int],
    encoding: Encoding,
    ids_of: Callable[[str], list[int]],
    text_of: Callable[[list[int]], str],
) -> tuple[list[int], list[int]]:
    """(token ids, the number of tokens before each edge), such that no token spans an edge.

    edges: ascending character positions. The ids are the encoding's own if they have a token boundary at
    every edge. Else (white space of an answer that melts into that of the prompt before it) the parts are
    tokenized by themselves, as at sampling, where the answer begins with a fresh token.
    Raises UnevenTokens when the parts' tokens spell another text than the whole's.
    """
    places = _by_offsets(text, edges, encoding)
    if places is None:
        places = _by_prefix(text, edges, encoding.ids, ids_of)
    if places is not None:
        return encoding.ids, places
    ids: list[int] = []
    places, start = [], 0
    for edge in edges:
        ids += ids_of(text[start:edge])
        places.append(len(ids))
        start = edge
    ids += ids_of(text[start:])
    if text_of(ids) != text_of(encoding.ids):
        raise UnevenTokens(edges[0] if edges else 0)
    return ids, places


def _by_offsets(text: str, edges: Sequence[int], encoding: Encoding) -> list[int] | None:
    """None when the offsets leave gaps (some tokenizers trim white space), or a token spans an edge."""
    if encoding.offsets is None or not encoding.ids:
        return None
    spans = np.asarray(encoding.offsets, dtype=np.int64)
    first, last = spans[:, 0], spans[:, 1]
    whole = first[0] == 0 and last[-1] == len(text)
    in_order = (
        (first[1:] >= first[:-1]).all() and (last[1:] >= last[:-1]).all() and (first[1:] <= last[:-1]).all()
    )
    if not (whole and in_order):
        return None
    places = np.searchsorted(first, np.asarray(edges), side="left")
    if any(place > 0 and last[place - 1] > edge for place, edge in zip(places, edges, strict=True)):
        return None
    return [int(place) for place in places]


def _by_prefix(
    text: str, edges: Sequence[int], ids: list[int], ids_of: Callable[[str], list[int]]
) -> list[int] | None:
    """None when the tokens of the text up to an edge are not the first tokens of the whole."""
    places = []
    for edge in edges:
        before = ids_of(text[:edge])
        if ids[: len(before)] != before:
            return None
        places.append(len(before))
    return places
