"""The parent's side of a sandboxed process that is asked questions and may answer anything.

What the process can do at most is claim a value. Whatever it does instead (says nothing, ends, floods the
pipe, answers out of turn) is the candidate's own fault, once its code has been sent; before that it is ours.
"""

from __future__ import annotations

import marshal
import secrets
import sys
import sysconfig
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from verifiers.code.plan import Unit
from verifiers.code.values import NotPlain, load, read
from verifiers.errors import BadReference, VerifierError
from verifiers.sandbox import Limits, Process, Tier, launch_python

MAX_ANSWER = 4 << 20  # bytes
START_S = 20.0  # until a sandboxed process says hello; ours to answer for, so generous

# Reads marshalled code objects from its standard input and runs the last one's start()
BOOT = """
import marshal, posix, sys
def read(size):
    data = b""
    while len(data) < size:
        part = posix.read(0, size - len(data))
        if not part:
            posix._exit(0)
        data += part
    return data
folders, programs = marshal.loads(read(int.from_bytes(read(4), "big")))
sys.path.extend(folders)
for name, code in programs:
    module = sys.modules[name] = type(sys)(name)
    exec(code, module.__dict__)
module.start()
"""


class Gone(Exception):
    """The candidate's process cannot be asked any more; the reason in words."""


class Raised(Exception):
    """The candidate's code raised an exception: the names of its classes, and its message."""

    def __init__(self, names: list[str], text: str) -> None:
        self.names, self.text = names, text
        super().__init__(f"raised {names[0]}" + (f": {text}" if text else ""))


@dataclass(frozen=True)
class Shelter:
    """How processes are shut in."""

    tier: Tier
    limits: Limits


@cache
def programs(*names: str) -> bytes:
    """The named files of this folder as one message for BOOT."""
    folder = Path(__file__).parent
    code = [
        (
            f"verifiers.code.{name}",
            compile(
                (folder / f"{name}.py").read_text("utf-8"), f"<{name}>", "exec", dont_inherit=True, optimize=2
            ),
        )
        for name in names
    ]
    return framed((list(site_folders()), code))


def framed(message: Any) -> bytes:
    body = marshal.dumps(message)
    return len(body).to_bytes(4, "big") + body


@cache
def site_folders() -> tuple[str, ...]:
    """Where installed packages (numpy) are, without the start-up cost of the site module."""
    own = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    listed = [path for path in sys.path if path in own or path.endswith(("site-packages", "dist-packages"))]
    return tuple(dict.fromkeys([*listed, *sorted(own)]))


class Channel:
    """A sandboxed process of ours and the frames on its pipe. Raises VerifierError when it does not start."""

    def __init__(self, shelter: Shelter, *names: str) -> None:
        self.deadline = time.monotonic() + START_S
        self._process: Process = launch_python(BOOT, tier=shelter.tier, limits=shelter.limits)
        self._pending = b""
        try:
            self._process.write(programs(*names), self.deadline)
            if load(self.receive()) != ["hello"]:
                raise Gone("it said something else than hello")
        except BaseException as fault:
            said = self._process.stderr_tail().strip()[-300:]
            ended = self._process.kill()
            if not isinstance(fault, (Gone, NotPlain, OSError)):
                raise
            why = str(fault) or type(fault).__name__
            raise VerifierError(f"a sandboxed process did not start: {why} ({ended})", said) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: object, trace: TracebackType | None) -> None:
        self._process.kill()

    def send(self, message: Any) -> None:
        """Raises Gone."""
        try:
            self._process.write(framed(message), self.deadline)
        except TimeoutError:
            raise Gone("timed out") from None
        except OSError:
            raise Gone(self._how_it_ended()) from None

    def receive(self) -> bytes:
        """The body of the next frame. Raises Gone."""
        size = int.from_bytes(self._exactly(4), "big")
        if size > 2 * MAX_ANSWER:
            raise Gone("an answer too large")
        body = self._exactly(size)
        if self._pending:
            raise Gone("answered out of turn")
        return body

    def _exactly(self, size: int) -> bytes:
        parts = [self._pending]
        have = len(self._pending)
        while have < size:
            try:
                part = self._process.read(1 << 18, self.deadline)
            except TimeoutError:
                raise Gone("timed out") from None
            except OSError:
                part = b""
            if not part:
                raise Gone(self._how_it_ended())
            parts.append(part)
            have += len(part)
            if have < size and time.monotonic() > self.deadline:  # one byte at a time for ever
                raise Gone("timed out")
        data = b"".join(parts)
        self._pending = data[size:]
        return data[:size]

    def _how_it_ended(self) -> str:
        try:
            return f"the process ended ({self._process.wait(min(self.deadline, time.monotonic() + 0.2))})"
        except (TimeoutError, OSError):
            return "the process closed its pipe"


