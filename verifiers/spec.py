"""From a spec, which is plain data, to something that judges.

    "math"                                                     a name
    {use: ends_with, args: {phrase: Amen}}                     a name and its arguments
    {use: my_check.py:polite, name: polite}                    a file's function, and what to call it here
    {all_of: [SPEC, SPEC]}                                     the lowest score
    {weighted: [{use: math, weight: 3}, {spec: SPEC, weight: 1}]}   the weighted mean
    {gate: [SPEC, SPEC]}                                       a later one counts only if all before are 1
    {scale: SPEC, by: 10}                                      the same verdict, its reward ten times the score
    {choose: {gsm8k: SPEC, ifeval: SPEC}, by: dataset, otherwise: SPEC}      by a column of the row

A name with arguments may have `timeout_s`, seconds that one judgement may take, instead of its own. A child without a score leaves the whole without one. Where the reference is a mapping that has a key for
every child's name, each child gets its own; otherwise all get the same.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from verifiers import registry
from verifiers.base import Sample, Verdict
from verifiers.errors import BadReference, SpecError
from verifiers.layout import Layout, chosen, labelled, nobody_for, place_of, references, step
from verifiers.leaf import bind, shortened

Spec = str | Mapping[str, Any]
LISTS = ("all_of", "weighted", "gate")
COMPOSITIONS = (*LISTS, "scale", "choose")
KEYS = {
    "use": {"args", "name", "timeout_s"},
    "all_of": {"name"},
    "weighted": {"name"},
    "gate": {"name"},
    "scale": {"by", "name"},
    "choose": {"by", "otherwise", "name"},
}
SOURCE = "source"  # the column that `choose` looks at
MAX_DEPTH = 8
NOTHING: Mapping[str, Any] = MappingProxyType({})


@runtime_checkable
class Verifier(Protocol):
    """What `build` returns. `verify` never raises; `check_reference` raises BadReference.

    `info` are the row's further columns, which a choice is made by.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def layout(self) -> Layout: ...

    def check_reference(self, reference: Any, info: Mapping[str, Any] = NOTHING) -> None: ...

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
    for key in ("use", "spec", "scale", "otherwise"):
        if key in moved:
            moved[key] = portable(moved[key], base_dir)
    for key in LISTS:
        if isinstance(moved.get(key), list):
            moved[key] = [portable(child, base_dir) for child in moved[key]]
    if isinstance(moved.get("choose"), Mapping):
        moved["choose"] = {name: portable(child, base_dir) for name, child in moved["choose"].items()}
    return moved


def parts(spec: Spec) -> list[Spec]:
    """The specs of a composition's children, in the order of its layout's; none of a single verifier's.

    Tells nothing of a spec that cannot be built.
    """
    if not isinstance(spec, Mapping):
        return []
    if "scale" in spec:
        return [spec["scale"]]
    if "choose" in spec:
        listed = spec["choose"] if isinstance(spec["choose"], Mapping) else {}
        return [*listed.values(), *([spec["otherwise"]] if "otherwise" in spec else [])]
    for key in LISTS:
        if isinstance(spec.get(key), (list, tuple)):
            return [_without_weight(child) if key == "weighted" else child for child in spec[key]]
    return []


def uses(spec: Any) -> Iterator[str]:
    """Every verifier that a spec names."""
    if isinstance(spec, str):
        yield spec
    elif isinstance(spec, Mapping):
        if isinstance(spec.get("use"), str):
            yield spec["use"]
        for part in parts(spec):
            yield from uses(part)


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
    """Several verifiers as one, judged one after another in one place."""

    layout: Layout
    children: tuple[Verifier, ...]

    @property
    def name(self) -> str:
        return self.layout.name

    @property
    def version(self) -> str:
        return self.layout.version

    def warm(self) -> None:
        for child in self.children:
            child.warm()

    def check_reference(self, reference: Any, info: Mapping[str, Any] = NOTHING) -> None:
        if self.layout.how == "choose":
            index = chosen(self.layout, info)
            if index is None:
                raise BadReference(nobody_for(self.layout, info), cure="Add it, or `otherwise`.")
            self.children[index].check_reference(reference, info)
            return
        for child, own in zip(self.children, references(self.layout, reference), strict=True):
            child.check_reference(own, info)

    def verify(self, sample: Sample) -> Verdict:
        start = time.perf_counter()
        verdicts: list[Verdict | None] = [None] * len(self.children)
        given = references(self.layout, sample.reference)
        while not isinstance(wanted := step(self.layout, sample, verdicts), Verdict):
            index = wanted[0]
            verdicts[index] = self.children[index].verify(replace(sample, reference=given[index]))
        return labelled(self.layout, wanted, time.perf_counter() - start)


