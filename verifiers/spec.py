"""From a spec, which is plain data, to something that judges.

    "math"                                                     a name
    {use: ends_with, args: {phrase: Amen}}                     a name and its arguments
    {use: my_check.py:polite, name: polite}                    a file's function, and what to call it here
    {all_of: [SPEC, SPEC]}                                     the lowest score
    {weighted: [{use: math, weight: 3}, {spec: SPEC, weight: 1}]}   the weighted mean
    {gate: [SPEC, SPEC]}                                       a later one counts only if all before are 1

A child without a score leaves the whole without one. Where the reference is a mapping that has a key for
every child's name, each child gets its own; otherwise all get the same.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from verifiers import registry
from verifiers.base import Sample, Verdict, incorrect, scored
from verifiers.errors import SpecError
from verifiers.leaf import bind, shortened
from verifiers.registry import Runs

Spec = str | Mapping[str, Any]
COMPOSITIONS = ("all_of", "weighted", "gate")
MAX_DEPTH = 8


@runtime_checkable
class Verifier(Protocol):
    """What `build` returns. `verify` never raises; `check_reference` raises BadReference."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def runs(self) -> Runs: ...

    @property
    def cache(self) -> bool: ...

    def check_reference(self, reference: Any) -> None: ...

    def verify(self, sample: Sample) -> Verdict: ...

    def warm(self) -> None: ...


def build(spec: Spec, base_dir: str | Path | None = None) -> Verifier:
    """The verifier that `spec` describes; file paths in it are relative to `base_dir`.

    Raises SpecError (UnknownVerifier for an unknown name) with what is wrong and where.
    """
    return _build(spec, Path(base_dir) if base_dir is not None else None, 0)


def canonical(spec: Spec) -> str:
    """One string for all spellings of one spec: a key for caches. Raises SpecError if it is not JSON."""
    try:
        return json.dumps(spec, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError) as fault:
        raise SpecError(f"a verifier spec must be plain JSON data: {fault}") from fault


def portable(spec: Spec, base_dir: str | Path | None = None) -> Spec:
    """The same spec, readable by another process: names registered here become places to import from."""
    if isinstance(spec, str):
        if not registry.is_built_in(spec) and ":" not in spec and not spec.endswith(".py"):
            return _place(spec)
        place, colon, name = spec.rpartition(":")
        file = place if colon and place.endswith(".py") else spec if spec.endswith(".py") else ""
        if file:
            absolute = ((Path(base_dir) if base_dir else Path.cwd()) / Path(file).expanduser()).resolve()
            return f"{absolute}:{name}" if file == place else str(absolute)
        return spec
    if not isinstance(spec, Mapping):
        return spec
    moved = dict(spec)
    for key in ("use", "spec"):
        if key in moved:
            moved[key] = portable(moved[key], base_dir)
    for key in COMPOSITIONS:
        if isinstance(moved.get(key), list):
            moved[key] = [portable(child, base_dir) for child in moved[key]]
    return moved


def _place(name: str) -> Spec:
    if not registry.is_registered(name):
        return name  # an entry point, or unknown: the worker's error says so
    origin = registry.find(name).origin
    place, _, qualname = origin.rpartition(":")
    if place == "<no file>" or "<" in qualname:
        raise SpecError(
            f"verifier {name!r} is defined in {origin}",
            "a worker process must be able to import it.",
            "Define it at the top of a file.",
        )
    return origin


# ---------------------------------------------------------------- compositions


