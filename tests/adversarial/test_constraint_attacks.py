"""Responses that keep the letter of a constraint, or of its checker, and not the constraint. None may score."""

from __future__ import annotations

import time
from typing import Any

import pytest

from verifiers import BadReference, Sample, SpecError, Status, VerifierPool, build
from verifiers.constraints import detection, ifbench, ifeval


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


TINY = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "minimum": 1}}}
ANSWER = "<answer>4</answer>"
ONE_LANGUAGE = _use("language_consistency", code="en", at_least=0.8)
NO_LOOP = "no_repetition"
SOFT = _use("soft_length", unit="words", max=10, buffer=5, min=3)
CYRILLIC = "\u0442\u0435\u0445\u0442 \u043d\u0430 \u0434\u0440\u0443\u0433\u043e\u043c \u044f\u0437\u044b\u043a\u0435 "
FORMAT_ATTACKS: dict[str, tuple[Any, str]] = {
    "a reversed comma": ("no_commas", "one\u2e41 two"),
    "an upright comma": ("no_commas", "one\ufe10two"),
    "a comma of Lisu": ("no_commas", "one\ua4fe two"),
    "an excluded word with zero width in it": (_use("excludes", words=["bad"]), "It is b\u200bad"),
    "an excluded word with a soft hyphen": (_use("excludes", words=["bad"]), "It is b\u00adad"),
    "an excluded word in full width": (_use("excludes", words=["bad"]), "It is \uff42\uff41\uff44"),
    "an excluded word with a joiner": (_use("excludes", words=["bad"]), "It is ba\u034fd"),
    "an excluded word in bold letters": (_use("excludes", words=["bad"]), "It is \U0001d41b\U0001d41a\U0001d41d"),
    "too often, half of them unseen": (_use("contains", word="tea", at_most=1), "Tea, t\u2060ea"),
    "often enough by what is unseen": (_use("contains", word="tea", at_least=2), "tea t\u2060ea"),
    "a look-alike word": (_use("contains", word="story"), "A st\u043ery"),
    "lines by another separator": (_use("length", unit="lines", max=1), "one\u2028two"),
    "lines by carriage returns": (_use("length", unit="lines", max=1), "one\rtwo"),
    "words by other spaces": (_use("length", unit="words", max=3), "one\u00a0two\u1680three\u3000four"),
    "words by underscores": (_use("length", unit="words", max=3), "one_two_three_four_five"),
    "a start behind zero width and a letter": (_use("starts_with", phrase="Once"), "\u200bxOnce"),
    "an end before zero width and more": (_use("ends_with", phrase="Amen"), "Amen\u200b or not"),
    "bold capitals in lower case": ("lowercase", "\U0001d400bc"),
    "circled letters in upper case": ("uppercase", "ABC \u24d0"),
    "a title-case digraph in lower case": ("lowercase", "\u01c5abc"),
    "json lines": ("json", '{"a": 1}\n{"a": 2}'),
    "an object in a text": (_use("json", kind="object"), '"{\\"a\\": 1}"'),
    "false for nought": (_use("json_schema", schema={"const": 0}), "false"),
    "tags as entities": ("think_answer", "&lt;think&gt;a&lt;/think&gt;&lt;answer&gt;b&lt;/answer&gt;"),
    "zero width between the tags": ("think_answer", f"<think>a b</think>\u200b{ANSWER}"),
    "another language after English words": (ONE_LANGUAGE, "The answer is: " + "das ist alles auf deutsch geschrieben " * 5),
    "a phrase for ever, numbered": (NO_LOOP, "".join(f"{n}. I will think about it again. " for n in range(60))),
    "thoughts of zero width": ("think_answer", f"<think>\u200b\u2060</think>{ANSWER}"),
    "thoughts of combining marks": ("think_answer", f"<think>\u0301\u0301</think>{ANSWER}"),
    "thoughts of zero width where none are asked for": (_use("think_answer", min_words=0), f"<think>\u200b</think>{ANSWER}"),
    "thoughts of dots": ("think_answer", f"<think>...</think>{ANSWER}"),
    "an answer of a blank symbol": ("think_answer", "<think>two and two</think><answer>\u2800</answer>"),
    "an answer of a blank letter": ("think_answer", "<think>two and two</think><answer>\u3164</answer>"),
    "words of blank letters": (WORDS, "\u3164 \uffa0 \u115f \u1160 \u2800"),
    "an answer of zero width": ("think_answer", "<think>two and two</think><answer>\u200b</answer>"),
    "a second answer in capitals": ("think_answer", f"<think>a</think>{ANSWER[:-9]}<ANSWER>5</ANSWER></answer>"),
    "a second answer with a space": ("think_answer", "<think>a</think><answer>4< answer>5</ answer></answer>"),
    "a second answer in full-width brackets": ("think_answer", "<think>a</think><answer>4\uff1canswer\uff1e5</answer>"),
    "a tag with an attribute": ("think_answer", "<think>a</think><answer>4<answer id='2'>5</answer>"),
    "thinking under another name": ("think_answer", f"<think>a<thinking>b</thinking></think>{ANSWER}"),
    "nested thinking": ("think_answer", f"<think>a<think>b</think></think>{ANSWER}"),
    "closed before opened": ("think_answer", f"</think>a<think>{ANSWER}"),
    "too few thoughts": (_use("think_answer", min_words=5), f"<think>four words and no</think>{ANSWER}"),
    "thoughts joined by hyphens": (_use("think_answer", min_words=5), f"<think>a-b-c-d-e-f</think>{ANSWER}"),
    "a number for an object": (_use("json", kind="object"), "1"),
    "json with a trailing comma": ("json", "[1, 2,]"),
    "json with a byte-order mark": ("json", "\ufeff{}"),
    "json with infinity": ("json", "[1e999]"),
    "json with minus infinity": ("json", "-Infinity"),
    "json ten thousand deep": ("json", "[" * 10_000 + "]" * 10_000),
    "json 100 deep": ("json", '{"a":' * 100 + "1" + "}" * 100),
    "json in two fences": ("json", "```json\n1\n```\n```json\n2\n```"),
    "json in an open fence": ("json", "```json\n1"),
    "json with text after the fence": ("json", "```json\n1\n```\nDone."),
    "json with a key twice, deep": ("json", '[{"b": {"a": 1, "a": 2}}]'),
    "json with a key twice by escapes": ("json", '{"a": 1, "\\u0061": 2}'),
    "json of five thousand digits": ("json", "9" * 5000),
    "single quotes in an object": (_use("json_schema", schema=TINY), "{'a': 1}"),
    "true for a number": (_use("json_schema", schema=TINY), '{"a": true}'),
    "a look-alike key": (_use("json_schema", schema=TINY), '{"\u0430": 1}'),
    "the schema itself": (_use("json_schema", schema=TINY), '{"type": "object", "required": ["a"]}'),
    "the key in another case": (_use("json_schema", schema=TINY), '{"A": 1}'),
    "words of combining marks": (WORDS, "a\u0301\u0301b\u0301c\u0301d\u0301e"),
    "words split by zero width": (WORDS, "one\u200btwo\u200bthree\u200bfour\u200bfive"),
    "words joined by dots": (WORDS, "a.b.c.d.e.f"),
    "many words joined by hyphens as few": (_use("length", unit="words", max=3), "all-of-these-words-are-joined"),
    "many words joined by slashes as few": (_use("length", unit="words", max=3), "a/b/c/d/e/f/g/h"),
    "ideographs as one word": (_use("length", unit="words", max=3), "\u4eca\u5929\u5929\u6c14"),
    "characters of zero width": (_use("length", unit="characters", min=10), "abc" + "\u200d" * 20),
    "sentences of marks": (_use("length", unit="sentences", min=3), "One. ! ? ... !!"),
    "lines of rules": (_use("length", unit="lines", min=3), "One\n---\n***\n\u200b"),
    "short by an invisible word": (_use("length", unit="words", max=5), "\u200b"),
    "too short softly": (SOFT, "\u200b a \u200b b"),
    "too long softly": (SOFT, "word " * 11),
    "too long in the reasoning": (SOFT, "<think>" + "word " * 30 + "</think>one two three four"),
    "cut off": (SOFT, ""),
    "another language": (ONE_LANGUAGE, CYRILLIC * 5),
    "another language in Latin letters": (ONE_LANGUAGE, "Das ist alles auf Deutsch geschrieben und nicht auf Englisch. " * 4),
    "two languages by turns": (ONE_LANGUAGE, ("We go to the park today with our friends. " * 3 + CYRILLIC * 6) * 2),
    "look-alike letters": (ONE_LANGUAGE, "W\u0435 g\u043e t\u043e th\u0435 p\u0430rk t\u043ed\u0430y with \u043eur fri\u0435nds " * 3),
    "nothing but code": (ONE_LANGUAGE, "```\nthe code is in english\n```"),
    "nothing but numbers": (ONE_LANGUAGE, "1 2 3"),
    "the language only in the answer": (_use("language_consistency", code="en", part="thinking", at_least=0.8), f"<think>{CYRILLIC}</think>The answer is here."),
    "no thinking to be in the language": (_use("language_consistency", code="en", part="thinking"), "The answer is here."),
    "thinking that is not closed": (_use("language_consistency", code="en", part="answer"), "<think>The answer is here."),
    "a phrase for ever": (NO_LOOP, "I will think about it. " * 40),
    "a phrase in many cases": (NO_LOOP, "So it is. sO It iS. SO IT IS. so it is. So It Is. sO iT iS. so It is. SO it is. so IT is. So it is."),
    "a phrase with zero width": (NO_LOOP, "".join(f"so{chr(0x200b) * (n % 3)} it is. " for n in range(20))),
    "a phrase in full width": (NO_LOOP, "so it is. \uff53\uff4f it is. " * 8),
    "one word for ever": (NO_LOOP, "wait " * 30),
    "a syllable for ever": (NO_LOOP, "hahaha" * 30),
    "a character for ever": (NO_LOOP, "Well" + "l" * 60),
    "a paragraph thrice": (NO_LOOP, ("One two three four five six seven eight nine ten. " * 2 + "Eleven. ") * 3),
    "loops in the reasoning": (NO_LOOP, "<think>" + "Let me check again. " * 20 + "</think>It is four."),
    "marks alone": (NO_LOOP, "... !!!"),
    "ideographs for ever": (NO_LOOP, "\u6211\u60f3" * 20),
}  # fmt: skip


