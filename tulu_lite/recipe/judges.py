"""Models that judge responses, served beside the policy while steps need them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Incidental, Later, Settings
from .server import ServerSettings


class JudgeSettings(Settings):
    """One judge. Verifiers reach it by `base_url: env:TULU_LITE_JUDGE_<NAME>` and `model: <name>`, with its name in
    capitals and every other character than letters and digits as `_`."""

    kind: Literal["chat", "reward"] = Later("chat")
    """chat: a language model that writes its judgement (`judge_aspect` and its kin). reward: a reward model that gives a
    number (`reward_model`)."""
    model: str = Field(min_length=1)
    """Its model: a folder in Hugging Face format with a tokenizer and a chat template (relative to the recipe file), or
    a hub id. For a reward model also the name of a reward stage, whose result later stages can then ask."""
    revision: str | None = None
    """Hub models only: a commit or tag."""
    server: ServerSettings = Incidental(default_factory=ServerSettings)
    """How it is served: all fields of `server` at the top, its own to choose (device, memory, max_model_len)."""


def tokens_variable(name: str) -> str:
    """The environment variable that says how a reward model is asked: `sampled`, by the policy's own token ids, which
    are the ones that it was trained on; or `text`, by its own chat template."""
    return judge_variable(name) + "_TOKENS"


def judge_variable(name: str) -> str:
    """The environment variable that holds a judge's URL."""
    return "TULU_LITE_JUDGE_" + "".join(char if char.isalnum() else "_" for char in name.upper())
