"""Texts as words, for comparing rows: the same words whatever the case, the punctuation and the spaces."""

from __future__ import annotations

import hashlib
import re
import unicodedata

import numpy as np

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of the text in NFKC, case folded; a text of other characters alone counts as one word."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(folded) or ([folded.strip()] if folded.strip() else [])


def digest(items: list[str]) -> bytes:
    """16 bytes that equal lists share."""
    return hashlib.blake2b("\x00".join(items).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def run_hashes(ids: np.ndarray, n: int) -> np.ndarray:
    """uint64 [max(T - n + 1, 0)] of each run of n of the numbers ids [T]: a polynomial modulo 2**64."""
    if len(ids) < n:
        return np.zeros(0, dtype=np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(ids.astype(np.uint64), n)
    mixed = np.zeros(len(windows), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for k in range(n):
            mixed = scramble(mixed * np.uint64(0x100000001B3) + windows[:, k])
    return mixed


def scramble(values: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that spreads every bit over all (the finaliser of splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))
