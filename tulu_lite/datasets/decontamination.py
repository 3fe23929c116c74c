"""Rows whose prompts overlap those of evaluation sets (Tülu 3, arXiv:2411.15124, section 3.2).

A word of an evaluation prompt is matched when it lies in a run of n words that the row has too; the row is
contaminated when more than a share of one prompt's words is matched. A prompt of fewer than n words matches only a
turn that has the same words and no others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .words import digest, run_hashes, words


@dataclass(frozen=True, slots=True)
class EvaluationPrompt:
    """One user turn of an evaluation set, and where it stands."""

    text: str
    where: str


class Contamination:
    """An index of evaluation prompts. The result does not depend on their order, but for which of several is named."""

    def __init__(self, prompts: Sequence[EvaluationPrompt], ngram: int = 8, overlap: float = 0.5) -> None:
        self.ngram, self.overlap = ngram, overlap
        self._places = [prompt.where for prompt in prompts]
        self._vocabulary: dict[str, int] = {}
        self._short: dict[bytes, int] = {}
        self._words: list[np.ndarray] = []
        runs: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for i, prompt in enumerate(prompts):
            items = words(prompt.text)
            ids = np.array(
                [self._vocabulary.setdefault(w, len(self._vocabulary) + 1) for w in items], np.int64
            )
            self._words.append(ids)
            if len(items) < ngram:
                self._short.setdefault(digest(items), i)
            for start, value in enumerate(run_hashes(ids, ngram).tolist()):
                runs[value].append((i, start))
        self._runs = dict(runs)
        self._hashes = np.array(sorted(self._runs), dtype=np.uint64)

    def match(self, turns: Sequence[str]) -> str | None:
        """Where the evaluation prompt stands that these user turns overlap most, or None.

        The turns of one row count together, but no run of words goes over the end of one.
        """
        matched: dict[int, set[int]] = defaultdict(set)
        for turn in turns:
            items = words(turn)
            same = self._short.get(digest(items)) if len(items) < self.ngram else None
            if same is not None:
                return self._places[same]
            ids = np.array([self._vocabulary.get(word, 0) for word in items], dtype=np.int64)
            hashes = run_hashes(ids, self.ngram)
            for position in np.flatnonzero(np.isin(hashes, self._hashes)).tolist():
                run = ids[position : position + self.ngram]
                for i, start in self._runs[int(hashes[position])]:
                    if np.array_equal(self._words[i][start : start + self.ngram], run):
                        matched[i].update(range(start, start + self.ngram))
        shares = {i: len(found) / len(self._words[i]) for i, found in matched.items()}
        worst = max(shares, key=lambda i: (shares[i], -i), default=None)
        return self._places[worst] if worst is not None and shares[worst] > self.overlap else None
