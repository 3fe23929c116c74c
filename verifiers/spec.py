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

import inspect
import json
import math
import time
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Union, runtime_checkable

from verifiers import registry
from verifiers.base import Sample, Verdict, as_verdict, error, incorrect, scored, strip_thinking
from verifiers.errors import BadReference, SpecError, VerifierError
from verifiers.registry import FIELDS, Definition, Runs

Spec = Union[str, Mapping[str, Any]]
COMPOSITIONS = ("all_of", "weighted", "gate")
MAX_DEPTH = 8


@runtime_checkable
class Verifier(Protocol):
    """What `build` returns. `verify` never raises; `check_reference` raises BadReference."""

    name: str
    version: str
    runs: Runs
    cache: bool

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


# ---------------------------------------------------------------- leaves


@dataclass(frozen=True)
class Leaf:
    """One verifier with its arguments bound."""

    definition: Definition
    name: str
    call: Callable[[Sample], Any]
    needs_reference: bool
    reference_check: Callable[[Any], Any] | None

    @property
    def version(self) -> str:
        return self.definition.version

    @property
    def runs(self) -> Runs:
        return self.definition.runs if self.definition.built_in else "worker"

    @property
    def cache(self) -> bool:
        return self.definition.cache

    def warm(self) -> None:
        if self.definition.warm is not None:
            self.definition.warm()

    def check_reference(self, reference: Any) -> None:
        if self.needs_reference and reference is None:
            raise BadReference(f"verifier {self.name!r} compares with a reference, and the row has none")
        if self.reference_check is not None:
            try:
                self.reference_check(reference)
            except BadReference:
                raise
            except Exception as fault:
                raise BadReference(
                    f"verifier {self.name!r} cannot use reference {_short(reference)}: "
                    f"{type(fault).__name__}: {fault}"
                ) from fault

    def verify(self, sample: Sample) -> Verdict:
        start = time.perf_counter()
        verdict = self._judge(sample)
        return replace(
            verdict, seconds=time.perf_counter() - start, verifier=self.name, version=self.version
        )

    def _judge(self, sample: Sample) -> Verdict:
        if not isinstance(sample.response, str):
            return error(f"the response is {type(sample.response).__name__}, not text")
        if not sample.finished and not self.definition.accepts_truncated:
            return incorrect("truncated")
        if self.needs_reference and sample.reference is None:
            return error("the row has no reference")
        if self.definition.strip_thinking:
            answer = strip_thinking(sample.response)
            if answer is None:
                return incorrect("<think> is never closed")
            if answer is not sample.response:
                sample = replace(sample, response=answer)
        try:
            return as_verdict(self.call(sample))
        except BadReference as fault:
            return error(f"bad reference: {fault}")
        except MemoryError:
            return error("MemoryError: the verifier ran out of memory")
        except Exception as fault:
            return error(f"{type(fault).__name__}: {fault}")


def _leaf(use: str, args: Mapping[str, Any], label: str | None, base_dir: Path | None) -> Leaf:
    definition = registry.find(use, base_dir)
    target = definition.target
    check = definition.check_reference
    if inspect.isclass(target):
        _bind_args(definition, target, args, skip=())
        instance = _construct(definition, args)
        method = getattr(instance, "verify", None) or instance
        if not callable(method):
            raise SpecError(f"verifier class {definition.name!r} has neither verify nor __call__")
        check = check or getattr(instance, "check_reference", None)
        call, needs_reference = _caller(definition, method, {})
    else:
        call, needs_reference = _caller(definition, target, args)
    return Leaf(definition, label or definition.name, call, needs_reference, check)


def _construct(definition: Definition, args: Mapping[str, Any]) -> Any:
    try:
        return definition.target(**args)
    except VerifierError:
        raise
    except Exception as fault:
        raise SpecError(f"verifier {definition.name!r}: {type(fault).__name__}: {fault}") from fault


def _caller(
    definition: Definition, function: Callable[..., Any], args: Mapping[str, Any]
) -> tuple[Callable[[Sample], Any], bool]:
    """How to call `function` with a sample, and whether it cannot do without a reference."""
    parameters = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    filled = {_field(p): p.name for p in parameters if _field(p) and p.name not in args}
    if not {"response", "sample"} & set(filled):
        free = [p for p in parameters if p.name not in args and p.name not in filled.values()]
        if not free:
            raise SpecError(f"verifier {definition.name!r} takes no response")
        filled["response"] = free[0].name
        if len(free) > 1 and "reference" not in filled and free[1].default is free[1].empty:
            filled["reference"] = free[1].name
    _bind_args(definition, function, args, skip=tuple(filled.values()))
    by_name = {p.name: p for p in parameters}
    needs = "reference" in filled and by_name[filled["reference"]].default is inspect.Parameter.empty
    bound = dict(args)
    fields = tuple(filled.items())
    if any(by_name[name].kind is inspect.Parameter.POSITIONAL_ONLY for name in by_name):
        raise SpecError(f"verifier {definition.name!r} has positional-only parameters")

    def call(sample: Sample) -> Any:
        values = {name: sample if field == "sample" else getattr(sample, field) for field, name in fields}
        return function(**values, **bound)

    return call, needs


