"""Where rows come from, how a row becomes a conversation, a prompt or a preference pair, and which rows are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from .base import Later, Number, Settings

SUFFIXES = (".json", ".jsonl", ".parquet")


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, (str, dict)) else value


Words = Annotated[
    tuple[str, ...], BeforeValidator(_listed, json_schema_input_type=str | list[str])
]  # one, or a list of them


class RowFilters(Settings):
    """Which rows are used, by their length and language."""

    min_tokens: int = Field(default=0, ge=0)
    """Rows of fewer tokens, as the chat template renders them, are dropped."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Rows of more tokens are dropped. (A training stage's `max_length` is a limit besides.)"""
    languages: Words = ()
    """Languages to keep, as codes: en, de, zh (both scripts). A row's turns count as one text, and one without letters
    is kept. Empty: all. langdetect decides, with a fixed seed; it takes milliseconds a row."""

    @model_validator(mode="after")
    def _possible(self) -> RowFilters:
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ValueError(
                f"min_tokens {self.min_tokens} is more than max_tokens {self.max_tokens}, so no row would be left"
            )
        if self.languages:
            from verifiers.constraints.detection import LANGUAGES

            unknown = [code for code in self.languages if code not in LANGUAGES and code != "zh"]
            if unknown:
                raise ValueError(
                    f"languages: {', '.join(unknown)} is not known; the codes are zh, {', '.join(sorted(LANGUAGES))}"
                )
        return self


class DataSource(Settings):
    """One source of rows. Exactly one of `path`, `hub` and `stage` says where they come from."""

    path: str | tuple[str, ...] | None = None
    """A local .json, .jsonl or .parquet file, a pattern of several (rows/*.jsonl), or a list of these; relative paths
    are relative to the recipe file."""
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
    streaming: bool = Later(False)
    """Read rows as they are used, never all at once; a hub data set is then not downloaded as a whole, and `limit`
    takes the first rows."""

    format: Literal["messages", "prompt_completion", "preference", "alpaca", "sharegpt"] | None = Later(None)
    """How rows are written. messages: a list of {role, content}. prompt_completion: both as text, or as lists of turns.
    preference: prompt, chosen and rejected, likewise; lists may begin with the prompt's turns. alpaca: instruction,
    input, output. sharegpt: a list of {from, value}. null: `messages` where the row has that column, else the text
    templates below."""
    messages: str = "messages"
    """The column that holds a conversation: a list of {role, content}. Used when rows have it. With `format: sharegpt`
    it is `conversations` where nothing else is said."""
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
    """The name under which metrics of these rows are shown, and by which `{choose: ..., by: source}` goes; {column}
    placeholders take it from the row: "{dataset}". By default each row's own `source` column, or else the file's name."""
    tags: Words = Later(())
    """Columns whose values stay with each row, and by which its tokens are counted in the report."""

    filters: RowFilters | None = Later(None)
    """Length and language of these rows, instead of the stage's `filters`."""
    share: tuple[float, float] | None = None
    """Keep the rows whose prompt's hash, a number in [0, 1), falls in [low, high): a split that depends on
    the text alone, so that the same problem is never on both sides."""
    limit: int | None = Field(None, ge=1)
    """Keep at most this many rows: a seeded choice, kept in file order."""
    repeat: int = Field(1, ge=1, le=100)
    """How often the rows appear in an epoch."""
    count: int | None = Later(None, ge=1)
    """Mix: exactly this many usable rows in an epoch, a seeded choice."""
    fraction: Annotated[Number, Field(gt=0, le=1)] | None = Later(None)
    """Mix: this fraction of the epoch's rows."""
    weight: Annotated[Number, Field(gt=0)] | None = Later(None)
    """Mix: what counts and fractions leave of the epoch is divided in proportion to weights."""
    max_repeat: Number = Later(1.0, ge=1, le=1000)
    """Mix: how often a row may appear in an epoch on average to make up the count, fraction or weight."""

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
        if self.path is not None and not self.paths:
            raise ValueError("path is an empty list; name at least one file")
        for path in self.paths:
            if not path.endswith(SUFFIXES):
                raise ValueError(
                    f"{path!r} does not end in .json, .jsonl or .parquet, so its format is unknown; "
                    "convert the file, or write `hub: ...` if it is a hub id"
                )
        if self.share is not None and not 0 <= self.share[0] < self.share[1] <= 1:
            raise ValueError(f"share is [low, high) with 0 <= low < high <= 1, not {list(self.share)}")
        return self

    @model_validator(mode="after")
    def _one_amount(self) -> DataSource:
        given = [name for name in ("count", "fraction", "weight") if getattr(self, name) is not None]
        if self.repeat > 1:
            given.append("repeat")
        if len(given) > 1:
            raise ValueError(
                f"{' and '.join(given)} each say how many rows an epoch has of this source; keep one of them"
                + (" (max_repeat is the one that goes with the others)" if "repeat" in given else "")
            )
        if self.max_repeat > 1 and not set(given) & {"count", "fraction", "weight"}:
            raise ValueError(
                "max_repeat bounds what count, fraction or weight may repeat, and none is given; write `repeat: 2` to have "
                "all rows twice"
            )
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        """The files and patterns that `path` names."""
        return (self.path,) if isinstance(self.path, str) else (self.path or ())

    @property
    def label(self) -> str:
        """What messages call this source."""
        return ", ".join(self.paths) or self.hub or f"stage {self.stage}"


