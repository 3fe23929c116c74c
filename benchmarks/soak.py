"""A week of judging in short: mixed verifications with faults, and afterwards nothing is lost or left.

    python benchmarks/soak.py 200000                 # some hours' worth of RL on two cores
    python benchmarks/soak.py 2000 --kill-every 0.5

Mathematics, constraints, compositions, async verifiers and (with --code) programs, right and wrong in known
places; between them verifiers that hang, die, eat memory or write garbage; and a thread that kills workers by
their process id. Ends with 0 when every item has its verdict, every score is the right one, errors are those of
faults and of killed workers alone, and no process, descriptor, file or memory is left.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

# The folder of a script comes first on the path, and in this one lies a `verifiers.py` that is not the package.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

from verifiers import Sample, VerifierPool  # noqa: E402

ROUND = 2000  # items of one call of `verify`
DEADLINE_S = 5.0
RSS_GROWTH_MB = 64.0  # of this process, after the first tenth

FILE = """
import asyncio, os, signal, time
from verifiers import verifier

@verifier("soak_faulty", timeout_s=1.0)
def soak_faulty(response, reference):
    what = response.split()[0]
    if what == "hang": time.sleep(600)
    if what == "spin":
        while True: pass
    if what == "exit": os._exit(3)
    if what == "kill": os.kill(os.getpid(), signal.SIGKILL)
    if what == "bomb":
        hoard = []
        while True: hoard.append(bytearray(1 << 26))
    if what == "raise": raise RuntimeError(response)
    if what == "garbage":
        for name in os.listdir("/proc/self/fd"):
            try:
                if "socket" in os.readlink(f"/proc/self/fd/{name}"): os.write(int(name), b"\\xff" * 4096)
            except OSError: pass
    if what == "fork" and os.fork() == 0: time.sleep(600)
    return response.endswith(reference)

@verifier("soak_async", timeout_s=1.0)
async def soak_async(response, reference):
    if response.startswith("hang"): await asyncio.sleep(600)
    if response.startswith("raise"): raise RuntimeError(response)
    await asyncio.sleep(0.001)
    return response.endswith(reference)