def _build(spec: Any, base_dir: Path | None, depth: int, top: bool = True) -> Verifier:
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
    extra = set(map(str, spec)) - {kind} - KEYS[kind]
    if extra:
        raise SpecError(
            f"verifier spec {shortened(spec)} has unknown keys: {', '.join(sorted(extra))}",
            cure=f"Beside {kind} it may have {', '.join(sorted(KEYS[kind]))}.",
        )
    label = spec.get("name")
    if label is not None and (not isinstance(label, str) or not label):
        raise SpecError(f"verifier spec {shortened(spec)}: name must be text")
    if kind == "use":
        args = spec.get("args") or {}
        if not isinstance(spec["use"], str) or not isinstance(args, Mapping):
            raise SpecError(f"verifier spec {shortened(spec)}: use is a name and args a mapping")
        return bind(spec["use"], args, label, base_dir, spec.get("timeout_s"))
    weights, keys, by = _settings(kind, spec, top)
    # A choice may be made between scaled ones; elsewhere the outermost scale is the only one with a meaning.
    top = top and kind == "choose"
    children = tuple(_build(child, base_dir, depth + 1, top) for child in parts(spec))
    return _composite(kind, label, children, weights, keys, by)


def _settings(kind: str, spec: Mapping[str, Any], top: bool) -> tuple[list[float], list[str], str]:
    """The weights, keys and column of a composition's layout."""
    if kind == "scale":
        return [_factor(spec, top)], [], ""
    if kind == "choose":
        return [], *_choice(spec)
    return _weights(kind, spec[kind]), [], ""


def _composite(
    how: str,
    label: str | None,
    children: tuple[Verifier, ...],
    weights: list[float],
    keys: list[str],
    by: str,
) -> Composite:
    layouts = tuple(child.layout for child in children)
    layout = Layout(
        name=label or f"{how}({','.join(child.name for child in children)})",
        version="+".join(dict.fromkeys(f"{child.name}={child.version}" for child in children)),
        runs=place_of(layouts),
        cache=all(child.cache for child in layouts),
        how=how,  # type: ignore[arg-type]
        weights=tuple(weights),
        keys=tuple(keys),
        by=by,
        children=layouts,
    )
    return Composite(layout, children)


def _weights(kind: str, listed: Any) -> list[float]:
    """Of each child of a list; they sum to 1."""
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
        raise SpecError(f"{kind} needs a list of verifier specs, got {shortened(listed)}")
    if kind == "gate" and len(listed) < 2:
        raise SpecError("gate needs at least two verifier specs: what must hold first, and then the answer")
    weights = [_weight(child) if kind == "weighted" else 1.0 for child in listed]
    return [weight / math.fsum(weights) for weight in weights]


def _factor(spec: Mapping[str, Any], top: bool) -> float:
    factor = spec.get("by")
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
        raise SpecError(
            f"scale: `by` is {shortened(factor)}, not a number above 0", cure="{scale: math, by: 10}"
        )
    if not top:
        raise SpecError(
            f"scale inside another composition: {shortened(spec)}",
            "scores are combined in [0, 1]; a reward is scaled at the end.",
            "Scale the whole, or give weights: {weighted: [{use: math, weight: 10}, ...]}.",
        )
    return float(factor)


def _choice(spec: Mapping[str, Any]) -> tuple[list[str], str]:
    """The keys that a choice knows ("" for any other), and the column it looks at."""
    listed, by = spec["choose"], spec.get("by", SOURCE)
    if not isinstance(by, str) or not by:
        raise SpecError(f"choose: `by` is {shortened(by)}, not the name of a column")
    if (
        not isinstance(listed, Mapping)
        or not listed
        or not all(isinstance(key, str) and key for key in listed)
    ):
        raise SpecError(
            f"choose needs a mapping from values of the column {by!r} to verifier specs, got {shortened(listed)}",
            cure="{choose: {gsm8k: math, ifeval: ifeval}, by: dataset}",
        )
    return [*listed, *([""] if "otherwise" in spec else [])], by


def _weight(child: Any) -> float:
    weight = child.get("weight") if isinstance(child, Mapping) else None
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
        raise SpecError(f"weighted: {shortened(child)} needs a weight above 0", cure="{use: math, weight: 2}")
    return float(weight)


def _without_weight(child: Any) -> Any:
    if not isinstance(child, Mapping):
        return child
    rest = {key: value for key, value in child.items() if key != "weight"}
    return rest["spec"] if set(rest) == {"spec"} else rest
