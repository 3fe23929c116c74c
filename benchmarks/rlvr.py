"""How fast an RLVR step is: against TRL's GRPO, what of it is overhead, seeds on one server, and how it grows.

    python benchmarks/rlvr.py --peer-python DIR/bin/python [--parts peer,share,seeds,growth] [--again] [--quick]

peer     seconds a step beside TRL's, at even and at skewed lengths; runs alternate
share    what of a step is neither sampling, verifying, training nor pushing
seeds    three LoRA seeds at once on one server against the three in turn
growth   seconds a step by group size, response length and model size

Each part takes a few minutes on two cores and is kept in OUTPUT/rlvr.json when it is done; parts that are there are not
done again without --again. Servers' starts, the first step of each run (it warms up) and the last (it validates) count
nowhere. --quick shrinks everything, to see that it works: its figures mean nothing, and it writes to its own file.
The peer's environment: python -m venv DIR && DIR/bin/pip install -r benchmarks/requirements-trl.txt
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# as in a stage's own process; it is read when torch is first imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import rlvr_runs as ours  # noqa: E402
from rlvr_report import page, plot, table  # noqa: E402
from rlvr_runs import Work  # noqa: E402

BASE = ROOT / "data" / "quickstart" / "base"
PARTS = ("peer", "share", "seeds", "growth")
CASES = {  # what ends a response, and what a step does
    "even": (None, Work(24, 8, 64)),
    "skewed": ("a", Work(24, 8, 160)),
}
LEAST = Work(8, 8, 32)  # from which the sweeps go
SWEEPS = {"group": (4, 8, 16, 32), "max_tokens": (16, 32, 64, 128), "size": (1, 2, 4, 8)}
RUNS, STEPS = (
    3,
    5,
)  # alternating runs of each side, and their steps, of which the first and the last are not counted
# the quickest here of one process with a thread for each core and one process for each, of micro-batches of 1024 to
# 4096 tokens, compiled or not; the peer's are chosen in each run
OURS: dict[str, Any] = {
    "processes": len(os.sched_getaffinity(0)),
    "threads": 1,
    "more": {"micro_batch_tokens": 1024, "compile": True},
}
SETTINGS = ("micro", "processes", "threads", "continuous", "compile")  # of the peer that are tried
LORA = {"lora": {"rank": 8, "alpha": 16}}
ANSWER_SECONDS = 420.0  # that the peer may take for one job
COMPILES = 3  # steps in which a compiled peer compiles: for the first shapes, for others, for any


class PeerProcess:
    """TRL in its own environment: one process that does jobs (rlvr_trl.py), alone or as one of a group."""

    def __init__(self, python: Path, log: Path, group: dict[str, str]) -> None:
        # threads that spin suit a process that has the machine for itself
        not_theirs = ("PYTHONPATH", "OMP_WAIT_POLICY")
        environment = {name: value for name, value in os.environ.items() if name not in not_theirs}
        if group:
            environment |= group | {"GLOO_SOCKET_IFNAME": "lo"}
        self.log = log.open("w")
        self.process = subprocess.Popen(
            [str(python), str(Path(__file__).with_name("rlvr_trl.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment,
        )  # fmt: skip
        self.lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        self.versions = self.answer()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def answer(self) -> dict[str, Any]:
        while (line := self.lines.get(timeout=ANSWER_SECONDS)) is not None:
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
        raise SystemExit(f"the peer ended: see {self.log.name}")

    def ask(self, job: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


class Peer:
    """TRL by one process and by one for each core; a job says by how many."""

    def __init__(self, python: Path, folder: Path) -> None:
        self.groups = {
            count: [
                PeerProcess(python, folder / f"trl-{count}-{rank}.log", place)
                for rank, place in enumerate(ours.places_of(count))
            ]
            for count in sorted({1, cores()})
        }
        self.versions = self.groups[1][0].versions

    def do(self, job: dict[str, Any]) -> dict[str, Any]:
        """The first one's answer, or that of one which failed."""
        group = self.groups[job["processes"]]
        for process in group:
            process.ask(job)
        answers = [process.answer() for process in group]
        return next((answer for answer in answers if "error" in answer), answers[0])

    def close(self) -> None:
        for process in (one for group in self.groups.values() for one in group):
            process.close()