class Candidate(Channel):
    """The process in which the candidate's code is defined and called."""

    def __init__(self, shelter: Shelter) -> None:
        super().__init__(shelter, "driver")

    def put(self, source: Any, variables: dict[str, Any], want: str) -> Any:
        """One question, one answer. Raises Raised, NotPlain, Gone. Variables are changed as the call did."""
        nonce = secrets.token_hex(8)
        self.send((nonce, source, variables, want))
        try:
            message = load(self.receive())
        except NotPlain as fault:
            raise Gone(str(fault)) from None
        if not isinstance(message, list) or len(message) != 4 or message[0] != nonce:
            raise Gone("answered out of turn")
        _, kind, payload, changed = message
        if isinstance(changed, dict):
            for name in variables.keys() & changed.keys():
                variables[name] = read(changed[name])
        if kind == "v":
            return read(payload)
        if kind == "o" and isinstance(payload, str):
            raise NotPlain(f"returned {payload[:200]}")
        raise _raised(payload)

    def run(self, source: str) -> None:
        """Execute a program's text in the candidate's name space."""
        self.put(source, {}, "exec")


def _raised(payload: Any) -> Exception:
    try:
        names, text = payload
        if names and all(isinstance(name, str) for name in names) and isinstance(text, str):
            return Raised([name[:80] for name in names[:20]], text[:300])
    except (TypeError, ValueError):
        pass
    return Gone("an unreadable reply")


class Checker(Channel):
    """A process in which a test runs that is not taken apart. It never shares one with the candidate."""

    def __init__(self, shelter: Shelter) -> None:
        super().__init__(shelter, "driver", "checker")

    def check(self, candidate: Candidate, unit: Unit, setup: str, check: str) -> tuple[str, str]:
        """(passes, fails, raises or unsendable; why). Raises Gone when the candidate's process is."""
        self.deadline = candidate.deadline
        self.send(
            {
                "setup": unit.imports + setup,
                "source": unit.source,
                "proxies": list(unit.proxies),
                "in_place": unit.in_place,
                "check": check,
            }
        )
        # What goes to numpy may be an array; a list will do there, and an array is no plain data
        want = "iterable" if "numpy" in unit.imports + setup + unit.source else "value"
        asked = False
        while True:
            try:
                message = load(self.receive())
            except Gone as fault:
                if time.monotonic() >= self.deadline:
                    raise
                raise VerifierError(f"the process that runs the test failed: {fault}") from None
            if message[0] == "done":
                if not asked and message[1] == "passes":
                    raise BadReference(f"the test {unit.source[:80]!r} never calls the program")
                return str(message[1]), str(message[2])
            asked = True
            self.send(_pass_on(candidate, want, *message[1:]))


def _pass_on(
    candidate: Candidate, want: str, name: str, arguments: Any, named: Any
) -> tuple[str, Any, list[Any]]:
    positional, by_name = read(arguments), read(named)
    keys = [f"_test_{index}" for index in range(len(positional))]
    variables = {**dict(zip(keys, positional, strict=True)), **{f"_test_{k}": v for k, v in by_name.items()}}
    call = f"{name}({', '.join([*keys, *(f'{k}=_test_{k}' for k in by_name)])})"
    try:
        return "value", candidate.put(call, variables, want), [variables[key] for key in keys]
    except Raised as fault:
        return "raise", (fault.names, fault.text), [variables[key] for key in keys]
