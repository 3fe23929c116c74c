"""The proof of a chat template, on load: what is learnt is what is sampled, and the end is learnt too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import TuluLiteError

if TYPE_CHECKING:
    from .chat import ChatTemplate

Turns = Sequence[dict[str, str]]
PROBE = (
    {"role": "user", "content": "What is 2 plus 3?"},
    {"role": "assistant", "content": "It is 5."},
    {"role": "user", "content": "And plus 4?"},
    {"role": "assistant", "content": "Then 9."},
    {"role": "user", "content": "Sure?\nSay yes."},
    {"role": "assistant", "content": "Yes:\n\n 9."},
)
SYSTEM = {"role": "system", "content": "Be brief."}


def prove(template: ChatTemplate) -> None:
    """Raise TuluLiteError saying what fails, on a conversation of three turns, and after a system turn where the
    template takes one.

    1. every assistant turn is in the loss, whole, and ends in an end token that is in the loss
    2. the tokens of a conversation do not change as it goes on
    3. a prompt's tokens are those the conversation begins with, up to the first learnt one
    4. end tokens are ids that the model has
    """
    _end_tokens_exist(template)
    _prove_on(template, PROBE)
    try:
        template.conversation([SYSTEM, *PROBE])
    except TuluLiteError:
        return  # rows with a system turn are refused by name
    _prove_on(template, (SYSTEM, *PROBE))


def _prove_on(template: ChatTemplate, turns: Turns) -> None:
    text, spans = template.spans(turns, "")
    ids, mask = template.conversation(turns)
    answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
    for turn, (first, last) in zip(answers, spans, strict=True):
        if turns[turn]["content"] not in text[first:last]:
            raise template.fault(
                f"its {{% generation %}} marks cover {text[first:last]!r}, not the assistant's "
                f"{turns[turn]['content']!r}",
                "put {% generation %} right before the assistant's content and {% endgeneration %} "
                "after its end token",
            )
    starts = [i for i, learnt in enumerate(mask) if learnt and not (i and mask[i - 1])]
    ends = [i for i, learnt in enumerate(mask) if learnt and not (i + 1 < len(mask) and mask[i + 1])]
    if len(starts) != len(answers):
        raise template.fault(
            "the loss mask joins two assistant turns",
            "put the user's turn outside the {% generation %} marks",
        )
    for turn, start, end in zip(answers, starts, ends, strict=True):
        _turn_is_learnt(template, turns[turn]["content"], ids[start : end + 1])
        goes_on = template.conversation(turns[: turn + 1])[0]
        if goes_on[: end + 1] != ids[: end + 1] or ids[: len(goes_on)] != goes_on:
            which = "a first turn" if turn == answers[0] else f"the first {turn + 1} turns"
            raise template.fault(
                f"the tokens of {which} change when the conversation goes on",
                "write a template that renders each turn in the same way wherever it stands",
            )
        prompt, prompt_ids = template.prompt(turns[:turn])
        if prompt_ids != ids[:start]:
            span = spans[answers.index(turn)]
            raise template.fault(
                f"the prompt that is sampled from ends {prompt[-40:]!r}, which is not where the "
                "assistant's learnt text begins in a conversation "
                f"({text[max(0, span[0] - 40) : span[0]]!r})",
                "let add_generation_prompt write exactly what stands before the assistant's content",
            )


def _turn_is_learnt(template: ChatTemplate, content: str, learnt: Sequence[int]) -> None:
    """An end token is the last of the learnt ones, and they spell the content (letter by letter where the tokenizer
    keeps letters)."""
    if learnt[-1] not in template.end_token_ids:
        raise template.fault(
            "the last token that is learnt of a turn is not its end token", "put {{ eos_token }} last"
        )
    said, whole = template.decode(learnt), template.decode(template.ids_of(content))
    if _letters(whole) not in _letters(said):
        raise template.fault(
            f"the learnt tokens of a turn say {said!r}, not {content!r}",
            "put the whole of the assistant's content inside the {% generation %} marks",
        )


def _letters(text: str) -> str:
    return "".join(text.split())


def _end_tokens_exist(template: ChatTemplate) -> None:
    tokenizer, rows = template.tokenizer, template.embeddings
    unknown = tokenizer.unk_token_id
    if tokenizer.eos_token_id == unknown and tokenizer.eos_token != tokenizer.unk_token:
        raise _no_such_token(
            template, f"is not in its vocabulary, so it would be read as {tokenizer.unk_token}"
        )
    for id in template.end_token_ids:
        if rows is not None and id >= rows:
            raise _no_such_token(
                template, f"has the id {id} ({tokenizer.convert_ids_to_tokens(id)!r}), but the model has {rows} tokens", id
            )  # fmt: skip


def _no_such_token(template: ChatTemplate, fault: str, id: int | None = None) -> TuluLiteError:
    return TuluLiteError(
        f"an end token of {template.model or 'the model'} {fault}"
        if id is not None
        else f"the end token {template.tokenizer.eos_token!r} of {template.model or 'the model'} {fault}",
        why="a model learns to stop, and is stopped, by a token that it has",
        cure="set `eos_token` in tokenizer_config.json (and eos_token_id in generation_config.json) to a token of the "
        "vocabulary, or add it to the model's embeddings",
    )
