"""IFEval: "ifeval" and "ifeval_loose" (Zhou et al. 2023, arXiv:2311.07911).

The reference of a row is {"instruction_id_list": [ids], "kwargs": [one mapping an id]}, as published. An
unknown id or a missing argument is refused when the data is loaded; the published code would draw a random
argument instead, or crash in the middle of an evaluation.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from verifiers.base import Verdict, incorrect, scored
from verifiers.constraints import checks, language
from verifiers.errors import BadReference
from verifiers.registry import verifier

Mode = Literal["fraction", "all"]
Test = Callable[[Any], bool]


def _count(value: Any) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value) and value >= 0
    )


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(map(_text, value))


def _relation(value: Any) -> bool:
    return value in (checks.LESS, checks.MORE)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One kind of instruction: its check and what its arguments must be."""

    check: Callable[..., bool]
    arguments: Mapping[str, Test]


def _one(check: Callable[..., bool], **arguments: Test) -> Instruction:
    return Instruction(check, arguments)


INSTRUCTIONS: dict[str, Instruction] = {
    "keywords:existence": _one(checks.existence, keywords=_texts),
    "keywords:frequency": _one(checks.frequency, keyword=_text, frequency=_count, relation=_relation),
    "keywords:forbidden_words": _one(checks.forbidden_words, forbidden_words=_texts),
    "keywords:letter_frequency": _one(
        checks.letter_frequency,
        letter=lambda value: isinstance(value, str) and len(value) == 1,
        let_frequency=_count,
        let_relation=_relation,
    ),
    "language:response_language": _one(
        checks.response_language, language=lambda value: value in language.LANGUAGES
    ),
    "length_constraints:number_sentences": _one(
        checks.number_sentences, num_sentences=_count, relation=_relation
    ),
    "length_constraints:number_paragraphs": _one(checks.number_paragraphs, num_paragraphs=_count),
    "length_constraints:number_words": _one(checks.number_words, num_words=_count, relation=_relation),
    "length_constraints:nth_paragraph_first_word": _one(
        checks.nth_paragraph_first_word,
        num_paragraphs=_count,
        nth_paragraph=lambda value: _count(value) and value >= 1,
        first_word=_text,
    ),
    "detectable_content:number_placeholders": _one(checks.number_placeholders, num_placeholders=_count),
    "detectable_content:postscript": _one(checks.postscript, postscript_marker=_text),
    "detectable_format:number_bullet_lists": _one(checks.number_bullet_lists, num_bullets=_count),
    "detectable_format:constrained_response": _one(checks.constrained_response),
    "detectable_format:number_highlighted_sections": _one(
        checks.number_highlighted_sections, num_highlights=_count
    ),
    "detectable_format:multiple_sections": _one(
        checks.multiple_sections, section_spliter=_text, num_sections=_count
    ),
    "detectable_format:json_format": _one(checks.json_format),
    "detectable_format:title": _one(checks.title),
    "combination:two_responses": _one(checks.two_responses),
    "combination:repeat_prompt": _one(checks.repeat_prompt, prompt_to_repeat=_text),
    "startend:end_checker": _one(checks.end_checker, end_phrase=_text),
    "startend:quotation": _one(checks.quotation),
    "change_case:capital_word_frequency": _one(
        checks.capital_word_frequency, capital_frequency=_count, capital_relation=_relation
    ),
    "change_case:english_capital": _one(checks.english_capital),
    "change_case:english_lowercase": _one(checks.english_lowercase),
    "punctuation:no_comma": _one(checks.no_comma),
}


def read_reference(reference: Any) -> list[tuple[str, dict[str, Any]]]:
    """[(instruction id, its arguments)] of a row. Raises BadReference naming the id and the argument."""
    if not isinstance(reference, Mapping) or not {"instruction_id_list", "kwargs"} <= set(reference):
        raise BadReference('the reference must be a mapping {"instruction_id_list": [...], "kwargs": [...]}')
    ids, listed = reference["instruction_id_list"], reference["kwargs"]
    if not isinstance(ids, (list, tuple)) or not isinstance(listed, (list, tuple)) or not ids:
        raise BadReference("instruction_id_list and kwargs must be lists that are not empty")
    if len(ids) != len(listed):
        raise BadReference(f"there are {len(ids)} instructions but {len(listed)} kwargs")
    return [(name, _arguments(name, kwargs)) for name, kwargs in zip(ids, listed, strict=True)]


def _arguments(name: Any, kwargs: Any) -> dict[str, Any]:
    if name not in INSTRUCTIONS:
        near = difflib.get_close_matches(str(name), INSTRUCTIONS, n=1)
        raise BadReference(
            f"unknown instruction {name!r}.", cure=f"Did you mean {near[0]!r}?" if near else ""
        )
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise BadReference(f"{name}: kwargs must be a mapping, got {type(kwargs).__name__}")
    given = {key: value for key, value in (kwargs or {}).items() if value is not None}
    tests = INSTRUCTIONS[name].arguments
    for argument, test in tests.items():
        if argument not in given:
            raise BadReference(f"{name}: the argument {argument!r} is missing")
        if not test(given[argument]):
            raise BadReference(f"{name}: {argument} is {given[argument]!r}")
    if extra := set(given) - set(tests):
        raise BadReference(f"{name} takes no argument {min(extra)!r}; it takes {sorted(tests) or 'none'}")
    return {argument: given[argument] for argument in tests}


def follows(response: str, name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether a response follows one instruction, strictly. An empty response follows none."""
    return bool(response.strip()) and INSTRUCTIONS[name].check(response, **arguments)


def loose_variants(response: str) -> list[str]:
    """The response, without asterisks, and each without its first line, its last, and both."""
    lines = response.split("\n")
    cut = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(text.replace("*", "") for text in cut)]


def _verdict(followed: list[bool], names: list[str], mode: Mode) -> Verdict:
    missed = [name for name, ok in zip(names, followed, strict=True) if not ok]
    reason = "does not follow " + ", ".join(missed) if missed else ""
    if mode == "all":
        return incorrect(reason) if missed else scored(1.0)
    return scored((len(names) - len(missed)) / len(names), reason)


@verifier("ifeval", check_reference=read_reference)
def ifeval(response: str, reference: dict[str, Any], mode: Mode = "fraction") -> Verdict:
    """IFEval, strict: every instruction is checked on the response as it is.

    mode: "fraction" of instructions followed, or "all" for 1 only if every one is.
    """
    wanted = read_reference(reference)
    followed = [follows(response, name, arguments) for name, arguments in wanted]
    return _verdict(followed, [name for name, _ in wanted], mode)


@verifier("ifeval_loose", check_reference=read_reference)
def ifeval_loose(response: str, reference: dict[str, Any], mode: Mode = "fraction") -> Verdict:
    """IFEval, loose: an instruction is followed if it is without asterisks, first or last line.

    mode: "fraction" of instructions followed, or "all" for 1 only if every one is.
    """
    wanted = read_reference(reference)
    variants = loose_variants(response)
    followed = [any(follows(text, name, arguments) for text in variants) for name, arguments in wanted]
    return _verdict(followed, [name for name, _ in wanted], mode)
