"""Where rows come from, and how a row becomes a conversation, a prompt or a preference pair."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from .base import Settings


class DataSource(Settings):
    """One source of rows. Exactly one of `path`, `hub` and `stage` says where they come from."""

    path: str | None = None
    """A local .json, .jsonl or .parquet file; relative paths are relative to the recipe file."""
    hub: str | None = None
    """A data set id on the Hugging Face hub, such as openai/gsm8k."""
    stage: str | None = None
    """The name of an earlier stage whose output rows are read (a `preferences` stage's pairs)."""
    config: str | None = None
    """Hub only: the data set's configuration, such as main."""
    split: str = "train"
    """Hub only: the split."""
    revision: str | None = None
    """Hub only: a commit or tag; pin it to be able to run the same thing later."""

    messages: str = "messages"
    """The column that holds a conversation: a list of {role, content}. Used when rows have it."""
    prompt: str = "{prompt}"
    """The user turn, as text with {column} placeholders, such as "{body} {question}"."""
    completion: str = "{completion}"
    """SFT: the assistant turn, as text with {column} placeholders. Used when rows have no messages."""
    chosen: str = "{chosen}"
    """DPO: the preferred assistant turn, as text with {column} placeholders."""
    rejected: str = "{rejected}"
    """DPO: the other assistant turn, as text with {column} placeholders."""
    system: str | None = None
    """A system turn put before every prompt; none by default."""
    reference: str = "reference"
    """Prompts: the column that holds what the verifier compares with; a dotted path reaches into objects."""
    verifier: str | None = None
    """Prompts: the verifier of every row (a name from the recipe's `verifiers`, or a registered one, or
    path/to/file.py:name). By default each row's own `verifier` column."""
    source: str | None = None
    """The name under which metrics of these rows are shown. By default each row's own `source` column,
    or else the file's name."""

    share: tuple[float, float] | None = None
    """Keep the rows whose prompt's hash, a number in [0, 1), falls in [low, high): a split that depends on
    the text alone, so that the same problem is never on both sides."""
    limit: int | None = Field(None, ge=1)
    """Keep at most this many rows: a seeded choice, kept in file order."""
    repeat: int = Field(1, ge=1, le=100)
    """How often the rows appear in an epoch."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """`data: rows.jsonl` is short for `data: {path: rows.jsonl}`."""
        if isinstance(value, str):
            return {"path": value}
        return value

    @model_validator(mode="after")
    def _one_origin(self) -> DataSource:
        given = [name for name in ("path", "hub", "stage") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a data source names exactly one of path, hub and stage, but this one names {' and '.join(given) or 'none'}; "
                "write for example `path: rows.jsonl`, `hub: openai/gsm8k` or `stage: preferences`"
            )
        if self.path is not None and not self.path.endswith((".json", ".jsonl", ".parquet")):
            raise ValueError(
                f"{self.path!r} does not end in .json, .jsonl or .parquet, so its format is unknown; "
                "convert the file, or write `hub: ...` if it is a hub id"
            )
        if self.share is not None and not 0 <= self.share[0] < self.share[1] <= 1:
            raise ValueError(f"share is [low, high) with 0 <= low < high <= 1, not {list(self.share)}")
        return self

    @property
    def label(self) -> str:
        """What messages call this source."""
        return self.path or self.hub or f"stage {self.stage}"