@contextmanager
def peer_of(python: Path, folder: Path) -> Any:
    peer = Peer(python, folder)
    try:
        yield peer
    finally:
        peer.close()


def cores() -> int:
    return len(os.sched_getaffinity(0))


# Parts


def part_peer(
    folder: Path, python: Path, repeats: int, scale: Work | None, cases: list[str]
) -> dict[str, Any]:
    """Alternating runs of both sides on the same models, prompts, sizes and learning rate. The machine's speed drifts:
    the ratio is the middle one of the rounds' own."""
    found: dict[str, Any] = {}
    models = {name: ours.ending_with(BASE, folder / name, CASES[name][0]) for name in cases}
    works = {name: scale or CASES[name][1] for name in cases}
    with peer_of(python, folder) as peer:
        found["versions"] = peer.versions
        jobs = {name: _job(folder, models[name], works[name]) for name in cases}
        # while no server runs:
        found["trl_kinds"] = kinds = _kinds(peer, jobs[cases[0]])
        chosen = {name: _best_settings(peer, job, kinds[0]["continuous"]) for name, job in jobs.items()}
        with ours.serving(folder, models[cases[0]], replicas=cores()) as server:
            for name, model in models.items():
                work, (settings, tried) = works[name], chosen[name]
                mine, theirs, lengths, ratios = [], [], [], []
                how: Any = {"steps": STEPS, "seeds": repeats, **OURS}
                runs = ours.recipe_of(folder, name, model, work, **how)
                for number, run in enumerate(runs):
                    [rows] = ours.train(folder, [run], server)
                    mine += ours.seconds_between(rows)
                    warm = _warm(settings)
                    answer = peer.do(jobs[name] | settings | {"steps": warm + STEPS - 2, "seed": number + 1})
                    if "error" in answer:
                        raise SystemExit(f"TRL failed: {answer['error']}")
                    theirs += answer["seconds"][warm:]
                    ratios.append(
                        statistics.median(answer["seconds"][warm:])
                        / statistics.median(ours.seconds_between(rows))
                    )
                    lengths.append(
                        {
                            "ours": statistics.mean(row["response_tokens"] for row in ours.counted(rows)),
                            "trl": statistics.mean(answer["tokens"][warm:]),
                        }
                    )
                    print(
                        f"{name} {number + 1}/{repeats}: ours {mine[-1]:.2f} s, TRL {theirs[-1]:.2f} s",
                        flush=True,
                    )
                found[name] = asdict(work) | {
                    "ours_s": mine, "trl_s": theirs, "ratio": statistics.median(ratios), "ratios": ratios, "lengths": lengths, "trl_settings": settings, "ours_settings": OURS,
                    "trl_tried": tried, "parts": ours.shares(rows),
                }  # fmt: skip
    return found


def _job(folder: Path, model: Path, work: Work) -> dict[str, Any]:
    return asdict(work) | {
        "model": str(model), "prompts": str(folder / "prompts.jsonl"), "steps": 3, "learning_rate": 1e-6, "seed": 1,
        "micro": work.rows * work.group, "processes": 1, "threads": cores(), "continuous": False, "compile": False,
    }  # fmt: skip


def _kinds(peer: Peer, job: dict[str, Any]) -> list[dict[str, Any]]:
    """Plain generation and transformers' continuous batching, tried on few responses, the faster first: on a CPU the
    latter can be many times slower."""
    few = job | {"rows": 4, "group": 4, "micro": 16, "max_tokens": min(job["max_tokens"], 32), "steps": 2}
    return sorted((_try(peer, few | {"continuous": kind}) for kind in (False, True)), key=_seconds)


