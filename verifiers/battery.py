"""Trials of a user's own verifier: gold answers, other rows' answers, repeats, hostile input, time and memory."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from verifiers.base import Sample, Status, Verdict
from verifiers.errors import VerifierError
from verifiers.pool import VerifierPool
from verifiers.spec import Spec, build

HOSTILE = {
    "empty": "",
    "white space": " \n\t ",
    "one megabyte of a": "a" * 1_000_000,
    "10,000 open brackets": "(" * 10_000,
    "10,000 open boxes": "\\boxed{" * 10_000,
    "a number of 5,000 digits": "9" * 5_000,
    "a tower of powers": "\\boxed{9^{9^{9^{9^9}}}}",
    "nested quantifiers' food": "a" * 60 + "!",
    "a NUL and a lone surrogate": "\x00 \ud800",
    "right-to-left and zero width": "\u202e\u200b\u2066 72",
    "deeply nested JSON": "[" * 5_000 + "]" * 5_000,
    "<think> never closed": "<think> 72",
    "100,000 lines": "72\n" * 100_000,
    "one long line of spaces": " " * 200_000 + "x",
    "terminal escapes": "\x1b[2J\x1b]0;x\x07 72",
    "digits of other scripts": "\u0667\u0662 \uff17\uff12 \u00b2 \u2467",
    "a code fence never closed": "```python\nprint(72)",
    "format string": "%s%n {0} {__class__} ${jndi:x}",
}


# References that no data set should have: no answer to them is right, and no worker may die of them.
ODD_REFERENCES: dict[str, Any] = {
    "none": None,
    "an empty text": "",
    "an empty list": [],
    "a nested mapping": {"a": {"b": [None]}},
    "a number": 1e308,
    "a long text": "x" * 100_000,
}
RATE_S = 1.0  # spent on finding out how many a second, ...
LEAK_ROWS = 60  # ... and on at least so many rows, so that a leak shows on a crowded machine too, ...
LONGEST_S = 10.0  # ... but no longer than that
RATE_ITEMS = 2000
LEAK_MB = 64.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One trial's outcome."""

    name: str
    ok: bool
    detail: str


def run_battery(spec: Spec, rows: Sequence[dict[str, Any]], pool: VerifierPool) -> list[Finding]:
    """All trials. A row is {"reference": ..., "response": ..., "score": 1, "prompt": ...}: `response` is the
    reference's own text when it is missing, `score` what the verifier should give. Raises VerifierError for
    a spec that cannot be built or no rows.
    """
    if not rows:
        raise VerifierError(
            "no rows to try the verifier on", cure='One line: {"reference": "72", "response": "It is 72."}'
        )
    samples = [_sample(row) for row in rows]
    if (loaded := _loads(spec, samples[0], pool)) is not None:
        return [loaded]
    verifier = build(spec, pool.base_dir)
    findings = [_references(verifier, samples)]
    verdicts = pool.verify([(spec, sample) for sample in samples])
    findings.append(_expected(rows, verdicts))
    findings.append(_same_again(spec, samples, verdicts, pool))
    findings.append(_others(spec, rows, samples, verdicts, pool))
    findings.extend(_hostile(spec, samples[0], pool))
    findings.append(_odd_references(spec, samples[0], pool))
    findings.append(_time(verdicts, pool))
    findings.extend(_rate_and_memory(spec, samples, pool))
    return findings


def _loads(spec: Spec, sample: Sample, pool: VerifierPool) -> Finding | None:
    """What is wrong when a worker cannot even load it: tried there first, for it may hang or end its process."""
    reason = pool.verify([(spec, sample)])[0].reason
    fatal = ("the verifier did not load", "its worker died while loading")
    return Finding("loads", False, reason) if reason.startswith(fatal) else None


def _sample(row: dict[str, Any]) -> Sample:
    response = row.get("response", row.get("reference"))
    return Sample(
        str(response),
        row.get("reference"),
        str(row.get("prompt", "")),
        bool(row.get("finished", True)),
        {k: v for k, v in row.items() if k not in ("response", "reference", "prompt", "finished", "score")},
    )


def _references(verifier: Any, samples: list[Sample]) -> Finding:
    for number, sample in enumerate(samples, 1):
        try:
            verifier.check_reference(sample.reference)
        except VerifierError as fault:
            return Finding("references", False, f"row {number}: {fault}")
    return Finding("references", True, f"{len(samples)} accepted")


def _expected(rows: Sequence[dict[str, Any]], verdicts: list[Verdict]) -> Finding:
    wrong = [
        f"row {number}: {_said(verdict)}, should be {float(row.get('score', 1)):g}"
        for number, (row, verdict) in enumerate(zip(rows, verdicts, strict=True), 1)
        if verdict.score != float(row.get("score", 1))
    ]
    detail = f"{len(wrong)} of {len(rows)} wrong; {wrong[0]}" if wrong else f"{len(rows)} rows as they should"
    return Finding("gold answers", not wrong, detail)