@dataclass(frozen=True)
class Composite:
    """Several verifiers as one."""

    how: str
    children: tuple[Verifier, ...]
    weights: tuple[float, ...]  # sum to 1; only `weighted` uses them
    name: str

    @property
    def version(self) -> str:
        return "+".join(f"{child.name}={child.version}" for child in self.children)

    @property
    def runs(self) -> Runs:
        return "worker" if any(child.runs == "worker" for child in self.children) else "inline"

    @property
    def cache(self) -> bool:
        return all(child.cache for child in self.children)

    def warm(self) -> None:
        for child in self.children:
            child.warm()

    def _references(self, reference: Any) -> list[Any]:
        if isinstance(reference, Mapping) and all(child.name in reference for child in self.children):
            return [reference[child.name] for child in self.children]
        return [reference] * len(self.children)

    def check_reference(self, reference: Any) -> None:
        for child, own in zip(self.children, self._references(reference), strict=True):
            child.check_reference(own)

    def verify(self, sample: Sample) -> Verdict:
        start = time.perf_counter()
        verdict = self._judge(sample)
        return replace(verdict, seconds=time.perf_counter() - start, verifier=self.name, version=self.version)

    def _judge(self, sample: Sample) -> Verdict:
        verdicts: list[Verdict] = []
        for child, own in zip(self.children, self._references(sample.reference), strict=True):
            verdict = child.verify(replace(sample, reference=own))
            if verdict.score is None:
                return replace(verdict, reason=f"{child.name}: {verdict.reason}")
            verdicts.append(verdict)
            if self.how == "gate" and verdict.score < 1.0 and len(verdicts) < len(self.children):
                return incorrect(f"gate {child.name}: {verdict.reason or verdict.status}")
        reason = "; ".join(
            f"{child.name}={verdict.score:g}{' (' + verdict.reason + ')' if verdict.reason else ''}"
            for child, verdict in zip(self.children, verdicts, strict=True)
        )
        extracted = next((v.extracted for v in reversed(verdicts) if v.extracted is not None), None)
        return scored(self._score([float(v.score or 0.0) for v in verdicts]), reason, extracted)

    def _score(self, scores: list[float]) -> float:
        if self.how == "gate":
            return scores[-1]
        if self.how == "all_of":
            return min(scores)
        if min(scores) == max(scores):
            return scores[0]  # exact: full marks stay full marks whatever the weights round to
        return math.fsum(weight * score for weight, score in zip(self.weights, scores, strict=True))


def _build(spec: Any, base_dir: Path | None, depth: int) -> Verifier:
    if depth > MAX_DEPTH:
        raise SpecError(f"a verifier spec is nested deeper than {MAX_DEPTH}")
    if isinstance(spec, str):
        return bind(spec, {}, None, base_dir)
    if not isinstance(spec, Mapping):
        raise SpecError(
            f"a verifier spec is {type(spec).__name__}, not a name or a mapping: {shortened(spec)}"
        )
    kinds = [key for key in ("use", *COMPOSITIONS) if key in spec]
    if len(kinds) != 1:
        raise SpecError(
            f"verifier spec {shortened(spec)} has {' and '.join(kinds) or 'none'} of use, {', '.join(COMPOSITIONS)}",
            cure="Give exactly one.",
        )
    kind = kinds[0]
    extra = set(map(str, spec)) - ({"use", "args", "name"} if kind == "use" else {kind, "name"})
    if extra:
        raise SpecError(f"verifier spec {shortened(spec)} has unknown keys: {', '.join(sorted(extra))}")
    label = spec.get("name")
    if label is not None and (not isinstance(label, str) or not label):
        raise SpecError(f"verifier spec {shortened(spec)}: name must be text")
    if kind == "use":
        args = spec.get("args") or {}
        if not isinstance(spec["use"], str) or not isinstance(args, Mapping):
            raise SpecError(f"verifier spec {shortened(spec)}: use is a name and args a mapping")
        return bind(spec["use"], args, label, base_dir)
    return _composite(kind, spec[kind], label, base_dir, depth)


def _composite(kind: str, listed: Any, label: str | None, base_dir: Path | None, depth: int) -> Composite:
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
        raise SpecError(f"{kind} needs a list of verifier specs, got {shortened(listed)}")
    weights = [1.0] * len(listed)
    if kind == "weighted":
        weights = [_weight(child) for child in listed]
        listed = [_without_weight(child) for child in listed]
    elif kind == "gate" and len(listed) < 2:
        raise SpecError("gate needs at least two verifier specs: what must hold first, and then the answer")
    children = tuple(_build(child, base_dir, depth + 1) for child in listed)
    name = label or f"{kind}({','.join(child.name for child in children)})"
    return Composite(kind, children, tuple(weight / math.fsum(weights) for weight in weights), name)


def _weight(child: Any) -> float:
    weight = child.get("weight") if isinstance(child, Mapping) else None
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
        raise SpecError(f"weighted: {shortened(child)} needs a weight above 0", cure="{use: math, weight: 2}")
    return float(weight)


def _without_weight(child: Mapping[str, Any]) -> Any:
    rest = {key: value for key, value in child.items() if key != "weight"}
    return rest["spec"] if set(rest) == {"spec"} else rest
