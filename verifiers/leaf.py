"""One verifier bound to its arguments: how its function is called with a sample."""

from __future__ import annotations

import inspect
import time
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Union

from verifiers import registry
from verifiers.base import Sample, Verdict, as_verdict, error, incorrect, strip_thinking
from verifiers.errors import BadReference, SpecError, VerifierError
from verifiers.registry import FIELDS, Definition, Runs


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
                    f"verifier {self.name!r} cannot use reference {shortened(reference)}: "
                    f"{type(fault).__name__}: {fault}"
                ) from fault

    def verify(self, sample: Sample) -> Verdict:
        start = time.perf_counter()
        verdict = self._judge(sample)
        return replace(verdict, seconds=time.perf_counter() - start, verifier=self.name, version=self.version)

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


def bind(use: str, args: Mapping[str, Any], label: str | None, base_dir: Path | None) -> Leaf:
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
    choices = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is Union
        else (hint,)
    )
    if typing.get_origin(hint) is typing.Literal:
        if value not in typing.get_args(hint):
            allowed = ", ".join(map(repr, typing.get_args(hint)))
            raise SpecError(
                f"verifier {definition.name!r}: {parameter.name} is {value!r}, not one of {allowed}"
            )
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


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
