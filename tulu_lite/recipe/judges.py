"""Models that judge responses, served beside the policy while steps need them."""

from __future__ import annotations

from pydantic import Field

from .base import Incidental, Settings
from .server import ServerSettings


class JudgeSettings(Settings):
    """One judge. Verifiers reach it by `base_url: env:TULU_LITE_JUDGE_<NAME>` and `model: <name>`, with its name in
    capitals and every other character than letters and digits as `_`."""

    model: str = Field(min_length=1)
    """Its model: a folder in Hugging Face format with a tokenizer and a chat template (relative to the recipe file), or
    a hub id."""
    revision: str | None = None
    """Hub models only: a commit or tag."""
    server: ServerSettings = Incidental(default_factory=ServerSettings)
    """How it is served: all fields of `server` at the top, its own to choose (device, memory, max_model_len)."""


def judge_variable(name: str) -> str:
    """The environment variable that holds a judge's URL."""
    return "TULU_LITE_JUDGE_" + "".join(char if char.isalnum() else "_" for char in name.upper())
