from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tulu_lite.datasets.chat import ChatTemplate, load_tokenizer
from tulu_lite.datasets.spans import Encoding, UnevenTokens, split_tokens
from tulu_lite.errors import TuluLiteError

QUICKSTART = Path(__file__).parents[3] / "data" / "quickstart" / "base"
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": " Yo "},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "So."},
]
MARKED = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m.role + ']' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
HEADER_LEARNT = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
    "{{ '[assistant]' + m.content + eos_token }}"
    "{% endgeneration %}{% else %}{{ '[user]' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
UNMARKED = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
Make = Callable[..., Any]


def ids_of(text: str, tokenizer: Any) -> list[int]:
    """Independent of the tokenizer's own encoding: special tokens by name, the rest by character."""
    vocab, ids = tokenizer.get_vocab(), []
    while text:
        special = next(
            (t for t in ("<bos>", "<eos>", "<|im_start|>", "<|im_end|>") if text.startswith(t)), text[0]
        )
        ids.append(vocab.get(special, vocab["<unk>"]))
        text = text[len(special) :]
    return ids


def learnt(template: ChatTemplate, messages: Any) -> str:
    """The conversation's text with what has a loss between guillemets."""
    ids, mask = template.conversation(messages)
    assert len(ids) == len(mask)
    text, before = "", False
    for token, on in zip(ids, [*mask], strict=True):
        text += ("«" if on else "»") if on != before else ""
        text += template.tokenizer.decode([token])
        before = on
    return text + ("»" if before else "")


def test_model_template_by_hand(chars: Any, make_chars: Make) -> None:
    template = ChatTemplate.load("model", make_chars(), "")
    template.check()
    assert learnt(template, TALK) == (
        "<bos>[system]Be brief.[user]Hi[assistant]« Yo <eos>»[user]Why?[assistant]«So.<eos>»"
    )
    text, ids = template.prompt(TALK[:4])
    assert text == "<bos>[system]Be brief.[user]Hi[assistant] Yo <eos>[user]Why?[assistant]"
    assert ids == ids_of(text, chars)
    assert ids.count(1) == 1
    assert (template.end_token_ids, template.pad_id, template.source) == ((2,), 0, MARKED)


def test_tulu_by_hand(make_chars: Make) -> None:
    template = ChatTemplate.load("tulu", make_chars(None), "")
    template.check()
    assert learnt(template, TALK) == (
        "<bos><|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\n« Yo <eos>»\n"
        "<|user|>\nWhy?\n<|assistant|>\n«So.<eos>»"
    )
    assert template.prompt(TALK[1:2])[0] == "<bos><|user|>\nHi\n<|assistant|>\n"


def test_chatml_by_hand_ends_with_its_own_token(chars: Any, make_chars: Make) -> None:
    template = ChatTemplate.load("chatml", make_chars(None), "")
    template.check()
    assert learnt(template, TALK[1:3]) == (
        "<bos><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n« Yo <|im_end|>»\n"
    )
    assert template.end_token_ids == (5, 2)
    assert template.decode(ids_of("Yes.<|im_end|>", chars)) == "Yes."


def test_no_bos_where_the_model_has_none(make_chars: Make) -> None:
    template = ChatTemplate.load("tulu", make_chars(None, bos_token=None), "")
    tokenizer = template.tokenizer
    tokenizer.backend_tokenizer.post_processor = None
    assert template.prompt(TALK[1:2])[0] == "<|user|>\nHi\n<|assistant|>\n"


def test_masks_agree_with_transformers(make_chars: Make) -> None:
    template = ChatTemplate.load("model", make_chars(), "")
    theirs = template.tokenizer.apply_chat_template(TALK, return_assistant_tokens_mask=True, return_dict=True)
    ids, mask = template.conversation(TALK)
    assert (ids, [int(on) for on in mask]) == (theirs["input_ids"], theirs["assistant_masks"])


turn_text = st.text(alphabet="ab \n.é", min_size=1, max_size=8)


@settings(max_examples=60)
@given(st.lists(st.tuples(turn_text, turn_text), min_size=1, max_size=3))
def test_unmarked_templates_learn_the_same_tokens(chars: Any, turns: list[tuple[str, str]]) -> None:
    messages = []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    marked = ChatTemplate("a", MARKED, chars)
    unmarked = ChatTemplate("b", UNMARKED, chars)
    assert marked.conversation(messages) == unmarked.conversation(messages)
    ids, mask = marked.conversation(messages)
    assert [i for i, on in zip(ids, mask, strict=True) if on] == [
        i for _, a in turns for i in ids_of(a + "<eos>", chars)
    ]
    prompt_ids = marked.prompt(messages[:-1])[1]
    assert ids[: len(prompt_ids)] == prompt_ids


