"""IFBench's 58 instructions, word by word, and what its rows may say."""

from __future__ import annotations

import json
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifiers import BadReference, Sample, Status, build
from verifiers.constraints import ifbench

KEYWORDS = {f"keyword{n}": word for n, word in enumerate(("sun", "moon", "sea", "oak", "ivy"), 1)}
FIVE = " ".join(" ".join([word] * n) for word, n in zip(KEYWORDS.values(), (1, 2, 3, 5, 7), strict=True))
CAPITALS = (
    "Reykjav\u00edk, Helsinki, Oslo, Tallinn, Stockholm, Riga, Moscow, Copenhagen, Vilnius, Minsk, Dublin, Berlin, "
    "Amsterdam, Warsaw, London, Brussels, Prague, Luxembourg, Paris, Vienna, Bratislava, Budapest, Vaduz, "
    "Chi\u0219in\u0103u, Bern, Ljubljana, Zagreb"
)
CITIES = "ID,Country,City,Year,Count\n" + "\n".join(f"{n},Peru,Lima,2001,{n}" for n in range(7))
SHOP = "ProductID,Category,Brand,Price,Stock\n" + "\n".join(f"{n},tea,Leaf,2,{n}" for n in range(13))
GRADES = '"StudentID"\t"Subject"\t"Grade"\t"Semester"\t"Score"' + '\n"1"\t"art"\t"A"\t"1"\t"90"' * 3
QUESTIONS = "\n\n".join(
    f"Question {n}: Who painted{' it' * n}?\nA) a\nB) b\nC) c\nD) d\nE) e" for n in range(1, 5)
)
AFRICA = "Zimbabwe\nZambia\n" + "\n".join(f"{chr(88 - n // 3)}{chr(122 - n % 3)}" for n in range(51))
STORY = " ".join(f"{chr(65 + n)}nd so it went." for n in range(26))
PALINDROMES = "level radar civic madam refer rotor kayak stats tenet deified"
COPY = {"prompt_to_repeat": "Write a short poem."}
SPAN = {"prompt_to_repeat": "Write a short poem now", "n_start": 1, "n_end": 3}

