"""Rows that were there before, word for word or nearly so. The first of them is kept, in the order of the sources."""

from __future__ import annotations

import hashlib

import numpy as np

from .words import digest, run_hashes, scramble, words

SHINGLE = 5  # words
HASHES = 128
BANDS = 32  # of 4 values: two rows of similarity 0.5 meet in one with probability 0.87, of 0.8 with 1 - 5e-8


class ExactDuplicates:
    """Rows whose words are the same."""

    def __init__(self) -> None:
        self._seen: dict[bytes, str] = {}

    def first(self, text: str, where: str) -> str | None:
        """Where the same words stood before, or None; then they are kept as standing at `where`."""
        known = self._seen.setdefault(digest(words(text)), where)
        return None if known is where else known


class NearDuplicates:
    """Rows whose sets of word 5-grams have a Jaccard similarity of at least `similarity`, as MinHash estimates it.

    Of each row min over its shingles of 128 hash functions is kept; the share in which two rows agree estimates their
    similarity with a standard error of at most 0.045 (Broder 1997, "On the resemblance and containment of documents").
    Candidates are rows that agree in all of one band of values (Leskovec et al., "Mining of Massive Datasets", 3.4).
    """

    def __init__(self, similarity: float) -> None:
        self.similarity = similarity
        keys = np.arange(1, HASHES + 1, dtype=np.uint64)
        self._keys = scramble(keys)[:, None]
        self._bands: list[dict[bytes, list[int]]] = [{} for _ in range(BANDS)]
        self._signatures: list[np.ndarray] = []
        self._places: list[str] = []

    def first(self, text: str, where: str) -> str | None:
        """Where a near duplicate stood before, the earliest, or None; then this row is kept for later ones."""
        signature = self.signature(text)
        keys = [band.tobytes() for band in signature.reshape(BANDS, -1)]
        candidates = {i for band, key in zip(self._bands, keys, strict=True) for i in band.get(key, ())}
        for i in sorted(candidates):
            if float(np.mean(self._signatures[i] == signature)) >= self.similarity:
                return self._places[i]
        for band, key in zip(self._bands, keys, strict=True):
            band.setdefault(key, []).append(len(self._places))
        self._signatures.append(signature)
        self._places.append(where)
        return None

    def signature(self, text: str) -> np.ndarray:
        """uint32 [128]."""
        ids = np.array([_word_hash(word) for word in words(text)], dtype=np.uint64)
        shingles = np.unique(run_hashes(ids, min(SHINGLE, max(len(ids), 1))))
        if not len(shingles):
            shingles = np.zeros(1, dtype=np.uint64)
        least = np.full(HASHES, np.iinfo(np.uint64).max, dtype=np.uint64)
        for start in range(0, len(shingles), 4096):  # a long row's hashes never take more than 4 MiB
            least = np.minimum(least, scramble(shingles[None, start : start + 4096] ^ self._keys).min(axis=1))
        return (least >> np.uint64(32)).astype(np.uint32)


_KNOWN: dict[str, int] = {}


def _word_hash(word: str) -> int:
    """64 bits, the same in every process."""
    value = _KNOWN.get(word)
    if value is None:
        if len(_KNOWN) > 1_000_000:
            _KNOWN.clear()
        value = int.from_bytes(
            hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
        )
        _KNOWN[word] = value
    return value