def _field(parameter: inspect.Parameter) -> str:
    """The field of the sample that a parameter is for; "" for none."""
    annotation = parameter.annotation
    named = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    if annotation is Sample or named.rpartition(".")[2].strip("'\"") == "Sample":
        return "sample"
    return parameter.name if parameter.name in FIELDS else ""


def _bind_args(
    definition: Definition, function: Callable[..., Any], args: Mapping[str, Any], skip: Sequence[str]
) -> None:
    """Raises SpecError for an argument that is unknown, missing or of the wrong type."""
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in skip and parameter.kind is not parameter.VAR_POSITIONAL
    }
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = {n: p for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    for name, value in args.items():
        if name not in known:
            if takes_any and name not in skip:
                continue
            can = f"It takes: {', '.join(known)}." if known else "It takes none."
            raise SpecError(f"verifier {definition.name!r} has no argument {name!r}.", cure=can)
        _check_type(definition, function, known[name], value)
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in args:
            raise SpecError(
                f"verifier {definition.name!r} needs the argument {name!r}.",
                cure=f"Write {{use: {definition.name}, args: {{{name}: ...}}}}; the row's fields are "
                f"filled into parameters called {', '.join(FIELDS)}.",
            )


def _check_type(
    definition: Definition, function: Callable[..., Any], parameter: inspect.Parameter, value: Any
) -> None:
    """Plain annotations are checked when the verifier is built; others are the verifier's own business."""
    try:
        hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)  # type: ignore[misc]
    except Exception:
        return
    hint = hints.get(parameter.name)
    choices = typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is Union else (hint,)
    if typing.get_origin(hint) is typing.Literal:
        if value not in typing.get_args(hint):
            allowed = ", ".join(map(repr, typing.get_args(hint)))
            raise SpecError(f"verifier {definition.name!r}: {parameter.name} is {value!r}, not one of {allowed}")
        return
    plain = {bool, int, float, str, type(None)}
    if hint is None or not all(choice in plain for choice in choices if isinstance(choice, type)):
        return
    if not all(isinstance(choice, type) for choice in choices):
        return
    fits = type(value) in choices or (type(value) is int and float in choices)
    if not fits:
        wanted = " or ".join(choice.__name__ for choice in choices)
        raise SpecError(
            f"verifier {definition.name!r}: {parameter.name} is {type(value).__name__} {value!r}, not {wanted}"
        )


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
        return replace(
            verdict, seconds=time.perf_counter() - start, verifier=self.name, version=self.version
        )

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
        return _leaf(spec, {}, None, base_dir)
    if not isinstance(spec, Mapping):
        raise SpecError(f"a verifier spec is {type(spec).__name__}, not a name or a mapping: {_short(spec)}")
    kinds = [key for key in ("use", *COMPOSITIONS) if key in spec]
    if len(kinds) != 1:
        raise SpecError(
            f"verifier spec {_short(spec)} has {' and '.join(kinds) or 'none'} of use, {', '.join(COMPOSITIONS)}",
            cure="Give exactly one.",
        )
    kind = kinds[0]
    extra = set(map(str, spec)) - ({"use", "args", "name"} if kind == "use" else {kind, "name"})
    if extra:
        raise SpecError(f"verifier spec {_short(spec)} has unknown keys: {', '.join(sorted(extra))}")
    label = spec.get("name")
    if label is not None and (not isinstance(label, str) or not label):
        raise SpecError(f"verifier spec {_short(spec)}: name must be text")
    if kind == "use":
        args = spec.get("args") or {}
        if not isinstance(spec["use"], str) or not isinstance(args, Mapping):
            raise SpecError(f"verifier spec {_short(spec)}: use is a name and args a mapping")
        return _leaf(spec["use"], args, label, base_dir)
    return _composite(kind, spec[kind], label, base_dir, depth)


def _composite(kind: str, listed: Any, label: str | None, base_dir: Path | None, depth: int) -> Composite:
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
        raise SpecError(f"{kind} needs a list of verifier specs, got {_short(listed)}")
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
        raise SpecError(f"weighted: {_short(child)} needs a weight above 0", cure="{use: math, weight: 2}")
    return float(weight)


def _without_weight(child: Mapping[str, Any]) -> Any:
    rest = {key: value for key, value in child.items() if key != "weight"}
    return rest["spec"] if set(rest) == {"spec"} else rest


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
