"""How often something occurs: IFBench's `count` and `ratio:stop_words`, `ratio:overlap`."""

from __future__ import annotations

import re

from verifiers.constraints.ifbench_checks.plain import bare, trimmed, word_set
from verifiers.constraints.segment import words

_CONJUNCTIONS = word_set("and but for nor or so yet")
_PRONOUNS = word_set(
    "i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers "
    "herself it its itself they them their theirs themselves"
)
# The names that the prompts list.
_NAMES = sorted(
    word_set(
        "Emma Liam Sophia Jackson Olivia Noah Ava Lucas Isabella Mason Mia Ethan Charlotte Alexander Amelia Benjamin "
        "Harper Leo Zoe Daniel Chloe Samuel Lily Matthew Grace Owen Abigail Gabriel Ella Jacob Scarlett Nathan Victoria "
        "Elijah Layla Nicholas Audrey David Hannah Christopher Penelope Thomas Nora Andrew Aria Joseph Claire Ryan "
        "Stella Jonathan"
    )
)
_NAME = re.compile(rf"\b(?:{'|'.join(_NAMES)})\b")
# What a stop word is to this check: its reference defines them as the English list of NLTK's corpus (Porter and others),
# here without those that have an apostrophe, which no word of \w+ is.
_STOP_WORDS = word_set(
    "i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself "
    "it its itself they them their theirs themselves what which who whom this that these those am is are was were be "
    "been being have has had having do does did doing a an the and but if or because as until while of at by for with "
    "about against between into through during before after above below to from up down in out on off over under "
    "again further then once here there when where why how all any both each few more most other some such no nor not "
    "only own same so than too very s t can will just don should now d ll m o re ve y ain aren couldn didn doesn hadn "
    "hasn haven isn ma mightn mustn needn shan shouldn wasn weren won wouldn"
)
_JAPANESE = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")  # kana and the common ideographs


def word_count_range(text: str, min_words: int, max_words: int) -> bool:
    return min_words <= len(words(text)) <= max_words


def unique_word_count(text: str, N: int) -> bool:
    """At least N different words; a lone punctuation mark counts as one (empty) word."""
    return len({trimmed(word) for word in text.lower().split()}) >= N


def stop_words(text: str, percentage: float) -> bool:
    """At most that share of the words."""
    found = words(text)
    stops = sum(word.lower() in _STOP_WORDS for word in found)
    return bool(found) and stops / len(found) * 100 <= percentage


def overlap(text: str, reference_text: str, percentage: float) -> bool:
    """The share of the response's trigrams that the text has too, within 2 points; trigrams of characters."""
    ours, theirs = _trigrams(text), _trigrams(reference_text)
    return bool(ours) and abs_within(len(ours & theirs) / len(ours) * 100, percentage)


def abs_within(share: float, percentage: float) -> bool:
    return percentage - 2 <= share <= percentage + 2


def _trigrams(text: str) -> set[str]:
    return {text[index : index + 3] for index in range(len(text) - 2)}


def numbers(text: str, N: int) -> bool:
    """Exactly N runs of digits once punctuation is gone: "3.14" is one."""
    return len(re.findall(r"\d+", bare(text))) == N


def conjunctions(text: str, small_n: int) -> bool:
    """At least small_n different ones; "and", "And" and "and," differ, as in the reference."""
    return len({word for word in text.split() if trimmed(word).lower() in _CONJUNCTIONS}) >= small_n


def person_names(text: str, N: int) -> bool:
    return len(set(_NAME.findall(text))) >= N


def pronouns(text: str, N: int) -> bool:
    """At least N; "I'm" is none, as in the reference when its verdicts were published."""
    return sum(word in _PRONOUNS for word in bare(text.replace("/", " ").lower()).split()) >= N


def punctuation(text: str) -> bool:
    """Each of . , ! ? ; : and an interrobang, which does not count for the others."""
    if not any(mark in text for mark in ("!?", "?!", "\u203d")):
        return False
    rest = text.replace("?!", "", 1) if "?!" in text else text.replace("!?", "", 1)
    return set(".,!?;:") <= set(rest)


def keywords_multiple(
    text: str, keyword1: str, keyword2: str, keyword3: str, keyword4: str, keyword5: str
) -> bool:
    """One, two, three, five and seven times, also inside other words."""
    lower = text.lower()
    wanted = zip((keyword1, keyword2, keyword3, keyword4, keyword5), (1, 2, 3, 5, 7), strict=True)
    return all(lower.count(keyword.strip().lower()) == times for keyword, times in wanted)


def words_japanese(text: str, N: int) -> bool:
    """Every Nth word has a Japanese character, numbers and lone punctuation aside; a shorter text follows."""
    every = (trimmed(word) for word in text.split()[N - 1 :: N])
    return all(_JAPANESE.search(word) for word in every if word and not word.isdigit())