def _best_settings(
    peer: Peer, job: dict[str, Any], continuous: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(the settings with which TRL's step is shortest here, all that were tried): micro-batches, processes and threads;
    then the quickest micro-batch of each number of processes is compiled too."""
    whole, most = job["micro"], cores()
    job = job | {"continuous": continuous}
    tried = [
        _try(peer, job | {"micro": micro, "processes": count, "threads": threads})
        for micro, count, threads in (
            (whole, 1, most), (whole // 4, 1, most), (whole, 1, 1), (whole // most, most, 1), (whole // 4, most, 1), (whole // 8, most, 1),
        )
    ]  # fmt: skip
    for count in sorted({1, most}):
        best = min((one for one in tried if one["processes"] == count), key=_seconds)
        tried.append(_try(peer, job | {name: best[name] for name in SETTINGS} | {"compile": True}))
    best = min(tried, key=_seconds)
    if best["seconds"] is None:
        raise SystemExit(f"TRL works with no settings: {best['error']}")
    return {name: best[name] for name in SETTINGS}, tried


def _warm(settings: dict[str, Any]) -> int:
    """How many of TRL's first steps count nowhere."""
    return COMPILES if settings["compile"] else 1


def _try(peer: Peer, job: dict[str, Any]) -> dict[str, Any]:
    """What was tried, and the shortest step after those that warm up; None where TRL raised."""
    warm = _warm(job)
    answer = peer.do(job | {"steps": job["steps"] - 1 + warm})
    kept = {name: job[name] for name in (*SETTINGS, "max_tokens")}
    kept["responses"] = job["rows"] * job["group"]
    kept |= {
        "seconds": min(answer["seconds"][warm:]) if "seconds" in answer else None,
        "warm_seconds": answer["seconds"][:warm] if "seconds" in answer else None,
        "error": answer.get("error"),
    }
    print(f"TRL with {kept}", flush=True)
    return kept


def _seconds(tried: dict[str, Any]) -> float:
    return math.inf if tried["seconds"] is None else tried["seconds"]


def part_share(folder: Path, scale: Work | None) -> dict[str, Any]:
    """The quickstart's own step, its verifier and its KL term included, in both rhythms."""
    more = {"data": str(ROOT / "data" / "quickstart" / "prompts.jsonl"), "kl_coefficient": 0.01}
    found = {}
    steps = STEPS if scale else 12
    with ours.serving(folder, BASE, replicas=1) as server:
        for rhythm in ("on_policy", "one_behind"):
            work = scale or CASES["even"][1]
            how = {"more": more | {"rhythm": rhythm}, "steps": steps, "seeds": 1, "threads": cores()}
            [rows] = ours.train(folder, ours.recipe_of(folder, rhythm, BASE, work, **how), server)
            waited = sum(row.get("wait_s", 0.0) for row in ours.counted(rows)) / sum(
                ours.seconds_between(rows)
            )
            figures = ours.shares(rows)
            # what a step one behind waits for is the sampling of its own batch
            found[rhythm] = figures | {"wait": waited, "outside": figures["outside"] - waited}
            print(f"{rhythm}: {found[rhythm]}", flush=True)
    return found


def part_seeds(folder: Path, scale: Work | None) -> dict[str, Any]:
    """Three adapters: in turn with the trainer on one core and on all (the faster counts), and at once. In rounds, since
    the machine's speed drifts: the ratio is the middle one of the rounds' own."""
    work = scale or Work(8, 8, 64)
    steps = 8 if scale else 12
    rounds = []
    with ours.serving(folder, BASE, replicas=1, loras=4) as server:

        def runs(name: str, threads: int, at_once: int) -> list[list[dict[str, Any]]]:
            """In turn a round does one of the seeds."""
            more = LORA | {"at_once": at_once}
            how = {"steps": steps, "seeds": at_once, "threads": threads, "more": more}
            return ours.train(
                folder, ours.recipe_of(folder, name, BASE, work, **how), server, at_once=at_once
            )

        for number in range(1 if scale else RUNS):
            in_turn = {
                threads: ours.rate_in_turn(runs(f"in-turn-{number}-{threads}", threads, 1))
                for threads in sorted({1, cores()})
            }
            together = ours.rate_together(runs(f"at-once-{number}", 1, 3))
            rounds.append({"in_turn_by_threads": in_turn, "at_once": together})
            print(f"seeds: {rounds[-1]}", flush=True)
    best = [max(one["in_turn_by_threads"].values()) for one in rounds]
    together = [one["at_once"] for one in rounds]
    return asdict(work) | {
        "rounds": rounds, "in_turn": statistics.median(best), "at_once": statistics.median(together),
        "ratio": statistics.median(one / other for one, other in zip(together, best, strict=True)),
    }  # fmt: skip


def part_growth(folder: Path, quick: bool) -> dict[str, Any]:
    """Medians of the counted steps as one of group size, length, layers grows and the others stay."""
    sweeps = {name: values[:2] if quick else values for name, values in SWEEPS.items()}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sweeps}
    endless = ours.ending_with(BASE, folder / "endless", None)

    def measure(name: str, value: int, label: int, model: Path, server: Path, work: Work) -> None:
        made = ours.recipe_of(folder, f"{name}-{value}", model, work, steps=STEPS, seeds=1, threads=cores())
        [rows] = ours.train(folder, made, server)
        parts = ours.shares(rows)
        found[name].append(
            {"value": label, "seconds": statistics.median(ours.seconds_between(rows)), **parts}
        )
        print(f"{name} {label}: {found[name][-1]['seconds']:.2f} s", flush=True)

    for times in sweeps["size"]:
        model, parameters = ours.deeper(endless, folder / f"deep-{times}", times)
        with ours.serving(folder, model, replicas=1) as server:
            measure("size", times, parameters, model, server, LEAST)
            if times == 1:
                for value in sweeps["group"]:
                    measure("group", value, value, model, server, replace(LEAST, group=value))
                for value in sweeps["max_tokens"]:
                    measure("max_tokens", value, value, model, server, replace(LEAST, max_tokens=value))
    return asdict(LEAST) | {"sweeps": found}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="by comma")
    parser.add_argument(
        "--peer-python", type=Path, help="python of the environment that has trl, for the part peer"
    )
    parser.add_argument("--cases", default=",".join(CASES), help="of the part peer, by comma")
    parser.add_argument("--runs", type=int, default=RUNS, help="rounds of the part peer")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--again", action="store_true", help="do parts again that are done")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; writes rlvr_quick.* instead")
    given = parser.parse_args()
    cases = [name for name in given.cases.split(",") if name]
    if unknown := set(cases) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    parts = [name for name in given.parts.split(",") if name]
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    stem = "rlvr_quick" if given.quick else "rlvr"
    file = given.output / f"{stem}.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"load": {}}
    todo = [name for name in PARTS if name in parts and (given.again or name not in found)]
    if "peer" in todo and given.peer_python is None:
        parser.error("the part peer needs --peer-python")
    scale = Work(4, 4, 16) if given.quick else None
    given.output.mkdir(parents=True, exist_ok=True)
    for name in todo:
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            ours.write_prompts(folder / "prompts.jsonl")
            ours.write_prompts(folder / "validation.jsonl", 4)
            do = {
                "peer": lambda where=folder: (
                    found.get("peer", {})
                    | part_peer(where, given.peer_python, 1 if scale else given.runs, scale, cases)
                ),
                "share": lambda where=folder: part_share(where, scale),
                "seeds": lambda where=folder: part_seeds(where, scale),
                "growth": lambda where=folder: part_growth(where, given.quick),
            }
            found[name] = do[name]()
        found["load"][name] = load
        found["machine"] = f"{cores()} cores, {platform.machine()}, Python {platform.python_version()}"
        file.write_text(json.dumps(found, indent=1) + "\n")
    if "growth" in found:
        plot(found["growth"]["sweeps"], given.output / f"{stem}_growth.png")
    (given.output / f"{stem}.md").write_text(page(found).replace("rlvr_growth", f"{stem}_growth"))
    print(table(found))


if __name__ == "__main__":
    main()