def test_text_after_the_end_token_is_not_learnt(chars: Any) -> None:
    source = (
        "{% for m in messages %}{{ '[' + m.role + ']' }}{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content + eos_token + '\n' }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
    )
    for text in (source, source.replace("{% generation %}", "").replace("{% endgeneration %}", "")):
        template = ChatTemplate("own", text, chars)
        template.check()
        assert learnt(template, TALK[1:3]) == "[user]Hi[assistant]« Yo <eos>»\n"


def test_end_token_outside_the_marks_is_learnt(chars: Any) -> None:
    source = MARKED.replace(
        "m.content + eos_token }}{% endgeneration %}", "m.content }}{% endgeneration %}{{ eos_token }}"
    )
    template = ChatTemplate("own", source, chars)
    template.check()
    assert learnt(template, TALK[1:3]).endswith("« Yo <eos>»")


@pytest.mark.parametrize(
    ("source", "message", "cure"),
    [
        (MARKED.replace(" + eos_token", ""), "no end token", "{{ eos_token }}"),
        (UNMARKED.replace("m.content + eos_token", "m.content"), "no end token", "{{ eos_token }}"),
        (  # the header is marked as generated too
            HEADER_LEARNT,
            "is not where the assistant's learnt text begins",
            "add_generation_prompt",
        ),
        (
            MARKED.replace("'[assistant]'", "'[helper]'"),
            "is not where the assistant's learnt text begins",
            "add_generation_prompt",
        ),
        (UNMARKED.replace("'[assistant]'", "'[helper]'"), "rendered differently by itself", "same way"),
        (  # the last turn is rendered in another way than the same turn earlier
            UNMARKED.replace(
                "{{ m.content }}", "{{ m.content }}{% if loop.index > messages|length - 2 %}!{% endif %}"
            ),
            "rendered differently by itself",
            "same way",
        ),
        (
            MARKED.replace(
                "{{ m.content }}", "{{ m.content }}{% if loop.index > messages|length - 2 %}!{% endif %}"
            ),
            "change when the conversation goes on",
            "same way",
        ),
        (
            "{% for m in messages %}{% generation %}{{ m.content + eos_token }}"
            "{% endgeneration %}{% endfor %}",
            "marks 6 stretches",
            "once around each assistant turn",
        ),
        ("{% for m in messages %}", "refuses a conversation", "chat_template: tulu"),
        (
            "{{ raise_exception('no way') }}",
            "refuses a conversation of user, assistant: no way",
            "chat_template: tulu",
        ),
    ],
)
def test_check_finds_the_fault(chars: Any, source: str, message: str, cure: str) -> None:
    with pytest.raises(TuluLiteError, match=message) as caught:
        ChatTemplate("own", source, chars).check()
    assert cure in caught.value.cure
    assert "chat_template: tulu" in caught.value.cure


def test_loading_faults(chars: Any, make_chars: Make, make_merging: Make, tmp_path: Path) -> None:
    with pytest.raises(TuluLiteError, match="no chat template") as caught:
        ChatTemplate.load("model", make_chars(None), "/some/model")
    assert "chat_template: tulu" in caught.value.cure
    with pytest.raises(TuluLiteError, match="no end-of-sequence token"):
        ChatTemplate.load("model", make_chars(eos_token=None), "")
    with pytest.raises(TuluLiteError, match="cannot read the chat template"):
        ChatTemplate.load(str(tmp_path / "none.jinja"), chars, "")
    with pytest.raises(TuluLiteError, match="there is no chat template 'nonsense'"):
        ChatTemplate.load("nonsense", chars, "")
    with pytest.raises(TuluLiteError, match="there is no model folder"):
        load_tokenizer(str(tmp_path / "none"))
    with pytest.raises(TuluLiteError, match="has no tokenizer"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(TuluLiteError, match="cannot load a tokenizer from"):
        load_tokenizer(str(tmp_path))
    without = make_merging("")
    without.get_vocab = dict
    with pytest.raises(TuluLiteError, match=r"no token <\|im_end\|>"):
        ChatTemplate.load("chatml", without, "")


def test_own_file_and_generation_config(chars: Any, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(UNMARKED)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5]}))
    template = ChatTemplate.load(str(tmp_path / "own.jinja"), chars, str(tmp_path))
    template.check()
    assert template.end_token_ids == (2, 5)
    assert template.source == UNMARKED
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(TuluLiteError, match=r"generation_config\.json"):
        ChatTemplate.load("model", chars, str(tmp_path))


