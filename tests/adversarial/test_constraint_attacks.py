"""Responses that keep the letter of a constraint, or of its checker, and not the constraint. None may score."""

from __future__ import annotations

import time
from typing import Any

import pytest

from verifiers import Sample, Status, VerifierPool, build
from verifiers.constraints import ifeval


def _use(use: str, **args: Any) -> dict[str, Any]:
    return {"use": use, "args": args}


STORY = _use("contains", word="story", at_least=2)
WORDS = _use("length", unit="words", min=5)
ATTACKS: dict[str, tuple[Any, str]] = {
    "no commas by silence": ("no_commas", ""),
    "no commas by white space": ("no_commas", " \n\t"),
    "no commas by full stops": ("no_commas", "..."),
    "an Arabic comma": ("no_commas", "one\u060c two"),
    "a full-width comma": ("no_commas", "one\uff0c two"),
    "an ideographic comma": ("no_commas", "one\u3001two"),
    "a low quotation mark as a comma": ("no_commas", "one\u201a two"),
    "a word inside a word": (STORY, "storyboard history storyteller"),
    "one word for two": (STORY, "story"),
    "letters apart": (STORY, "s t o r y s t o r y"),
    "a word with an underscore": (STORY, "my_story my_story"),
    "a word in the reasoning": (STORY, "<think>story story</think> a tale"),
    "a word in an unclosed reasoning": (STORY, "<think>story story"),
    "excluding by silence": (_use("excludes", words=["bad"]), ""),
    "at most by silence": (_use("contains", word="bad", at_most=0), ""),
    "an excluded word in capitals": (_use("excludes", words=["bad"]), "BAD"),
    "words of underscores": (WORDS, "_ _ _ _ _"),
    "words of punctuation": (WORDS, ". , ; ! ?"),
    "words of zero width": (WORDS, "\u200b \u200b \u200b \u200b \u200b"),
    "short by silence": (_use("length", unit="words", max=5), ""),
    "characters of white space": (_use("length", unit="characters", min=10), "a" + " " * 20),
    "lines of nothing": (_use("length", unit="lines", min=5), "a\n\n\n\n\n\n"),
    "paragraphs of nothing": (_use("length", unit="paragraphs", min=3), "a\n\n \n\n \n\n"),
    "sentences of dots": (_use("length", unit="sentences", min=4), "Dr. Mr. e.g. a.m. yes"),
    "an ending before the end": (_use("ends_with", phrase="Amen"), "Amen. Or not"),
    "an ending in the reasoning": (_use("ends_with", phrase="Amen"), "<think>Amen</think>"),
    "an ending after a cut": (_use("ends_with", phrase="Amen"), "<think>x Amen"),
    "a start after a preamble": (_use("starts_with", phrase="Once"), "Sure! Once"),
    "empty bullets": (_use("bullets", min=3), "- \n- \n- \n"),
    "a rule for bullets": (_use("bullets", min=3), "---\n***\n- - -\n"),
    "lower case without letters": ("lowercase", "123 !?"),
    "upper case without letters": ("uppercase", "123 !?"),
    "json with a preamble": ("json", 'Here it is: {"a": 1}'),
    "json after json": ("json", '{"a": 1} {"b": 2}'),
    "json that says a key twice": ("json", '{"a": 1, "a": 2}'),
    "json that is not a number": ("json", "NaN"),
    "python for json": ("json", "{'a': 1}"),
    "json with a comment": ("json", '{"a": 1} // ok'),
    "nothing for json": ("json", ""),
    "another type than the schema's": (_use("json_schema", schema={"type": "integer"}), "true"),
    "more keys than the schema's": (_use("json_schema", schema={"type": "object", "additionalProperties": False}), '{"a": 1}'),
    "thinking twice": ("think_answer", "<think>a</think><think>b</think><answer>c</answer>"),
    "answering twice": ("think_answer", "<think>a</think><answer>b</answer><answer>c</answer>"),
    "answering inside thinking": ("think_answer", "<think>a<answer>b</answer></think>"),
    "thinking inside the answer": ("think_answer", "<answer><think>a</think>b</answer>"),
    "no thoughts": ("think_answer", "<think> </think><answer>b</answer>"),
    "no answer": ("think_answer", "<think>a</think><answer> </answer>"),
    "tags in the other order": ("think_answer", "<answer>b</answer><think>a</think>"),
    "a postscript to the tags": ("think_answer", "<think>a</think><answer>b</answer> also c"),
    "a preamble to the tags": ("think_answer", "Sure: <think>a</think><answer>b</answer>"),
    "tags in capitals": ("think_answer", "<THINK>a</THINK><ANSWER>b</ANSWER>"),
    "an unclosed answer": ("think_answer", "<think>a</think><answer>b"),
    "the format without the answer": ({"gate": ["think_answer", "number"]}, "<think>72</think><answer>unknown</answer>"),
    "the answer without the format": ({"gate": ["think_answer", "number"]}, "72"),
    "one language named in another": (_use("language", code="de"), "This is German: der die das. The rest of this text is in English."),
    "no language": (_use("language", code="de"), "123 456"),
    "a part of the whole": (_use("regex", pattern=r"\d+", full=True), "1 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_scores(name: str) -> None:
    spec, response = ATTACKS[name]
    verdict = build(spec).verify(Sample(response, "72"))
    assert verdict.status is Status.INCORRECT, verdict.reason


@pytest.mark.parametrize("response", ["", " ", "\n\n", "<think>all in here</think>"])
def test_an_empty_response_follows_no_instruction(response: str) -> None:
    vacuous = [
        "punctuation:no_comma",
        "change_case:english_lowercase",
        "startend:quotation",
        "detectable_format:title",
    ]
    reference = {"instruction_id_list": vacuous, "kwargs": [{}] * len(vacuous)}
    for verifier in ("ifeval", "ifeval_loose"):
        assert build(verifier).verify(Sample(response, reference)).score == 0


def test_a_truncated_response_follows_nothing() -> None:
    reference = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    assert build("ifeval").verify(Sample("so far so good", reference, finished=False)).score == 0
    assert build("no_commas").verify(Sample("so far so good", finished=False)).score == 0


HOSTILE = ["*" * 50_000, "[" * 50_000, "<<" * 25_000, "a " * 50_000, "." * 50_000, "\n" * 50_000, " " * 50_000 + "x", "-\n" * 25_000,
           "Section " * 10_000, "p. " * 20_000, '"' * 50_000, "{" * 20_000, "'" * 50_000, "<think>" * 10_000, "A" * 50_000, "a.b." * 10_000,
           "***\n" * 10_000, "\u0301" * 50_000, "can't " * 10_000, "* " * 25_000]  # fmt: skip
INSTRUCTIONS: dict[str, dict[str, Any]] = {
    "detectable_format:number_highlighted_sections": {"num_highlights": 10**6}, "detectable_format:title": {},
    "detectable_content:number_placeholders": {"num_placeholders": 10**6}, "detectable_format:number_bullet_lists": {"num_bullets": 10**6},
    "detectable_format:multiple_sections": {"section_spliter": "Section", "num_sections": 10**6},
    "detectable_content:postscript": {"postscript_marker": "P.P.S"}, "length_constraints:number_paragraphs": {"num_paragraphs": 10**6},
    "length_constraints:number_sentences": {"num_sentences": 10**6, "relation": "at least"}, "detectable_format:json_format": {},
    "change_case:capital_word_frequency": {"capital_frequency": 10**6, "capital_relation": "at least"},
    "language:response_language": {"language": "kn"}, "combination:two_responses": {},
}  # fmt: skip


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_text_follows_nothing_and_takes_no_time(number: int) -> None:
    start = time.monotonic()
    followed = [
        name for name, kwargs in INSTRUCTIONS.items() if ifeval.follows(HOSTILE[number], name, kwargs)
    ]
    assert time.monotonic() - start < 4
    assert [
        n for n in followed if n != "language:response_language"
    ] == []  # no letters: every language, as published


def test_a_catastrophic_pattern_costs_one_timeout() -> None:
    spec = _use("regex", pattern=r"^(a+)+$")
    with VerifierPool(workers=1, timeout_s=0.5) as pool:
        verdicts = pool.verify([(spec, Sample("a" * 60 + "!")), (spec, Sample("aaa"))])
    assert [(v.score, v.status) for v in verdicts] == [(None, Status.ERROR), (1.0, Status.CORRECT)]


def test_a_schema_fetches_nothing() -> None:
    built = build(_use("json_schema", schema={"$ref": "http://127.0.0.1:9/schema.json"}))
    verdict = built.verify(Sample("5"))
    assert verdict.status is Status.ERROR
    assert "Unresolvable" in verdict.reason or "PointerToNowhere" in verdict.reason
