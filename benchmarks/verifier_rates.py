"""Verdicts a second on worked solutions with a number at the end, beside math-verify alone in one process.

    python benchmarks/verifier_rates.py                              # 2,000 generated solutions
    python benchmarks/verifier_rates.py --gsm8k PATH/test.jsonl      # GSM8K's own (rows with `answer`)

Half of the responses are right, half are wrong by one. Both sides see the same text and must agree.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from verifiers import Sample, VerifierPool

Row = tuple[str, str, bool]  # response, reference, whether it is right


def generated(count: int, rng: random.Random) -> list[Row]:
    rows: list[Row] = []
    for index in range(count):
        a, b = rng.randint(2, 999), rng.randint(2, 999)
        right = index % 2 == 0
        said = a * b + (0 if right else 1)
        rows.append((f"There are {a} boxes of {b}, so {a}*{b}={said:,}.\n#### {said:,}", str(a * b), right))
    return rows


def gsm8k(file: Path, rng: random.Random) -> list[Row]:
    rows: list[Row] = []
    for index, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
        solution = json.loads(line)["answer"]
        gold = solution.split("####")[1].strip()
        right = index % 2 == 0
        said = gold if right else str(int(gold.replace(",", "")) + 1)
        rows.append((f"{solution.split('####')[0]}#### {said}", gold, right))
    rng.shuffle(rows)
    return rows


def ours(rows: list[Row], verifier: str, pool: VerifierPool) -> list[bool]:
    verdicts = pool.verify([(verifier, Sample(response, reference)) for response, reference, _ in rows])
    return [verdict.score == 1 for verdict in verdicts]


def math_verify_alone(rows: list[Row]) -> list[bool]:
    from math_verify import parse, verify

    return [
        verify(parse(gold, parsing_timeout=None), parse(text, parsing_timeout=None), timeout_seconds=None)
        for text, gold, _ in rows
    ]


def rate(work: Callable[[], list[bool]], rows: list[Row]) -> tuple[float, float]:
    """(verdicts a second, share that is as labelled)"""
    began = time.perf_counter()
    marks = work()
    seconds = time.perf_counter() - began
    return len(rows) / seconds, sum(
        mark == right for mark, (_, _, right) in zip(marks, rows, strict=True)
    ) / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gsm8k", type=Path, help="a JSONL file with GSM8K's solutions")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="keep the figures in this JSON file")
    args = parser.parse_args()
    rng = random.Random(0)
    rows = gsm8k(args.gsm8k, rng) if args.gsm8k else generated(2000, rng)
    contenders: dict[str, Callable[[VerifierPool], list[bool]]] = {
        "math-verify, one process": lambda pool: math_verify_alone(rows),
        "gsm8k": lambda pool: ours(rows, "gsm8k", pool),
        "math": lambda pool: ours(rows, "math", pool),
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    agreed: dict[str, float] = {}
    with VerifierPool(workers=args.workers, cache_size=0) as pool:
        for _ in range(args.runs + 1):  # the first one warms up
            for name, work in contenders.items():
                speed, agreed[name] = rate(lambda work=work: work(pool), rows)  # type: ignore[misc]
                rates[name].append(speed)
    peer = statistics.median(rates["math-verify, one process"][1:])
    figures = {
        name: {
            "per_second": round(statistics.median(speeds[1:])),
            "ratio": round(statistics.median(speeds[1:]) / peer, 1),
            "as_labelled": agreed[name],
        }
        for name, speeds in rates.items()
    }
    print(f"{len(rows)} solutions, {args.workers} workers, medians of {args.runs} runs")
    for name, row in figures.items():
        print(
            f"  {name:26} {row['per_second']:>8,}/s  {row['ratio']:>6}x  {row['as_labelled']:.2%} as labelled"
        )
    if args.out:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
        }
        args.out.write_text(
            json.dumps(
                {"rows": len(rows), "workers": args.workers, "machine": machine, "figures": figures}, indent=1
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