"""
FAULTS = ("hang", "spin", "exit", "kill", "bomb", "raise", "garbage")
Made = tuple[Any, Sample, float | None]  # spec, sample, the right score; None: must be an error


@dataclass
class Outcome:
    """What a run found. `problems` is empty when all is well."""

    items: int = 0
    seconds: float = 0.0
    scored: int = 0
    errors: int = 0
    expected_errors: int = 0
    killed: int = 0
    wrong: int = 0
    slowest_s: float = 0.0
    problems: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    unlucky: Counter[str] = field(default_factory=Counter)  # why what should have a score has none
    stats: dict[str, Any] = field(default_factory=dict)


def stream(count: int, rng: random.Random, place: Path, fault_share: float, code: bool) -> Iterator[Made]:
    """`count` items, each different from all others."""
    plain = [_number, _gsm8k, _math, _constraint, _mixed, _waiting, _own, *([_program] if code else [])]
    for index in range(count):
        if rng.random() < fault_share:
            yield _fault(index, rng, place)
        else:
            yield rng.choice(plain)(index, rng, place)


def _number(index: int, rng: random.Random, _: Path) -> Made:
    right = rng.random() < 0.5
    return "number", Sample(f"Row {index}: the answer is {index + (not right)}.", index), float(right)


def _gsm8k(index: int, rng: random.Random, _: Path) -> Made:
    right = rng.random() < 0.5
    return "gsm8k", Sample(f"So\n#### {index * 7 + (not right):,}", f"#### {index * 7}"), float(right)


def _math(index: int, rng: random.Random, _: Path) -> Made:
    right = rng.random() < 0.5
    shown = f"\\frac{{{2 * index + 2}}}{{4}}" if right else f"\\frac{{{2 * index + 3}}}{{4}}"
    return "math", Sample(f"Row {index}: \\boxed{{{shown}}}", f"\\frac{{{index + 1}}}{{2}}"), float(right)


def _constraint(index: int, rng: random.Random, _: Path) -> Made:
    right = rng.random() < 0.5
    reference = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    return "ifeval", Sample(f"Row {index}{'' if right else ','} and so on.", reference), float(right)


def _own(index: int, rng: random.Random, place: Path) -> Made:
    right = rng.random() < 0.5
    return f"{place}:soak_faulty", Sample(f"row {index} {'yes' if right else 'no'}", "yes"), float(right)


def _waiting(index: int, rng: random.Random, place: Path) -> Made:
    right = rng.random() < 0.5
    return f"{place}:soak_async", Sample(f"row {index} {'yes' if right else 'no'}", "yes"), float(right)


def _mixed(index: int, rng: random.Random, place: Path) -> Made:
    right, comma = rng.random() < 0.5, rng.random() < 0.5
    parts = [f"{place}:soak_async", f"{place}:soak_faulty"]
    spec = {"gate": ["no_commas", {"all_of": parts}]}
    response = f"row{',' if comma else ''} {index} {'yes' if right else 'no'}"
    return spec, Sample(response, "yes"), float(right and not comma)


def _program(index: int, rng: random.Random, _: Path) -> Made:
    right = rng.random() < 0.5
    body = {
        True: "return a + b",
        False: rng.choice(
            [
                "return a - b - 1",
                "while True: pass",
                "return [0] * 10**9",
                "import os; os._exit(0)",
                "import os; os.kill(os.getppid(), 9)",
                "open('/tmp/soak_was_here', 'w'); return 1",
            ]
        ),
    }[right]
    spec = {"use": "code_asserts", "args": {"time_limit_s": 1.0}}
    tests = [f"assert add({index}, 2) == {index + 2}", f"assert add({index}, -1) == {index - 1}"]
    return spec, Sample(f"```python\ndef add(a, b):\n    {body}\n```", tests), float(right)


def _fault(index: int, rng: random.Random, place: Path) -> Made:
    if rng.random() < 0.2:
        return f"{place}:soak_async", Sample(f"{rng.choice(['hang', 'raise'])} {index}", "yes"), None
    if rng.random() < 0.1:  # what it leaves behind must go, though its verdict is right
        return f"{place}:soak_faulty", Sample(f"fork {index} yes", "yes"), 1.0
    return f"{place}:soak_faulty", Sample(f"{rng.choice(FAULTS)} {index}", "yes"), None


# ---------------------------------------------------------------- what is there before and after


@dataclass(frozen=True)
class Traces:
    """What a process can leave on a machine."""

    descriptors: frozenset[str]
    processes: frozenset[int]
    files: frozenset[str]

    @classmethod
    def now(cls) -> Traces:
        gc.collect()
        links = []
        for name in os.listdir("/proc/self/fd"):
            try:
                links.append(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
            except OSError:
                continue
        folders = [Path(tempfile.gettempdir()), Path("/dev/shm")]
        files = {str(path) for folder in folders if folder.is_dir() for path in folder.iterdir()}
        return cls(frozenset(links), frozenset(descendants()), frozenset(files))


def descendants() -> set[int]:
    """Processes below this one, and those that took our marked environment with them."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    found: set[int] = set()
    for pid in parents:
        chain, at = [], pid
        while at in parents and at not in (0, 1, os.getpid()):
            chain.append(at)
            at = parents[at]
        if at == os.getpid():
            found |= set(chain)
    return found | marked()


MARK = "VERIFIERS_SOAK"


def marked() -> set[int]:
    """Processes anywhere that were started, by whatever way, from this run."""
    mark = f"{MARK}={os.getpid()}\0".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark in (entry / "environ").read_bytes():
                    found.add(int(entry.name))
            except OSError:
                continue
    return found


def rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


class Killer(threading.Thread):
    """Kills one of the pool's workers, by its process id, every so often."""

    def __init__(self, pool: VerifierPool, every_s: float, rng: random.Random) -> None:
        super().__init__(daemon=True)
        self._pool, self._every_s, self._rng = pool, every_s, rng
        self._ended = threading.Event()
        self.killed = 0

    def run(self) -> None:
        while not self._ended.wait(self._every_s * self._rng.uniform(0.5, 1.5)):
            workers = list(self._pool.workers)
            pids = [worker.pid for worker in workers if worker.pid > 1 and worker.pid in descendants()]
            if pids:
                try:
                    os.kill(self._rng.choice(pids), signal.SIGKILL)
                    self.killed += 1
                except ProcessLookupError:
                    pass

    def end(self) -> None:
        self._ended.set()
        self.join(10)


def soak(
    count: int,
    seed: int = 0,
    workers: int = 2,
    fault_share: float = 0.004,
    kill_every_s: float = 2.0,
    code: bool = False,
    round_items: int = ROUND,
    tell: Any = None,
) -> Outcome:
    """Judge `count` items. The folder for the verifiers' file is removed at the end."""
    os.environ[MARK] = str(os.getpid())
    rng, outcome, start = random.Random(seed), Outcome(), time.monotonic()
    before = Traces.now()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        place = Path(folder) / "soak_verifiers.py"
        place.write_text(FILE)
        with VerifierPool(workers, DEADLINE_S, memory_mb=1024, recycle_after=5000) as pool:
            killer = Killer(pool, kill_every_s, random.Random(seed + 1))
            killer.start()
            _judge(stream(count, rng, place, fault_share, code), count, pool, outcome, round_items, tell)
            killer.end()
            outcome.killed, outcome.stats = killer.killed, pool.stats.to_json()
    outcome.seconds = time.monotonic() - start
    if outcome.errors - outcome.expected_errors > outcome.killed:
        outcome.problems.append(
            f"{outcome.errors - outcome.expected_errors} errors beside those of faults, but only {outcome.killed} kills"
        )
    outcome.problems += _left(before)
    return outcome


