"""Verdicts a second on mathematical answers, beside math-verify alone in one process.

    python benchmarks/verifiers.py                                                   # 2,000 generated solutions
    python benchmarks/verifiers.py --gsm8k PATH/test.jsonl --math500 PATH/math500.jsonl --out FILE.json

Both sides judge the same texts, one after the other in turns; the median of the runs counts. Half of the
responses are right. Nothing is remembered from run to run: the pool is new and warm, its memory of texts
empty, and its cache of verdicts off. Every answer on which the two sides differ is printed with its label,
and so is how the rate grows with workers. (Programs against their tests: `code_rates.py`.)
"""

from __future__ import annotations

import sys
from pathlib import Path

# A script's own folder comes first on its path, and this file would hide the package of its name.
HERE = Path(__file__).resolve().parent
sys.path[:] = [str(HERE.parent), *(place for place in sys.path if Path(place or ".").resolve() != HERE)]

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import platform  # noqa: E402
import random  # noqa: E402
import statistics  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from typing import Any  # noqa: E402

from verifiers import Sample, VerifierPool  # noqa: E402
from verifiers.maths import judges  # noqa: E402

Judge = Callable[[], list[bool]]


@dataclass(frozen=True, slots=True)
class Row:
    """One response, the gold answer, and whether the one states the other."""

    response: str
    gold: str
    right: bool
    question: str = ""  # only ours looks at it: for "percent", a base, or an answer copied from it


def generated(count: int, rng: random.Random) -> list[Row]:
    rows = []
    for index in range(count):
        a, b = rng.randint(2, 999), rng.randint(2, 999)
        right = index % 2 == 0
        said = a * b + (0 if right else 1)
        text = f"There are {a} boxes of {b}, so {a}*{b}={said:,}.\n#### {said:,}"
        rows.append(Row(text, str(a * b), right))
    return rows


def gsm8k(file: Path, rng: random.Random) -> list[Row]:
    """Worked solutions; in every other one the number at the end is one too large."""
    rows = []
    for index, line in enumerate(file.read_bytes().splitlines()):
        working, _, gold = json.loads(line)["answer"].partition("####")
        gold, right = gold.strip(), index % 2 == 0
        said = gold if right else str(int(gold.replace(",", "")) + 1)
        rows.append(Row(f"{working}#### {said}", gold, right))
    rng.shuffle(rows)
    return rows


def math500(file: Path, rng: random.Random) -> list[Row]:
    """Worked solutions; every other one is that of the next problem."""
    problems = [json.loads(line) for line in file.read_bytes().splitlines()]
    rows = []
    for index, problem in enumerate(problems):
        other = problems[(index + index % 2) % len(problems)]
        rows.append(
            Row(
                other["solution"], problem["answer"], other["answer"] == problem["answer"], problem["problem"]
            )
        )
    rng.shuffle(rows)
    return rows


def ours(rows: list[Row], verifier: str, pool: VerifierPool) -> list[bool]:
    verdicts = pool.verify([(verifier, Sample(row.response, row.gold, row.question)) for row in rows])
    return [verdict.score == 1 for verdict in verdicts]


def math_verify_alone(rows: list[Row]) -> list[bool]:
    from math_verify import parse, verify  # type: ignore[import-untyped]

    return [
        verify(
            parse(f"${row.gold}$", parsing_timeout=None),
            parse(row.response, parsing_timeout=None),
            timeout_seconds=None,
        )
        for row in rows
    ]


def timed(judge: Judge) -> tuple[float, list[bool]]:
    began = time.perf_counter()
    marks = judge()
    return time.perf_counter() - began, marks


def fresh(rows: list[Row], verifier: str, workers: int) -> tuple[float, list[bool]]:
    """Seconds and marks of a new pool whose workers are up and have imported all they need."""
    judges.forget()
    warming = [Row(f"{n}+x", f"x+{n}", True) for n in range(40 * workers)]
    with VerifierPool(workers=workers, cache_size=0) as pool:
        ours(warming, "math", pool)
        return timed(lambda: ours(rows, verifier, pool))


def compare(rows: list[Row], verifiers: list[str], workers: int, runs: int) -> dict[str, Any]:
    """Rates, ratios and marks of every contender; the first run only warms up."""
    contenders: dict[str, Callable[[], tuple[float, list[bool]]]] = {
        "math-verify, one process": lambda: timed(lambda: math_verify_alone(rows)),
        **{name: lambda name=name: fresh(rows, name, workers) for name in verifiers},  # type: ignore[misc]
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    marks: dict[str, list[bool]] = {}
    for _ in range(runs + 1):
        for name, contender in contenders.items():
            spent, marks[name] = contender()
            seconds[name].append(spent)
    peer, *_ = contenders
    base = statistics.median(seconds[peer][1:])
    figures = {
        name: {
            "per_second": round(len(rows) / statistics.median(spent[1:])),
            "ratio": round(base / statistics.median(spent[1:]), 1),
            "as_labelled": round(
                sum(m == r.right for m, r in zip(marks[name], rows, strict=True)) / len(rows), 5
            ),
        }
        for name, spent in seconds.items()
    }
    differ = [
        {
            "verifier": name,
            "gold": row.gold,
            "end_of_response": row.response[-120:],
            "right": row.right,
            "ours": mine,
        }
        for name in verifiers
        for row, mine, theirs in zip(rows, marks[name], marks[peer], strict=True)
        if mine != theirs
    ]
    return {"rows": len(rows), "figures": figures, "differences": differ}


def growth(rows: list[Row], most: int, runs: int) -> dict[str, int]:
    """Verdicts a second of `math` by the number of workers."""
    rates = {}
    for workers in range(1, most + 1):
        spent = [fresh(rows, "math", workers)[0] for _ in range(runs)]
        rates[str(workers)] = round(len(rows) / statistics.median(spent))
    return rates


def show(name: str, result: dict[str, Any]) -> None:
    print(f"{name}: {result['rows']} responses")
    for who, row in result["figures"].items():
        print(
            f"  {who:26} {row['per_second']:>8,}/s {row['ratio']:>6}x {row['as_labelled']:>8.2%} as labelled"
        )
    for row in result["differences"]:
        said = "right" if row["ours"] else "wrong"
        judged = "as labelled" if row["ours"] == row["right"] else "NOT as labelled"
        print(
            f"  {row['verifier']} says {said} ({judged}), math-verify not: gold {row['gold']!r}, {row['end_of_response']!r}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gsm8k", type=Path, help="a JSONL file with GSM8K's solutions")
    parser.add_argument("--math500", type=Path, help="a JSONL file with MATH-500's solutions and answers")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="keep the figures in this JSON file")
    args = parser.parse_args()
    rng = random.Random(0)
    sets: dict[str, tuple[list[Row], list[str]]] = {}
    if args.gsm8k:
        sets["GSM8K"] = gsm8k(args.gsm8k, rng), ["gsm8k", "math"]
    if args.math500:
        sets["MATH-500"] = math500(args.math500, rng), ["math"]
    if not sets:
        sets["generated"] = generated(2000, rng), ["gsm8k", "math"]
    results = {name: compare(rows, who, args.workers, args.runs) for name, (rows, who) in sets.items()}
    for name, result in results.items():
        show(name, result)
    together = [row for rows, _ in sets.values() for row in rows]
    rates = growth(together, max(args.workers, 4), args.runs)
    print("math, verdicts a second by workers: " + ", ".join(f"{n}: {rate:,}" for n, rate in rates.items()))
    if args.out:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        }
        kept = {"workers": args.workers, "machine": machine, "sets": results, "math_by_workers": rates}
        args.out.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