def _same_again(spec: Spec, samples: list[Sample], verdicts: list[Verdict], pool: VerifierPool) -> Finding:
    # another pool: it has no cache of these, and other processes with another order of items
    with VerifierPool(1, pool.timeout_s, base_dir=pool.base_dir, cache_size=0) as other:
        again = other.verify([(spec, sample) for sample in reversed(samples)])[::-1]
    changed = [n for n, (a, b) in enumerate(zip(verdicts, again, strict=True), 1) if a.score != b.score]
    detail = (
        f"rows {changed[:5]} got other scores" if changed else "the same scores in another process and order"
    )
    return Finding("deterministic", not changed, detail)


def _others(
    spec: Spec,
    rows: Sequence[dict[str, Any]],
    samples: list[Sample],
    verdicts: list[Verdict],
    pool: VerifierPool,
) -> Finding:
    """The next row's right answer must not be right here too."""
    right = [
        s
        for s, row, v in zip(samples, rows, verdicts, strict=True)
        if row.get("score", 1) == 1 and v.score == 1
    ]
    pairs = [(a, b) for a, b in pairwise(right) if a.reference != b.reference]
    if not pairs:
        return Finding("other rows' answers", True, "not tried: the rows have no two different references")
    items = [(spec, replace(other, reference=one.reference, prompt=one.prompt)) for one, other in pairs]
    taken = sum(verdict.score == 1 for verdict in pool.verify(items))
    return Finding("other rows' answers", taken < len(pairs), f"{taken} of {len(pairs)} accepted")


def _hostile(spec: Spec, sample: Sample, pool: VerifierPool) -> list[Finding]:
    items = [(spec, replace(sample, response=text)) for text in HOSTILE.values()]
    findings = []
    for name, verdict in zip(HOSTILE, pool.verify(items), strict=True):
        ok = verdict.status is not Status.ERROR and not (
            name in ("empty", "white space") and verdict.score == 1
        )
        findings.append(Finding(name, ok, f"{_said(verdict)} in {1000 * verdict.seconds:.1f} ms"))
    return findings


def _odd_references(spec: Spec, sample: Sample, pool: VerifierPool) -> Finding:
    odd = {name: value for name, value in ODD_REFERENCES.items() if value != sample.reference}
    answer = "no such answer 8f2c"
    items = [(spec, replace(sample, response=answer, reference=value)) for value in odd.values()]
    for name, verdict in zip(odd, pool.verify(items), strict=True):
        if verdict.score == 1 or verdict.reason.startswith(("its worker", "timed out")):
            return Finding("odd references", False, f"{name}: {_said(verdict)}")
    return Finding("odd references", True, f"{len(odd)} kinds: none accepted, none fatal")


def _rate(rows: int, start: float, pool: VerifierPool) -> Finding:
    a_second = rows / (time.monotonic() - start)
    return Finding("throughput", True, f"{a_second:,.0f} rows a second with {pool.stats.workers} workers")


def _rate_and_memory(spec: Spec, samples: list[Sample], pool: VerifierPool) -> list[Finding]:
    """How many a second with this pool's workers, and whether their memory grows on and on."""
    with VerifierPool(pool.stats.workers, pool.timeout_s, base_dir=pool.base_dir, cache_size=0) as other:
        rounds: list[float] = []
        done, start = 0, time.monotonic()
        while done < RATE_ITEMS and time.monotonic() - start < (RATE_S if done >= LEAK_ROWS else LONGEST_S):
            verdicts = other.verify([(spec, sample) for sample in samples])
            if any(verdict.reason.startswith("MemoryError") for verdict in verdicts):
                full = Finding(
                    "memory", False, f"a worker's memory was full after {done + len(samples)} rows"
                )
                return [_rate(done + len(samples), start, pool), full]
            rounds.append(_memory_mb(other))
            done += len(samples)
        rate = _rate(done, start, pool)
    if not any(rounds):
        return [rate, Finding("memory", True, "none of a worker's: it runs in the caller's process")]
    half = rounds[len(rounds) // 2]
    grown = rounds[-1] - half
    detail = f"{max(rounds):.0f} MB a worker, {max(grown, 0.0):.0f} MB more in the second half of {done} rows"
    return [rate, Finding("memory", grown < LEAK_MB, detail)]


def _memory_mb(pool: VerifierPool) -> float:
    """Resident memory of the largest worker; 0 without one."""
    sizes = [0.0]
    for worker in pool.workers:
        with contextlib.suppress(OSError, ValueError, IndexError):
            pages = int(Path(f"/proc/{worker.pid}/statm").read_text().split()[1])
            sizes.append(pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20))
    return max(sizes)


def _time(verdicts: list[Verdict], pool: VerifierPool) -> Finding:
    seconds = sorted(verdict.seconds for verdict in verdicts)
    slowest = seconds[-1]
    detail = f"median {1000 * seconds[len(seconds) // 2]:.2f} ms, slowest {1000 * slowest:.2f} ms"
    return Finding("time", slowest < 0.5 * pool.timeout_s, f"{detail}, limit {pool.timeout_s:g} s")


def _said(verdict: Verdict) -> str:
    score = "no score" if verdict.score is None else f"{verdict.score:g}"
    return f"{score} ({verdict.status}{': ' + verdict.reason[:120] if verdict.reason else ''})"
