"""Chat templates by name: a model's own, or one of ours as jinja text.

Each marks the assistant's text and its end token with {% generation %}, renders every turn alike wherever it stands,
and ends its generation prompt exactly where the assistant's text begins.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import TuluLiteError

# Tülu 3 (arXiv:2411.15124): plain-text roles, the tokenizer's end token after each answer.
TULU = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<|assistant|>\\n' -}}{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
{%- if not loop.last -%}{{- '\\n' -}}{%- endif -%}
{%- elif message['role'] == 'user' -%}
{{- '<|user|>\\n' + message['content'] + '\\n' -}}
{%- elif message['role'] == 'system' -%}
{{- '<|system|>\\n' + message['content'] + '\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""

# OLMo 2 (arXiv:2501.00656): Tülu's, after a token that begins every conversation: bos, or where there is none eos.
OLMO = "{{- bos_token if bos_token else eos_token -}}" + TULU

CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

# Llama 3 (arXiv:2407.21783) without tools and dates.
LLAMA3 = """\
{%- for message in messages -%}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] | trim + '<|eot_id|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] | trim + '<|eot_id|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}
"""

# The distilled models of DeepSeek-R1 (arXiv:2501.12948). An answer always begins with its reasoning, an empty one where
# the row has none, since that is how it is asked for; the reasoning of earlier answers stays.
R1 = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{- message['content'] -}}
{%- elif message['role'] == 'user' -%}
{{- '<｜User｜>' + message['content'] -}}
{%- elif message['role'] == 'assistant' -%}
{{- '<｜Assistant｜><think>\\n' -}}
{%- generation -%}
{%- if message['content'].startswith('<think>\\n') -%}
{{- message['content'][8:] + eos_token -}}
{%- else -%}
{{- '\\n</think>\\n\\n' + message['content'] + eos_token -}}
{%- endif -%}
{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<｜Assistant｜><think>\\n' -}}{%- endif -%}
"""

# The prompt of DeepSeek-R1-Zero (arXiv:2501.12948, table 1) for base models: plain text, no tokens of its own.
R1_ZERO = """\
{%- if messages[0]['role'] == 'system' -%}
{{- messages[0]['content'] -}}
{%- else -%}
{{- 'A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant \
first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning process \
and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning \
process here </think> <answer> answer here </answer>.' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{- ' User: ' + message['content'] -}}
{%- elif message['role'] == 'assistant' -%}
{{- ' Assistant:' -}}{%- generation -%}{{- ' ' + message['content'] + eos_token -}}{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ' Assistant:' -}}{%- endif -%}
"""

_BOS = "{{- bos_token -}}"
OURS = {"tulu": TULU, "olmo": OLMO, "chatml": CHATML, "llama3": LLAMA3, "r1": R1, "r1_zero": R1_ZERO}
# The tokens of a template that a vocabulary must have; the last ends a turn.
_NEEDS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "r1": ("<｜User｜>", "<｜Assistant｜>"),
}


def template_source(name: str, tokenizer: Any, model: str) -> str:
    """The jinja text of `model` (the tokenizer's own), one of ours by name, or a .jinja file. model: for errors.

    Raises TuluLiteError when there is none, or the vocabulary lacks a token that the template is made of.
    """
    if name == "model":
        try:
            return tokenizer.get_chat_template()
        except ValueError:
            raise TuluLiteError(
                f"the tokenizer of {model} has no chat template",
                why="a base model usually has none",
                cure="write `chat_template: tulu` in the recipe, or name a .jinja file",
            ) from None
    if name in OURS:
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in _NEEDS.get(name, ()) if token not in vocabulary]
        if missing:
            raise TuluLiteError(
                f"the tokenizer of {model} has no token {missing[-1]}, which `chat_template: {name}` "
                + ("ends a turn with" if missing[-1] == _NEEDS[name][-1] and name != "r1" else "is made of"),
                why="as ordinary text it would be many tokens that the model has never learnt as a sign",
                cure="use `chat_template: tulu`, which ends a turn with the tokenizer's own end token",
            )
        return (_BOS if name != "olmo" and wants_bos(tokenizer) else "") + OURS[name]
    if not name.endswith(".jinja"):
        raise TuluLiteError(
            f"there is no chat template {name!r}",
            cure=f"it is `model`, {', '.join(f'`{ours}`' for ours in OURS)}, or a .jinja file",
        )
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TuluLiteError(
            f"cannot read the chat template {name}: {getattr(error, 'strerror', None) or error}",
            cure="check `chat_template`",
        ) from None


def wants_bos(tokenizer: Any) -> bool:
    """Whether the model knows texts that begin with bos: its tokenizer or its own template puts it there."""
    if tokenizer.bos_token is None:
        return False
    first = tokenizer("a")["input_ids"][:1]
    own = tokenizer.chat_template
    return first == [tokenizer.bos_token_id] or (isinstance(own, str) and "bos_token" in own)
