"""What several families use: bare words and plain letters."""

from __future__ import annotations

import string
import unicodedata

MARKS = string.punctuation
_BARE = str.maketrans("", "", MARKS)


def word_set(listed: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(listed.split())


def bare(text: str) -> str:
    """The text without ASCII punctuation."""
    return text.translate(_BARE)


def trimmed(word: str) -> str:
    """A word without ASCII punctuation and spaces around it."""
    return word.strip(MARKS + " ")


def ascii_letters(text: str) -> str:
    """The text without accents and without what ASCII cannot write: "São Tomé" is "Sao Tome"."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
