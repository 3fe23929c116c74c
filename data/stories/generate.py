"""Makes story openings for recipes/stories: a small story model goes on from each. Standard library only.

    python data/stories/generate.py       # rewrites prompts.jsonl and validation.jsonl, byte for byte

No opening of validation.jsonl is in prompts.jsonl: the heroes' names differ.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from pathlib import Path

NAMES = ["Tim", "Lily", "Ben", "Mia", "Tom", "Sue", "Max", "Amy", "Sam", "Anna", "Jack", "Lucy"]
HELD_OUT = ["Fin", "Zoe", "Leo"]
HEROES = ["boy", "girl", "dog", "cat", "bird", "bear", "frog", "fish"]
OPENINGS = [
    "Once upon a time there was a little {hero} named {name}.",
    "One day a {hero} named {name} went to the park.",
    "{name} was a {hero} who liked to play.",
]


def openings(names: list[str]) -> list[str]:
    return [
        opening.format(hero=hero, name=name)
        for opening, hero, name in itertools.product(OPENINGS, HEROES, names)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    for name, names in (("prompts", NAMES), ("validation", HELD_OUT)):
        rows = [{"prompt": text, "reference": ""} for text in openings(names)]
        rng.shuffle(rows)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (args.out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{name}: {len(rows)} openings")


if __name__ == "__main__":
    main()
