"""IFBench: "ifbench" and "ifbench_loose" (Pyatkin et al. 2025, arXiv:2507.02833), the 58 of the test set.

The reference of a row is {"instruction_id_list": [ids], "kwargs": [one mapping an id]}, as published. Where the
published code would draw a random argument (a missing or negative one, `n_start: 0`) or divide by zero, the row
is refused when the data is loaded, but for `n_start: 0`, which is taken as it says. Where it would crash on a
response (an empty field of a quoted table, a table that is none), the response does not follow.
"""

from __future__ import annotations

from typing import Any

from verifiers.base import Verdict
from verifiers.constraints import instructions as shared
from verifiers.constraints.ifbench_checks import counts, custom, formats, sentence, wording
from verifiers.constraints.instructions import (
    Instruction,
    Mode,
    count,
    instruction,
    loose_variants,
    percentage,
    positive,
    text,
)
from verifiers.registry import verifier


def _ordered(min_words: int, max_words: int) -> None:
    if min_words > max_words:
        raise ValueError(f"min_words {min_words} is above max_words {max_words}")


def _has_span(prompt_to_repeat: str, n_start: int, n_end: int) -> None:
    if not prompt_to_repeat.split()[n_start:n_end]:
        raise ValueError(f"the prompt has no words from {n_start} to before {n_end}")


def _options(value: Any) -> str:
    if any(not option for option in formats.options_of(text(value))) or len(formats.options_of(value)) < 2:
        raise ValueError("not two or more options between / or , or the word or")
    return value  # type: ignore[no-any-return]


def _reference_text(value: Any) -> str:
    if len(text(value)) < 3:
        raise ValueError("shorter than a trigram")
    return value  # type: ignore[no-any-return]


_KEYWORDS = {f"keyword{number}": text for number in range(1, 6)}

INSTRUCTIONS: dict[str, Instruction] = {
    "count:conjunctions": instruction(counts.conjunctions, small_n=count),
    "count:keywords_multiple": instruction(counts.keywords_multiple, **_KEYWORDS),
    "count:numbers": instruction(counts.numbers, N=count),
    "count:person_names": instruction(counts.person_names, N=count),
    "count:pronouns": instruction(counts.pronouns, N=count),
    "count:punctuation": instruction(counts.punctuation),
    "count:unique_word_count": instruction(counts.unique_word_count, N=count),
    "count:word_count_range": instruction(
        counts.word_count_range, _ordered, min_words=count, max_words=count
    ),
    "count:words_japanese": instruction(counts.words_japanese, N=positive),
    "custom:character_reverse": instruction(custom.character_reverse),
    "custom:csv_city": instruction(custom.csv_city),
    "custom:csv_quotes": instruction(custom.csv_quotes),
    "custom:csv_special_character": instruction(custom.csv_special_character),
    "custom:date_format_list": instruction(custom.date_format_list),
    "custom:european_capitals_sort": instruction(custom.european_capitals_sort),
    "custom:mcq_count_length": instruction(custom.mcq_count_length),
    "custom:multiples": instruction(custom.multiples),
    "custom:reverse_newline": instruction(custom.reverse_newline),
    "custom:sentence_alphabet": instruction(custom.sentence_alphabet),
    "custom:word_reverse": instruction(custom.word_reverse),
    "format:emoji": instruction(formats.emoji),
    "format:line_indent": instruction(formats.line_indent),
    "format:list": instruction(formats.list_marker, sep=text),
    "format:newline": instruction(formats.newline),
    "format:no_bullets_bullets": instruction(formats.no_bullets_bullets),
    "format:no_whitespace": instruction(formats.no_whitespace),
    "format:options": instruction(formats.options, options=_options),
    "format:output_template": instruction(formats.output_template),
    "format:parentheses": instruction(formats.parentheses),
    "format:quote_unquote": instruction(formats.quote_unquote),
    "format:quotes": instruction(formats.quotes),
    "format:sub-bullets": instruction(formats.sub_bullets),
    "format:thesis": instruction(formats.thesis),
    "format:title_case": instruction(formats.title_case),
    "ratio:overlap": instruction(counts.overlap, reference_text=_reference_text, percentage=percentage),
    "ratio:sentence_balance": instruction(sentence.sentence_balance),
    "ratio:sentence_type": instruction(sentence.sentence_type),
    "ratio:sentence_words": instruction(sentence.sentence_words),
    "ratio:stop_words": instruction(counts.stop_words, percentage=percentage),
    "repeat:repeat_change": instruction(custom.repeat_change, prompt_to_repeat=text),
    "repeat:repeat_simple": instruction(custom.repeat_simple),
    "repeat:repeat_span": instruction(
        custom.repeat_span, _has_span, prompt_to_repeat=text, n_start=count, n_end=positive
    ),
    "sentence:alliteration_increment": instruction(sentence.alliteration_increment),
    "sentence:increment": instruction(sentence.increment, small_n=count),
    "sentence:keyword": instruction(sentence.keyword, word=text, N=positive),
    "words:alphabet": instruction(wording.alphabet),
    "words:consonants": instruction(wording.consonants),
    "words:keywords_specific_position": instruction(
        wording.keywords_specific_position, keyword=text, n=positive, m=positive
    ),
    "words:last_first": instruction(wording.last_first),
    "words:no_consecutive": instruction(wording.no_consecutive),
    "words:odd_even_syllables": instruction(wording.odd_even_syllables),
    "words:palindrome": instruction(wording.palindrome),
    "words:paragraph_last_first": instruction(wording.paragraph_last_first),
    "words:prime_lengths": instruction(wording.prime_lengths),
    "words:repeats": instruction(wording.repeats, small_n=count),
    "words:start_verb": instruction(wording.start_verb),
    "words:vowel": instruction(wording.vowel),
    "words:words_position": instruction(wording.words_position, keyword=text),
}


def read_reference(reference: Any) -> shared.Wanted:
    """[(instruction id, its arguments)] of a row. Raises BadReference naming the id and the argument."""
    return shared.read_reference(INSTRUCTIONS, reference)


def follows(response: str, name: str, arguments: dict[str, Any]) -> bool:
    """Whether a response follows one instruction, strictly. An empty response follows none."""
    return shared.follows(INSTRUCTIONS, response, name, arguments)


def _warm() -> None:
    wording.syllable_counter()
    follows("One. Two.", "ratio:sentence_type", {})


@verifier("ifbench", check_reference=read_reference, warm=_warm)
def ifbench(response: str, reference: dict[str, Any], mode: Mode = "fraction") -> Verdict:
    """IFBench, strict: every instruction is checked on the response as it is.

    mode: "fraction" of instructions followed, or "all" for 1 only if every one is.
    """
    return shared.judge(INSTRUCTIONS, [response], read_reference(reference), mode)


@verifier("ifbench_loose", check_reference=read_reference, warm=_warm)
def ifbench_loose(response: str, reference: dict[str, Any], mode: Mode = "fraction") -> Verdict:
    """IFBench, loose: an instruction is followed if it is without asterisks, first or last line.

    mode: "fraction" of instructions followed, or "all" for 1 only if every one is. For an evaluation to compare,
    not for a reward: without asterisks every response has all its sub-bullets.
    """
    return shared.judge(INSTRUCTIONS, loose_variants(response), read_reference(reference), mode)
