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
from verifiers.layout import Layout
from verifiers.registry import FIELDS, Definition

DEFAULT_TIMEOUT_S = 60.0  # of an async verifier that names none and is called without a pool


@dataclass(frozen=True)
class Leaf:
    """One verifier with its arguments bound."""

    definition: Definition
    layout: Layout
    call: Callable[[Sample], Any]
    needs_reference: bool
    reference_check: Callable[[Any], Any] | None
    instance: Any = None  # of a class

    @property
    def name(self) -> str:
        return self.layout.name

    @property
    def version(self) -> str:
        return self.layout.version

    def warm(self) -> None:
        if self.definition.warm is not None:
            self.definition.warm()

    def check_reference(self, reference: Any, info: Mapping[str, Any] = types.MappingProxyType({})) -> None:
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
        """Judge here and now. An async verifier gets an event loop for this one call, under its deadline."""
        if self.layout.runs == "async":
            return self._verify_apart(sample)
        start = time.perf_counter()
        ready = self._ready(sample)
        verdict = ready if isinstance(ready, Verdict) else self._judge(ready)
        return self._labelled(verdict, start)

    async def averify(self, sample: Sample, timeout_s: float) -> Verdict:
        """Judge in the running event loop; past `timeout_s` seconds it is cancelled, and the verdict an error."""
        import asyncio  # workers start without it

        start = time.perf_counter()
        ready = self._ready(sample)
        if isinstance(ready, Verdict):
            return self._labelled(ready, start)
        deadline = asyncio.timeout(timeout_s)
        try:
            async with deadline:
                verdict = as_verdict(await self.call(ready))
        except TimeoutError as fault:
            mine = deadline.expired()
            verdict = error(f"timed out after {timeout_s:g} s" if mine else f"TimeoutError: {fault}")
        except Exception as fault:
            verdict = _failed(fault)
        return self._labelled(verdict, start)

    def _verify_apart(self, sample: Sample) -> Verdict:
        """An async judgement from plain code, in a thread of its own: the caller's may have an event loop."""
        import asyncio
        import threading

        allowed = self.layout.timeout_s or DEFAULT_TIMEOUT_S
        made: list[Verdict] = []

        async def judge() -> None:
            made.append(await self.averify(sample, allowed))
            await self.aclose()

        thread = threading.Thread(target=lambda: asyncio.run(judge()), name="verifier-once", daemon=True)
        thread.start()
        thread.join(allowed + 5.0)
        return (
            made[0]
            if made
            else error(f"did not return within {allowed:g} s: it does not let itself be cancelled")
        )

    async def aclose(self) -> None:
        """Let go of what an async verifier holds in the running event loop (connections)."""
        close = getattr(self.instance, "aclose", None)
        if close is not None:
            await close()

    def _labelled(self, verdict: Verdict, start: float) -> Verdict:
        return replace(verdict, seconds=time.perf_counter() - start, verifier=self.name, version=self.version)

    def _ready(self, sample: Sample) -> Sample | Verdict:
        """The sample as the verifier shall see it, or the verdict that needs no judging."""
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
                return replace(sample, response=answer)
        return sample

    def _judge(self, sample: Sample) -> Verdict:
        try:
            return as_verdict(self.call(sample))
        except Exception as fault:
            return _failed(fault)


def _failed(fault: Exception) -> Verdict:
    if isinstance(fault, BadReference):
        return error(f"bad reference: {fault}")
    if isinstance(fault, MemoryError):
        return error("MemoryError: the verifier ran out of memory")
    return error(f"{type(fault).__name__}: {fault}")


def bind(
    use: str,
    args: Mapping[str, Any],
    label: str | None,
    base_dir: Path | None,
    timeout_s: float | None = None,
) -> Leaf:
    """The verifier that `use` names, with its arguments. Raises SpecError for what does not fit."""
    definition = registry.find(use, base_dir)
    target = definition.target
    check, instance = definition.check_reference, None
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
    own = timeout_s if timeout_s is not None else getattr(instance, "timeout_s", definition.timeout_s)
    registry.check_timeout(definition.name, own)
    layout = Layout(
        name=label or definition.name,
        version=definition.version,
        runs="worker" if definition.runs == "inline" and not definition.built_in else definition.runs,
        cache=definition.cache and bool(getattr(instance, "cacheable", True)),
        timeout_s=own,
        concurrency=getattr(instance, "concurrency", definition.concurrency),
    )
    return Leaf(definition, layout, call, needs_reference, check, instance)


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
