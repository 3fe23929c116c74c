"""References that a verifier can read, and answers that it finds right and wrong, by trying it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import verifiers

from ..errors import TuluLiteError
from ..judging import verifier_spec
from ..recipe import Recipe

ASKS_A_MODEL = ("judge_", "reward_model")  # verifiers that nothing can be tried with before a server runs
LOWER_CASE = "change_case:english_lowercase"


@dataclass(frozen=True)
class Answers:
    """To one prompt. `other` are those that are not right, or all where only a model can tell."""

    right: tuple[str, ...]
    other: tuple[str, ...]


class Verifying:
    """The verifiers of a recipe, asked what they take and what they say."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._built: dict[str, verifiers.Verifier] = {}

    def branches(self, name: str) -> list[str]:
        """The sources that a `choose: {...}, by: source` tells apart; empty for any other verifier."""
        spec = verifier_spec(self.recipe, name)
        if isinstance(spec, dict) and isinstance(spec.get("choose"), dict):
            return list(spec["choose"]) if spec.get("by", "source") == "source" else []
        inner = (
            next((v for v in spec.values() if isinstance(v, (dict, list))), None)
            if isinstance(spec, dict)
            else None
        )
        if isinstance(inner, dict) and isinstance(
            inner.get("choose"), dict
        ):  # {scale: {choose: ...}, by: 10}
            return list(inner["choose"])
        return []

    def reference(self, name: str, number: int, source: str) -> Any:
        """A reference of which the number is the answer, or failing that any that the verifier takes."""
        built = self._verifier(name)
        leaves = leaf_names(verifier_spec(self.recipe, name), source)
        for candidate in (*_references(number), *_by_leaf(leaves, number)):
            if _takes(built, candidate, source):
                return candidate
        raise TuluLiteError(
            f"cannot rehearse the verifier {name!r}: it takes none of the references that are tried",
            why="rows of hub data sets are not read in a rehearsal but made up",
            cure="name a file with a few rows of your own by `path:` instead of the hub data set",
        )

    def answers(self, name: str, reference: Any, source: str, prompt: str) -> Answers:
        """Answers that the verifier finds right and wrong, from the ways in which answers are written."""
        if any(
            leaf.startswith(ASKS_A_MODEL) for leaf in leaf_names(verifier_spec(self.recipe, name), source)
        ):
            return Answers((), tuple(written("3")))
        built = self._verifier(name)
        right: list[str] = []
        other: list[str] = []
        for text in itertools.chain.from_iterable(
            written(value) for value in (_shown(reference), _another(_shown(reference)))
        ):
            sample = verifiers.Sample(text, reference, prompt, True, {"source": source})
            verdict = built.verify(sample)
            if verdict.score is not None:
                (right if verdict.score >= 1 else other).append(text)
        return Answers(tuple(right), tuple(other or right))

    def _verifier(self, name: str) -> verifiers.Verifier:
        if name not in self._built:
            self._built[name] = verifiers.build(verifier_spec(self.recipe, name), base_dir=Path.cwd())
        return self._built[name]


def written(value: str) -> list[str]:
    """An answer as models write it, in several ways."""
    return [
        f"It is {value}.",
        f"it is {value}",
        f"So it is \\boxed{{{value}}}.",
        f"one step\n#### {value}",
        f"<think>\nOne step.\n</think>\n\nIt is \\boxed{{{value}}}.",
        f"<think>One step.</think> <answer>It is \\boxed{{{value}}}.</answer>",
        f"<think>One step.</think>\n<answer>{value}</answer>",
        f"One step.\n</think>\n\nIt is \\boxed{{{value}}}.",  # behind a prompt that has opened it
        f"It is {value}. A line, with a comma.\n\nAnother line.",
        f"WELL, {value}",
    ]


def leaf_names(spec: Any, source: str = "") -> list[str]:
    """The names of the verifiers that a spec is made of; of a `choose` by source that of the source alone."""
    if isinstance(spec, str):
        return [spec]
    if isinstance(spec, Sequence):
        return [name for part in spec for name in leaf_names(part, source)]
    if not isinstance(spec, Mapping):
        return []
    if "use" in spec:
        return [str(spec["use"])]
    if "choose" in spec:
        chosen = spec["choose"].get(source, spec.get("otherwise"))
        return leaf_names(list(spec["choose"].values()) if chosen is None else chosen, source)
    return [
        name
        for key, part in spec.items()
        if key not in ("by", "args", "weight")
        for name in leaf_names(part, source)
    ]


def _references(number: int) -> tuple[Any, ...]:
    return (
        str(number),
        number,
        {"instruction_id_list": [LOWER_CASE], "kwargs": [{}]},
        json.dumps({"func_name": "validate_lowercase"}),
        {"func_name": "validate_lowercase"},
        None,
        [str(number)],
        {"answer": str(number)},
    )


def _by_leaf(leaves: Sequence[str], number: int) -> list[dict[str, Any]]:
    """Mappings with a reference for each part's name."""
    names = list(dict.fromkeys(leaf.rpartition(":")[2] for leaf in leaves))[:4]
    choices = itertools.product(_references(number), repeat=len(names))
    return [dict(zip(names, chosen, strict=True)) for chosen in itertools.islice(choices, 4096)]


def _takes(built: verifiers.Verifier, reference: Any, source: str) -> bool:
    try:
        built.check_reference(reference, {"source": source})
    except verifiers.VerifierError:
        return False
    return True


@lru_cache(maxsize=64)
def _number_in(text: str) -> str:
    digits = [
        part
        for part in text.replace("{", " ").replace("}", " ").replace('"', " ").split()
        if part.strip(".,:").isdigit()
    ]
    return digits[-1].strip(".,:") if digits else "3"


def _another(value: str) -> str:
    """Another answer, of those that rehearsed problems have: so that each is right now and then."""
    return str(int(value) % 4 + 1) if value in ("1", "2", "3", "4") else "7"


def _shown(reference: Any) -> str:
    """What of a reference an answer would state."""
    if isinstance(reference, (str, int, float)) and len(str(reference)) <= 40:
        return str(reference)
    return _number_in(json.dumps(reference, default=str))
