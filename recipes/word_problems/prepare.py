"""Turns MAWPS, ASDiv and SVAMP (JSONL files in one folder) into the rows that recipes/word_problems reads.

    python recipes/word_problems/prepare.py --data FOLDER --out runs/data/word_problems

Each problem's numbers are searched for the shortest equation that gives its answer ("7+2=9"): that is the worked
completion. Half of the base rows have the bare answer instead, and most of the sft rows, as published answers are bare:
SFT teaches to answer at once, and RLVR may find that working it out pays. drills.jsonl has sums without words, for the base alone. The SHA-256 of a problem's text says which one part it is in (base 60 %, prompts 20 %, validation 6 %,
test 14 %), so no part ever sees another's text. Only the base and prompts parts are multiplied, by drawing other
numbers for the same words; validation and test stay as they were published.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

PARTS = (("base", 0.60), ("prompts", 0.80), ("validation", 0.86), ("test", 1.0))
UP_TO_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
WORDS = {word: value for value, word in enumerate(UP_TO_TWENTY.split())} | {
    "thirty": 30,
    "forty": 40,
    "fifty": 50,
    "dozen": 12,
}
NUMBER = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d+\.\d+|\d+|\b(?:" + "|".join(WORDS) + r")\b", re.IGNORECASE)


class Problem(NamedTuple):
    source: str
    text: str
    answer: Fraction


def read(folder: Path) -> Iterator[Problem]:
    """The problems whose answer is one number."""
    for row in rows(folder / "mawps.jsonl"):
        yield from problem("mawps", row["input"], row["target"])
    for row in rows(folder / "asdiv.jsonl"):
        yield from problem("asdiv", f"{row['body']} {row['question']}", row["answer"].split(" (")[0])
    for row in rows(folder / "svamp.jsonl"):
        body = row["Body"].strip()
        yield from problem(
            "svamp", f"{body}{'' if body.endswith('.') else '.'} {row['Question']}", row["Answer"]
        )


def rows(file: Path) -> list[dict]:
    if not file.exists():
        raise SystemExit(
            f"there is no {file}; --data names the folder with mawps.jsonl, asdiv.jsonl and svamp.jsonl"
        )
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def problem(source: str, text: str, answer: object) -> Iterator[Problem]:
    text = re.sub(r"\s+([?.,])", r"\1", " ".join(text.split()))
    try:
        value = Fraction(str(answer).replace(",", ""))
    except ValueError:
        return
    if value >= 0 and value.limit_denominator(1000) == value:
        yield Problem(source, text, value)


def part_of(text: str) -> str:
    share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    return next(part for part, bound in PARTS if share < bound)


def numbers_in(text: str) -> list[tuple[str, Fraction]]:
    return [
        (
            m[0],
            Fraction(WORDS.get(m[0].lower(), 0))
            if m[0].lower() in WORDS
            else Fraction(m[0].replace(",", "")),
        )
        for m in NUMBER.finditer(text)
    ]


class Equation(NamedTuple):
    """Left to right over places in the list of numbers: ((n0 op n1) op n2)."""

    places: tuple[int, ...]
    operations: tuple[str, ...]

    def value(self, numbers: list[Fraction]) -> Fraction | None:
        total = numbers[self.places[0]]
        for operation, place in zip(self.operations, self.places[1:], strict=True):
            operand = numbers[place]
            if operation == "/" and operand == 0:
                return None
            total = {
                "+": total + operand,
                "-": total - operand,
                "*": total * operand,
                "/": total / operand if operand else total,
            }[operation]
        return total

    def worked(self, numbers: list[Fraction]) -> str:
        """7+2=9, or 3*4=12, 12+5=17"""
        steps, total = [], numbers[self.places[0]]
        for length in range(1, len(self.places)):
            result = Equation(self.places[: length + 1], self.operations[:length]).value(numbers)
            assert result is not None
            steps.append(
                f"{show(total)}{self.operations[length - 1]}{show(numbers[self.places[length]])}={show(result)}"
            )
            total = result
        return ", ".join(steps)


def equation_for(numbers: list[Fraction], answer: Fraction) -> Equation | None:
    """The shortest equation of two or three of the numbers that gives the answer; None when there is none."""
    for length in (2, 3):
        for places in itertools.permutations(range(min(len(numbers), 6)), length):
            for operations in itertools.product("+-*/", repeat=length - 1):
                candidate = Equation(places, operations)
                if candidate.value(numbers) == answer:
                    return candidate
    return None


def show(value: Fraction) -> str:
    """An integer, or a decimal of at most three places."""
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.3f}".rstrip("0").rstrip(".")


def exact(value: Fraction) -> bool:
    return Fraction(show(value)) == value


def variants(item: Problem, count: int, rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """(text, completion, answer): the problem itself, then with other numbers of as many digits."""
    found = numbers_in(item.text)
    values = [value for _, value in found]
    equation = equation_for(values, item.answer) if len(values) >= 2 else None
    if equation is None:
        if exact(item.answer):
            yield item.text, show(item.answer), show(item.answer)
        return
    yield item.text, equation.worked(values), show(item.answer)
    swappable = all(value.denominator == 1 for value in values) and len({text for text, _ in found}) == len(
        found
    )
    for _ in range(count if swappable else 0):
        drawn = [Fraction(rng.randint(2, max(9, min(10 ** len(str(value)) - 1, 999)))) for value in values]
        if "/" in equation.operations and len(equation.places) == 2:
            first, second = equation.places
            drawn[first] = drawn[second] * rng.randint(2, 12)
        answer = equation.value(drawn)
        if answer is None or answer < 0 or answer.denominator != 1 or len(set(drawn)) < len(drawn):
            continue
        pieces, end = [], 0
        for match, value in zip(NUMBER.finditer(item.text), drawn, strict=True):
            pieces += [item.text[end : match.start()], show(value)]
            end = match.end()
        yield "".join(pieces) + item.text[end:], equation.worked(drawn), show(answer)


def drills(count: int, rng: random.Random) -> Iterator[dict]:
    """Sums of one to three digits: every operation that comes out whole, products and quotients by small numbers."""
    for _ in range(count):
        size = rng.choice((9, 99, 99, 999))
        a, b = rng.randint(1, size), rng.randint(1, size)
        operation = rng.choice("+-*/")
        if operation == "-":
            a, b = max(a, b), min(a, b)
        elif operation == "*":
            a, b = rng.sample((rng.randint(1, 99), rng.randint(2, 12)), 2)
        elif operation == "/":
            b = rng.randint(2, 12)
            a = b * rng.randint(1, 99)
        result = {"+": a + b, "-": a - b, "*": a * b, "/": Fraction(a, b)}[operation]
        yield {"prompt": f"{a}{operation}{b}", "completion": f"{a}{operation}{b}={result}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with mawps.jsonl, asdiv.jsonl, svamp.jsonl"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base-variants", type=int, default=30, help="of each problem of the base part")
    parser.add_argument("--prompt-variants", type=int, default=2, help="of each problem of the prompts part")
    parser.add_argument(
        "--base-bare", type=float, default=0.5, help="share of base rows with the answer alone"
    )
    parser.add_argument(
        "--sft-bare", type=float, default=0.85, help="share of sft rows with the answer alone"
    )
    parser.add_argument("--drills", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    seen: set[str] = set()
    parts: dict[str, list[dict]] = {part: [] for part, _ in PARTS}
    for item in read(args.data):
        if item.text in seen:
            continue
        seen.add(item.text)
        part = part_of(item.text)
        count = {"base": args.base_variants, "prompts": args.prompt_variants}.get(part, 0)
        for number, (text, worked, answer) in enumerate(variants(item, count, rng)):
            bare = part == "base" and rng.random() < args.base_bare
            parts[part].append(
                {
                    "prompt": text,
                    "completion": answer if bare else worked,
                    "reference": answer,
                    "source": item.source,
                    "variant": number,
                    "worked": worked,
                }
            )
    parts["sft"] = [
        {**row, "completion": row["reference"] if rng.random() < args.sft_bare else row["worked"]}
        for row in parts["base"]
        if row["variant"] == 0
    ]
    parts["drills"] = list(drills(args.drills, rng))
    args.out.mkdir(parents=True, exist_ok=True)
    for part, made in parts.items():
        rng.shuffle(made)
        temporary = args.out / f".{part}.tmp"
        temporary.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
        temporary.rename(args.out / f"{part}.jsonl")
        sources = Counter(row["source"] for row in made if "source" in row)
        print(f"{part}: {len(made)} rows {dict(sources) or ''}")


if __name__ == "__main__":
    main()
