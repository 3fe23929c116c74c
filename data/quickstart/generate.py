"""Generates the quickstart's problems: eight kinds of digit work, some with a checkable instruction.

Everything is synthetic and made by this file alone, from a seed: the raw pages the base model reads, and
the four small sets the recipe uses (SFT demonstrations, prompts, validation, test).

A problem belongs to exactly one split, by a hash of what it asks (`split_of`), so a test problem is in no
page, demonstration or prompt, however it is phrased and whatever the order of its operands.

Two writers fill pages and demonstrations:

* the careful one shows the steps, is right, and (nearly always) follows the instruction;
* the hasty one answers at once, slips now and then, and often forgets the instruction.

    python data/quickstart/generate.py --out data/quickstart
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT_SEED = 20250601
# Thousandths of all problems, in this order; what is left belongs to the base corpus.
SPLIT_SHARES = {"test": 40, "validation": 40, "sft": 100, "prompts": 200}
ROWS = {"sft": 768, "preferences": 320, "prompts": 1536, "validation": 240, "test": 480}


@dataclass(frozen=True)
class Problem:
    """One question: `operands` is what its text says; questions with the same content have the same `key`."""

    kind: str
    operands: tuple[int, ...]
    key: str


@dataclass(frozen=True)
class Kind:
    """How one kind of problem is drawn, asked and solved."""

    draw: Callable[[random.Random], Problem]
    ask: Callable[[Problem], str]
    steps: Callable[[Problem], list[str]]
    answer: Callable[[Problem], int]


@dataclass(frozen=True)
class Instruction:
    """What the prompt asks of the form, as text and as an IFEval instruction with its arguments."""

    text: str
    ifeval_id: str
    kwargs: tuple[tuple[str, str], ...] = ()


NO_COMMA = Instruction("No commas.", "punctuation:no_comma")
QUOTES = Instruction("In double quotes.", "startend:quotation")
END_PHRASES = ("Done.", "That is all.", "Any more?", "I am sure.", "Good luck!", "See you.")


def end_with(phrase: str) -> Instruction:
    return Instruction(f"End with: {phrase}", "startend:end_checker", (("end_phrase", phrase),))


# --- the kinds -------------------------------------------------------------------------------------------


def _digits(number: int) -> list[int]:
    return [int(d) for d in str(number)]


def _problem(kind: str, operands: tuple[int, ...], content: object = None) -> Problem:
    return Problem(kind, operands, f"{kind}:{operands if content is None else content}")


def _draw_add(rng: random.Random) -> Problem:
    a, b = rng.randint(100, 999), rng.randint(100, 999)
    return _problem("add", (a, b), tuple(sorted((a, b))))


def _add_steps(p: Problem) -> list[str]:
    """Columns from the right; a carry is added as +1: 347+285 -> 7+5=12, 4+8+1=13, 3+2+1=6."""
    steps, carry = [], 0
    for x, y in zip(reversed(_digits(p.operands[0])), reversed(_digits(p.operands[1])), strict=True):
        total = x + y + carry
        steps.append(f"{x}+{y}{'+1' if carry else ''}={total}")
        carry = total // 10
    return steps


def _draw_sub(rng: random.Random) -> Problem:
    a, b = rng.randint(100, 999), rng.randint(100, 999)
    return _problem("sub", (max(a, b), min(a, b)))


def _sub_steps(p: Problem) -> list[str]:
    """Columns from the right; a borrowed ten is paid back next: 532-187 -> 12-7=5, 13-8-1=4, 5-1-1=3."""
    steps, borrow = [], 0
    for x, y in zip(reversed(_digits(p.operands[0])), reversed(_digits(p.operands[1])), strict=True):
        lent = 10 if x - borrow < y else 0
        steps.append(f"{x + lent}-{y}{'-1' if borrow else ''}={x + lent - y - borrow}")
        borrow = 1 if lent else 0
    return steps


def _draw_mul(rng: random.Random) -> Problem:
    return _problem("mul", (rng.randint(100, 999), rng.randint(2, 9)))


def _mul_steps(p: Problem) -> list[str]:
    steps, carry = [], 0
    for x in reversed(_digits(p.operands[0])):
        total = x * p.operands[1] + carry
        steps.append(f"{x}*{p.operands[1]}{f'+{carry}' if carry else ''}={total}")
        carry = total // 10
    return steps


def _draw_digit_sum(rng: random.Random) -> Problem:
    number = rng.randint(1000, 9999)
    return _problem("digit_sum", (number,), sorted(_digits(number)))


def _digit_sum_steps(p: Problem) -> list[str]:
    digits = _digits(p.operands[0])
    steps, total = [], digits[0]
    for d in digits[1:]:
        steps.append(f"{total}+{d}={total + d}")
        total += d
    return steps


def _nonzero_digits(rng: random.Random, count: int) -> int:
    """A number without the digit 0, so that no rearrangement starts with one."""
    return int("".join(rng.choice("123456789") for _ in range(count)))


def _draw_reverse(rng: random.Random) -> Problem:
    return _problem("reverse", (_nonzero_digits(rng, 5),))


def _draw_sort(rng: random.Random) -> Problem:
    number = _nonzero_digits(rng, 5)
    return _problem("sort", (number,), sorted(_digits(number)))


def _draw_largest(rng: random.Random) -> Problem:
    numbers = tuple(rng.sample(range(100, 1000), 3))
    return _problem("largest", numbers, tuple(sorted(numbers)))


def _largest_steps(p: Problem) -> list[str]:
    steps, best = [], p.operands[0]
    for x in p.operands[1:]:
        steps.append(f"{best}{'>' if best > x else '<'}{x}")
        best = max(best, x)
    return steps


def _draw_count(rng: random.Random) -> Problem:
    digit = rng.randint(1, 9)
    marked = set(rng.sample(range(7), rng.randint(1, 5)))
    others = "123456789".replace(str(digit), "")
    text = "".join(str(digit) if i in marked else rng.choice(others) for i in range(7))
    return _problem("count", (digit, int(text)))


def _joined(digits: list[int]) -> int:
    return int("".join(map(str, digits)))


def _spelled(digits: list[int]) -> list[str]:
    return [" ".join(map(str, digits))]


KINDS: dict[str, Kind] = {
    "add": Kind(
        _draw_add, lambda p: "Add {} and {}.".format(*p.operands), _add_steps, lambda p: sum(p.operands)
    ),
    "sub": Kind(
        _draw_sub,
        lambda p: "Subtract {1} from {0}.".format(*p.operands),
        _sub_steps,
        lambda p: p.operands[0] - p.operands[1],
    ),
    "mul": Kind(
        _draw_mul,
        lambda p: "Multiply {} by {}.".format(*p.operands),
        _mul_steps,
        lambda p: p.operands[0] * p.operands[1],
    ),
    "digit_sum": Kind(
        _draw_digit_sum,
        lambda p: f"Sum the digits of {p.operands[0]}.",
        _digit_sum_steps,
        lambda p: sum(_digits(p.operands[0])),
    ),
    "reverse": Kind(
        _draw_reverse,
        lambda p: f"Reverse {p.operands[0]}.",
        lambda p: _spelled(_digits(p.operands[0])[::-1]),
        lambda p: _joined(_digits(p.operands[0])[::-1]),
    ),
    "sort": Kind(
        _draw_sort,
        lambda p: f"Sort {p.operands[0]}.",
        lambda p: _spelled(sorted(_digits(p.operands[0]))),
        lambda p: _joined(sorted(_digits(p.operands[0]))),
    ),
    "largest": Kind(
        _draw_largest,
        lambda p: "Largest of {} {} {}.".format(*p.operands),
        _largest_steps,
        lambda p: max(p.operands),
    ),
    "count": Kind(
        _draw_count,
        lambda p: "Count the {}s in {}.".format(*p.operands),
        lambda p: [" ".join(str(p.operands[0]) for _ in range(str(p.operands[1]).count(str(p.operands[0]))))],
        lambda p: str(p.operands[1]).count(str(p.operands[0])),
    ),
}


# --- splits ----------------------------------------------------------------------------------------------


def split_of(key: str) -> str:
    """The only split a problem may appear in: a hash of its content, so it needs no list and no seed."""
    bucket = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % 1000
    for split, share in SPLIT_SHARES.items():
        if bucket < share:
            return split
        bucket -= share
    return "base"


def draw_problem(rng: random.Random, split: str, kind: str) -> Problem:
    """A problem of this kind from this split (drawn again until the hash says so)."""
    while True:
        problem = KINDS[kind].draw(rng)
        if split_of(problem.key) == split:
            return problem


def draw_instructions(rng: random.Random) -> list[Instruction]:
    """None (30 %), one (56 %) or two (14 %) instructions about the form of the response."""
    choices = [NO_COMMA, QUOTES, end_with(rng.choice(END_PHRASES))]
    count = rng.choices((0, 1, 2), (30, 56, 14))[0]
    return rng.sample(choices, count)


def prompt_text(problem: Problem, instructions: list[Instruction]) -> str:
    return " ".join([KINDS[problem.kind].ask(problem), *(i.text for i in instructions)])


# --- the two writers -------------------------------------------------------------------------------------


def _with_form(body: str, instructions: list[Instruction]) -> str:
    for instruction in instructions:
        if instruction.kwargs:
            body += " " + instruction.kwargs[0][1]
    return f'"{body}"' if QUOTES in instructions else body


def careful_response(problem: Problem, followed: list[Instruction]) -> str:
    """All steps, then the answer: `7+5=12, 4+8+1=13, 3+2+1=6, so 632.`"""
    kind = KINDS[problem.kind]
    separator = "; " if NO_COMMA in followed else ", "
    body = separator.join([*kind.steps(problem), f"so {kind.answer(problem)}."])
    return _with_form(body, followed)


def hasty_response(problem: Problem, followed: list[Instruction], slip: int) -> str:
    """The answer at once, off by `slip` (0 is right): `Easy, 632.`"""
    answer = KINDS[problem.kind].answer(problem) + slip
    return _with_form(f"Easy{':' if NO_COMMA in followed else ','} {answer}.", followed)


def draw_slip(rng: random.Random, problem: Problem) -> int:
    """A likely slip: a wrong digit in one column (a forgotten carry, two digits mixed up)."""
    answer = KINDS[problem.kind].answer(problem)
    slips = [s * 10**i for i in range(len(str(answer))) for s in (-1, 1)]
    return rng.choice([s for s in slips if answer + s > 0])


@dataclass(frozen=True)
class Writer:
    """How a writer works: steps or not, how often wrong, how often the instruction is followed."""

    careful: bool
    slip_rate: float
    follow_rate: float

    def respond(self, rng: random.Random, problem: Problem, instructions: list[Instruction]) -> str:
        followed = instructions if rng.random() < self.follow_rate else []
        if self.careful:
            return careful_response(problem, followed)
        slip = draw_slip(rng, problem) if rng.random() < self.slip_rate else 0
        return hasty_response(problem, followed, slip)


# --- the base model's pages ------------------------------------------------------------------------------

PAGE_WRITERS = (Writer(True, 0.0, 0.9), Writer(False, 0.3, 0.5))
PAGE_WRITER_WEIGHTS = (65, 35)
LINE_FORMATS = ("Q: {}\nA: {}\n", "{}\n-> {}\n", "Task: {} Answer: {}\n")


def pages(seed: int) -> Iterator[str]:
    """Raw text for pre-training, without end: pages of 1 to 6 solved problems, one writer and layout a page.

    No page is in the chat format, and none holds a problem of another split.
    """
    rng = random.Random(f"pages-{seed}")
    names = list(KINDS)
    while True:
        writer = rng.choices(PAGE_WRITERS, PAGE_WRITER_WEIGHTS)[0]
        layout = rng.choice(LINE_FORMATS)
        lines = []
        for _ in range(rng.randint(1, 6)):
            problem = draw_problem(rng, "base", rng.choice(names))
            instructions = draw_instructions(rng)
            response = writer.respond(rng, problem, instructions)
            lines.append(layout.format(prompt_text(problem, instructions), response))
        yield "".join(lines)


# --- the recipe's sets -----------------------------------------------------------------------------------

# Which share of a kind's demonstrations the hasty writer made. Real demonstration sets are uneven like this.
HASTY_SHARE = {
    "add": 0.8, "sub": 0.2, "mul": 0.8, "digit_sum": 0.2,
    "reverse": 0.8, "sort": 0.2, "largest": 0.8, "count": 0.2,
}  # fmt: skip
# How often a demonstration follows an instruction, whoever wrote it: preferences have something to teach.
SFT_FOLLOW_RATE = {"punctuation:no_comma": 0.6, "startend:end_checker": 0.65, "startend:quotation": 0.3}
SFT_SLIP_RATE = 0.3


def _distinct(rng: random.Random, split: str, count: int) -> Iterator[tuple[Problem, list[Instruction]]]:
    """`count` problems of a split, kinds in turn, no problem twice."""
    seen: set[str] = set()
    names = list(KINDS)
    for i in range(count):
        problem = draw_problem(rng, split, names[i % len(names)])
        while prompt_text(problem, []) in seen:
            problem = draw_problem(rng, split, names[i % len(names)])
        seen.add(prompt_text(problem, []))
        yield problem, draw_instructions(rng)


def sft_rows(seed: int, count: int = ROWS["sft"]) -> list[dict[str, Any]]:
    """Chat demonstrations by both writers; `source` says the kind and the writer."""
    rng = random.Random(f"sft-{seed}")
    rows: list[dict[str, Any]] = []
    for problem, instructions in _distinct(rng, "sft", count):
        hasty = rng.random() < HASTY_SHARE[problem.kind]
        followed = [i for i in instructions if rng.random() < SFT_FOLLOW_RATE[i.ifeval_id]]
        if hasty:
            slip = draw_slip(rng, problem) if rng.random() < SFT_SLIP_RATE else 0
            response = hasty_response(problem, followed, slip)
        else:
            response = careful_response(problem, followed)
        prompt = prompt_text(problem, instructions)
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        source = f"{problem.kind}/{'hasty' if hasty else 'careful'}"
        rows.append({"messages": messages, "source": source, "id": f"sft-{len(rows):04d}"})
    rng.shuffle(rows)
    return rows


def _ifeval_reference(instructions: list[Instruction]) -> dict[str, Any]:
    return {
        "instruction_id_list": [i.ifeval_id for i in instructions],
        "kwargs": [dict(i.kwargs) for i in instructions],
    }


def preference_rows(seed: int, count: int = ROWS["preferences"]) -> list[dict[str, Any]]:
    """Prompts with an instruction, judged on their form alone: DPO's pairs teach to follow instructions.

    They come from the prompts' split, so RL may meet the same problems; no evaluation does.
    """
    rng = random.Random(f"preferences-{seed}")
    rows: list[dict[str, Any]] = []
    for problem, instructions in _distinct(rng, "prompts", 2 * count):
        if instructions and len(rows) < count:
            row: dict[str, Any] = {"prompt": prompt_text(problem, instructions), "verifier": "ifeval"}
            row |= {"reference": _ifeval_reference(instructions), "source": problem.kind}
            rows.append(row | {"id": f"preferences-{len(rows):04d}"})
    rng.shuffle(rows)
    return rows


def prompt_rows(seed: int, split: str, count: int) -> list[dict[str, Any]]:
    """Prompts whose verifier wants the right number and, where there are instructions, the right form too."""
    rng = random.Random(f"{split}-{seed}")
    rows: list[dict[str, Any]] = []
    for problem, instructions in _distinct(rng, split, count):
        answer = str(KINDS[problem.kind].answer(problem))
        row: dict[str, Any] = {"prompt": prompt_text(problem, instructions)}
        if instructions:
            row["verifier"] = "number_and_form"
            row["reference"] = {"number": answer, "ifeval": _ifeval_reference(instructions)}
        else:
            row["verifier"] = "number"
            row["reference"] = answer
        rows.append(row | {"source": problem.kind, "id": f"{split}-{len(rows):04d}"})
    rng.shuffle(rows)
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line; written under another name first, so a reader never sees half a file."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the quickstart's five small sets.")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="the committed files' seed by default")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    write_jsonl(args.out / "sft.jsonl", sft_rows(args.seed))
    write_jsonl(args.out / "preferences.jsonl", preference_rows(args.seed))
    for split in ("prompts", "validation", "test"):
        write_jsonl(args.out / f"{split}.jsonl", prompt_rows(args.seed, split, ROWS[split]))
    for name, count in ROWS.items():
        print(f"{name}.jsonl: {count} rows")


if __name__ == "__main__":
    main()