FOLLOWED: list[tuple[str, dict[str, Any], str, str]] = [
    # instruction, arguments, a response that follows it, one that does not
    ("count:conjunctions", {"small_n": 2.0}, "Sun and rain, but no snow.", "Sun and rain and snow, because."),
    ("count:keywords_multiple", KEYWORDS, FIVE, FIVE + " sun"),
    ("count:numbers", {"N": 2}, "1,000 and 3.5 are two.", "1 2 3"),
    ("count:person_names", {"N": 2}, "Emma met Leo.", "Emma met Leonard and Emma."),
    ("count:pronouns", {"N": 3}, "He/she gave it away.", "He's the one."),
    ("count:punctuation", {}, "Yes, no; maybe: really. What?! Oh! Why?", "Yes, no; maybe: really. What?!"),
    ("count:unique_word_count", {"N": 3}, "One two, three.", "one One, one. Two"),
    ("count:word_count_range", {"min_words": 3, "max_words": 4}, "don't stop now", "don't stop right now, please"),
    ("count:words_japanese", {"N": 2}, "I \u732b am \u3044\u306c", "I \u732b am dog"),
    ("custom:character_reverse", {}, "elgae dlab ehT", "the bald eagle"),
    ("custom:csv_city", {}, CITIES, CITIES + "\n8,Peru,Lima,2001,8"),
    ("custom:csv_quotes", {}, GRADES, GRADES.replace('"art"', "art")),
    ("custom:csv_special_character", {}, SHOP + '\n14,tea,"Leaf & Co",2,1', SHOP + "\n14,tea,Leaf & Co,2,1"),
    ("custom:date_format_list", {}, "1796-04-12, 1805-12-02", "1796-04-31, 1805-12-02"),
    ("custom:european_capitals_sort", {}, CAPITALS, CAPITALS.replace("Helsinki, Oslo", "Oslo, Helsinki")),
    ("custom:mcq_count_length", {}, QUESTIONS, QUESTIONS.replace("it it it it?", "it?")),
    ("custom:multiples", {}, "14, 21, 28, 35, 42 and 49", "7, 14, 21, 28, 35, 42, 49"),
    ("custom:reverse_newline", {}, AFRICA, AFRICA.replace("Zambia", "Zambia\nZanzibar")),
    ("custom:sentence_alphabet", {}, STORY, STORY.replace("Bnd", "Cnd")),
    ("custom:word_reverse", {}, "Eagle bald the is It.", "It is the bald eagle."),
    ("format:emoji", {}, "Good \U0001f600. Fine. \U0001f600", "Good \U0001f600. Fine."),
    ("format:line_indent", {}, "a\n b\n   c", "a\n b\n b"),
    ("format:list", {"sep": "!?!?"}, "!?!? a\n!?!? b", "- a\n!?!? b"),
    ("format:newline", {}, "one\n\ntwo,\n-\nthree", "one\ntwo three"),
    ("format:no_bullets_bullets", {}, "One here. Two here.\n* a\n* b", "One here.\n* a\n* b"),
    ("format:no_whitespace", {}, "a-b", "a\u00a0b"),
    ("format:options", {"options": "yes/no/maybe"}, "**Yes.**", "Yes, sure"),
    ("format:options", {"options": "a), b), c), d)"}, "b)", "b"),
    ("format:options", {"options": "I know or I don't know"}, "i don't know.", "I know or"),
    ("format:output_template", {}, "My Answer: a\nMy Conclusion: b\nFuture Outlook: c", "My Answer: a\nMy Conclusion: b"),
    ("format:parentheses", {}, "(a [b {c (d [e])}])", "(a [b {c (d)}])"),
    ("format:quote_unquote", {}, '"Go" means leave.', 'He said \u201cgo.\u201d'),
    ("format:quotes", {}, "\"a 'b \"c\" d' e\"", '"a" \'b\' "c"'),
    ("format:sub-bullets", {}, "* a\n  - b\n* c\n  - d", "* a\n  - b\n* c"),
    ("format:thesis", {}, "<em>Tea is good.</em> It warms.", "<i> </i> It warms."),
    ("format:title_case", {}, "The Quick Fox's iPhone", "The quick Fox"),
    ("ratio:overlap", {"reference_text": "abcdef", "percentage": 50}, "abcdxy", "abcdef"),
    ("ratio:sentence_balance", {}, "Yes. No? Oh!", "Yes. No? Oh! Oh!"),
    ("ratio:sentence_type", {}, "Yes. Yes. No?", "Yes. No?"),
    ("ratio:sentence_words", {}, "One day. Two men. Six sea!", "One day. Two men. A sea!"),
    ("ratio:stop_words", {"percentage": 25}, "the green old tree", "the tree is"),
    ("repeat:repeat_change", COPY, "Compose a short poem.", "Write a short poem."),
    ("repeat:repeat_simple", {}, "only output this sentence here, ignore all other requests. ", "Only output this."),
    ("repeat:repeat_span", SPAN, "A short", "a short poem"),
    ("sentence:alliteration_increment", {}, "A cat. Big bad cat. Six sad seals sang.", "Big bad cat. A sad seal."),
    ("sentence:increment", {"small_n": 2}, "One. Now three words. One two three four five.", "One. Two. Three."),
    ("sentence:keyword", {"word": "tea", "N": 2}, "No. Yes, Tea!", "Tea. No."),
    ("words:alphabet", {}, "Yes, zebras ate bananas.", "A cat bit."),
    ("words:consonants", {}, "This first crust", "This is"),
    ("words:keywords_specific_position", {"keyword": "tea", "n": 2, "m": 3}, "One. I drink Tea.", "I drink tea."),
    ("words:last_first", {}, "I see you. You see me. Me too.", "I see you. I see me."),
    ("words:no_consecutive", {}, "One two one", "Two, three"),
    ("words:odd_even_syllables", {}, "The happy dog", "A cat"),
    ("words:palindrome", {}, PALINDROMES, PALINDROMES.replace("deified", "deify")),
    ("words:paragraph_last_first", {}, "Tea is tea.\n\n**Rain and rain!**", "Tea is good."),
    ("words:prime_lengths", {}, "it's red", "it is four"),
    ("words:repeats", {"small_n": 1}, "one two", "One, one"),
    ("words:start_verb", {}, "Identify the themes.", "The themes"),
    ("words:vowel", {}, "a big old cat", "an ice cut so"),
    ("words:words_position", {"keyword": "tea"}, "My Tea is good tea.", "My tea is good"),
]  # fmt: skip


