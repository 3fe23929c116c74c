"""IFEval's instructions, word by word, and the single constraints."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifiers import BadReference, Sample, SpecError, Status, build
from verifiers.constraints import ifeval, language, segment

FOLLOWED: list[tuple[str, dict[str, Any], str, str]] = [
    # instruction, arguments, a response that follows it, one that does not
    ("keywords:existence", {"keywords": ["sun", "moon"]}, "Sunlight and the Moon.", "Only the sun."),
    ("keywords:forbidden_words", {"forbidden_words": ["sun"]}, "Sunlight.", "The SUN!"),
    ("keywords:frequency", {"keyword": "sun", "frequency": 2, "relation": "at least"}, "Sun, sunny", "sun"),
    ("keywords:frequency", {"keyword": "sun", "frequency": 2, "relation": "less than"}, "sun", "sun sun"),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": "at least"}, "Qq", "q"),
    ("language:response_language", {"language": "de"}, "Das ist ein Haus und es ist nicht groß.", "This is a house."),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "don't stop", "stop it"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "a b", "a b c"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, "One. Two.", "One, Dr. Who."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\na\n***\nb\n***", "a\n***\n \n***\nb"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Well"},
        'a\n\n"well," b',
        "well a\n\nb",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b]", "[a b]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\n\nP. S. more", "Bye. PS more"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "p.p.s. more", "P.S. more"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "- a\n- b\n- c\n- d\n- e"),
    ("detectable_format:constrained_response", {}, "Well: My answer is no.", "My answer is: no."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b*", "*a* and **"),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2}, "Section 1 a\nSection 2 b", "Section 1"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<joy>>\ntext", "<< >> text"),
    ("combination:two_responses", {}, "a ****** b", "a ****** a"),
    ("combination:two_responses", {}, "a\n******\nb\n******", "a ****** b ****** c"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "say it. It.", "It. Say it."),
    ("startend:end_checker", {"end_phrase": "The end."}, 'x "the end."', "the end. x"),
    ("startend:quotation", {}, ' "x" ', '"x'),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "I AM here", "I am"),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "DON'T", "Do NOT"),
    ("change_case:english_capital", {}, "THIS IS THE HOUSE.", "THIS IS the HOUSE."),
    ("change_case:english_lowercase", {}, "this is the house.", "This is the house."),
    ("change_case:english_lowercase", {}, "this is the house.", "das ist das haus und es ist nicht alt."),
    ("punctuation:no_comma", {}, "a b", "a, b"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kwargs", "good", "bad"), FOLLOWED)
def test_each_instruction(name: str, kwargs: dict[str, Any], good: str, bad: str) -> None:
    reference = {"instruction_id_list": [name], "kwargs": [{**kwargs, "unused": None}]}
    for verifier in ("ifeval", "ifeval_loose"):
        built = build(verifier)
        built.check_reference(reference)
        assert built.verify(Sample(good, reference)).score == 1
        verdict = built.verify(Sample(bad, reference))
        assert verdict.score == 0
        assert name in verdict.reason


def test_all_twenty_five_are_tried() -> None:
    assert {name for name, *_ in FOLLOWED} == set(ifeval.INSTRUCTIONS)
    assert len(ifeval.INSTRUCTIONS) == 25


def test_what_can_be_seen_is_seen_after_much_that_cannot() -> None:
    assert ifeval.follows("\u200b \n" * 40 + "x", "punctuation:no_comma", {})
    assert not ifeval.follows("\u200b \n" * 40, "punctuation:no_comma", {})


def test_loose_forgives_a_first_line_and_asterisks() -> None:
    reference = {"instruction_id_list": ["startend:quotation", "punctuation:no_comma"], "kwargs": [{}, {}]}
    response = 'Sure, here it is:\n*"x"*'
    assert build("ifeval").verify(Sample(response, reference)).score == 0
    assert build("ifeval_loose").verify(Sample(response, reference)).score == 1
    assert build("ifeval").verify(Sample('"x, y"', reference)).score == 0.5
    every = build({"use": "ifeval", "args": {"mode": "all"}})
    assert every.verify(Sample('"x, y"', reference)).score == 0
    assert every.verify(Sample('"x"', reference)).score == 1


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("x", "must be a mapping"),
        ({"instruction_id_list": [], "kwargs": []}, "not empty"),
        ({"instruction_id_list": ["startend:quotation"], "kwargs": []}, "1 instructions but 0"),
        ({"instruction_id_list": ["startend:quotaton"], "kwargs": [{}]}, "Did you mean 'startend:quotation'"),
        ({"instruction_id_list": ["startend:end_checker"], "kwargs": [{}]}, "'end_phrase' is missing"),
        ({"instruction_id_list": ["startend:end_checker"], "kwargs": [{"end_phrase": None}]}, "'end_phrase' is missing"),
        ({"instruction_id_list": ["startend:end_checker"], "kwargs": [{"end_phrase": " "}]}, "end_phrase is ' '"),
        ({"instruction_id_list": ["startend:quotation"], "kwargs": [{"n": 1}]}, "takes no argument 'n'"),
        ({"instruction_id_list": ["keywords:frequency"], "kwargs": [{"keyword": "a", "frequency": 1, "relation": "about"}]}, "relation is"),
        ({"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "xx"}]}, "language is 'xx'"),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": "sun"}]}, "keywords is 'sun'"),
    ],
)  # fmt: skip
def test_bad_rows_are_refused_at_load(reference: Any, message: str) -> None:
    with pytest.raises(BadReference, match=message):
        build("ifeval").check_reference(reference)
    assert build("ifeval").verify(Sample("x", reference)).status is Status.ERROR


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0), ("One", 1), ("One.", 1), ("One. Two! Three?", 3), ("Dr. Who met Mr. Bean.", 1), ("It is 3.14 m.", 1), ("e.g. this", 1),
        ("He came at 5 p.m. and left.", 1), ("He came at 5 p.m. The end.", 2), ('"Stop!" he said. "No."', 3), ("Wait... what?", 1),
        ("J. R. R. Tolkien wrote. Yes.", 2), ("The sun. The moon.", 2), ("On Sun. we met.", 1), ("Really?! Yes.", 2), ("a\nb\nc", 1),
        ("See no. 5 here. Done.", 2), ("I said no. Then left.", 2), ("It was 1999. Then 2000.", 2),
    ],
)  # fmt: skip
def test_sentences(text: str, count: int) -> None:
    assert segment.count_sentences(text) == count


LANGUAGES = {
    "en": "The weather is nice today and we will go to the park with our friends.",
    "de": "Das Wetter ist heute schön und wir gehen mit unseren Freunden in den Park.",
    "fr": "Le temps est beau aujourd'hui et nous allons au parc avec nos amis.",
    "es": "El tiempo es bueno hoy y vamos a ir al parque con nuestros amigos.",
    "pt": "O tempo está bom hoje e vamos ao parque com os nossos amigos, não é?",
    "it": "Il tempo è bello oggi e andiamo al parco con i nostri amici della scuola.",
    "nl": "Het weer is mooi vandaag en we gaan met onze vrienden naar het park.",
    "sv": "Vädret är fint idag och vi går till parken med våra vänner.",
    "fi": "Sää on kaunis tänään ja me menemme puistoon ystäviemme kanssa.",
    "pl": "Pogoda jest dziś ładna i idziemy do parku z naszymi przyjaciółmi.",
    "tr": "Bugün hava güzel ve arkadaşlarımızla birlikte parka gidiyoruz.",
    "vi": "Hôm nay thời tiết đẹp và chúng tôi sẽ đi đến công viên với bạn bè.",
    "sw": "Hali ya hewa ni nzuri leo na tutakwenda kwenye bustani pamoja na marafiki wa shule.",
    "ru": "Сегодня хорошая погода, и мы идём в парк с нашими друзьями.",
    "uk": "Сьогодні гарна погода, і ми йдемо в парк з нашими друзями.",
    "bg": "Днес времето е хубаво и ние ще отидем в парка с нашите приятели.",
    "ar": "الطقس جميل اليوم وسوف نذهب إلى الحديقة مع أصدقائنا.",
    "fa": "امروز هوا خوب است و ما با دوستان خود به پارک می رویم.",
    "ur": "آج موسم اچھا ہے اور ہم اپنے دوستوں کے ساتھ پارک جائیں گے۔",
    "hi": "आज मौसम अच्छा है और हम अपने दोस्तों के साथ पार्क में जाएंगे।",
    "mr": "आज हवामान छान आहे आणि आम्ही आमच्या मित्रांसोबत बागेत जाणार आहोत.",
    "ne": "आज मौसम राम्रो छ र हामी साथीहरूसँग पार्कमा जानेछौं।",
    "bn": "আজ আবহাওয়া ভালো এবং আমরা পার্কে যাব।",
    "ta": "இன்று வானிலை நன்றாக உள்ளது.",
    "te": "ఈ రోజు వాతావరణం బాగుంది.",
    "kn": "ಇಂದು ಹವಾಮಾನ ಚೆನ್ನಾಗಿದೆ.",
    "gu": "આજે હવામાન સારું છે.",
    "pa": "ਅੱਜ ਮੌਸਮ ਚੰਗਾ ਹੈ।",
    "ko": "오늘 날씨가 좋아서 공원에 갑니다.",
    "ja": "今日は天気がいいので公園に行きます。",
    "zh-cn": "今天天气很好，我们会去公园。",
    "th": "วันนี้อากาศดี เราจะไปสวนสาธารณะ",
    "el": "Ο καιρός είναι καλός σήμερα.",
    "he": "מזג האוויר יפה היום.",
}


@pytest.mark.parametrize("code", LANGUAGES)
def test_languages(code: str) -> None:
    assert language.detect(LANGUAGES[code]) == code
    if code not in ("ar", "hi"):
        assert build({"use": "language", "args": {"code": "ar"}}).verify(Sample(LANGUAGES[code])).score == 0


@settings(max_examples=25)
@given(st.text(max_size=200))
def test_no_text_breaks_a_check(text: str) -> None:
    for name, kwargs, _, _ in FOLLOWED:
        assert ifeval.follows(text, name, kwargs) in (True, False)


# ---------------------------------------------------------------- single constraints

SINGLE: list[tuple[Any, str, str]] = [
    ("no_commas", "a b", "a, b"),
    ({"use": "starts_with", "args": {"phrase": "Once"}}, " once upon", "upon once"),
    ({"use": "ends_with", "args": {"phrase": "Amen"}}, "so be it, amen\n", "Amen."),
    ({"use": "ends_with", "args": {"phrase": "Amen", "match_case": True}}, "Amen", "amen"),
    ({"use": "contains", "args": {"word": "story"}}, "A Story.", "A storyboard."),
    (
        {"use": "contains", "args": {"word": "story", "at_least": 2, "at_most": 2}},
        "story, story",
        "story story story",
    ),
    ({"use": "excludes", "args": {"words": ["bad", "ugly"]}}, "badly good", "so UGLY."),
    ({"use": "length", "args": {"unit": "words", "min": 2, "max": 3}}, "one two", "one two three four"),
    ({"use": "length", "args": {"unit": "characters", "max": 5}}, " abcde ", "abcdef"),
    ({"use": "length", "args": {"unit": "sentences", "min": 2}}, "One. Two.", "One, two."),
    ({"use": "length", "args": {"unit": "paragraphs", "min": 2, "max": 2}}, "a\n\nb", "a\nb"),
    ({"use": "length", "args": {"unit": "lines", "min": 2, "max": 2}}, "a\n\nb", "a"),
    ({"use": "regex", "args": {"pattern": r"\d{3}"}}, "abc 123", "abc 12"),
    ({"use": "regex", "args": {"pattern": r"\d{3}", "full": True}}, "123\n", "abc 123"),
    ("lowercase", "abc", "Abc"),
    ("uppercase", "ABC", "Abc"),
    ({"use": "bullets", "args": {"min": 2, "max": 2}}, "- a\n* b", "- a\n-b"),
    ("json", '```json\n{"a": [1]}\n```', '{"a": NaN}'),
    ({"use": "json_schema", "args": {"schema": {"type": "object", "required": ["a"]}}}, '{"a": 1}', "{}"),
    ("think_answer", "<think>x</think>\n<answer>y</answer>", "<think>x</think>y"),
    (
        {"use": "think_answer", "args": {"opened": True}},
        "x</think><answer>y</answer>",
        "<think>x</think><answer>y</answer>",
    ),
]


@pytest.mark.parametrize(("spec", "good", "bad"), SINGLE)
def test_single_constraints(spec: Any, good: str, bad: str) -> None:
    built = build(spec)
    assert built.verify(Sample(good)).score == 1
    assert built.verify(Sample(bad)).score == 0


@pytest.mark.parametrize(
    "spec",
    [
        {"use": "starts_with", "args": {"phrase": " "}},
        {"use": "contains", "args": {"word": "a", "at_least": 3, "at_most": 2}},
        {"use": "length", "args": {"unit": "words"}},
        {"use": "length", "args": {"unit": "words", "min": -1}},
        {"use": "excludes", "args": {"words": []}},
        {"use": "regex", "args": {"pattern": "("}},
        {"use": "language", "args": {"code": "xx"}},
        {"use": "json_schema", "args": {"schema": {"type": "objekt"}}},
    ],
)
def test_senseless_arguments_are_refused_when_built(spec: Any) -> None:
    with pytest.raises(SpecError):
        build(spec)


def test_references_as_json_text() -> None:
    reference = '{"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}'
    assert build("ifeval").verify(Sample("one two", reference)).score == 1
    assert build("ifeval").verify(Sample("one, two", reference)).score == 0
    assert build("json_schema").verify(Sample("5", '{"type": "integer"}')).score == 1
    assert build("json_schema").verify(Sample('"5"', '{"type": "integer"}')).score == 0
    for name in ("ifeval", "json_schema"):
        with pytest.raises(BadReference, match="or one as JSON"):
            build(name).check_reference("no comma")


def test_a_schema_as_reference() -> None:
    built = build("json_schema")
    with pytest.raises(BadReference):
        built.check_reference({"type": "objekt"})
    built.check_reference({"type": "integer"})
    assert [built.verify(Sample(text, {"type": "integer"})).score for text in ("5", '"5"')] == [1, 0]


# ---------------------------------------------------------------- the published verdicts, where they are

DATA = os.environ.get("VERIFIERS_DATA", "")


@pytest.mark.skipif(not DATA, reason="VERIFIERS_DATA names no folder with the data sets")
@pytest.mark.parametrize("mode", ["strict", "loose"])
def test_parity_with_the_published_verdicts(mode: str) -> None:
    folder = Path(DATA) / "ifeval"
    wanted = {row["prompt"]: row for row in map(json.loads, (folder / "input_data.jsonl").open())}
    seen: Counter[str] = Counter()
    differences = set()
    for line in (folder / f"gpt4_{mode}.jsonl").open():
        row = json.loads(line)
        instructions = ifeval.read_reference(wanted[row["prompt"]])
        texts = [row["response"]] if mode == "strict" else ifeval.loose_variants(row["response"])
        for (name, kwargs), published in zip(instructions, row["follow_instruction_list"], strict=True):
            seen[name] += 1
            if any(ifeval.follows(text, name, kwargs) for text in texts) != published:
                differences.add((name, row["response"]))
    assert set(seen) == set(ifeval.INSTRUCTIONS)
    assert differences == set()
