"""What benchmarks/rlvr.py found, as a table, a page and a plot."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from rlvr_runs import PARTS

GOALS = {"even": 1.5, "skewed": 2.5, "outside": 0.03, "seeds": 1.5}


def table(found: dict[str, Any]) -> str:
    rows = ["| what | figure | goal |", "| --- | --- | --- |"]
    for name in [name for name in ("even", "skewed") if name in found.get("peer", {})]:
        case = found["peer"][name]
        mine, theirs = statistics.median(case["ours_s"]), statistics.median(case["trl_s"])
        length = statistics.mean(one["ours"] for one in case["lengths"])
        other = statistics.mean(one["trl"] for one in case["lengths"])
        rows.append(
            f"| a step at {name} lengths ({case['rows']} x {case['group']} responses of at most {case['max_tokens']} tokens, "
            f"on average {length:.0f}, TRL's {other:.0f}): TRL / ours | medians {theirs:.2f} and {mine:.2f} s, "
            f"{_middle(case['ratio'], case.get('ratios', []))} | {GOALS[name]} |"
        )
    for rhythm, one in found.get("share", {}).items():
        named = ", ".join(f"{part.removesuffix('_s')} {one[part]:.0%}" for part in PARTS)
        rows.append(
            f"| {rhythm}: outside sampling, verifying, training and pushing ({named}, waiting for samples "
            f"{one['wait']:.0%}) | {one['outside']:.1%} | at most {GOALS['outside']:.0%} |"
        )
    if "seeds" in found:
        one = found["seeds"]
        rows.append(
            f"| three LoRA seeds on one server: at once / in turn | medians {one['at_once']:.2f} and {one['in_turn']:.2f} "
            f"steps/s, {_middle(one['ratio'], [_ratio(each) for each in one['rounds']])} | {GOALS['seeds']} |"
        )
    units = {"group": "responses a prompt", "max_tokens": "tokens a response", "size": "parameters"}
    for name, points in found.get("growth", {}).get("sweeps", {}).items():
        told = ", ".join(f"{point['value']:,}: {point['seconds']:.2f} s" for point in points)
        rows.append(f"| a step by {units[name]} | {told} | |")
    return "\n".join(rows)


def _middle(ratio: float, rounds: list[float]) -> str:
    """A ratio as what it is: that of the medians beside it is another, since the machine's speed drifts."""
    each = f" ({', '.join(f'{one:.2f}' for one in rounds)})" if rounds else ""
    return f"middle of the rounds' ratios {ratio:.2f}{each}"


def _ratio(one: dict[str, Any]) -> float:
    """Of a round of seeds: at once to the faster way in turn."""
    return one["at_once"] / max(one["in_turn_by_threads"].values())


def _round(number: int, one: dict[str, Any]) -> str:
    in_turn = one["in_turn_by_threads"]
    told = ", ".join(f"{threads}: {rate:.2f}" for threads, rate in in_turn.items())
    return f"| {number} | {told} | {one['at_once']:.2f} | {_ratio(one):.2f} |"


def page(found: dict[str, Any]) -> str:
    lines = ["# The speed of an RLVR step", "", table(found), ""]
    lines.append(
        f"{found['machine']}. float32 on the CPU; runs of both sides in alternation, medians of their steps; servers' "
        "starts and each run's first and last step count nowhere. Load of the machine when each part began: "
        + ", ".join(f"{name} {load:.1f}" for name, load in found["load"].items())
        + "; above the number of cores the figures are of a busy machine."
    )
    if "peer" in found:
        lines += ["", _told_of_peer(found["peer"])]
    if "seeds" in found:
        lines += [
            "",
            "Seeds: one server with one engine; at once each trainer has one thread and two of three sample at a "
            "time, in turn it has as many threads as were faster. The machine's speed drifts, so all of it was done in "
            "rounds; steps/s:",
            "",
            "| round | in turn, by threads | at once | ratio |",
            "| --- | --- | --- | --- |",
            *(_round(number, one) for number, one in enumerate(found["seeds"]["rounds"], 1)),
        ]
    if "growth" in found:
        lines += [
            "",
            f"Growth: from {found['growth']['rows']} prompts x {found['growth']['group']} responses x "
            f"{found['growth']['max_tokens']} tokens; a larger model has "
            "more layers and computes the same function.",
            "",
            "![growth](rlvr_growth.png)",
        ]
    return "\n".join([*lines, ""])


