"""SFT and DPO beside TRL, and beside a bare loop, on this machine's CPU.

    python benchmarks/training.py --peer-python PEER/bin/python            # speed: SFT, DPO, the bare loop
    python benchmarks/training.py --peer-python PEER/bin/python --memory   # peak memory at a vocabulary of 128k
    python benchmarks/training.py --peer-python PEER/bin/python --golden   # loss curves on the same order of data

The same tiny Llama, the same token ids of skewed lengths, float32 on both sides, runs in turn, medians. TRL runs in each
of its exact modes with its fastest settings (no gradient checkpointing, fused AdamW, references computed beforehand);
the best of them counts. benchmarks/requirements-trl.txt says how its environment is made. What each kind of run finds
is kept in benchmarks/results/training.json, and all of it as a page in training.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training_rig import Setting, make_world, ours, peer

SFT_MODES = ("padded", "grouped", "padding_free", "packed")
DPO_MODES = ("padded", "grouped")
RESULTS = Path(__file__).parent / "results"
GOALS = {"sft": 1.25, "dpo": 1.5, "bare": 0.95, "memory": 0.5, "golden": 1e-4}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", required=True, help="the interpreter of an environment with TRL")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--golden", action="store_true")
    parser.add_argument("--runs", type=int, default=5, help="of each, in turn")
    parser.add_argument("--rows", type=int, default=480)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to keep the figures in")
    options = parser.parse_args()
    setting = Setting(options.rows, options.batch_size, options.threads)
    with tempfile.TemporaryDirectory(prefix="tulu-lite-benchmark-") as scratch:
        work = memory if options.memory else golden if options.golden else speed
        figures = work(Path(scratch), options.peer_python, setting, options.runs)
    kept = options.results / "training.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    found = (json.loads(kept.read_text()) if kept.exists() else {}) | {work.__name__: figures}
    kept.write_text(json.dumps(found, indent=1) + "\n")
    kept.with_suffix(".md").write_text(page(found))


def speed(scratch: Path, python: str, setting: Setting, runs: int) -> dict[str, Any]:
    make_world(scratch, setting)

    def sft_rate(run: dict[str, Any]) -> float:
        return float(run["tokens"]) / float(run["seconds"])

    def dpo_rate(run: dict[str, Any]) -> float:
        """Pairs a second, the reference's share of the time included."""
        each = run["seconds"] / run["items"] + run["reference_seconds"] / run["all_items"]
        return float(1 / each)

    sft = in_turn(
        {
            "ours": lambda: sft_rate(ours(scratch, "sft", setting)),
            "bare loop, padded": lambda: sft_rate(ours(scratch, "sft", setting, "bare")),
            "bare loop, packed": lambda: sft_rate(ours(scratch, "sft", setting, "bare-packed")),
            **{f"TRL, {mode}": _trl(python, scratch, "sft", setting, mode, sft_rate) for mode in SFT_MODES},
        },
        runs,
    )
    dpo = in_turn(
        {
            "ours": lambda: dpo_rate(ours(scratch, "dpo", setting, length_normalised=False, beta=0.1)),
            **{f"TRL, {mode}": _trl(python, scratch, "dpo", setting, mode, dpo_rate) for mode in DPO_MODES},
        },
        runs,
    )
    show("SFT, real tokens a second", sft)
    verdict("SFT against TRL's best", min(peers(sft)), GOALS["sft"])
    # which sorts the rows within every few batches
    others = min(peers(sft, without="TRL, grouped"))
    verdict("SFT against TRL's best without its sampler of like lengths", others, GOALS["sft"])
    verdict("SFT against the bare loop", ratio(sft, "bare loop, padded"), GOALS["bare"])
    verdict("SFT against the bare loop on packed rows", ratio(sft, "bare loop, packed"), GOALS["bare"])
    show("DPO, pairs a second, reference included", dpo)
    verdict("DPO against TRL's best", min(peers(dpo)), GOALS["dpo"])
    return {"sft_tokens_per_second": sft, "dpo_pairs_per_second": dpo, "setting": vars(setting)}


def _trl(
    python: str,
    scratch: Path,
    kind: str,
    setting: Setting,
    mode: str,
    rate: Callable[[dict[str, Any]], float],
) -> Callable[[], float]:
    return lambda: rate(peer(python, scratch, kind, setting, mode))


