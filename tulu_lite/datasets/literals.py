"""Text that spells a token of the chat template, kept text: a row must not be able to end a turn or begin one.

Tokenizers turn `<|im_end|>` into the end token wherever it stands, also inside what a user wrote. Here each such
spelling inside a turn's content is hidden before the template renders it, behind as many private-use characters,
and tokenized in two parts, cut after its first character, so that ordinary tokens spell it. Where no turn holds such
a spelling nothing changes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import pairwise

from .bad import BadRow

_FIRST, _LAST = 0x10F000, 0x10FFFD  # private-use characters; which of them says which token is meant
_HIDDEN = re.compile(f"[{chr(_FIRST)}-{chr(_LAST)}]")
_SHORTEST = 3  # tokens of fewer characters (a line break, two spaces) are ordinary text


class Literals:
    """The tokens that a row's text must not become.

    special: those of all turns. markers: further ones that the template writes around turns, and which an assistant's
    text may hold (`<think>` is one where the template begins an answer with it).
    """

    def __init__(self, special: Collection[str], markers: Collection[str] = ()) -> None:
        long = sorted({*special, *markers}, key=lambda token: (-len(token), token))
        self._tokens = [token for token in long if len(token) >= _SHORTEST and token.strip()]
        self._tokens = self._tokens[: _LAST - _FIRST + 1]
        self._number = {token: i for i, token in enumerate(self._tokens)}
        self._everywhere = self._pattern([token for token in self._tokens if token in special])
        self._outside_answers = self._pattern(self._tokens)

    @staticmethod
    def _pattern(tokens: Sequence[str]) -> re.Pattern[str]:
        return re.compile("|".join([*map(re.escape, tokens), _HIDDEN.pattern]))

    def hide(self, text: str, role: str, where: str = "") -> str:
        """The text with each spelling of a token replaced by as many private-use characters.

        Raises BadRow when the text itself holds one of these characters.
        """
        pattern = self._everywhere if role == "assistant" else self._outside_answers
        if not pattern.search(text):
            return text
        if used := _HIDDEN.search(text):
            raise BadRow(
                "a private-use character",
                f"{where}the {role}'s turn holds the private-use character U+{ord(used[0]):X}",
                why="U+10F000 to U+10FFFD have no meaning, and are used here to tell text from special tokens",
                cure="remove it from the row",
            )
        return pattern.sub(lambda match: chr(_FIRST + self._number[match[0]]) * len(match[0]), text)

    def show(self, text: str) -> str:
        """The text with what was hidden in its place."""
        return "".join(piece for _, piece in self.pieces(text)) if _HIDDEN.search(text) else text

    def hidden(self, text: str) -> bool:
        return bool(_HIDDEN.search(text))

    def pieces(self, text: str) -> list[tuple[int, str]]:
        """(first character, text) of the parts to tokenize one by one: a cut after the first character of each hidden
        spelling, and of each other token that the rest of it spells with what follows."""
        shown, spans, at = [], [], 0
        for match in _HIDDEN.finditer(text):
            if match.start() < at:
                continue
            token = self._tokens[ord(match[0]) - _FIRST]
            shown += [text[at : match.start()], token]
            spans.append((match.start(), match.start() + len(token)))
            at = match.start() + len(token)
        whole = "".join([*shown, text[at:]])
        cuts = [0]
        for first, last in spans:
            cuts.append(first + 1)
            cuts += [
                p + 1
                for p in range(first + 1, last)
                if any(whole.startswith(other, p) for other in self._tokens)
            ]
        edges = [*sorted(set(cuts)), len(whole)]
        return [(start, whole[start:end]) for start, end in pairwise(edges) if start < end]
