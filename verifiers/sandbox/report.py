"""`python -m verifiers sandbox`: which tier this machine gives and why not more, and the proof by attack."""

from __future__ import annotations

import argparse
import json
from typing import Any

from verifiers.sandbox.attacks import ATTACKS
from verifiers.sandbox.probing import CURES, Probe, choose, probe
from verifiers.sandbox.proving import Outcome, prove
from verifiers.sandbox.tiers import Tier


def add_command(commands: Any) -> None:
    """Put `sandbox` among the subcommands of an argparse parser."""
    command = commands.add_parser("sandbox", help="which sandbox this machine gives, proved by attack")
    command.add_argument("--tier", help="attack only this tier (default: all there are)")
    command.add_argument("--probe", action="store_true", help="only say which tier there is; no attacks")
    command.add_argument("--json", action="store_true", help="what was found as one JSON object")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """1 when the chosen tier lets an attack through that it claims to stop, or when there is none."""
    found = probe()
    chosen = choose(arguments.tier) if arguments.tier else found.strongest
    if not arguments.json:
        print(summary(found))
    tiers = [Tier[arguments.tier.upper()]] if arguments.tier else found.available
    outcomes = {} if arguments.probe else {tier: prove(tier) for tier in tiers}
    if arguments.json:
        print(json.dumps(as_json(found, outcomes), indent=1))
    elif outcomes:
        print("\n" + table(outcomes))
        print("\n" + "\n".join(verdicts(outcomes)))
    failed = [outcome for outcome in outcomes.get(tiers[0] if tiers else Tier.LIMITS, []) if not outcome.ok]
    return 1 if failed or chosen is None or (chosen is Tier.LIMITS and not arguments.tier) else 0


def summary(found: Probe) -> str:
    """The tiers, strongest first, each with why it is not there and what would help."""
    lines = []
    for tier in sorted(Tier, reverse=True):
        reason = found.why_not[tier]
        lines.append(f"{tier!s:12} {'yes' if not reason else 'no: ' + reason}")
        if reason:
            lines.append(f"{'':12} cure: {CURES[tier]}")
    best = found.strongest
    if best is None:
        lines.append("\nNothing here shuts a program in.")
    elif best is Tier.LIMITS:
        lines.append("\nOnly resource limits: untrusted code runs on explicit consent alone.")
    else:
        lines.append(f"\nUntrusted code runs in the {best} tier.")
    return "\n".join(lines)


def table(outcomes: dict[Tier, list[Outcome]]) -> str:
    """attack x tier: stopped, through (as documented), or THROUGH against what is claimed."""
    tiers = list(outcomes)
    by_name = {tier: {outcome.attack.name: outcome for outcome in outcomes[tier]} for tier in tiers}
    width = max(len(attack.name) for attack in ATTACKS)
    lines = [f"{'attack':{width}}  " + "".join(f"{tier!s:14}" for tier in tiers)]
    for attack in ATTACKS:
        cells = [by_name[tier].get(attack.name) for tier in tiers]
        if any(cells):
            lines.append(f"{attack.name:{width}}  " + "".join(f"{_cell(cell):14}" for cell in cells).rstrip())
    return "\n".join(lines)


def _cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return "-"
    if outcome.stopped:
        return "stopped"
    return "not stopped" if outcome.ok else "BROKEN"


def verdicts(outcomes: dict[Tier, list[Outcome]]) -> list[str]:
    lines = []
    for tier, results in outcomes.items():
        stopped = sum(result.stopped for result in results)
        broken = [result for result in results if not result.ok]
        lines.append(
            f"{tier}: {stopped} of {len(results)} attacks stopped, {len(broken)} against what is documented"
        )
        lines += [f"  BROKEN {result.attack.name}: {result.seen}" for result in broken]
    lines.append("'not stopped' is as documented: docs/sandbox.md says what each tier does not stop")
    return lines


def as_json(found: Probe, outcomes: dict[Tier, list[Outcome]]) -> dict[str, Any]:
    return {
        "strongest": str(found.strongest) if found.strongest else None,
        "why_not": {str(tier): reason for tier, reason in found.why_not.items()},
        "attacks": {
            str(tier): [
                {"attack": r.attack.name, "stopped": r.stopped, "claimed": r.claimed, "seen": r.seen}
                for r in results
            ]
            for tier, results in outcomes.items()
        },
    }