def _bench(name: str, response: str, **kwargs: Any) -> tuple[str, dict[str, Any], str]:
    return name, kwargs, response


INSTRUCTION_ATTACKS: dict[str, tuple[str, dict[str, Any], str]] = {
    "no white space by nothing": _bench("format:no_whitespace", "\u200b"),
    "no white space by a blank letter": _bench("format:no_whitespace", "\u3164"),
    "no bullets by nothing": _bench("format:sub-bullets", "\u2060\n"),
    "no vowel by accents": _bench("words:vowel", "\u0301\u0300"),
    "white space of another kind": _bench("format:no_whitespace", "one\u2003two"),
    "a line break for a space": _bench("format:no_whitespace", "one\ntwo"),
    "look-alike keyword": _bench("sentence:keyword", "One. This is te\u0430.", word="tea", N=2),
    "the keyword in another sentence": _bench("sentence:keyword", "Tea? One. Two.", word="tea", N=2),
    "the keyword with zero width": _bench("sentence:keyword", "One. t\u200bea.", word="tea", N=2),
    "names in lower case": _bench("count:person_names", "emma, liam, noah", N=1),
    "a name inside a name": _bench("count:person_names", "Leonardo Miami Avast", N=1),
    "one name many times": _bench("count:person_names", "Emma Emma Emma", N=2),
    "numbers in words": _bench("count:numbers", "one two three", N=3),
    "numbers by commas": _bench("count:numbers", "1,2,3", N=3),
    "words of punctuation in a range": _bench("count:word_count_range", ". , ! ?", min_words=3, max_words=5),
    "unique words by case": _bench("count:unique_word_count", "one One ONE oNe", N=2),
    "unique words by punctuation": _bench("count:unique_word_count", "one one, one. (one) 'one'", N=2),
    "an option and an excuse": _bench("format:options", "yes, because it is so", options="yes/no"),
    "all options": _bench("format:options", "yes/no", options="yes/no"),
    "quoting the request with the first word": _bench("repeat:repeat_change", "Write a poem.", prompt_to_repeat="Write a poem."),
    "quoting the request and more": _bench("repeat:repeat_change", "Make a poem. Roses", prompt_to_repeat="Write a poem."),
    "the whole for a span": _bench("repeat:repeat_span", "write a poem now", prompt_to_repeat="Write a poem now", n_start=1, n_end=3),
    "a copy of the text": _bench("ratio:overlap", "abcdefgh", reference_text="abcdefgh", percentage=50),
    "no stop words by no words": _bench("ratio:stop_words", "... !", percentage=50),
    "one bracket too few": _bench("format:parentheses", "(((((", ),
    "brackets that cross": _bench("format:parentheses", "([{([)]})]"),
    "quotes side by side": _bench("format:quotes", "\"a\" 'b' \"c\""),
    "curly quotes side by side": _bench("format:quote_unquote", "\u201ca\u201d \u201cb\u201d end"),
    "an emoji at the end alone": _bench("format:emoji", "One. Two. Three \U0001f600"),
    "a smiley for an emoji": _bench("format:emoji", "One :) Two :)"),
    "stairs of tabs": _bench("format:line_indent", "a\n\tb\n\t\tc"),
    "stairs that end": _bench("format:line_indent", "a\n b\n b"),
    "an empty thesis": _bench("format:thesis", "<i></i> text"),
    "a thesis in asterisks": _bench("format:thesis", "*Tea is good.* It warms."),
    "a template in another case": _bench("format:output_template", "my answer: my conclusion: future outlook:"),
    "small words in a title": _bench("format:title_case", "The House of the Sun"),
    "palindromes of four": _bench("words:palindrome", "noon deed peep " * 10),
    "primes by digits": _bench("words:prime_lengths", "1 4444"),
    "repeats by case": _bench("words:repeats", "one One, ONE", small_n=1),
    "repeats by punctuation": _bench("words:repeats", "o.n.e one", small_n=1),
    "a modal for a verb": _bench("words:start_verb", "Can you see"),
    "a quotation mark before the verb": _bench("words:start_verb", '"Identify the themes"'),
    "a Chinese word that is none": _bench("count:words_japanese", "a b\u0301 c d", N=2),
    "the alphabet from a digit": _bench("words:alphabet", "1 a b"),
    "a date of no month": _bench("custom:date_format_list", "1800-13-01"),
    "a date and a word": _bench("custom:date_format_list", "1800-12-01, Austerlitz"),
    "a table in a fence": _bench("custom:csv_city", "```\nID,Country,City,Year,Count\n" + "1,a,b,2,3\n" * 7 + "```"),
    "a table with an open quote": _bench("custom:csv_city", "ID,Country,City,Year,Count\n" + '1,a,"b,2,3\n' * 7),
    "an empty field in quotes": _bench("custom:csv_quotes", '"StudentID"\t"Subject"\t"Grade"\t"Semester"\t"Score"\n' + '"1"\t\t"b"\t"c"\t"d"\n' * 3),
    "sixty lines with Zimbabwe last": _bench("custom:reverse_newline", "b\n" * 60 + "Zimbabwe"),
    "words for multiples": _bench("custom:multiples", "fourteen, twenty-one"),
    "the eagle forwards": _bench("custom:character_reverse", "bald eagle"),
}  # fmt: skip


