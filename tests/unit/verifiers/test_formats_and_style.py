"""Formats of a whole response, lengths, one language, loops."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifiers import BadReference, Sample, SpecError, build
from verifiers.constraints import detection, measure, segment
from verifiers.constraints.style import repeated_share


def use(name: str, **args: Any) -> dict[str, Any]:
    return {"use": name, "args": args}


def score(spec: Any, response: str, reference: Any = None) -> float | None:
    return build(spec).verify(Sample(response, reference)).score


ENGLISH = "The weather is nice today and we will go to the park with our friends. "
GERMAN = "Das Wetter ist heute sch\u00f6n und wir gehen mit unseren Freunden in den Park. "
CHINESE = "\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c\u6211\u4eec\u4f1a\u53bb\u516c\u56ed\u3002"
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
        }
    },
    "$ref": "#/$defs/node",
}
HIGH, SOFT = use("no_repetition", graded=True), use("soft_length", unit="words", max=10, buffer=4, min=2)

JUDGED: list[tuple[Any, str, float]] = [
    (use("think_answer", min_words=3), "<think>two and two</think><answer>4</answer>", 1),
    (use("think_answer", min_words=3), "<think>two, two</think><answer>4</answer>", 0),
    ("think_answer", "<think>I compare a < b > c.</think>\n\n<answer>x < 3</answer>\n", 1),
    (use("json", kind="object"), '{"a": 1}', 1),
    (use("json", kind="object"), "[1]", 0),
    (use("json", kind="array"), "```\n[1]```", 1),
    ("json", '"a ``` b"', 1),
    ("json", "1e400", 0),
    ("json", "[" * 60 + "]" * 60, 1),
    ("json", "[" * 70 + "]" * 70, 0),
    (use("json_schema", schema=TREE), '{"kids": [{"kids": []}]}', 1),
    (use("json_schema", schema=TREE), '{"kids": [{"kids": 1}]}', 0),
    (use("json_schema", schema={"type": "string", "pattern": "^[a-z]+$"}), '"ab"', 1),
    (use("length", unit="words", max=2), "\u4e2d\u6587", 1),
    (use("length", unit="words", max=2), "\u4e2d\u6587\u5b57", 0),
    (use("length", unit="words", min=2, max=2), "state-of-the-art don't", 0),
    (use("length", unit="words", min=2, max=2), "well-known don't", 1),
    (use("length", unit="tokens", min=6, max=6), "international, 1234", 1),  # 3 for the long word, 1, 2: six
    (use("length", unit="characters", max=3), "a\u0301b\u0301c\u0301", 1),
    (SOFT, "one", 0),
    (SOFT, "one two three four five six", 1),
    (SOFT, "1 2 3 4 5 6 7", 0.75),
    (SOFT, "1 2 3 4 5 6 7 8 9", 0.25),
    (SOFT, "1 2 3 4 5 6 7 8 9 10", 0),
    (SOFT, "1 " * 50, 0),
    (SOFT, "<think>1 2 3 4 5 6 7</think> 8 9 10", 0),  # the reasoning counts
    (use("soft_length", unit="words", max=3, buffer=0), "1 2 3", 1),
    (use("soft_length", unit="words", max=3, buffer=0), "1 2 3 4", 0),
    (use("language_consistency", code="en"), ENGLISH * 3, 1),
    (use("language_consistency", code="en"), GERMAN * 3, 0),
    (use("language_consistency", code="de"), GERMAN * 3, 1),
    (use("language_consistency", code="zh-cn"), CHINESE + " really very good", 0.8),
    (use("language_consistency", code="en", at_least=0.9), ENGLISH * 3 + CHINESE, 0),
    (use("language_consistency", code="en", at_least=0.5), ENGLISH * 3 + CHINESE, 1),
    (use("language_consistency", code="en", part="thinking"), f"<think>{ENGLISH}</think>{CHINESE}", 1),
    (use("language_consistency", code="en", part="answer"), f"<think>{ENGLISH}</think>{CHINESE}", 0),
    (use("language_consistency", code="en"), ENGLISH + "\n```python\nf\u00fcr = \u4e2d\u6587\n```\n$\u0430\u0431$", 1),
    ("no_repetition", ENGLISH + GERMAN, 1),
    ("no_repetition", ENGLISH * 2, 0),
    (HIGH, "a b c d e f g h a b c d", 1),  # 1 of 9
    (HIGH, "a b c d e a b c d e a b c d e a b c d e", pytest.approx((5 / 17) / 0.7)),
    (use("no_repetition", n=1, max_share=0.5), "a b a b", 1),
    (use("no_repetition", max_share=0.99), "so it goes. " * 8, 1),
    (use("no_repetition", max_share=0.99), "so it goes. " * 9, 0),
    ("no_repetition", "one two\n" + "-" * 80 + "\nthree", 1),
    ("no_repetition", "ha" * 40, 0),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "response", "expected"), JUDGED)
def test_judged(spec: Any, response: str, expected: float) -> None:
    assert score(spec, response) == expected


@pytest.mark.parametrize(
    "spec",
    [
        use("soft_length", unit="words", max=3, buffer=4), use("soft_length", unit="words", max=9, buffer=2, min=8),
        use("soft_length", unit="bytes", max=3, buffer=1), use("no_repetition", n=0), use("no_repetition", max_share=1.0),
        use("language_consistency", code="xx"), use("language_consistency", code="en", at_least=1.5),
        use("language_consistency", code="en", part="prompt"), use("json", kind="number"),
        use("json_schema", schema={"pattern": "^(a+)+$"}), use("json_schema", schema={"pattern": "("}),
        use("json_schema", schema={"patternProperties": {r"(\w+\s?)*x": {}}}),
        use("json_schema", schema={"$ref": "#"}), use("json_schema", schema={"$ref": "#/$defs/none"}),
    ],
)  # fmt: skip
def test_senseless_arguments_are_refused_when_built(spec: Any) -> None:
    with pytest.raises(SpecError):
        build(spec)


def test_a_bad_schema_is_a_bad_reference() -> None:
    for schema in ({"$ref": "#"}, {"pattern": "(a*)*"}, {"items": {"$ref": "other.json"}}, [], "x"):
        with pytest.raises(BadReference):
            build("json_schema").check_reference(schema)


def test_the_reference_language_answers_the_same_twice() -> None:
    texts = [ENGLISH, GERMAN, CHINESE, "etchings", "YES", "123", "a b c", "no si"]
    first = [detection.detect(text) for text in texts]
    detection.detect.cache_clear()
    assert [detection.detect(text) for text in reversed(texts)] == first[::-1]
    assert first[:3] == ["en", "de", "zh-cn"]
    assert first[5] is None


def test_sentences_with_and_without_words() -> None:
    assert measure.measure("One. Two... ... !!! Three", "sentences") == (3, 3)
    assert segment.sentences(" One. B ") == ["One.", "B"]


@settings(max_examples=60)
@given(st.text(max_size=80), st.sampled_from(["\u200b", "\u2060", "\ufeff", "\u0301", "\u202e", "\u00ad"]))
def test_the_invisible_changes_no_length(text: str, hidden: str) -> None:
    plain = measure.visible(text)
    stuffed = hidden.join(["", *plain, ""])
    for unit in ("words", "characters", "lines", "tokens", "sentences"):
        assert measure.measure(stuffed, unit) == measure.measure(measure.visible(stuffed), unit)
    assert len(measure.visible(stuffed)) <= len(stuffed) - 1


@settings(max_examples=60)
@given(st.lists(st.sampled_from("abcde"), max_size=60), st.integers(1, 5))
def test_a_share_is_a_share_and_repeating_a_text_raises_it(words: list[str], n: int) -> None:
    share = repeated_share(words, n)
    assert 0 <= share < 1
    if len(words) >= n:
        assert repeated_share(words * 3, n) >= share


@settings(max_examples=60)
@given(st.integers(0, 60), st.integers(1, 30), st.integers(0, 30))
def test_a_longer_text_never_scores_more(count: int, top: int, buffer: int) -> None:
    if buffer > top:
        return
    spec = use("soft_length", unit="words", max=top, buffer=buffer)
    here, more = (score(spec, " ".join(f"w{n}" for n in range(size))) for size in (count + 1, count + 2))
    assert here is not None and more is not None
    assert here >= more
    assert here == (1 if count + 1 <= top - buffer else max(0, (top - count - 1) / buffer) if buffer else 0)


@settings(max_examples=25)
@given(st.text(max_size=100) | st.text(alphabet="<>/thinkaswer \n{}[]\"',:1.`$\\", max_size=100))
def test_no_text_breaks_a_format(text: str) -> None:
    for spec in (
        "think_answer",
        "json",
        use("json_schema", schema=TREE),
        SOFT,
        HIGH,
        use("language_consistency", code="en"),
    ):
        assert score(spec, text) is not None
