"""What the words are like: IFBench's `words`."""

from __future__ import annotations

import functools
import string
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from verifiers.constraints.ifbench_checks.plain import MARKS, bare, trimmed
from verifiers.constraints.ifbench_checks.verbs import begins_with_verb
from verifiers.constraints.punkt import sentences
from verifiers.constraints.treebank import tokens

_CONSONANTS = frozenset("bcdfghjklmnpqrstvwxyz")
_PRIMES = frozenset(n for n in range(2, 100) if all(n % d for d in range(2, n)))


def alphabet(text: str) -> bool:
    """Each word begins with the letter after the one before's, "a" after "z"."""
    found = bare(text).lower().split()
    start = string.ascii_lowercase.find(found[0][0]) if found else -1
    if start < 0:
        return False
    return all(word[0] == string.ascii_lowercase[(start + number) % 26] for number, word in enumerate(found))


def vowel(text: str) -> bool:
    """One line with at most three of the vowels."""
    line = text.strip()
    return "\n" not in line and len(set("aeiou") & set(line.lower())) <= 3


def consonants(text: str) -> bool:
    """Each word has two consonants in a row."""
    return all(
        any(a in _CONSONANTS and b in _CONSONANTS for a, b in pairwise(word)) for word in text.lower().split()
    )


def palindrome(text: str) -> bool:
    """Ten palindromes of five characters or more; one and the same counts each time."""
    found = (word for word in bare(text).lower().split() if len(word) >= 5 and word == word[::-1])
    return sum(1 for _ in found) >= 10


def prime_lengths(text: str) -> bool:
    return all(len(word) in _PRIMES for word in bare(text).split())


def repeats(text: str, small_n: int) -> bool:
    """No word more than small_n times."""
    return max(Counter(bare(text.lower()).split()).values(), default=0) <= small_n


def no_consecutive(text: str) -> bool:
    """No two words in a row with the same first letter."""
    return all(a[0] != b[0] for a, b in pairwise(bare(text.lower()).split()))


def start_verb(text: str) -> bool:
    """The first token is a verb in any form; see `verbs` for where that is not as the reference's tagger says."""
    return begins_with_verb(tokens(text[:2000])[:2])


@functools.cache
def syllable_counter() -> Callable[[str], int]:
    """syllapy's count, the reference's: a list of words, and vowel groups for all others."""
    from syllapy import count  # type: ignore[import-untyped]

    return count  # type: ignore[no-any-return]


def odd_even_syllables(text: str) -> bool:
    """Odd and even numbers of syllables in turn; a number has none."""
    count = syllable_counter()
    parities = [count(word) % 2 for word in bare(text).lower().split()]
    return all(a != b for a, b in pairwise(parities))


def last_first(text: str) -> bool:
    """The last word of each sentence is the first of the next."""
    for one, following in pairwise(sentences(text)):
        last, first = one.rstrip(MARKS + " ").split(), following.lstrip(MARKS + " ").split()
        if not last or not first or last[-1].lower() != first[0].lower():
            return False
    return True


def paragraph_last_first(text: str) -> bool:
    """Each line ends with the word it begins with; one word does both."""
    lines = (trimmed(line.strip().lower()).split() for line in text.split("\n"))
    return all(line[0] == line[-1] for line in lines if line)


def keywords_specific_position(text: str, keyword: str, n: int, m: int) -> bool:
    """The m-th token of the n-th sentence."""
    found = sentences(text)
    if len(found) < n:
        return False
    cut = tokens(found[n - 1])
    return len(cut) >= m and cut[m - 1].lower() == keyword.strip().lower()


def words_position(text: str, keyword: str) -> bool:
    """The second token and the last but one: where a full stop ends the response, the last word."""
    cut = tokens(text)
    return len(cut) >= 2 and cut[1].lower() == cut[-2].lower() == keyword.strip().lower()
