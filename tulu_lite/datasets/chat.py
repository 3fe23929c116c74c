"""Conversations as token ids, by the tokenizer's chat template or one of ours, and which of them are learnt.

The tokens of a prompt are always the first tokens of the conversation it begins, so that what is trained on
is what is sampled from; `check` proves it for a template, `conversation` for each row where it is in doubt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import TuluLiteError
from .spans import Encoding, UnevenTokens, split_tokens
from .templates import CHATML, TULU

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model")
_CHUNK = 1024  # texts tokenized at once: enough for the tokenizer's threads, little memory for offsets
_PROBE = (
    {"role": "user", "content": "What is 2 plus 3?"},
    {"role": "assistant", "content": "It is 5."},
    {"role": "user", "content": "And plus 4?"},
    {"role": "assistant", "content": "Then 9."},
)
_OURS = "or use `chat_template: tulu`"

Messages = Sequence[dict[str, str]]


def _tokenizer_class(model: str) -> Any:
    """AutoTokenizer loads torch, which takes seconds. Where the folder says that its tokenizer is just what is in
    tokenizer.json, the class that AutoTokenizer would choose is loaded at once."""
    try:
        config = json.loads((Path(model) / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    plain = config.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast")
    if plain and (Path(model) / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def load_tokenizer(model: str, revision: str | None = None) -> Any:
    """The model's tokenizer. Raises TuluLiteError when the folder or hub id has none."""
    if model.startswith(("/", ".", "~")) and not Path(model).is_dir():
        raise TuluLiteError(
            f"there is no model folder {model}",
            cure="check `model`; relative paths are relative to the recipe file",
        )
    if Path(model).is_dir() and not any(next(Path(model).glob(name), None) for name in _TOKENIZER_FILES):
        raise TuluLiteError(
            f"the model folder {model} has no tokenizer (no {', '.join(_TOKENIZER_FILES)})",
            cure="copy the tokenizer's files of the original model into it",
        )
    try:
        return _tokenizer_class(model).from_pretrained(model, revision=revision)
    except Exception as error:  # OSError, ValueError, KeyError and hub errors, by the kind of fault
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise TuluLiteError(
            f"cannot load a tokenizer from {model}: {reason}",
            cure="`model` is a folder in Hugging Face format (with tokenizer.json) or a hub id; without "
            "network, download it first and name the folder",
        ) from None


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
        ids = [self._closing_token(), int(tokenizer.eos_token_id), *_generation_end_ids(model, tokenizer)]
        self.end_token_ids: tuple[int, ...] = tuple(dict.fromkeys(i for i in ids if i is not None))
        self.pad_id = int(
            tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        )

    @classmethod
    def load(cls, name: str, tokenizer: Any, model: str) -> ChatTemplate:
        """name: `model` (the tokenizer's own), `tulu`, `chatml` or a .jinja file. model: folder or hub id."""
        return cls(name, _source(name, tokenizer, model), tokenizer, model)

    def prompt(self, messages: Messages) -> tuple[str, list[int]]:
        """The text and token ids that end where the assistant's answer begins."""
        return self.prompts([messages])[0]

    def prompts(self, many: Sequence[Messages], places: Sequence[str] = ()) -> list[tuple[str, list[int]]]:
        """`prompt` of each; places: where each stands, for errors."""
        texts = [self._render(messages, _place(places, i), prompt=True)[0] for i, messages in enumerate(many)]
        return [
            (text, encoding.ids)
            for text, encoding in zip(texts, self._encode(texts, offsets=False), strict=True)
        ]

    def conversation(self, messages: Messages) -> tuple[list[int], list[bool]]:
        """Token ids, and which have a loss: each assistant turn's text and its end token, nothing else."""
        return self.conversations([messages])[0]

    def conversations(
        self, many: Sequence[Messages], places: Sequence[str] = ()
    ) -> list[tuple[list[int], list[bool]]]:
        """`conversation` of each; places: where each stands, for errors."""
        spanned = [self._spans(messages, _place(places, i)) for i, messages in enumerate(many)]
        encodings = self._encode([text for text, _ in spanned], offsets=True)
        return [
            self._masked(text, spans, encoding, _place(places, i))
            for i, ((text, spans), encoding) in enumerate(zip(spanned, encodings, strict=True))
        ]

    def response(self, text: str, finished: bool) -> list[int]:
        """Token ids of an answer of another model, as this one would have sampled it: it begins with a token of its
        own, and ends with the end token if it is finished."""
        ids = self._ids_of(text)
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
        """Prove the template on a small conversation of two turns; raises TuluLiteError saying what fails.

        Every assistant turn is in the loss and ends in an end token that is in the loss; the tokens of a
        conversation do not change as it goes on; a prompt's tokens are those the conversation begins with,
        up to the first learnt one.
        """
        text, spans = self._spans(_PROBE, "")
        ids, mask = self.conversation(_PROBE)
        starts = [i for i, learnt in enumerate(mask) if learnt and not (i and mask[i - 1])]
        for turn, (first, last) in zip((1, 3), spans, strict=True):
            if _PROBE[turn]["content"] not in text[first:last]:
                raise self._fault(
                    f"its {{% generation %}} marks cover {text[first:last]!r}, not the assistant's "
                    f"{_PROBE[turn]['content']!r}",
                    "put {% generation %} right before the assistant's content and {% endgeneration %} "
                    "after its end token",
                )
        if len(starts) != 2:
            raise self._fault(
                "the loss mask joins two assistant turns",
                "put the user's turn outside the {% generation %} marks",
            )
        if self.conversation(_PROBE[:2])[0] != ids[: len(self.conversation(_PROBE[:2])[0])]:
            raise self._fault(
                "the tokens of a first turn change when the conversation goes on",
                "write a template that renders each turn in the same way wherever it stands",
            )
        for turn, start in zip((1, 3), starts, strict=True):
            prompt, prompt_ids = self.prompt(_PROBE[:turn])
            if prompt_ids != ids[:start]:
                raise self._fault(
                    f"the prompt that is sampled from ends {prompt[-40:]!r}, which is not where the "
                    "assistant's learnt text begins in a conversation "
                    f"({text[max(0, spans[turn // 2][0] - 40) : spans[turn // 2][0]]!r})",
                    "let add_generation_prompt write exactly what stands before the assistant's content",
                )

    @cached_property
    def _special(self) -> dict[str, Any]:
        return dict(self.tokenizer.special_tokens_map)

    def _fault(self, what: str, cure: str) -> TuluLiteError:
        return TuluLiteError(
            f"the chat template `{self.name}` of {self.model or 'the model'} cannot be trained with: {what}",
            cure=f"{cure}; {_OURS}",
        )

    def _render(
        self, messages: Messages, where: str, prompt: bool = False, marks: bool = False
    ) -> tuple[str, Any]:
        """(text, [(first, last) character of each marked stretch])."""
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
            raise TuluLiteError(
                f"{where}the chat template `{self.name}` refuses a conversation of "
                f"{', '.join(m['role'] for m in messages)}: {error}",
                cure="mend the row (some templates take no system turn) or the template; " + _OURS,
            ) from None
        return made[0][0], made[1][0] if marks else []

    def _spans(self, messages: Messages, where: str) -> tuple[str, list[tuple[int, int]]]:
        """The text, and each assistant turn's characters: by the template's marks, or else one by one."""
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if self._marked:
            text, spans = self._render(messages, where, marks=True)
            if len(spans) != len(answers):
                raise self._fault(
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
                raise self._fault(
                    f"{where}turn {i + 1} is rendered differently by itself than in the whole "
                    "conversation, so its tokens cannot be found",
                    "write a template that renders each turn in the same way wherever it stands, or mark "
                    "the assistant's text with {% generation %}",
                )
            spans.append((len(before), len(after)))
        return text, spans

    def _masked(
        self, text: str, spans: list[tuple[int, int]], encoding: Encoding, where: str
    ) -> tuple[list[int], list[bool]]:
        edges = [edge for span in spans for edge in span]
        try:
            ids, places = split_tokens(text, edges, encoding, self._ids_of, self._exact_text)
        except UnevenTokens as error:
            raise TuluLiteError(
                f"{where}the tokens of the assistant's turn cannot be told from those around it, near "
                f"{text[max(0, error.edge - 20) : error.edge + 20]!r}",
                why="one token spans the boundary, and this tokenizer gives other text when the parts are "
                "tokenized by themselves",
                cure="remove white space at the start of the assistant's text, " + _OURS,
            ) from None
        mask = [False] * len(ids)
        for first, last in zip(places[::2], places[1::2], strict=True):
            end = next((i for i in range(last - 1, first - 1, -1) if ids[i] in self.end_token_ids), -1)
            if end < 0 and last < len(ids) and ids[last] in self.end_token_ids:
                end = last
            if end < 0:
                raise self._fault(
                    f"{where}the assistant's turn has no end token after it, so the model would never "
                    "learn to stop",
                    "put {{ eos_token }} after the assistant's content, inside its {% generation %} marks "
                    "where it has them",
                )
            mask[first : end + 1] = [True] * (end + 1 - first)
        return ids, mask

    def _encode(self, texts: Sequence[str], offsets: bool) -> Iterator[Encoding]:
        offsets = offsets and bool(getattr(self.tokenizer, "is_fast", False))
        for start in range(0, len(texts), _CHUNK):
            made = self.tokenizer(
                list(texts[start : start + _CHUNK]),
                add_special_tokens=False,
                padding=False,
                truncation=False,
                return_attention_mask=False,
                return_offsets_mapping=offsets,
                verbose=False,  # lengths are checked against the recipe's limits
            )
            for i, ids in enumerate(made["input_ids"]):
                yield Encoding(list(ids), made["offset_mapping"][i] if offsets else None)

    def _ids_of(self, text: str) -> list[int]:
        return next(self._encode([text], offsets=False)).ids if text else []

    def _exact_text(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _closing_token(self) -> int | None:
        """The special token that the template writes after an assistant's text: not always the eos."""
        text, _ = self._render(_PROBE[:2], "")
        _, found, rest = text.rpartition(_PROBE[1]["content"])
        ids = self._ids_of(rest.lstrip()) if found else []
        special = set(self.tokenizer.all_special_ids)
        special |= {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return ids[0] if ids and ids[0] in special else None


def _source(name: str, tokenizer: Any, model: str) -> str:
    if name == "model":
        try:
            return tokenizer.get_chat_template()
        except ValueError:
            raise TuluLiteError(
                f"the tokenizer of {model} has no chat template",
                why="a base model usually has none",
                cure="write `chat_template: tulu` in the recipe, or name a .jinja file",
            ) from None
    if name == "tulu":
        return ("{{ bos_token }}" if _wants_bos(tokenizer) else "") + TULU
    if name == "chatml":
        if "<|im_end|>" not in tokenizer.get_vocab():
            raise TuluLiteError(
                f"the tokenizer of {model} has no token <|im_end|>, which `chat_template: chatml` ends a "
                "turn with",
                cure="use `chat_template: tulu`, which ends a turn with the tokenizer's own end token",
            )
        return ("{{ bos_token }}" if _wants_bos(tokenizer) else "") + CHATML
    if not name.endswith(".jinja"):
        raise TuluLiteError(
            f"there is no chat template {name!r}", cure="it is `model`, `tulu`, `chatml`, or a .jinja file"
        )
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TuluLiteError(
            f"cannot read the chat template {name}: {getattr(error, 'strerror', None) or error}",
            cure="check `chat_template`",
        ) from None


def _wants_bos(tokenizer: Any) -> bool:
    """Whether the model knows texts that begin with bos: its tokenizer or its own template puts it there."""
    if tokenizer.bos_token is None:
        return False
    first = tokenizer("a")["input_ids"][:1]
    own = tokenizer.chat_template
    return first == [tokenizer.bos_token_id] or (isinstance(own, str) and "bos_token" in own)


def _generation_end_ids(model: str, tokenizer: Any) -> list[int]:
    """The eos ids of the model's generation_config.json, which may name more than the tokenizer does."""
    path: str | None = str(Path(model) / "generation_config.json")
    if not Path(model).is_dir():
        path = _hub_file(model, "generation_config.json", tokenizer)
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise TuluLiteError(f"cannot read {path}: {error}", cure="mend the file, or remove it") from None
    ids = data.get("eos_token_id") if isinstance(data, dict) else None
    return [int(i) for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int)]


def _hub_file(model: str, name: str, tokenizer: Any) -> str | None:
    """The file of a hub model, in the tokenizer's revision; None when it has no such file."""
    if not model:
        return None
    from transformers.utils import cached_file

    revision = getattr(tokenizer, "init_kwargs", {}).get("_commit_hash")
    return cached_file(
        model,
        name,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def _place(places: Sequence[str], i: int) -> str:
    return f"{places[i]}: " if places else ""