def _told_of_peer(peer: dict[str, Any]) -> str:
    """Which TRL, and with what settings."""
    versions = ", ".join(f"{name} {version}" for name, version in peer["versions"].items())
    lines = [
        f"Peer: {versions}. On-policy GRPO on both sides, no KL term, loss by token, the same reward function, prompts and "
        "learning rate. TRL's vLLM server mode needs CUDA (its weights go there by NCCL); its colocated mode was not run: it "
        "loads weights by the model's bare load_weights, which vLLM's CPU build cannot do once it runs. Without gradient "
        "checkpointing, and with the fastest of these; where torch_compile was on, its first steps, which compile, count "
        "nowhere:",
        "",
        "| lengths | responses | of at most | micro-batch | processes | threads of each | generation | compiled | seconds a step |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    tried = {"kind of generation": peer["trl_kinds"]}
    tried |= {name: peer[name]["trl_tried"] for name in ("even", "skewed") if name in peer}
    for name, settings in tried.items():
        for one in settings:
            kind = "continuous batching" if one["continuous"] else "generate"
            seconds = one["error"] if one["seconds"] is None else f"{one['seconds']:.2f}"
            lines.append(
                f"| {name} | {one['responses']} | {one['max_tokens']} | {one['micro']} | {one.get('processes', 1)} | "
                f"{one['threads']} | {kind} | {_compiled(one)} | {seconds} |"
            )
    for name in [name for name in ("even", "skewed") if name in peer]:
        chosen = ", ".join(f"{key} {value}" for key, value in peer[name]["trl_settings"].items())
        lines += ["", f"Chosen at {name} lengths: {chosen}."]
        mine = peer[name].get("ours_settings")
        if mine:
            more = ", ".join(f"{key} {value}" for key, value in mine["more"].items())
            lines[-1] += f" Ours: processes {mine['processes']}, threads {mine['threads']}, {more}."
    return "\n".join(lines)


def _compiled(tried: dict[str, Any]) -> str:
    """Whether torch_compile was on, and what its first steps took."""
    if not tried.get("compile"):
        return "no"
    warm = ", ".join(f"{seconds:.0f}" for seconds in tried["warm_seconds"] or [])
    return f"yes (first steps {warm} s)"


def _short(value: int) -> str:
    """A count as an axis names it."""
    return f"{value / 1e6:.1f} M" if value >= 1e6 else str(value)


def plot(sweeps: dict[str, list[dict[str, Any]]], out: Path) -> None:
    """Seconds a step and their parts by each of what grows; both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    names = {"group": "responses of a prompt", "max_tokens": "tokens of a response", "size": "parameters"}
    figure, axes = pyplot.subplots(1, len(sweeps), figsize=(4 * len(sweeps), 3.4), sharey=True)
    for axis, (name, points) in zip(axes, sorted(sweeps.items()), strict=True):
        values = [point["value"] for point in points]
        axis.plot(values, [point["seconds"] for point in points], "k-o", label="whole step")
        for part in ("sample_s", "train_s"):
            seconds = [point[part] * point["step_s"] for point in points]
            axis.plot(values, seconds, "--.", label={"sample_s": "sampling", "train_s": "training"}[part])
        axis.set(xscale="log", yscale="log", xlabel=names[name])
        axis.set_xticks(values, [_short(value) for value in values])
        axis.set_xticks([], minor=True)
        axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("seconds a step")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(out, dpi=120)
