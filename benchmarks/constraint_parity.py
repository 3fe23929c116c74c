"""Our verdicts beside the published ones, instruction by instruction: IFEval and IFBench, strict and loose.

    python benchmarks/constraint_parity.py DATA         # a folder with ifeval/ and ifbench/
    python benchmarks/constraint_parity.py DATA --out benchmarks/results/constraint_parity.json

ifeval/ has input_data.jsonl and gpt4_{strict,loose}.jsonl, ifbench/ IFBench_test.jsonl and sample_{strict,loose}.jsonl,
as the two references publish them (prompts with arguments; responses with follow_instruction_list). Prints every
difference. Ends with 1 when more than 0.5% of a family's verdicts differ.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

# the folder of this script has a verifiers.py, which must not be taken for the package
sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]

from verifiers import BadReference  # noqa: E402
from verifiers.constraints import ifbench, ifeval  # noqa: E402
from verifiers.constraints.instructions import loose_variants  # noqa: E402

FAMILIES: dict[str, tuple[ModuleType, str, str]] = {
    "ifeval": (ifeval, "input_data.jsonl", "gpt4"),
    "ifbench": (ifbench, "IFBench_test.jsonl", "sample"),
}


@dataclass(frozen=True, slots=True)
class Difference:
    """One instruction on which we and the published verdict differ."""

    instruction: str
    arguments: dict[str, Any]
    published: bool
    response: str


@dataclass(slots=True)
class Outcome:
    """Figures of one file of published verdicts."""

    instructions: int
    prompts: int
    our_share: float  # of the instructions that we say are followed
    their_share: float
    differences: list[Difference]
    left_out: list[str]  # why, and the prompt
    seconds: float


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def compare(family: str, folder: Path, mode: str) -> Outcome:
    """Judge every response that has published verdicts of `mode` (strict, loose)."""
    module, prompts_file, prefix = FAMILIES[family]
    wanted = {row["prompt"].strip(): row for row in _rows(folder / prompts_file)}
    ours: list[bool] = []
    theirs: list[bool] = []
    differences: list[Difference] = []
    left_out: list[str] = []
    prompts = 0
    began = time.perf_counter()
    for row in _rows(folder / f"{prefix}_{mode}.jsonl"):
        names = row["instruction_id_list"]
        given = wanted.get(row["prompt"].strip(), {"instruction_id_list": names, "kwargs": [{}] * len(names)})
        try:
            instructions = module.read_reference(given)
        except BadReference as fault:
            left_out.append(f"{fault}: {row['prompt']}")
            continue
        if [name for name, _ in instructions] != names:
            left_out.append(f"other instructions: {row['prompt']}")
            continue
        prompts += 1
        variants = [row["response"]] if mode == "strict" else loose_variants(row["response"])
        for (name, arguments), published in zip(instructions, row["follow_instruction_list"], strict=True):
            found = any(module.follows(text, name, arguments) for text in variants)
            ours.append(found)
            theirs.append(published)
            if found != published:
                differences.append(Difference(name, arguments, published, row["response"]))
    seconds = time.perf_counter() - began
    count = len(ours)
    return Outcome(count, prompts, sum(ours) / count, sum(theirs) / count, differences, left_out, seconds)


def report(family: str, mode: str, outcome: Outcome) -> None:
    share = len(outcome.differences) / outcome.instructions
    print(
        f"{family:8} {mode:7} {outcome.prompts:4} prompts, {outcome.instructions:4} instructions: followed "
        f"{outcome.our_share:.4f} ours, {outcome.their_share:.4f} published; {len(outcome.differences)} differ "
        f"({share:.2%}); {outcome.seconds:.1f} s"
    )
    for one in outcome.differences:
        shown = {key: str(value)[:60] for key, value in one.arguments.items()}
        print(f"    {one.instruction} {shown}: published {one.published}, ours {not one.published}")
        print(f"        {one.response[:300]!r}")
    for prompt in outcome.left_out:
        print(f"    left out: {prompt[:200]!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="the folder with ifeval/ and ifbench/")
    parser.add_argument("--out", type=Path, help="keep the figures in this JSON file")
    args = parser.parse_args()
    figures = {}
    agreed = True
    for family in FAMILIES:
        if not (args.data / family).is_dir():
            print(f"{family}: no folder {args.data / family}")
            continue
        for mode in ("strict", "loose"):
            outcome = compare(family, args.data / family, mode)
            report(family, mode, outcome)
            agreed = agreed and len(outcome.differences) <= 0.005 * outcome.instructions
            figures[f"{family} {mode}"] = {
                "prompts": outcome.prompts,
                "instructions": outcome.instructions,
                "followed": round(outcome.our_share, 4),
                "followed_published": round(outcome.their_share, 4),
                "differences": [one.instruction for one in outcome.differences],
            }
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if agreed and figures else 1)


if __name__ == "__main__":
    main()