@pytest.mark.parametrize("name", INSTRUCTION_ATTACKS)
def test_no_attack_follows_an_instruction(name: str) -> None:
    instruction, kwargs, response = INSTRUCTION_ATTACKS[name]
    row = {"instruction_id_list": [instruction], "kwargs": [kwargs]}
    build("ifbench").check_reference(row)
    verdict = build("ifbench").verify(Sample(response, row))
    assert verdict.status is Status.INCORRECT, verdict.reason


LOOSELY = ("names in lower case", "all options", "quoting the request with the first word", "brackets that cross",
           "words for multiples", "a date of no month", "a template in another case", "an empty thesis", "a name inside a name")  # fmt: skip


@pytest.mark.parametrize("name", LOOSELY)
@pytest.mark.parametrize("around", ["{}", "*{}*", "Sure:\n{}", "**\n{}\n**", "\n\n{}\n\n", " {}"])
def test_loose_forgives_no_attack(name: str, around: str) -> None:
    instruction, kwargs, response = INSTRUCTION_ATTACKS[name]
    row = {"instruction_id_list": [instruction], "kwargs": [kwargs]}
    assert build("ifbench_loose").verify(Sample(around.format(response), row)).status is Status.INCORRECT


@pytest.mark.parametrize("name", FORMAT_ATTACKS)
def test_no_attack_on_a_format_scores(name: str) -> None:
    spec, response = FORMAT_ATTACKS[name]
    verdict = build(spec).verify(Sample(response, "72"))
    assert verdict.status is Status.INCORRECT, verdict.reason


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