def _judge(
    items: Iterator[Made], count: int, pool: VerifierPool, outcome: Outcome, round_items: int, tell: Any
) -> None:
    settled = None  # memory after the first tenth
    while batch := list(islice(items, round_items)):
        verdicts = pool.verify([(spec, sample) for spec, sample, _ in batch])
        if len(verdicts) != len(batch):
            outcome.problems.append(f"{len(batch)} items, {len(verdicts)} verdicts")
        for (spec, sample, wanted), verdict in zip(batch, verdicts, strict=False):
            _count(spec, sample, wanted, verdict, outcome)
        if settled is None and outcome.items >= count / 10:
            settled = rss_mb()
        if tell is not None:
            tell(outcome, rss_mb())
    grown = rss_mb() - (settled or rss_mb())
    if grown > RSS_GROWTH_MB:
        outcome.problems.append(f"this process grew by {grown:.0f} MB after the first tenth")


def _count(spec: Any, sample: Sample, wanted: float | None, verdict: Any, outcome: Outcome) -> None:
    outcome.items += 1
    outcome.kinds[f"{verdict.verifier}: {verdict.status}"] += 1
    outcome.slowest_s = max(outcome.slowest_s, verdict.seconds)
    if verdict.reason == "lost by the pool":
        outcome.problems.append(f"lost: {spec} {sample.response[:60]!r}")
    if verdict.score is None:
        outcome.errors += 1
        outcome.expected_errors += wanted is None
        if wanted is not None:
            outcome.unlucky[verdict.reason[:100]] += 1
    else:
        outcome.scored += 1
        if verdict.score != wanted:
            outcome.wrong += 1
            said = f"{spec} {sample.response[:80]!r}: {verdict.score}, should be {wanted} ({verdict.reason[:80]})"
            outcome.problems.append(f"wrong: {said}")


def _left(before: Traces, patience_s: float = 10.0) -> list[str]:
    """What is there that was not; the kernel may need a moment to bury the dead."""
    until = time.monotonic() + patience_s
    while True:
        after = Traces.now()
        new_files = {path for path in after.files - before.files if "soak" in path or _ours(path)}
        problems = [
            f"{what} left: {sorted(left)[:5]}"
            for what, left in (
                ("processes", after.processes - before.processes),
                ("descriptors", after.descriptors - before.descriptors),
                ("files", new_files),
            )
            if left
        ]
        if not problems or time.monotonic() > until:
            return problems
        time.sleep(0.1)


def _ours(path: str) -> bool:
    """Whether a new file can be this run's: others write into the same folders meanwhile."""
    try:
        made = Path(path).stat()
    except OSError:
        return False
    return made.st_uid in (os.getuid(), 65534) and Path(path).name.startswith(("verifiers", "tmp", "sandbox"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("count", type=int, nargs="?", default=20_000, help="verifications (default 20,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--faults", type=float, default=0.004, help="share of items that hang, die, ...")
    parser.add_argument("--kill-every", type=float, default=2.0, metavar="SECONDS", help="a worker is killed")
    parser.add_argument("--code", action="store_true", help="programs too, each in a sandbox")
    parser.add_argument("--out", type=Path, help="keep the figures in this JSON file")
    args = parser.parse_args()

    def tell(outcome: Outcome, memory: float) -> None:
        print(
            f"{outcome.items:,} judged, {outcome.errors} errors, {memory:.0f} MB", file=sys.stderr, flush=True
        )

    outcome = soak(args.count, args.seed, args.workers, args.faults, args.kill_every, args.code, tell=tell)
    print(
        f"{outcome.items:,} verifications in {outcome.seconds:.0f} s: {outcome.scored:,} scored, {outcome.wrong} wrong, "
        f"{outcome.errors} errors ({outcome.expected_errors} of injected faults), {outcome.killed} workers killed from "
        f"outside, {outcome.stats['restarts']} replaced in all, slowest verdict {outcome.slowest_s:.2f} s"
    )
    for reason, times in outcome.unlucky.most_common(10):
        print(f"  {times} x no score: {reason}")
    for problem in outcome.problems[:50]:
        print("PROBLEM", problem)
    if args.out:
        args.out.write_text(
            json.dumps(
                {**asdict(outcome), "kinds": dict(outcome.kinds), "unlucky": dict(outcome.unlucky)}, indent=1
            )
            + "\n"
        )
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
