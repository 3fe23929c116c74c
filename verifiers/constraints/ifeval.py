"""IFEval: "ifeval" and "ifeval_loose" (Zhou et al. 2023, arXiv:2311.07911).

The reference of a row is {"instruction_id_list": [ids], "kwargs": [one mapping an id]}, as published. An
unknown id or a missing argument is refused when the data is loaded; the published code would draw a random
argument instead, or crash in the middle of an evaluation.
"""

from __future__ import annotations

from typing import Any

from verifiers.base import Verdict
from verifiers.constraints import checks, detection
from verifiers.constraints import instructions as shared
from verifiers.constraints.instructions import (
    Instruction,
    Mode,
    count,
    instruction,
    loose_variants,
    one_of,
    positive,
    text,
    texts,
)
from verifiers.registry import verifier

_RELATION = one_of(checks.LESS, checks.MORE)


def _letter(value: Any) -> str:
    if not isinstance(value, str) or len(value) != 1:
        raise ValueError("not one letter")
    return value


INSTRUCTIONS: dict[str, Instruction] = {
    "keywords:existence": instruction(checks.existence, keywords=texts),
    "keywords:frequency": instruction(checks.frequency, keyword=text, frequency=count, relation=_RELATION),
    "keywords:forbidden_words": instruction(checks.forbidden_words, forbidden_words=texts),
    "keywords:letter_frequency": instruction(
        checks.letter_frequency,
        letter=_letter,
        let_frequency=count,
        let_relation=_RELATION,
    ),
    "language:response_language": instruction(
        checks.response_language, language=one_of(*sorted(detection.LANGUAGES))
    ),
    "length_constraints:number_sentences": instruction(
        checks.number_sentences, num_sentences=count, relation=_RELATION
    ),
    "length_constraints:number_paragraphs": instruction(checks.number_paragraphs, num_paragraphs=count),
    "length_constraints:number_words": instruction(checks.number_words, num_words=count, relation=_RELATION),
    "length_constraints:nth_paragraph_first_word": instruction(
        checks.nth_paragraph_first_word,
        num_paragraphs=count,
        nth_paragraph=positive,
        first_word=text,
    ),
    "detectable_content:number_placeholders": instruction(checks.number_placeholders, num_placeholders=count),
    "detectable_content:postscript": instruction(checks.postscript, postscript_marker=text),
    "detectable_format:number_bullet_lists": instruction(checks.number_bullet_lists, num_bullets=count),
    "detectable_format:constrained_response": instruction(checks.constrained_response),
    "detectable_format:number_highlighted_sections": instruction(
        checks.number_highlighted_sections, num_highlights=count
    ),
    "detectable_format:multiple_sections": instruction(
        checks.multiple_sections, section_spliter=text, num_sections=count
    ),
    "detectable_format:json_format": instruction(checks.json_format),
    "detectable_format:title": instruction(checks.title),
    "combination:two_responses": instruction(checks.two_responses),
    "combination:repeat_prompt": instruction(checks.repeat_prompt, prompt_to_repeat=text),
    "startend:end_checker": instruction(checks.end_checker, end_phrase=text),
    "startend:quotation": instruction(checks.quotation),
    "change_case:capital_word_frequency": instruction(
        checks.capital_word_frequency, capital_frequency=count, capital_relation=_RELATION
    ),
    "change_case:english_capital": instruction(checks.english_capital),
    "change_case:english_lowercase": instruction(checks.english_lowercase),
    "punctuation:no_comma": instruction(checks.no_comma),
}


def read_reference(reference: Any) -> shared.Wanted:
    """[(instruction id, its arguments)] of a row. Raises BadReference naming the id and the argument."""
    return shared.read_reference(INSTRUCTIONS, reference)


def follows(response: str, name: str, arguments: dict[str, Any]) -> bool:
    """Whether a response follows one instruction, strictly. An empty response follows none."""
    return shared.follows(INSTRUCTIONS, response, name, arguments)


def _warm() -> None:
    detection.warm()
    follows("One. Two.", "length_constraints:number_sentences", {"num_sentences": 1, "relation": "at least"})


@verifier("ifeval", version="2", check_reference=read_reference, warm=_warm)
def ifeval(response: str, reference: dict[str, Any], mode: Mode = "fraction") -> Verdict:
    """IFEval, strict: every instruction is checked on the response as it is.

    mode: "fraction" of instructions followed, or "all" for 1 only if every one is.
    """
    return shared.judge(INSTRUCTIONS, [response], read_reference(reference), mode)


@verifier("ifeval_loose", version="2", check_reference=read_reference, warm=_warm)
def ifeval_loose(response: str, reference: dict[str, Any], mode: Mode = "fraction") -> Verdict:
    """IFEval, loose: an instruction is followed if it is without asterisks, first or last line.

    mode: "fraction" of instructions followed, or "all" for 1 only if every one is.
    """
    return shared.judge(INSTRUCTIONS, loose_variants(response), read_reference(reference), mode)
