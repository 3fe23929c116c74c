"""The 25 checks of IFEval (Zhou et al. 2023, arXiv:2311.07911), each a function of the response's text.

They decide as the published reference does, quirks included, so that scores compare with the literature;
where a quirk can be exploited the single verifiers of `single.py` are stricter.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence

from verifiers.constraints import detection, segment
from verifiers.constraints.punkt import sentences
from verifiers.constraints.treebank import tokens

MORE, LESS = "at least", "less than"
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def relates(count: int, relation: str, threshold: int) -> bool:
    return count < threshold if relation == LESS else count >= threshold


# ---------------------------------------------------------------- keywords


def existence(text: str, keywords: Sequence[str]) -> bool:
    return all(re.search(re.escape(word), text, re.IGNORECASE) for word in keywords)


def forbidden_words(text: str, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words)


def frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return relates(len(re.findall(re.escape(keyword), text, re.IGNORECASE)), relation, frequency)


def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return relates(Counter(text.lower())[letter.lower()], let_relation, let_frequency)


# ---------------------------------------------------------------- length


def number_words(text: str, num_words: int, relation: str) -> bool:
    return relates(len(segment.words(text)), relation, num_words)


def number_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return relates(len(sentences(text)), relation, num_sentences)


def number_paragraphs(text: str, num_paragraphs: int) -> bool:
    """Paragraphs are divided by ***; an empty one is allowed only at either end."""
    pieces = re.split(r"\s?\*\*\*\s?", text)
    if any(not piece.strip() for piece in pieces[1:-1]):
        return False
    return sum(bool(piece.strip()) for piece in pieces) == num_paragraphs


def nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs are divided by an empty line here; the word ends at punctuation and has no case."""
    pieces = re.split(r"\n\n", text)
    count = sum(bool(piece.strip()) for piece in pieces)
    if nth_paragraph > count or not pieces[nth_paragraph - 1].strip():
        return False
    word = pieces[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    word = re.split(r"[.,?!'\"]", word, maxsplit=1)[0]
    return count == num_paragraphs and word.lower() == first_word.lower()


# ---------------------------------------------------------------- content and format


def number_placeholders(text: str, num_placeholders: int) -> bool:
    return sum(map(_bracketed, text.split("\n"))) >= num_placeholders


def _bracketed(line: str) -> int:
    """How often \\[.*?\\] matches in a line, in linear time."""
    count = position = 0
    while (start := line.find("[", position)) >= 0 and (end := line.find("]", start)) >= 0:
        count, position = count + 1, end + 1
    return count


def postscript(text: str, postscript_marker: str) -> bool:
    pattern = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(
        postscript_marker, re.escape(postscript_marker.lower())
    )
    return re.search(pattern, text.lower()) is not None


def number_bullet_lists(text: str, num_bullets: int) -> bool:
    # not ^\s*, which tries every run of empty lines from each of its lines
    stars = re.findall(r"^[^\S\n]*\*[^\*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^[^\S\n]*-.*$", text, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def constrained_response(text: str) -> bool:
    return any(option in text for option in OPTIONS)


def number_highlighted_sections(text: str, num_highlights: int) -> bool:
    single = re.findall(r"\*[^\n\*]*\*", text)
    double = re.findall(r"\*\*[^\n\*]*\*\*", text)
    count = sum(bool(one.strip("*").strip()) for one in single)
    count += sum(bool(one.removeprefix("**").removesuffix("**").strip()) for one in double)
    return count >= num_highlights


def multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.split(rf"\s?{re.escape(section_spliter)}\s?\d+\s?", text)) - 1 >= num_sections


def json_format(text: str) -> bool:
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def title(text: str) -> bool:
    """A line has <<...>> with something inside: <<[^\\n]+>> in linear time."""
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end - 2 and line[start:end].lstrip("<").rstrip(">").strip():
            return True
    return False


# ---------------------------------------------------------------- combination, start and end


def repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def two_responses(text: str) -> bool:
    """Two different ones, divided by six asterisks."""
    pieces = text.split("******")
    if any(not piece.strip() for piece in pieces[1:-1]):
        return False
    found = [piece.strip() for piece in pieces if piece.strip()]
    return len(found) == 2 and found[0] != found[1]


def end_checker(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


# ---------------------------------------------------------------- case, punctuation, language


def capital_word_frequency(text: str, capital_frequency: int, capital_relation: str) -> bool:
    count = sum(token.isupper() for token in tokens(text))
    return relates(count, capital_relation, capital_frequency)


def english_capital(text: str) -> bool:
    return text.isupper() and detection.is_language(text, "en")


def english_lowercase(text: str) -> bool:
    return text.islower() and detection.is_language(text, "en")


def no_comma(text: str) -> bool:
    return "," not in text


def response_language(text: str, language: str) -> bool:
    return detection.is_language(text, language)
