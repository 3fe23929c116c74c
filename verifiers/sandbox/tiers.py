"""The words of this room: tiers of isolation, limits, how a program ended, and the one error."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from verifiers.errors import VerifierError


class Tier(IntEnum):
    """How a program is shut in; more is stronger. docs/sandbox.md says what each does not stop."""

    LIMITS = 1  # resource limits only: guards against accidents, not against attacks
    LANDLOCK = 2  # no namespaces: Landlock, seccomp, limits
    NAMESPACES = 3  # namespaces and a private file system of our own making, with Landlock and seccomp inside
    BUBBLEWRAP = 4  # the same walls put up by the bubblewrap program, with Landlock and seccomp inside

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sandbox may use. Raises VerifierError for numbers out of range.

    With processes=1 the program can start threads but no process, so that memory_mb holds for all of it.
    """

    cpu_s: int | None = 10  # CPU seconds of each process; None for a worker that lives long
    memory_mb: int = 512  # address space of each process, and the memory in use of all of them together
    file_mb: int = 16  # private file system in all, and any one file
    processes: int = 1  # the program itself included
    threads: int = 32  # beyond one a process, over all processes
    open_files: int = 64

    def __post_init__(self) -> None:
        for name, least in (
            ("cpu_s", 1),
            ("memory_mb", 32),
            ("file_mb", 1),
            ("processes", 1),
            ("threads", 0),
            ("open_files", 8),
        ):
            value = getattr(self, name)
            if name == "cpu_s" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise VerifierError(f"sandbox limits: {name} is {value!r}, it must be an integer >= {least}")


@dataclass(frozen=True, slots=True)
class Ending:
    """How a program ended. `status` is the exit status, or minus the signal, as subprocess has it."""

    words: str
    status: int | None = None  # None when it never ran or nobody saw its end
    cpu_s: float = 0.0
    peak_mb: float = 0.0


class SandboxUnavailable(VerifierError):
    """The isolation that was asked for is not to be had on this machine, or could not be started."""
