"""The verifiable constraints of Tülu 3's RLVR prompts (arXiv:2411.15124, section 6.1), as a verifier.

A row's reference is what its `ground_truth` says of the constraint: the name of a check and its arguments, as JSON text
or as an object, {"func_name": "verify_keyword_frequency", "word": "tea", "N": 2}; arguments that are null count as not
given. What each check asks for is the sentence that stands in the prompt; where that leaves room (what a word or a
sentence is), the reading is the plain one that the published checks have too, such as words between white space.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from verifiers import BadReference, correct, incorrect, verifier

QUANTIFIERS = ("at least", "around", "at most")
_SENTENCE_END = re.compile(r"(?<!\w\.\w.)(?<![A-Z][a-z]\.)(?<=[.?!])\s")


def _compares(count: int, n: int, quantifier: str, slack: int) -> bool:
    if quantifier == "around":
        return abs(count - n) <= slack
    return count >= n if quantifier == "at least" else count <= n


def _tenth(n: int) -> int:
    """How far `around` may be off: a tenth, and one at least."""
    return max(round(n / 10), 1)


def keywords(text: str, keyword_list: list[str]) -> bool:
    return all(word.lower() in text.lower() for word in keyword_list)


def keyword_frequency(text: str, word: str, N: int) -> bool:
    return re.findall(r"\w+", text.lower()).count(word.lower()) == N


def forbidden_words(text: str, forbidden_words: list[str]) -> bool:
    return not any(word.lower() in text.lower() for word in forbidden_words)


def letter_frequency(text: str, letter: str, N: int) -> bool:
    return text.count(letter) == N


def response_language(text: str, language: str) -> bool:
    from langdetect import DetectorFactory, LangDetectException, detect

    DetectorFactory.seed = 0  # or the same text may be another language the next time
    try:
        return detect(text) == language
    except LangDetectException:  # nothing but digits and punctuation
        return False


def paragraph_count(text: str, N: int) -> bool:
    parts = "\n".join(line.strip() for line in text.strip().splitlines()).split("* * *")
    return len(parts) == N and all(part.strip() for part in parts)


def word_count(text: str, N: int, quantifier: str) -> bool:
    return _compares(len(text.split()), N, quantifier, _tenth(N))


def sentence_count(text: str, N: int, quantifier: str) -> bool:
    return _compares(len(_SENTENCE_END.split(text)), N, quantifier, 1)


def paragraphs(text: str, N: int, first_word: str, i: int) -> bool:
    parts = text.split("\n\n")
    return len(parts) == N and 1 <= i <= N and parts[i - 1].strip().startswith(first_word)


def postscript(text: str, postscript_marker: str) -> bool:
    _, marker, rest = text.partition(postscript_marker)
    return bool(marker) and bool(rest.strip())


def placeholders(text: str, N: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= N


def bullet_points(text: str, N: int) -> bool:
    return sum(line.strip().startswith(("*", "-")) for line in text.split("\n")) == N


def title(text: str) -> bool:
    return re.search(r"<<.*?>>", text) is not None


def choice(text: str, options: list[str]) -> bool:
    return any(option in text for option in options)


def highlighted_sections(text: str, N: int) -> bool:
    return len(re.findall(r"\*.*?\*", text)) >= N


def sections(text: str, N: int, section_splitter: str) -> bool:
    heads = re.findall(rf"{re.escape(section_splitter)}\s?\d+", text, re.IGNORECASE)
    return len(heads) >= N


def json_format(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def repeat_prompt(text: str, original_prompt: str) -> bool:
    return text.startswith(original_prompt)


def two_responses(text: str) -> bool:
    first, marker, second = text.partition("******")
    return bool(marker) and "******" not in second and first.strip() != second.strip()


def uppercase(text: str) -> bool:
    return text == text.upper()


def lowercase(text: str) -> bool:
    return text == text.lower()


def capital_words(text: str, N: int, quantifier: str) -> bool:
    return _compares(len(re.findall(r"\b[A-Z]+\b", text)), N, quantifier, _tenth(N))


def end(text: str, end_phrase: str) -> bool:
    return text.endswith(end_phrase)


def quotation(text: str) -> bool:
    return len(text) > 1 and text.startswith('"') and text.endswith('"')


def no_commas(text: str) -> bool:
    return "," not in text


CHECKS: dict[str, Callable[..., bool]] = {
    "verify_keywords": keywords,
    "verify_keyword_frequency": keyword_frequency,
    "validate_forbidden_words": forbidden_words,
    "verify_letter_frequency": letter_frequency,
    "validate_response_language": response_language,
    "verify_paragraph_count": paragraph_count,
    "validate_word_constraint": word_count,
    "verify_sentence_constraint": sentence_count,
    "validate_paragraphs": paragraphs,
    "verify_postscript": postscript,
    "validate_placeholders": placeholders,
    "verify_bullet_points": bullet_points,
    "validate_title": title,
    "validate_choice": choice,
    "validate_highlighted_sections": highlighted_sections,
    "validate_sections": sections,
    "validate_json_format": json_format,
    "validate_repeat_prompt": repeat_prompt,
    "validate_two_responses": two_responses,
    "validate_uppercase": uppercase,
    "validate_lowercase": lowercase,
    "validate_frequency_capital_words": capital_words,
    "validate_end": end,
    "validate_quotation": quotation,
    "validate_no_commas": no_commas,
}
_TEXTS = (
    "word",
    "letter",
    "language",
    "first_word",
    "postscript_marker",
    "section_splitter",
    "original_prompt",
    "end_phrase",
)
_LISTS = ("keyword_list", "forbidden_words", "options")


def read(reference: Any) -> tuple[Callable[..., bool], dict[str, Any]]:
    """(check, its arguments). Raises BadReference for what the check cannot be called with."""
    try:
        given = json.loads(reference) if isinstance(reference, str) else reference
    except ValueError:
        raise BadReference("the reference must be a constraint, as JSON") from None
    if not isinstance(given, Mapping) or given.get("func_name") not in CHECKS:
        raise BadReference(f"the reference must be a constraint with a func_name of {', '.join(CHECKS)}")
    check = CHECKS[given["func_name"]]
    wanted = check.__code__.co_varnames[1 : check.__code__.co_argcount]
    arguments = {name: given.get(name) for name in wanted}
    for name, value in arguments.items():
        if not _fits(name, value):
            raise BadReference(f"{given['func_name']}: {name} is {value!r:.60}")
    return check, arguments


def _fits(name: str, value: Any) -> bool:
    if name in ("N", "i"):
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if name == "quantifier":
        return value in QUANTIFIERS
    if name in _LISTS:
        return isinstance(value, list) and bool(value) and all(isinstance(word, str) for word in value)
    return isinstance(value, str) and bool(value) and (name != "letter" or len(value) == 1)


@verifier("tulu3_constraint", version="1", check_reference=read)
def tulu3_constraint(response: str, reference: Any):
    """The response keeps the one constraint that the row's reference names. An empty response keeps none."""
    check, arguments = read(reference)
    if not response.strip():
        return incorrect("the response is empty")
    return correct() if check(response, **arguments) else incorrect(f"not so: {check.__name__} {arguments}")
