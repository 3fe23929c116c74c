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
    ids_of: Callable[[str, bool], list[int]],
    text_of: Callable[[list[int]], str],
    steady: Callable[[int], bool] = lambda edge: True,
) -> tuple[list[int], list[int]]:
    """(token ids, the number of tokens before each edge), such that no token spans an edge, and the tokens before an
    edge are those of the text before it alone.

    edges: ascending character positions. ids_of: the ids of a text; true: of one that stands inside another. steady:
    whether the tokens before an edge stay the same without what follows it, where a token begins there. The ids are
    the encoding's own but where an edge is in doubt (white space of an answer that melts into that of the prompt before
    it): there the text is cut and each part tokenized by itself, as at sampling, where the answer begins with a fresh
    token. Raises UnevenTokens when the parts' tokens spell another text than the whole's.
    """
    places = _by_offsets(text, edges, encoding)
    if places is None:
        places = _by_prefix(text, edges, encoding.ids, lambda part: ids_of(part, False))
    cuts = [edge for edge, place in zip(edges, places, strict=True) if place is None or not steady(edge)]
    if not cuts:
        return encoding.ids, [place for place in places if place is not None]
    while True:
        ids, counts, again = _in_parts(text, edges, sorted(set(cuts)), ids_of)
        if again is None:
            break
        cuts.append(again)
    if text_of(ids) != text_of(encoding.ids):
        raise UnevenTokens(cuts[0])
    return ids, counts


def _in_parts(
    text: str, edges: Sequence[int], cuts: Sequence[int], ids_of: Callable[[str, bool], list[int]]
) -> tuple[list[int], list[int], int | None]:
    """(token ids, the number before each edge, an edge that needs a cut too) of the text cut in parts."""
    ids: list[int] = []
    counts: list[int] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        part = ids_of(text[start:end], start > 0) if start < end else []
        for edge in edges:
            if start < edge < end:
                before = ids_of(text[start:edge], start > 0)
                if part[: len(before)] != before:
                    return ids, counts, edge
                counts.append(len(ids) + len(before))
        ids += part
        counts += [len(ids)] * sum(edge == end and edge in cuts for edge in edges)
    if edges and edges[0] == 0 and 0 not in cuts:
        counts.insert(0, 0)
    counts += [len(ids)] * (len(edges) - len(counts))
    return ids, counts, None


def _by_offsets(text: str, edges: Sequence[int], encoding: Encoding) -> list[int | None] | None:
    """Of each edge the number of tokens before it, None where a token spans it. None at all when the offsets leave gaps:
    some tokenizers trim white space."""
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
    places = np.searchsorted(first, np.asarray(edges, dtype=np.int64), side="left")
    return [
        None if place > 0 and last[place - 1] > edge else int(place)
        for place, edge in zip(places, edges, strict=True)
    ]


def _by_prefix(
    text: str, edges: Sequence[int], ids: list[int], ids_of: Callable[[str], list[int]]
) -> list[int | None]:
    """Of each edge the number of tokens before it, None where those of the text up to it are not the whole's first."""
    places: list[int | None] = []
    for edge in edges:
        before = ids_of(text[:edge])
        places.append(len(before) if ids[: len(before)] == before else None)
    return places