def memory(scratch: Path, python: str, setting: Setting, runs: int) -> dict[str, Any]:
    """The growth from before the first step to the peak: gradients, moments, activations and logits."""
    make_world(scratch, setting, vocabulary=128_256)

    def growth(run: dict[str, Any]) -> float:
        return float(run["peak_mb"]) - float(run["before_mb"])

    first = ours(scratch, "sft", setting)
    found = in_turn(
        {
            "ours": lambda: growth(ours(scratch, "sft", setting)),
            **{f"TRL, {mode}": _trl(python, scratch, "sft", setting, mode, growth) for mode in SFT_MODES},
        },
        runs,
    )
    show(f"peak memory over that before training in MB (which was {first['before_mb']:.0f})", found)
    verdict("memory against TRL's least", max(peers(found)), GOALS["memory"], most=True)
    return {"memory_growth_mb": found, "setting": vars(setting)}


def golden(scratch: Path, python: str, setting: Setting, runs: int) -> dict[str, Any]:
    """The losses of each step, ours beside TRL's on the same rows in the same order."""
    make_world(scratch, setting)
    found: dict[str, Any] = {"setting": vars(setting)}
    fields: dict[str, dict[str, Any]] = {"sft": {}, "dpo": {"length_normalised": False, "beta": 0.1}}
    for kind, more in fields.items():
        one = ours(scratch, kind, setting, **more)["losses"]
        other = peer(python, scratch, kind, setting, "padded", golden=True)["losses"]
        apart = max(abs(a - b) for a, b in zip(one, other, strict=True))
        print(f"{kind}: {len(one)} steps, loss {one[0]:.4f} to {one[-1]:.4f}, largest difference {apart:.2e}")
        verdict(f"{kind} losses against TRL's", apart, GOALS["golden"], most=True)
        found[kind] = {"ours": one, "trl": other, "largest_difference": apart}
    return found


def in_turn(ways: dict[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """The figures of each way by round, all of them run once in each. A peer's that fails is told and left out."""
    values: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in list(ways.items()):
            try:
                values[name].append(way())
            except RuntimeError as error:
                if not name.startswith("TRL"):
                    raise
                print(f"{name} does not run here: {str(error).strip().splitlines()[-1]}", flush=True)
                del ways[name]
    return {name: found for name, found in values.items() if name in ways}


def ratio(found: dict[str, list[float]], name: str) -> float:
    """Ours to this way's, the middle of the rounds' own: a machine whose speed drifts meets both alike."""
    return statistics.median(a / b for a, b in zip(found["ours"], found[name], strict=True))


def peers(found: dict[str, list[float]], without: str = "") -> list[float]:
    """The ratio to each of TRL's ways."""
    return [ratio(found, name) for name in found if name.startswith("TRL") and name != without]


def show(title: str, found: dict[str, list[float]]) -> None:
    print(f"\n{title}")
    for name, values in found.items():
        print(f"  {name:24s} {statistics.median(values):12.1f}   {ratio(found, name):5.2f}", flush=True)


def page(found: dict[str, Any]) -> str:
    """Markdown of all that has been measured."""
    lines = [
        "# Training beside TRL",
        "",
        "On two CPU cores, float32, the quickstart's model and rows of skewed lengths, medians of rounds in each of which",
        "every way ran once; each ratio is the middle of the rounds' own. Made by `benchmarks/training.py`.",
    ]
    tables = {
        "SFT, real tokens a second": ("speed", "sft_tokens_per_second"),
        "DPO, pairs a second, the reference's share included": ("speed", "dpo_pairs_per_second"),
        "Memory over that before training at a vocabulary of 128,256, in MB": ("memory", "memory_growth_mb"),
    }
    for title, (kind, name) in tables.items():
        if kind not in found:
            continue
        ways = found[kind][name]
        lines += [
            "",
            f"## {title}",
            "",
            "| way | figure | ours to it | rounds |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| {way} | {statistics.median(values):,.0f} | {ratio(ways, way):.2f} | {len(values)} |"
            for way, values in ways.items()
        ]
    if "golden" in found:
        lines += ["", "## Losses on the same rows in the same order", ""]
        lines += [
            f"{kind}: {len(found['golden'][kind]['ours'])} steps, largest difference {found['golden'][kind]['largest_difference']:.1e}."
            for kind in ("sft", "dpo")
        ]
    return "\n".join([*lines, ""])


def verdict(what: str, value: float, goal: float, most: bool = False) -> None:
    reached = value <= goal if most else value >= goal
    print(
        f"{what}: {value:.3g} (goal: at {'most' if most else 'least'} {goal:g}) {'reached' if reached else 'MISSED'}"
    )


if __name__ == "__main__":
    main()