_ShortSource = str | DataSource
SourceList = Annotated[
    tuple[DataSource, ...],
    BeforeValidator(_listed, json_schema_input_type=_ShortSource | list[_ShortSource]),
]


class Decontamination(Settings):
    """Rows whose prompts overlap those of evaluation sets are dropped (Tülu 3, arXiv:2411.15124, section 3.2)."""

    against: SourceList = Field(min_length=1)
    """The evaluation sets; of each row its user turns count."""
    ngram: int = Field(8, ge=2, le=64)
    """A word of an evaluation prompt is matched when it lies in a run of this many words that the row has too."""
    overlap: Number = Field(0.5, ge=0, lt=1)
    """A row is dropped when more than this share of one evaluation prompt's words is matched."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """`decontaminate: test.jsonl` and lists are short for `decontaminate: {against: ...}`."""
        if isinstance(value, (str, list, tuple)) or (
            isinstance(value, dict) and {"path", "hub"} & set(value)
        ):
            return {"against": value}
        return value

    @model_validator(mode="after")
    def _readable(self) -> Decontamination:
        named = [source.stage for source in self.against if source.stage]
        if named:
            raise ValueError(
                f"decontaminate names stage {named[0]!r}; evaluation sets are files or hub data sets"
            )
        return self


class Filters(RowFilters):
    """Which rows are used."""

    duplicates: Literal["keep", "exact", "near"] = "keep"
    """exact: of rows whose words are the same (case, punctuation and spaces apart) the first is kept. near: also of rows
    whose sets of word 5-grams have at least `near_similarity` in common."""
    near_similarity: Number = Field(default=0.8, gt=0.2, le=1)
    """The Jaccard similarity of near duplicates, as 128 MinHash values estimate it (Broder 1997)."""
    decontaminate: Decontamination | None = None
    """Evaluation sets that rows must not overlap."""


class Mix(Settings):
    """How the sources make up an epoch. Each source says its part by `count`, `fraction`, `weight` or `repeat`."""

    total: int | None = Field(default=None, ge=1)
    """Rows of an epoch. By default as many as fractions and weights allow without repeating past `max_repeat`."""
    short: Literal["stop", "less", "fill"] = "stop"
    """A source that cannot give its part: an error, an epoch of fewer rows, or the weighted others give the more."""


class DataSettings(Settings):
    """What every stage says of its rows besides where they come from."""

    mix: Mix = Later(Mix())
    """How the sources make up an epoch."""
    filters: Filters = Later(Filters())
    """Which rows are used, by length, language, duplicates and overlap with evaluation sets."""
    bad_rows: Literal["stop", "drop"] = Later("stop")
    """A row that cannot be used (broken JSON or Unicode, roles out of turn, an empty turn, nothing to answer, a
    reference that its verifier cannot use): an error that names it, or it is dropped, counted, and named in the report.
    In sft, dpo and reward the same goes for a row whose loss is not finite: named as the step stops, or the step is
    made without it."""
    _row_check: Callable[[str, Any, str, bool], None] | None = PrivateAttr(None)

    def checking(self, check: Callable[[str, Any, str, bool], None] | None) -> Self:
        """The same with a further check of prompts: of the verifier, the reference, the source, and whether the row itself
        names its verifier. It raises BadRow for a row that cannot be used."""
        copy = self.model_copy()
        copy._row_check = check
        return copy

    @property
    def row_check(self) -> Callable[[str, Any, str, bool], None] | None:
        return self._row_check

    def without_mix(self) -> Self:
        """The same with all rows of every source: for rows that are not trained on."""
        return self.model_copy(update={"mix": Mix()})