HOSTILE = ["*" * 30_000, "[" * 30_000, "<<" * 15_000, "a " * 30_000, "." * 30_000, "\n" * 50_000 + "x", " " * 50_000 + "x", "-\n" * 15_000,
           "Section " * 6_000, "p. " * 12_000, '"' * 30_000, "{" * 12_000, "'" * 30_000, "<think>" * 6_000, "A" * 30_000, "a.b." * 6_000,
           "***\n" * 6_000, "\u0301" * 30_000 + "x", "can't " * 6_000, "* " * 15_000]  # fmt: skip
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
    detection.warm()
    start = time.process_time()
    followed = [
        name for name, kwargs in INSTRUCTIONS.items() if ifeval.follows(HOSTILE[number], name, kwargs)
    ]
    assert time.process_time() - start < 0.8  # 0.1 s where it was written; a quadratic check alone takes more
    assert [
        n for n in followed if n != "language:response_language"
    ] == []  # no letters: every language, as published


ARGUMENTS: dict[str, Any] = {
    "N": 3, "small_n": 3, "percentage": 50, "min_words": 1, "max_words": 3, "sep": "!", "word": "a", "keyword": "a",
    "n": 2, "m": 2, "n_start": 0, "n_end": 2, "options": "yes/no", "reference_text": "a b c", "prompt_to_repeat": "a b c",
    **{f"keyword{number}": "a" for number in range(1, 6)},
}  # fmt: skip
PIECES = ["a ", ". ", "!", "1. ", "*", "\n", "-\n", '"', "(", "Question 1\n", '"a,', "can't ", "\u0301", "\U0001f600. ", " \n b"]  # fmt: skip


