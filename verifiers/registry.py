"""Where verifiers are found: by name, by `path/to/file.py:name`, by `package.module:name`, by entry point.

    @verifier("ends_politely")
    def ends_politely(response: str, reference: str) -> bool:
        return response.rstrip().endswith("please.")

A function's parameters are filled by name from the sample (response, reference, prompt, finished, info,
or the whole as `sample`); every other parameter is an argument of the spec. Where no parameter has such a
name, the first gets the response and the second the reference.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, get_args

from verifiers.errors import NameTaken, SpecError, UnknownVerifier, VerifierError
from verifiers.layout import CONCURRENCY, MAX_TIMEOUT_S, Runs

FIELDS = ("response", "reference", "prompt", "finished", "info", "sample")
ENTRY_POINTS = "verifiers"
# The modules of this package that register verifiers, and what each registers, so that one name can be
# looked up without importing them all (a worker must start lean).
BUILT_IN: dict[str, str] = {}
T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Definition:
    """A registered verifier, not yet bound to arguments."""

    name: str
    target: Callable[..., Any]  # the function or class
    version: str
    runs: Runs
    check_reference: Callable[..., Any] | None
    strip_thinking: bool
    accepts_truncated: bool
    cache: bool  # the same sample always gets the same verdict
    warm: Callable[[], None] | None  # slow imports, done before the clock of the first item starts
    timeout_s: float | None  # its own deadline; None: the pool's
    concurrency: int  # async: how many at once
    origin: str  # `module:qualname` or `/path/file.py:qualname`, enough for another process to find it
    built_in: bool = False

    @property
    def summary(self) -> str:
        return (inspect.getdoc(self.target) or "").split("\n\n")[0].replace("\n", " ")


_registered: dict[str, Definition] = {}
_files: dict[Path, ModuleType] = {}


def verifier(
    name: str,
    *,
    version: str = "1",
    runs: Runs | None = None,
    check_reference: Callable[..., Any] | None = None,
    strip_thinking: bool = True,
    accepts_truncated: bool = False,
    cache: bool = True,
    warm: Callable[[], None] | None = None,
    timeout_s: float | None = None,
    concurrency: int = CONCURRENCY,
) -> Callable[[T], T]:
    """Register a function or class as the verifier `name`; the function itself is returned unchanged.

    version          change it when verdicts change: it is written beside every score
    runs             "worker" (a process that is killed when it runs over), "sandbox" (such a process, with no
                     network and no writes), "async" (an event loop; the default of an `async def`), "inline"
                     (the caller's own process: honoured for this package's own verifiers only)
    check_reference  called with each row's reference when data is loaded; raises BadReference
    strip_thinking   judge the response without its <think>...</think>
    accepts_truncated  judge responses that ran out of tokens; without it they are incorrect
    cache            False when one sample may get different verdicts (a judge model)
    warm             slow imports, done once a worker before the first item's clock starts
    timeout_s        seconds one judgement may take, instead of the pool's; an instance of a class may set
                     an attribute `timeout_s` of its own
    concurrency      async: how many judgements at once

    Raises NameTaken when another function has the name, SpecError when it cannot be one.
    """
    if runs is not None and runs not in get_args(Runs):
        raise SpecError(
            f"verifier {name!r}: runs is {runs!r}", cure=f"Use one of {', '.join(get_args(Runs))}."
        )
    check_timeout(name, timeout_s)
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
        raise SpecError(f"verifier {name!r}: concurrency is {concurrency!r}, it must be an integer >= 1")

    def register(target: T) -> T:
        definition = Definition(
            name=name,
            target=target,
            version=version,
            runs=runs or ("async" if is_async(target) else "worker"),
            check_reference=check_reference,
            strip_thinking=strip_thinking,
            accepts_truncated=accepts_truncated,
            cache=cache,
            warm=warm,
            timeout_s=timeout_s,
            concurrency=concurrency,
            origin=_origin(target),
            built_in=target.__module__.startswith("verifiers."),
        )
        _check_target(definition)
        taken = _registered.get(name)
        if taken is None and name in BUILT_IN and not definition.built_in:
            taken = find(name)
        if taken is not None and _source(taken.target) != _source(target):
            raise NameTaken(
                f"verifier name {name!r} is taken by {taken.origin}",
                f"{definition.origin} wants it too; a score must say which of them gave it.",
                "Rename one of them.",
            )
        _registered[name] = definition
        setattr(target, "__verifier__", name)  # noqa: B010 - a class has no assignable __dict__
        return target

    return register


def _check_target(definition: Definition) -> None:
    target = definition.target
    if not callable(target):
        raise SpecError(f"verifier {definition.name!r} is {type(target).__name__}, not a function or class")
    if not definition.name or ":" in definition.name or "/" in definition.name:
        raise SpecError(f"verifier name {definition.name!r} is empty or has ':' or '/' in it")
    if is_async(target) != (definition.runs == "async"):
        kind = "async" if is_async(target) else "no coroutine function"
        raise SpecError(
            f"verifier {definition.name!r} is {kind}, and runs is {definition.runs!r}",
            cure='An `async def` has runs="async" (the default); all others have not.',
        )


def is_async(target: Callable[..., Any]) -> bool:
    """Whether it is an `async def`, or a class whose instances judge with one."""
    if not inspect.isclass(target):
        return inspect.iscoroutinefunction(target)
    method = getattr(target, "verify", None) or getattr(target, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(method)


def check_timeout(name: str, timeout_s: object) -> None:
    """Raises SpecError unless `timeout_s` is None or a number of seconds above 0."""
    number = isinstance(timeout_s, (int, float)) and not isinstance(timeout_s, bool)
    if timeout_s is not None and not (number and 0 < timeout_s <= MAX_TIMEOUT_S):  # type: ignore[operator]
        raise SpecError(
            f"verifier {name!r}: timeout_s is {timeout_s!r}, it must be above 0 and at most a day"
        )


def _source(target: Callable[..., Any]) -> tuple[str, str]:
    try:
        return str(Path(inspect.getfile(target)).resolve()), target.__qualname__
    except TypeError:
        return target.__module__, getattr(target, "__qualname__", "")


def _origin(target: Callable[..., Any]) -> str:
    module = sys.modules.get(target.__module__)
    qualname = getattr(target, "__qualname__", "?")
    if target.__module__ == "__main__" or target.__module__.startswith(_FILE_MODULE):
        path = getattr(module, "__file__", None) or inspect.getsourcefile(target)
        return f"{Path(path).resolve() if path else '<no file>'}:{qualname}"
    return f"{target.__module__}:{qualname}"


# ---------------------------------------------------------------- looking up

_FILE_MODULE = "_verifier_file_"


def find(use: str, base_dir: Path | None = None) -> Definition:
    """The definition that a spec's `use` names. Raises UnknownVerifier or SpecError."""
    place, colon, name = use.rpartition(":")
    if colon and place.endswith(".py"):
        return from_file(place, name, base_dir)
    if use.endswith(".py"):
        return from_file(use, "", base_dir)
    if colon:
        return _from_module(place, name)
    if use in _registered:
        return _registered[use]
    if use in BUILT_IN:
        importlib.import_module(BUILT_IN[use])
        return _registered[use]
    offered = {point.value: point for point in _entry_points() if point.name == use}
    if len(offered) > 1:
        raise NameTaken(
            f"verifier name {use!r} is taken by the entry points {' and '.join(sorted(offered))}",
            "a score must say which of them gave it.",
            "Remove one of the packages, or name package.module:function.",
        )
    for point in offered.values():
        return _from_entry_point(point)
    raise _unknown(use)


