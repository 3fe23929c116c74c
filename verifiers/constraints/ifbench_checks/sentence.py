"""What the sentences are like: IFBench's `sentence` and `ratio:sentence_*`."""

from __future__ import annotations

from itertools import pairwise

from verifiers.constraints.ifbench_checks.plain import MARKS, bare
from verifiers.constraints.punkt import sentences


def _ending(text: str, mark: str) -> int:
    return sum(sentence.endswith(mark) for sentence in sentences(text))


def sentence_type(text: str) -> bool:
    """Twice as many that end in "." as in "?"; none of either will do, as in the reference."""
    return _ending(text, ".") == 2 * _ending(text, "?")


def sentence_balance(text: str) -> bool:
    """As many that end in "." as in "?" and in "!"; none of any will do, as in the reference."""
    return _ending(text, ".") == _ending(text, "?") == _ending(text, "!")


def sentence_words(text: str) -> bool:
    """Three sentences of the same length; that their words differ is not checked, as in the reference."""
    found = sentences(text)
    return len(found) == 3 and len({len(sentence.strip()) for sentence in found}) == 1


def alliteration_increment(text: str) -> bool:
    """Each sentence has more words in alliteration than the one before."""
    counts = [_alliterative(sentence) for sentence in sentences(text)]
    return all(a < b for a, b in pairwise(counts))


def _alliterative(sentence: str) -> int:
    """Words that begin like the word before or after them."""
    stripped = (word.lstrip(MARKS + " ") for word in sentence.lower().split())
    firsts = [word[0] for word in stripped if word]
    count, running = 0, False
    for a, b in pairwise(firsts):
        count += 0 if a != b else 1 if running else 2
        running = a == b
    return count


def increment(text: str, small_n: int) -> bool:
    """Each sentence has small_n more words than the one before; one sentence alone follows."""
    counts = [len(bare(sentence).split()) for sentence in sentences(text)]
    return all(b == a + small_n for a, b in pairwise(counts))


def keyword(text: str, word: str, N: int) -> bool:
    """The N-th sentence has the word in any case, also inside another, as when the verdicts were published."""
    found = sentences(text)
    return len(found) >= N and word.lower() in found[N - 1].lower()