@pytest.mark.parametrize("piece", PIECES)
def test_no_huge_text_hangs_a_check_of_ifbench(piece: str) -> None:
    text = piece * (20_000 // len(piece)) + "x"
    start = time.process_time()
    for name, instruction in ifbench.INSTRUCTIONS.items():
        kwargs = {argument: ARGUMENTS[argument] for argument in instruction.arguments}
        assert ifbench.follows(text, name, instruction.read(name, kwargs)) in (True, False)
    assert time.process_time() - start < 1.5  # 0.1 s where it was written; a quadratic check alone takes more


@pytest.mark.parametrize(
    "spec",
    ["think_answer", "json", NO_LOOP, SOFT, ONE_LANGUAGE, WORDS, _use("length", unit="sentences", min=2), _use("bullets", min=1)],
    ids=str,
)  # fmt: skip
def test_no_huge_text_hangs_a_format(spec: Any) -> None:
    built = build(spec)
    detection.warm()
    start = time.process_time()
    for piece in [
        *PIECES,
        "```",
        "\\[",
        "$a",
        "<think>",
        "</think>",
        "a.",
        "ab cd ef ",
        "[1,",
        '{"a":',
        "\u4e2d\u6587",
        "http://",
    ]:
        assert built.verify(Sample(piece * (15_000 // len(piece)) + "x")).score is not None
    assert time.process_time() - start < 1.5  # 0.1 s where it was written


def test_a_catastrophic_pattern_costs_one_timeout() -> None:
    spec = _use("regex", pattern=r"^(a+)+$")
    with VerifierPool(workers=1, timeout_s=0.5) as pool:
        verdicts = pool.verify([(spec, Sample("a" * 60 + "!")), (spec, Sample("aaa"))])
    assert [(v.score, v.status) for v in verdicts] == [(None, Status.ERROR), (1.0, Status.CORRECT)]


@pytest.mark.parametrize("item", ['{"a":%d}', "[[%d]]", "0.%d", '{"a":1}'])
def test_a_huge_array_of_unique_items_takes_no_time(item: str) -> None:
    """jsonschema itself compares every pair of objects: 5,000 take a minute."""
    built = build(_use("json_schema", schema={"type": "array", "uniqueItems": True}))
    text = "[" + ",".join(item % n if "%" in item else item for n in range(10, 5010)) + "]"
    start = time.process_time()
    verdict = built.verify(Sample(text))
    assert time.process_time() - start < 3
    assert verdict.score == ("%" in item and item != "0.%d"), verdict.reason[:200]


def test_a_schema_fetches_nothing() -> None:
    with pytest.raises(SpecError, match="nothing is fetched"):
        build(_use("json_schema", schema={"$ref": "http://127.0.0.1:9/schema.json"}))
    with pytest.raises(BadReference, match="nothing is fetched"):
        build("json_schema").check_reference({"properties": {"a": {"$ref": "file:///etc/passwd"}}})