def _from_entry_point(point: Any) -> Definition:
    try:
        loaded = point.load()
    except VerifierError:
        raise
    except Exception as fault:
        raise SpecError(
            f"verifier {point.name!r}, an entry point at {point.value}, does not load: "
            f"{type(fault).__name__}: {fault}"
        ) from fault
    file = getattr(sys.modules.get(getattr(loaded, "__module__", "")), "__file__", None)
    return _pick(loaded, point.name, point.value, file)


def is_built_in(use: str) -> bool:
    return use in BUILT_IN


def is_registered(use: str) -> bool:
    """Whether `use` was registered in this process (and is not one of this package's own)."""
    return use in _registered and not _registered[use].built_in


def is_known_here(use: str) -> bool:
    """Whether this process may build it by itself: this package's own, and async ones that are registered."""
    return use in BUILT_IN or (use in _registered and _registered[use].runs == "async")


def names() -> list[str]:
    """Every name that `find` knows: built in, registered, entry points."""
    return sorted({*BUILT_IN, *_registered, *(point.name for point in _entry_points())})


def _entry_points() -> Iterable[Any]:
    from importlib.metadata import entry_points  # 20 ms that most workers never need

    return entry_points(group=ENTRY_POINTS)


def _unknown(use: str) -> UnknownVerifier:
    known = names()
    near = difflib.get_close_matches(use, known, n=1)
    guess = f"Did you mean {near[0]!r}? " if near else ""
    return UnknownVerifier(
        f"no verifier is called {use!r}.",
        cure=f"{guess}Known: {', '.join(known)}; or name a file: path/to/file.py:function.",
    )