def test_end_token_of_a_template_that_is_not_the_eos(chars: Any) -> None:
    template = ChatTemplate("own", UNMARKED.replace("eos_token", "'<|im_end|>'"), chars)
    template.check()
    assert template.end_token_ids == (5, 2)
    assert learnt(template, TALK[1:3]).endswith("« Yo <|im_end|>»")


def test_decode_is_exact(chars: Any) -> None:
    template = ChatTemplate("own", MARKED, chars)
    text = " It 's  1 , 2 .\n n't \n"
    assert template.decode(ids_of(text + "<eos>", chars)) == text
    assert template.decode(ids_of(text, chars)) == text
    assert template.decode(ids_of("a<bos>b<eos><eos>", chars)) == "ab"
    assert template.decode([]) == ""


LINES = (
    "{% for m in messages %}{{ m.role + '\n' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}"
)


def test_answer_that_melts_into_the_prompt_is_tokenized_by_itself(make_merging: Make) -> None:
    template = ChatTemplate("own", LINES, make_merging(LINES))
    template.check()
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "\nYo"}]
    _, prompt_ids = template.prompt(messages[:1])
    ids, mask = template.conversation(messages)
    assert ids[: len(prompt_ids)] == prompt_ids
    assert not any(mask[: len(prompt_ids)])
    assert all(mask[len(prompt_ids) :])
    assert template.decode([i for i, on in zip(ids, mask, strict=True) if on]) == "\nYo"
    whole = template.tokenizer("user\nHiassistant\n\nYo<eos>", add_special_tokens=False)["input_ids"]
    assert len(whole) == len(ids) - 1  # where the two line breaks are one token


def test_split_tokens_without_trusted_offsets() -> None:
    """Words as tokens; offsets without the space before a word, as tokenizers that trim give them."""

    def words(text: str, inside: bool = False) -> list[int]:
        return [len(word) for word in text.split()]

    trimmed = Encoding([2, 3, 1], [(0, 2), (3, 6), (7, 8)])
    assert split_tokens("ab cde f", [3, 7], trimmed, words, str) == ([2, 3, 1], [1, 2])
    assert split_tokens("ab cde f", [3, 7], Encoding([2, 3, 1], None), words, str) == ([2, 3, 1], [1, 2])
    with pytest.raises(UnevenTokens):  # inside a word: the parts spell other tokens
        split_tokens("ab cde f", [4], trimmed, words, str)


def test_trimmed_white_space_across_an_edge_is_seen() -> None:
    """The token of two line breaks has trimmed offsets, which hide that it spans the edge between them."""

    def lines(text: str, inside: bool = False) -> list[int]:
        return [{"a": 1, "b": 2, "\n": 3, "\n\n": 4}[part] for part in re.findall(r"\n+|.", text)]

    def spell(ids: list[int]) -> str:
        return "".join({1: "a", 2: "b", 3: "\n", 4: "\n\n"}[i] for i in ids)

    trimmed = Encoding([1, 4, 2], [(0, 1), (3, 3), (3, 4)])
    assert split_tokens("a\n\nb", [2], trimmed, lines, spell) == ([1, 3, 3, 2], [2])


def test_offsets_of_characters_in_several_tokens() -> None:
    """Bytes of one character share its offsets; an edge after it lies after all of them."""
    encoding = Encoding([7, 8, 9, 5], [(0, 1), (0, 1), (0, 1), (1, 2)])
    assert split_tokens("é!", [0, 1, 2], encoding, lambda _, inside: [0], str) == ([7, 8, 9, 5], [0, 3, 4])


def test_places_are_named_in_errors(chars: Any) -> None:
    strict = MARKED.replace(
        "{% for m in messages %}",
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}",
        1,
    )
    template = ChatTemplate("own", strict, chars)
    with pytest.raises(TuluLiteError, match=r"f:2: .* refuses a conversation of system, user.*: no system"):
        template.conversations([TALK[1:], TALK], ["f:1", "f:2"])
    with pytest.raises(TuluLiteError, match="f:2"):
        template.prompts([TALK[1:2], TALK[:2]], ["f:1", "f:2"])


@pytest.mark.parametrize("name", ["model", "tulu"])
def test_quickstart_model(name: str) -> None:
    template = ChatTemplate.load(name, load_tokenizer(str(QUICKSTART)), str(QUICKSTART))
    template.check()
    assert template.end_token_ids == (2,)
    assert learnt(template, TALK[1:3]) == "<bos><|user|>\nHi\n<|assistant|>\n« Yo <eos>»"
