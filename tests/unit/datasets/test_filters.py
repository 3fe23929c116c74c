"""Duplicates, near duplicates, evaluation sets, languages and lengths."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tulu_lite.datasets.chat import ChatTemplate
from tulu_lite.datasets.conversations import load_conversations
from tulu_lite.datasets.decontamination import Contamination, EvaluationPrompt
from tulu_lite.datasets.duplicates import ExactDuplicates, NearDuplicates
from tulu_lite.datasets.words import run_hashes, words
from tulu_lite.recipe import Filters, SftStage

Write = Callable[..., str]
LEXICON = [f"w{i}" for i in range(400)]


def sft(data: Any, **how: Any) -> SftStage:
    return SftStage(name="sft", kind="sft", data=data, learning_rate=1e-3, **how)


def jaccard(a: str, b: str) -> float:
    """By sets of tuples, independent of the hashes."""

    def grams(text: str) -> set[tuple[str, ...]]:
        items = words(text)
        n = min(5, len(items))
        return {tuple(items[i : i + n]) for i in range(len(items) - n + 1)}

    return len(grams(a) & grams(b)) / len(grams(a) | grams(b))


def test_words() -> None:
    assert words("Ｈello,  WORLD! Straße") == ["hello", "world", "strasse"]
    assert words(" +++ ") == ["+++"]
    assert words(" ") == []


def test_runs_are_told_apart() -> None:
    ids = np.array([1, 2, 3, 1, 2, 3, 2, 1, 3])
    hashes = run_hashes(ids, 3).tolist()
    assert len(hashes) == 7
    assert hashes[0] == hashes[3]
    assert len(set(hashes)) == 6  # the order of words counts
    assert run_hashes(ids, 10).tolist() == []


def test_exact_duplicates_ignore_case_spaces_and_punctuation() -> None:
    seen = ExactDuplicates()
    assert seen.first("What is 2 + 2?", "f:1") is None
    assert seen.first("what  is 2 2", "f:2") == "f:1"
    assert seen.first("what is 22", "f:3") is None
    assert seen.first("What is 2 + 2?", "f:4") == "f:1"


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(60, 120), st.integers(0, 60))
def test_minhash_estimates_the_jaccard_similarity(seed: int, length: int, changed: int) -> None:
    choice = random.Random(seed)
    first = [choice.choice(LEXICON) for _ in range(length)]
    second = [
        *first[: max(length - changed, 0)],
        *(choice.choice(LEXICON) for _ in range(min(changed, length))),
    ]
    near = NearDuplicates(0.8)
    a, b = near.signature(" ".join(first)), near.signature(" ".join(second))
    assert (
        abs(float(np.mean(a == b)) - jaccard(" ".join(first), " ".join(second))) < 0.2
    )  # 4.5 standard errors


def test_near_duplicates() -> None:
    base = " ".join(LEXICON[:100])
    near = NearDuplicates(0.8)
    assert near.first(base, "f:1") is None
    assert near.first(base + " more", "f:2") == "f:1"
    assert near.first(" ".join(LEXICON[100:200]), "f:3") is None
    assert near.first(" ".join([*LEXICON[:50], *LEXICON[200:250]]), "f:4") is None  # half the same
    assert NearDuplicates(0.8).first("", "f:5") is None


def test_signatures_are_the_same_in_every_process() -> None:
    code = (
        "from tulu_lite.datasets.duplicates import NearDuplicates; "
        "print(int(NearDuplicates(0.8).signature('The cat sat on the mat, twice.').sum()))"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(there.stdout) == int(NearDuplicates(0.8).signature("The cat sat on the mat, twice.").sum())


QUESTION = "Janet has three ducks that lay sixteen eggs per day and she eats three for breakfast"


def index(*texts: str, **how: Any) -> Contamination:
    return Contamination(
        [EvaluationPrompt(text, f"test:{i}") for i, text in enumerate(texts, start=1)], **how
    )


def test_overlap_by_hand() -> None:
    found = index("something else altogether that is of no matter here at all", QUESTION)
    assert found.match(["Solve this! " + QUESTION.upper() + "?"]) == "test:2"
    items = QUESTION.split()
    assert len(items) == 16
    assert found.match([" ".join(items[:8])]) is None  # 8 of 16 words: not more than half
    assert found.match([" ".join(items[:9])]) == "test:2"
    assert found.match([" ".join([*items[:7], "a", *items[7:14]])]) is None  # no run of 8
    assert found.match([" ".join(items[:8]), " ".join(items[8:])]) == "test:2"  # turns count together
    assert (
        found.match([" ".join(items[:5]), " ".join(items[5:10])]) is None
    )  # but no run goes over their edge
    assert index(QUESTION, overlap=0.6).match([" ".join(items[:9])]) is None
    assert index(QUESTION, ngram=3, overlap=0.15).match(["ducks that lay"]) == "test:1"


def test_short_evaluation_prompts_match_whole_turns_alone() -> None:
    found = index("What is 2+2?")
    assert found.match(["what is 2 2"]) == "test:1"
    assert found.match(["Tell me: what is 2+2? And why?"]) is None


def naive(prompts: list[str], turn: str, n: int, overlap: float) -> bool:
    """The definition, by sets of tuples."""
    has = words(turn)
    grams = {tuple(has[i : i + n]) for i in range(len(has) - n + 1)}
    for prompt in prompts:
        items = words(prompt)
        if len(items) < n:
            if items == has:
                return True
            continue
        covered = {
            p for i in range(len(items) - n + 1) if tuple(items[i : i + n]) in grams for p in range(i, i + n)
        }
        if len(covered) > overlap * len(items):
            return True
    return False


short_text = st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=12).map(" ".join)


@settings(max_examples=150)
@given(
    st.lists(short_text, min_size=1, max_size=4),
    short_text,
    st.integers(2, 4),
    st.sampled_from([0.0, 0.5, 0.9]),
)
def test_overlap_as_it_is_defined(prompts: list[str], turn: str, n: int, overlap: float) -> None:
    assert (index(*prompts, ngram=n, overlap=overlap).match([turn]) is not None) == naive(
        prompts, turn, n, overlap
    )


def rows(*texts: str) -> list[dict[str, str]]:
    return [{"prompt": text, "completion": "It is so."} for text in texts]


def test_filters_of_a_stage(write: Write, template: ChatTemplate) -> None:
    english = "The cat sat on the mat and looked at the people who had come to see it there."
    german = "Die Katze sass auf der Matte und sah die Leute an, die zu ihr gekommen waren."
    path = write("a.jsonl", rows(english, german, english.upper() + "!", QUESTION, "12345"))
    test = write("test.jsonl", [{"question": QUESTION}])
    filters = {
        "languages": "en", "duplicates": "exact", "max_tokens": 200, "min_tokens": 60,
        "decontaminate": {"path": test, "prompt": "{question}"},
    }  # fmt: skip
    examples, report = load_conversations(sft(path, filters=filters), template, seed=0)
    assert [e.line for e in examples] == [1]
    assert dict(report.dropped) == {
        "not in en": 1, "a duplicate": 1, "overlaps an evaluation set": 1, "shorter than 60 tokens": 1,
    }  # fmt: skip
    assert {d.reason: (d.line, d.why) for d in report.rows_dropped} == {
        "not in en": (2, "it is in de"),
        "a duplicate": (3, f"of {path}:1"),
        "overlaps an evaluation set": (4, f"with {test}:1"),
        "shorter than 60 tokens": (5, "33 tokens"),
    }
    own = {"path": path, "filters": {"languages": ["de"]}}
    examples, _ = load_conversations(sft([own], filters=filters | {"decontaminate": None}), template, seed=0)
    assert [e.line for e in examples] == [2]  # the source's own languages, not the stage's


def test_duplicates_are_dropped_over_all_sources_in_their_order(write: Write, template: ChatTemplate) -> None:
    a, b = write("a.jsonl", rows("x y", "z")), write("b.jsonl", rows("X, y", "w"))
    kept = {}
    for order in ([a, b], [b, a]):
        examples, _ = load_conversations(sft(order, filters={"duplicates": "exact"}), template, seed=0)
        kept[order[0]] = [(e.file, e.line) for e in examples]
    assert kept == {a: [(a, 1), (a, 2), (b, 2)], b: [(b, 1), (b, 2), (a, 2)]}


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"languages": ["english"]}, "english is not known"),
        ({"min_tokens": 9, "max_tokens": 3}, "no row would be left"),
        ({"decontaminate": {"stage": "x"}}, "Extra inputs|against"),
        ({"decontaminate": [{"stage": "x"}]}, "names stage 'x'"),
    ],
)
def test_filters_that_cannot_be(filters: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Filters.model_validate(filters)