def _from_module(module: str, name: str) -> Definition:
    try:
        loaded = importlib.import_module(module)
    except VerifierError:
        raise
    except Exception as fault:
        raise SpecError(f"verifier {module}:{name}: {type(fault).__name__}: {fault}") from fault
    return _pick(
        _attribute(loaded, name, module), name, f"{module}:{name}", getattr(loaded, "__file__", None)
    )


def from_file(path: str, name: str, base_dir: Path | None = None) -> Definition:
    """The verifier `name` of a Python file, decorated or not; the only one there when `name` is empty."""
    file = (base_dir or Path.cwd()) / Path(path).expanduser()
    if not file.is_file():
        raise SpecError(f"verifier file {path!r} does not exist (looked for {file})")
    module = _load(file.resolve())
    if not name:
        name = _only_verifier(module, path)
    return _pick(_attribute(module, name, path), name, f"{file.resolve()}:{name}", str(file))


def _load(file: Path) -> ModuleType:
    if file in _files:
        return _files[file]
    name = _FILE_MODULE + hashlib.sha256(str(file).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise SpecError(f"verifier file {file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # so that it can import the files beside it
    try:
        spec.loader.exec_module(module)
    except VerifierError:
        del sys.modules[name]
        raise
    except BaseException as fault:
        del sys.modules[name]
        if isinstance(fault, KeyboardInterrupt):
            raise
        raise SpecError(
            f"verifier file {file} does not load: {type(fault).__name__}: {fault}",
            cure=f"Try: python {file}",
        ) from fault
    _files[file] = module
    return module


def _only_verifier(module: ModuleType, path: str) -> str:
    own = {
        name: value
        for name, value in vars(module).items()
        if callable(value)
        and getattr(value, "__module__", None) == module.__name__
        and not name.startswith("_")
    }
    decorated = {name: value for name, value in own.items() if "__verifier__" in vars(value)}
    found = list(decorated or own)
    if len(found) != 1:
        raise SpecError(
            f"{path} has {len(found)} verifiers{': ' + ', '.join(found) if found else ''}.",
            cure=f"Say which: {path}:name.",
        )
    return found[0]


def _attribute(module: ModuleType, name: str, place: str) -> Any:
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            by_name = [
                v for v in vars(module).values() if getattr(v, "__dict__", {}).get("__verifier__") == name
            ]
            if by_name:
                return by_name[0]
            near = difflib.get_close_matches(name, [n for n in vars(module) if not n.startswith("_")], n=1)
            raise UnknownVerifier(
                f"{place} has no {name!r}.", cure=f"Did you mean {near[0]!r}?" if near else ""
            )
        value = getattr(value, part)
    return value


def _pick(value: Any, name: str, origin: str, file: str | None) -> Definition:
    """The definition of a decorated object, or a plain one made for an undecorated function."""
    registered = getattr(value, "__dict__", {}).get("__verifier__")
    if registered is not None and registered in _registered and _registered[registered].target is value:
        return _registered[registered]
    if not callable(value):
        raise SpecError(f"{origin} is {type(value).__name__}, not a function or class")
    definition = Definition(
        name=name,
        target=value,
        version=_content_version(file),
        runs="async" if is_async(value) else "worker",
        check_reference=None,
        strip_thinking=True,
        accepts_truncated=False,
        cache=True,
        warm=None,
        timeout_s=None,
        concurrency=CONCURRENCY,
        origin=origin,
    )
    _check_target(definition)
    return definition


def _content_version(file: str | None) -> str:
    """A plain function states no version, so its file's content is one."""
    if file is None or not Path(file).is_file():
        return "unversioned"
    return "sha256:" + hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]
