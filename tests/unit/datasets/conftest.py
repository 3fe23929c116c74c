from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from tokenizers.decoders import Fuse
from tokenizers.processors import TemplateProcessing

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<|im_start|>", "<|im_end|>"]
MARKED = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m.role + ']' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def char_tokenizer(template: str | None = MARKED, **special: Any) -> Any:
    """One token a character; it puts <bos> before texts by itself, as many tokenizers do."""
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(SPECIAL + sorted(string.printable + "é–"))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    names = {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        **special,
    }
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{name: token for name, token in names.items() if token}
    )
    made.chat_template = template
    return made


def merging_tokenizer(template: str) -> Any:
    """Character BPE in which two line breaks in a row are one token."""
    from transformers import PreTrainedTokenizerFast

    letters = [*sorted(string.ascii_letters + string.digits + string.punctuation + " "), "\n"]
    vocab = {token: i for i, token in enumerate([*SPECIAL, *letters, "\n\n"])}
    tokenizer = Tokenizer(models.BPE(vocab, [("\n", "\n")], unk_token="<unk>"))
    tokenizer.decoder = Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")
    made.chat_template = template
    return made


@pytest.fixture(scope="session")
def make_chars() -> Callable[..., Any]:
    return char_tokenizer


@pytest.fixture(scope="session")
def make_merging() -> Callable[[str], Any]:
    return merging_tokenizer


@pytest.fixture(scope="session")
def chars() -> Any:
    return char_tokenizer()


@pytest.fixture
def template(chars: Any) -> Any:
    from tulu_lite.datasets.chat import ChatTemplate

    return ChatTemplate.load("model", chars, "")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """write("rows.jsonl", rows) -> path; rows are objects, or text as it is to stand in the file."""

    def _write(name: str, content: Any) -> str:
        path = tmp_path / name
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif name.endswith(".json"):
            path.write_text(json.dumps(content), encoding="utf-8")
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        return str(path)

    return _write