def reference(name: str, kwargs: Any) -> dict[str, Any]:
    return {"instruction_id_list": [name], "kwargs": [kwargs]}


@pytest.mark.parametrize(("name", "kwargs", "good", "bad"), FOLLOWED)
def test_each_instruction(name: str, kwargs: dict[str, Any], good: str, bad: str) -> None:
    row = reference(name, {**kwargs, "unused": None})
    built = build("ifbench")
    built.check_reference(row)
    assert built.verify(Sample(good, row)).score == 1
    verdict = built.verify(Sample(bad, row))
    assert verdict.score == 0
    assert name in verdict.reason
    assert build("ifbench_loose").verify(Sample(good, row)).score == 1


def test_all_fifty_eight_are_tried() -> None:
    assert {name for name, *_ in FOLLOWED} == set(ifbench.INSTRUCTIONS)
    assert len(ifbench.INSTRUCTIONS) == 58


def test_loose_forgives_a_first_line_and_several_count_as_a_share() -> None:
    row = {
        "instruction_id_list": ["format:options", "words:repeats"],
        "kwargs": [{"options": "yes/no"}, {"small_n": 1}],
    }
    assert build("ifbench").verify(Sample("Here it is:\nyes", row)).score == 0.5
    assert build("ifbench_loose").verify(Sample("Here it is:\nyes", row)).score == 1
    every = build({"use": "ifbench", "args": {"mode": "all"}})
    assert every.verify(Sample("Here it is:\nyes", row)).score == 0
    assert every.verify(Sample("yes", row)).score == 1


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("count:number", {"N": 1}, "Did you mean 'count:numbers'"),
        (None, {}, "unknown instruction None"),
        ("count:numbers", {}, "'N' is missing"),
        ("count:numbers", None, "'N' is missing"),
        ("count:numbers", {"N": None}, "'N' is missing"),
        ("count:numbers", {"N": -1}, "N is -1"),
        ("count:numbers", {"N": 2.5}, "N is 2.5"),
        ("count:numbers", {"N": "2"}, "N is '2'"),
        ("count:numbers", {"N": True}, "N is True"),
        ("count:numbers", {"N": float("nan")}, "N is nan"),
        ("count:numbers", {"N": 1, "n": 1}, "takes no argument 'n'"),
        ("count:numbers", [1], "kwargs must be a mapping"),
        ("count:words_japanese", {"N": 0}, "N is 0"),
        ("count:word_count_range", {"min_words": 5, "max_words": 4}, "min_words 5 is above max_words 4"),
        ("count:keywords_multiple", {"keyword1": "a"}, "'keyword2' is missing"),
        ("format:list", {"sep": ""}, "sep is ''"),
        ("format:options", {"options": "yes"}, "options is 'yes'"),
        ("format:options", {"options": "yes//no"}, "options is 'yes//no'"),
        ("ratio:overlap", {"reference_text": "ab", "percentage": 5}, "shorter than a trigram"),
        ("ratio:stop_words", {"percentage": 101}, "percentage is 101"),
        ("repeat:repeat_span", {**SPAN, "n_start": 9, "n_end": 12}, "no words from 9"),
        ("repeat:repeat_change", {"prompt_to_repeat": " "}, "prompt_to_repeat is ' '"),
        ("sentence:keyword", {"word": "a", "N": 0}, "N is 0"),
        ("words:vowel", {"N": 1}, "takes no argument 'N'"),
        ("words:keywords_specific_position", {"keyword": "a", "n": 1}, "'m' is missing"),
    ],
)  # fmt: skip
def test_bad_rows_are_refused_at_load(name: Any, kwargs: Any, message: str) -> None:
    row = reference(name, kwargs)
    for verifier in ("ifbench", "ifbench_loose"):
        with pytest.raises(BadReference, match=message):
            build(verifier).check_reference(row)
        assert build(verifier).verify(Sample("x", row)).status is Status.ERROR


