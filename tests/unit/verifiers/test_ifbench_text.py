"""Sentences and tokens as NLTK cuts them, whether a verb comes first, emoji: what IFBench's checks stand on."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifiers.constraints.ifbench_checks import verbs
from verifiers.constraints.ifbench_checks.emoji import is_emoji
from verifiers.constraints.ifbench_checks.verbs import begins_with_verb
from verifiers.constraints.punkt import sentences
from verifiers.constraints.treebank import tokens

# Cut so by NLTK 3.9.1 with its English Punkt model, too.
SENTENCES = [
    ("", []),
    ("One", ["One"]),
    ("One. Two! Three?", ["One.", "Two!", "Three?"]),
    ("Dr. Who met Mr. Bean.", ["Dr. Who met Mr. Bean."]),
    ("It is 3.14 m. long", ["It is 3.14 m. long"]),
    ("He came at 5 p.m. and left. The end.", ["He came at 5 p.m. and left.", "The end."]),
    ("He came at 5 p.m. The end.", ["He came at 5 p.m.", "The end."]),
    (
        "See e.g. this. And i.e. that.",
        ["See e.g.", "this.", "And i.e.", "that."],
    ),  # not among its abbreviations
    ("J. R. Smith wrote it.", ["J. R. Smith wrote it."]),
    ("Wait... what? Well... Maybe.", ["Wait... what?", "Well... Maybe."]),
    ("Wait... The end.", ["Wait...", "The end."]),
    ("Wow!!!", ["Wow!!", "!"]),
    ('"Stop!" he said. "No."', ['"Stop!"', "he said.", '"No."']),
    ("(One.) Two.", ["(One.)", "Two."]),
    ("1. first\n2. Second", ["1. first\n2.", "Second"]),
    ("a\n\nb.  C", ["a\n\nb.", "C"]),
    ("The U.S. Companies and the U.S. army.", ["The U.S. Companies and the U.S. army."]),
    (
        "He met Capt. Lee in St. Louis, Calif., on Nov. 3.",
        ["He met Capt.", "Lee in St. Louis, Calif., on Nov. 3."],
    ),
    ("A. Introduction\nB. Jordan\nC. The end", ["A.", "Introduction\nB. Jordan\nC. The end"]),
    ("By J.R.R. Tolkien and J.K. Rowling.", ["By J.R.R.", "Tolkien and J.K. Rowling."]),
    ("1. Review it. 2. Who did? 3. do", ["1. Review it.", "2.", "Who did?", "3. do"]),
    ("In the U.S. The army. In the U.S. walking.", ["In the U.S.", "The army.", "In the U.S. walking."]),
]


@pytest.mark.parametrize(("text", "cut"), SENTENCES)
def test_sentences(text: str, cut: list[str]) -> None:
    assert list(sentences(text)) == cut


TOKENS = [
    ("DON'T", ["DO", "N'T"]),
    ("It's CANNOT.", ["It", "'s", "CAN", "NOT", "."]),
    ("A-B C/D, E:F 3:30", ["A-B", "C/D", ",", "E", ":", "F", "3:30"]),
    ('"U.S.A. WINS" (ok)', ["``", "U.S.A.", "WINS", "''", "(", "ok", ")"]),
    ("One. Two...", ["One", ".", "Two", "..."]),
    ("'tis gonna be \u201cgood\u201d", ["'t", "is", "gon", "na", "be", "\u201c", "good", "\u201d"]),
    ("we'll -- they're", ["we", "'ll", "--", "they", "'re"]),
    ("50% of $3,000", ["50", "%", "of", "$", "3,000"]),
    ("```py", ["``", "`", "py"]),
]


@pytest.mark.parametrize(("text", "cut"), TOKENS)
def test_tokens(text: str, cut: list[str]) -> None:
    assert tokens(text) == cut


@settings(max_examples=120)
@given(st.text(alphabet="aB. ?!\"')\n-,:;1'\u201d\ue000", max_size=60))
def test_no_character_gets_lost(text: str) -> None:
    """Sentences are pieces of the text in order, and only white space lies between them."""
    rest = text
    for sentence in sentences(text):
        before, found, rest = rest.partition(sentence)
        assert found == sentence
        assert not before.strip()
    assert not rest.strip()
    kept = "".join(tokens(text)).replace("``", "").replace("''", "")
    assert kept == "".join(text.split()).replace('"', "").replace("''", "")


VERB_FIRST = [
    "Imagine a world", "Identify the themes", "Whirring and pulsing", "Is it so?", "Don't go", "write it down",
    "Plan your day", "Painting with light", "Teaches the young", "Carries a load", "Based on this", "Born in Chicago",
    "Let us go", "According to them", "Share these", "Thank you", "TELL me", "Starting now", "Went home",
]  # fmt: skip
NO_VERB_FIRST = [
    "Understand Galois theory by", "The end", "Can you", "To be", "Sure, here", "", "1984 was", "well-known facts",
    "Plan B is", "Painting", "Love in the time", "Nothing is", "Spring came", "Indeed it", "Hundred men", "Mark is a",
    "Welcome to it", "*Write* it", '"Write it"', "Please let me", "Design a house", "Species the", "Quickly go",
]  # fmt: skip


@pytest.mark.parametrize("text", VERB_FIRST)
def test_a_verb_comes_first(text: str) -> None:
    assert begins_with_verb(tokens(text))


@pytest.mark.parametrize("text", NO_VERB_FIRST)
def test_no_verb_comes_first(text: str) -> None:
    assert not begins_with_verb(tokens(text))


def test_a_word_is_in_one_list_of_verbs_only() -> None:
    assert not verbs._BASE & verbs._WITH_OBJECT
    assert not (verbs._BASE | verbs._WITH_OBJECT) & verbs._ALWAYS


def test_emoji() -> None:
    assert all(map(is_emoji, "\U0001f600\u2600\u00a9\U0001fae0\U0001f3fb"))
    assert not any(map(is_emoji, "a1*#\ufe0f\u200d\U0001f1e6\u2192"))


@pytest.mark.parametrize(
    "piece", [". ", "!", "a. ", '.)!" ', "1. ", "'s ", ":,", "?)", "-", "``", "a.b.", "\n"]
)
def test_huge_text_is_cut_in_linear_time(piece: str) -> None:
    def seconds(size: int) -> float:
        began = time.process_time()
        tokens(piece * (size // len(piece)))
        return time.process_time() - began

    seconds(1000)
    assert seconds(25_000) < 2  # 0.1 s at most where it was written; quadratic steps take minutes
