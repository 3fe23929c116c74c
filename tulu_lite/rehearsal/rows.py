"""Rows in the place of a data source's: made up for hub data sets, the first few of local files."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Literal

from ..datasets.placeholders import columns
from ..datasets.sources import iterate_rows
from ..errors import TuluLiteError
from ..recipe import DataSource
from .answers import Answers, Verifying

Use = Literal["conversations", "pairs", "prompts"]
Row = dict[str, Any]
NAMES = (
    "Ada",
    "Ben",
    "Cleo",
    "Dov",
    "Eli",
    "Fay",
    "Gus",
    "Hana",
    "Ida",
    "Jon",
    "Kim",
    "Leo",
    "Mia",
    "Nils",
    "Olga",
)
THINGS = (
    "apples",
    "books",
    "coins",
    "drums",
    "eggs",
    "flags",
    "gloves",
    "hats",
    "inks",
    "jars",
    "keys",
    "lamps",
)
PLACES = ("at home", "in town", "by the sea", "on a hill", "under a tree", "near the school", "in a boat")


class RowMaker:
    """Makes rows that fit a source's columns and verifier. The same seed gives the same rows."""

    def __init__(self, verifying: Verifying, seed: int) -> None:
        self.verifying, self.seed = verifying, seed
        self.serial = 0
        self.dialogues: list[list[dict[str, str]]] = []  # what the tiny models are shown of it

    def made_up(self, source: DataSource, use: Use, verifier: str | None, n: int) -> list[Row]:
        """n rows for a hub data set."""
        choice = random.Random(f"{self.seed}:{source.hub}:{source.split}:{self.serial}")
        return [self._row(source, use, verifier, choice, place) for place in range(n)]

    def first_of(self, source: DataSource, use: Use, verifier: str | None, n: int) -> list[Row]:
        """The first n rows that are left of a local file after its share and limit."""
        found = list(iterate_rows(source, seed=self.seed))[:n]
        for row in found:
            self._show_local(row.data, source, use, verifier)
        return [row.data for row in found]

    def _row(
        self, source: DataSource, use: Use, verifier: str | None, choice: random.Random, place: int
    ) -> Row:
        self.serial += 1
        number = choice.randint(1, 4)
        question = _question(choice, number, self.serial)
        row: Row = {}
        if use != "prompts":
            good, bad = f"It is {number}.", f"well, {number + 5} or so, i think"
            self._fill(row, source, use, question, good, bad)
            self._show(question, Answers((good,), (bad,)), choice)
            return row
        branches = self.verifying.branches(verifier) if verifier else []
        branch = branches[place % len(branches)] if branches else ""
        for column in columns(source.source or ""):
            _put(row, column, branch or source.hub)
        label = branch or source.source or str(source.hub)
        name = verifier or "number"
        reference = self.verifying.reference(name, number, label)
        _put(row, source.reference, reference)
        if verifier is None:
            row["verifier"] = name
        self._fill(row, source, use, question, f"It is {number}.", "")
        self._show(question, self.verifying.answers(name, reference, label, question), choice)
        return row

    def _fill(self, row: Row, source: DataSource, use: Use, question: str, good: str, bad: str) -> None:
        """Put the texts into the columns that the source's format or templates name."""
        asked = {"role": "user", "content": question}
        turns = [asked, {"role": "assistant", "content": good}]
        if use == "pairs":
            if source.format == "preference":
                other = [asked, {"role": "assistant", "content": bad}]
                _put(row, columns(source.chosen)[0], turns)
                _put(row, columns(source.rejected)[0], other)
            else:
                _texts(row, source.prompt, question)
                _texts(row, source.chosen, good)
                _texts(row, source.rejected, bad)
        elif source.format == "alpaca":
            row |= {"instruction": question, "input": "", "output": good}
        elif source.format == "sharegpt":
            column = "conversations" if source.messages == "messages" else source.messages
            row[column] = [{"from": "human", "value": question}, {"from": "gpt", "value": good}]
        elif source.format == "prompt_completion" or source.prompt != "{prompt}":
            _texts(row, source.prompt, question)
            if use == "conversations":
                _texts(row, source.completion, good)
        else:
            _put(row, source.messages, turns if use == "conversations" else [asked])

    # What the tiny models are shown, so that their samples look like answers and some are right

    def _show(self, question: str, answers: Answers, choice: random.Random) -> None:
        texts = [*choice.sample(answers.right, min(2, len(answers.right)))]
        texts += choice.sample(answers.other, min(max(len(texts), 1), len(answers.other)))
        for text in texts:
            self.dialogues.append(
                [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
            )

    def _show_local(
        self, data: Mapping[str, Any], source: DataSource, use: Use, verifier: str | None
    ) -> None:
        choice = random.Random(f"{self.seed}:{len(self.dialogues)}")
        question = _question(choice, 3, len(self.dialogues))
        if use != "prompts":
            self._show(question, Answers(("It is 3.",), ("well, 7",)), choice)
            return
        name = verifier or data.get("verifier")
        reference = data.get(source.reference)
        if isinstance(name, str) and reference is not None:
            label = source.source or str(data.get("source", ""))
            self._show(question, self.verifying.answers(name, reference, label, question), choice)


def _question(choice: random.Random, number: int, serial: int) -> str:
    first = choice.randint(0, number)
    who, what, where = choice.choice(NAMES), choice.choice(THINGS), choice.choice(PLACES)
    return (
        f"Case {serial}: {who} has {first} {what} {where} and finds {number - first} more. "
        f"How many {what} does {who} have now?"
    )


def _texts(row: Row, template: str, text: str) -> None:
    """Columns of a template such that together they hold the text."""
    names = list(dict.fromkeys(columns(template)))
    if not names:
        raise TuluLiteError(
            f"cannot rehearse a data source with the template {template!r}: it names no column",
            cure="write a template with a {column}",
        )
    words = text.split(" ")
    each = -(-len(words) // len(names))
    for place, name in enumerate(names):
        _put(row, name, " ".join(words[place * each : (place + 1) * each]) or ".")


def _put(row: Row, dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    here = row
    for part in parents:
        here = here.setdefault(part, {})
    here[last] = value
