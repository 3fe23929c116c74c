"""Conversations as token ids, by the tokenizer's chat template or one of ours, and which of them are learnt.

The tokens of a prompt are always the first tokens of the conversation it begins, so that what is trained on
is what is sampled from; `check` proves it for a template, `conversation` for each row where it is in doubt.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from ..errors import TuluLiteError
from .bad import BadRow
from .literals import Literals
from .proof import PROBE, prove
from .spans import Encoding, UnevenTokens, split_tokens
from .templates import template_source
from .tokenizer import embedding_rows, generation_end_ids, load_tokenizer

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_CHUNK = 1024  # texts tokenized at once: enough for the tokenizer's threads, little memory for offsets
_OURS = "or use `chat_template: tulu`"

Messages = Sequence[dict[str, str]]

__all__ = ["ChatTemplate", "load_tokenizer"]


class ChatTemplate:
    """A jinja chat template with its tokenizer. The template alone writes bos, so it is never there twice."""

    def __init__(self, name: str, source: str, tokenizer: Any, model: str = "") -> None:
        """source: the jinja text. Raises TuluLiteError when the tokenizer has no end-of-sequence token."""
        self.name, self.source, self.tokenizer, self.model = name, source, tokenizer, model
        if tokenizer.eos_token_id is None:
            raise TuluLiteError(
                f"the tokenizer of {model or 'the model'} has no end-of-sequence token",
                why="a model learns to stop, and is stopped, by that token",
                cure="set `eos_token` in its tokenizer_config.json to a token of the vocabulary",
            )
        self._marked = bool(_MARKS.search(source))
        self.literals = self._literals()
        self._known_steady: dict[tuple[str, str], bool] = {}
        ids = [self._closing_token(), int(tokenizer.eos_token_id), *generation_end_ids(model, tokenizer)]
        self.end_token_ids: tuple[int, ...] = tuple(dict.fromkeys(i for i in ids if i is not None))
        self.pad_id = int(
            tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        )

    @classmethod
    def load(cls, name: str, tokenizer: Any, model: str) -> ChatTemplate:
        """name: `model` (the tokenizer's own), one of ours (see `templates`) or a .jinja file. model: folder or hub id."""
        return cls(name, template_source(name, tokenizer, model), tokenizer, model)

    def prompt(self, messages: Messages) -> tuple[str, list[int]]:
        """The text and token ids that end where the assistant's answer begins."""
        return self.prompts([messages])[0]

    def prompts(self, many: Sequence[Messages], places: Sequence[str] = ()) -> list[tuple[str, list[int]]]:
        """`prompt` of each; places: where each stands, for errors."""
        texts = [self._render(messages, _place(places, i), prompt=True)[0] for i, messages in enumerate(many)]
        history = any(turn["role"] == "assistant" for messages in many for turn in messages)
        made = []
        for i, (text, encoding) in enumerate(zip(texts, self._encode(texts, offsets=history), strict=True)):
            edges = self._edges_before(text, many[i], _place(places, i))
            ids = self._split(text, edges, encoding, _place(places, i))[0] if edges else encoding.ids
            made.append((self.literals.show(text), ids))
        return made

    def conversation(self, messages: Messages) -> tuple[list[int], list[bool]]:
        """Token ids, and which have a loss: each assistant turn's text and its end token, nothing else."""
        return self.conversations([messages])[0]

    def conversations(
        self, many: Sequence[Messages], places: Sequence[str] = (), *, last_only: bool = False
    ) -> list[tuple[list[int], list[bool]]]:
        """`conversation` of each; places: where each stands, for errors. last_only: of the assistant's turns, only the
        last has a loss."""
        spanned = [self.spans(messages, _place(places, i)) for i, messages in enumerate(many)]
        encodings = self._encode([text for text, _ in spanned], offsets=True)
        return [
            self._masked(text, spans, encoding, _place(places, i), last_only)
            for i, ((text, spans), encoding) in enumerate(zip(spanned, encodings, strict=True))
        ]

    def response(self, text: str, finished: bool) -> list[int]:
        """Token ids of an answer of another model, as this one would have sampled it: it begins with a token of its
        own, and ends with the end token if it is finished."""
        ids = self.ids_of(self.literals.hide(text, "assistant"))
        return [*ids, self.end_token_ids[0]] if finished else ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The exact text, without the end token and other special tokens."""
        end = len(token_ids)
        while end and token_ids[end - 1] in self.end_token_ids:
            end -= 1
        return self.tokenizer.decode(
            list(token_ids[:end]), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def check(self) -> None:
        """Prove the template on small conversations; raises TuluLiteError saying what fails. See `prove`."""
        prove(self)

    @cached_property
    def _special(self) -> dict[str, Any]:
        return dict(self.tokenizer.special_tokens_map)

    def fault(self, what: str, cure: str) -> TuluLiteError:
        return TuluLiteError(
            f"the chat template `{self.name}` of {self.model or 'the model'} cannot be trained with: {what}",
            cure=f"{cure}; {_OURS}",
        )

    def _render(
        self, messages: Messages, where: str, prompt: bool = False, marks: bool = False
    ) -> tuple[str, Any]:
        """(text, [(first, last) character of each marked stretch]). What spells a token in a turn is hidden in it."""
        hidden = [{**m, "content": self.literals.hide(m["content"], m["role"], where)} for m in messages]
        return self._render_raw(hidden, where, prompt, marks)

    def _render_raw(
        self, messages: Messages, where: str, prompt: bool = False, marks: bool = False
    ) -> tuple[str, Any]:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            made: Any = render_jinja_template(
                [list(messages)],
                chat_template=self.source,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=marks,
                **self._special,
            )
        except Exception as error:  # jinja's errors, and whatever an expression of the template raises
            raise BadRow(
                "the chat template refuses it",
                f"{where}the chat template `{self.name}` refuses a conversation of "
                f"{', '.join(m['role'] for m in messages)}: {error}",
                cure="mend the row (some templates take no system turn) or the template; " + _OURS,
            ) from None
        return made[0][0], made[1][0] if marks else []

    def spans(self, messages: Messages, where: str) -> tuple[str, list[tuple[int, int]]]:
        """The text, and each assistant turn's characters: by the template's marks, or else one by one."""
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if self._marked:
            text, spans = self._render(messages, where, marks=True)
            if len(spans) != len(answers):
                raise self.fault(
                    f"{where}it marks {len(spans)} stretches as generated in a conversation of "
                    f"{len(answers)} assistant turns",
                    "put {% generation %} and {% endgeneration %} once around each assistant turn",
                )
            return text, [(int(first), int(last)) for first, last in spans]
        text, _ = self._render(messages, where)
        spans = []
        for i in answers:
            before, _ = self._render(messages[:i], where, prompt=True)
            after = text if i == len(messages) - 1 else self._render(messages[: i + 1], where)[0]
            if not (text.startswith(before) and text.startswith(after)):
                raise self.fault(
                    f"{where}turn {i + 1} is rendered differently by itself than in the whole "
                    "conversation, so its tokens cannot be found",
                    "write a template that renders each turn in the same way wherever it stands, or mark "
                    "the assistant's text with {% generation %}",
                )
            spans.append((len(before), len(after)))
        return text, spans

    def _masked(
        self, text: str, spans: list[tuple[int, int]], encoding: Encoding, where: str, last_only: bool
    ) -> tuple[list[int], list[bool]]:
        ids, places = self._split(text, [edge for span in spans for edge in span], encoding, where)
        mask = [False] * len(ids)
        whole = len(places) // 2 - 1  # the number of the last turn
        for turn, (first, last) in enumerate(zip(places[::2], places[1::2], strict=True)):
            end = self._end_of_turn(ids, first, last, where)
            if turn == whole or not last_only:
                mask[first : end + 1] = [True] * (end + 1 - first)
        return ids, mask

    def _edges_before(self, text: str, messages: Messages, where: str) -> list[int]:
        """Where answers begin and end in the text of a prompt: there it is split as a conversation is."""
        if not any(message["role"] == "assistant" for message in messages):
            return []
        whole, spans = self.spans(messages, where)
        edges = [edge for span in spans for edge in span]
        return edges if text[: edges[-1]] == whole[: edges[-1]] else []

    def _split(
        self, text: str, edges: list[int], encoding: Encoding, where: str
    ) -> tuple[list[int], list[int]]:
        """(token ids, tokens before each edge)."""
        try:
            return split_tokens(
                text, edges, encoding, self.ids_of, self.exact_text, lambda edge: self._steady(text, edge)
            )
        except UnevenTokens as error:
            near = self.literals.show(text)[max(0, error.edge - 20) : error.edge + 20]
            raise BadRow(
                "a token over the edge of a turn",
                f"{where}the tokens of the assistant's turn cannot be told from those around it, near {near!r}",
                why="one token spans the boundary, and this tokenizer gives other text when the parts are "
                "tokenized by themselves",
                cure="remove white space at the start of the assistant's text, " + _OURS,
            ) from None

    def _steady(self, text: str, edge: int) -> bool:
        """Whether the white space before the edge gives the same tokens without what follows it: to many tokenizers the
        last of several blanks belongs to the word after them."""
        near = text[max(0, edge - 32) : edge]
        blank = near[len(near.rstrip()) :]
        if not blank or edge == len(text):
            return True
        follows = "<" if self.literals.hidden(text[edge]) else text[edge]
        if (blank, follows) not in self._known_steady:
            alone, followed = self.ids_of("x" + blank), self.ids_of("x" + blank + follows)
            self._known_steady[blank, follows] = followed[: len(alone)] == alone
        return self._known_steady[blank, follows]

    def _end_of_turn(self, ids: Sequence[int], first: int, last: int, where: str) -> int:
        """The place of the end token of the turn whose tokens are ids[first:last]: its last one, or the one after."""
        found = next((i for i in range(last - 1, first - 1, -1) if ids[i] in self.end_token_ids), None)
        if found is not None:
            return found
        if last < len(ids) and ids[last] in self.end_token_ids:
            return last
        raise self.fault(
            f"{where}the assistant's turn has no end token after it, so the model would never learn to stop",
            "put {{ eos_token }} after the assistant's content, inside its {% generation %} marks where it has them, "
            "and see that this token is in the vocabulary",
        )

    def _encode(self, texts: Sequence[str], offsets: bool) -> Iterator[Encoding]:
        offsets = offsets and bool(getattr(self.tokenizer, "is_fast", False))
        for start in range(0, len(texts), _CHUNK):
            chunk = texts[start : start + _CHUNK]
            hidden = [self.literals.hidden(text) for text in chunk]
            plain = iter(self._batch([t for t, cut in zip(chunk, hidden, strict=True) if not cut], offsets))
            for text, cut in zip(chunk, hidden, strict=True):
                yield self._in_pieces(text, offsets) if cut else next(plain)

    def _batch(self, texts: Sequence[str], offsets: bool) -> list[Encoding]:
        if not texts:
            return []
        made = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_offsets_mapping=offsets,
            verbose=False,  # lengths are checked against the recipe's limits
        )
        return [
            Encoding(list(ids), made["offset_mapping"][i] if offsets else None)
            for i, ids in enumerate(made["input_ids"])
        ]

    def _in_pieces(self, text: str, offsets: bool, inside: bool = False) -> Encoding:
        """A text with hidden spellings of tokens: its pieces tokenized one by one."""
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        for start, piece in self.literals.pieces(text):
            made = self._inside(piece) if start or inside else self._batch([piece], offsets)[0]
            if made is None:
                raise BadRow(
                    "a special token in the text",
                    f"a turn spells a special token, near {self.literals.show(text)[max(0, start - 20) : start + 20]!r}",
                    why="this tokenizer has no other way to write it, so it would end the turn or begin another",
                    cure="remove it from the row, or set `bad_rows: drop`",
                )
            ids += made.ids
            places += [(start + first, start + last) for first, last in made.offsets or ()]
        return Encoding(ids, places if offsets else None)

    def _inside(self, piece: str) -> Encoding | None:
        """The tokens that a piece of text has where it stands inside another; None where they cannot be known."""
        if self._lead is None:
            return None
        offsets = bool(getattr(self.tokenizer, "is_fast", False))
        (made,) = self._batch([self._lead + piece], offsets)
        skipped, shift = len(self._batch([self._lead], False)[0].ids) if self._lead else 0, len(self._lead)
        places = [(first - shift, last - shift) for first, last in (made.offsets or ())[skipped:]]
        return Encoding(made.ids[skipped:], places if offsets else None)

    @cached_property
    def _lead(self) -> str | None:
        """A text to put before a piece, so that its tokens are those it has inside a text (some tokenizers put a space
        before every text); its own tokens are then left out. None: there is none."""
        left, right = "<", "|zz|> a"
        whole = self.exact_text(self.ids_of(left + right))
        for lead in ("", ".", "a", "\n"):
            before, both = self.ids_of(lead), self.ids_of(lead + right)
            inside = both[len(before) :]
            if both[: len(before)] == before and self.exact_text([*self.ids_of(left), *inside]) == whole:
                return lead
        return None

    def _literals(self) -> Literals:
        """Tokens that no turn's text may become: the special ones, and those that the template writes around turns."""
        special = {str(token) for token in self.tokenizer.all_special_tokens}
        added = self.tokenizer.added_tokens_decoder.values()
        special |= {token.content for token in added if token.special}
        written = self._render_raw(PROBE[:2], "")[0] + self._render_raw(PROBE[:1], "", prompt=True)[0]
        return Literals(special, {token.content for token in added if token.content in written})

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the tokens of a conversation, as plain data."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = (
            json.dumps(self.tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
        )
        return {
            "source": self.source,
            "special": {name: str(token) for name, token in self._special.items()},
            "end_token_ids": list(self.end_token_ids),
            "tokenizer": hashlib.sha256(vocabulary.encode("utf-8", "surrogatepass")).hexdigest(),
        }

    @cached_property
    def unknown_id(self) -> int | None:
        """The id of what stands for characters outside the vocabulary, where the tokenizer has one for nothing else."""
        id = self.tokenizer.unk_token_id
        return (
            None if id is None or id in self.end_token_ids or id == self.tokenizer.bos_token_id else int(id)
        )

    @cached_property
    def loses_characters(self) -> bool:
        """Whether characters outside the vocabulary vanish, with no token in their place."""
        return not self.ids_of("\U000e0123")

    @cached_property
    def embeddings(self) -> int | None:
        """Tokens that the model has; None where that is not known."""
        return embedding_rows(self.model)

    def ids_of(self, text: str, inside: bool = False) -> list[int]:
        """Token ids of a text; inside: of one that stands inside another."""
        if not text:
            return []
        if inside and self._lead:
            return self._in_pieces(text, False, inside=True).ids
        return next(self._encode([text], offsets=False)).ids

    def exact_text(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _closing_token(self) -> int | None:
        """The special token that the template writes after an assistant's text: not always the eos."""
        text, _ = self._render_raw(PROBE[:2], "")
        _, found, rest = text.rpartition(PROBE[1]["content"])
        ids = self.ids_of(rest.lstrip()) if found else []
        special = set(self.tokenizer.all_special_ids)
        special |= {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return ids[0] if ids and ids[0] in special else None


def _place(places: Sequence[str], i: int) -> str:
    return f"{places[i]}: " if places else ""