def test_a_span_from_the_first_word_is_no_random_one() -> None:
    row = reference("repeat:repeat_span", {**SPAN, "n_start": 0})
    assert build("ifbench").verify(Sample("Write a short", row)).score == 1


@pytest.mark.parametrize(
    "text", ["a\n\n\n b\n\n  c", "\n\na\n b", "a\n   \n b\n     \n  c", "\n\n\n\n", "a\n\n b\n\n\n\n  c"]
)
def test_blank_lines_of_a_staircase_go_as_from_a_list_that_is_walked(text: str) -> None:
    lines = text.split("\n")
    for line in lines:
        if not line.strip():
            lines.remove(line)  # what the published code does
    indents = [len(line) - len(line.lstrip(" ")) for line in lines]
    stairs = all(a < b for a, b in pairwise(indents))
    assert ifbench.INSTRUCTIONS["format:line_indent"].check(text) is stairs


@settings(max_examples=60)
@given(st.text(max_size=120) | st.text(alphabet="ab \n.?!\"'*-(){}1,\u3042\U0001f600", max_size=120))
def test_no_text_breaks_a_check(text: str) -> None:
    for name, kwargs, _, _ in FOLLOWED:
        arguments = ifbench.INSTRUCTIONS[name].read(name, kwargs)
        assert ifbench.follows(text, name, arguments) in (True, False)


@settings(max_examples=50)
@given(st.integers(0, 30), st.integers(0, 30))
def test_counts_are_counts(words: int, asked: int) -> None:
    text = " ".join(f"w{chr(97 + n)}" for n in range(min(words, 26))) or "1"
    found = min(words, 26)
    arguments = {"min_words": asked, "max_words": asked}
    expected = (found or 1) == asked
    assert ifbench.follows(text, "count:word_count_range", arguments) is expected
    assert ifbench.follows(text, "count:unique_word_count", {"N": asked}) is ((found or 1) >= asked)


DATA = os.environ.get("VERIFIERS_DATA", "")


@pytest.mark.skipif(not DATA, reason="VERIFIERS_DATA names no folder with the data sets")
@pytest.mark.parametrize("mode", ["strict", "loose"])
def test_parity_with_the_published_verdicts(mode: str) -> None:
    folder = Path(DATA) / "ifbench"
    wanted = {row["prompt"].strip(): row for row in map(json.loads, (folder / "IFBench_test.jsonl").open())}
    seen: Counter[str] = Counter()
    differences = []
    for row in map(json.loads, (folder / f"sample_{mode}.jsonl").open()):
        names = row["instruction_id_list"]
        instructions = ifbench.read_reference(
            wanted.get(row["prompt"].strip(), {"instruction_id_list": names, "kwargs": [{}] * len(names)})
        )
        texts = [row["response"]] if mode == "strict" else ifbench.loose_variants(row["response"])
        for (name, kwargs), published in zip(instructions, row["follow_instruction_list"], strict=True):
            seen[name] += 1
            if any(ifbench.follows(text, name, kwargs) for text in texts) != published:
                differences.append((name, row["response"][:80]))
    assert sum(seen.values()) > 100
    assert differences == []


@pytest.mark.skipif(not DATA, reason="VERIFIERS_DATA names no folder with the data sets")
def test_every_row_of_the_test_set_loads() -> None:
    rows = [json.loads(line) for line in (Path(DATA) / "ifbench" / "IFBench_test.jsonl").open()]
    names = {name for row in rows for name, _ in ifbench.read_reference(row)}
    assert names == set(ifbench.INSTRUCTIONS)
