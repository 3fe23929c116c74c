"""The parent's side of one worker process: start it, write to it without blocking, kill it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Protocol

from verifiers import protocol
from verifiers.demand import Demand

KILL_WAIT_S = 10.0


Kind = Literal["worker", "sandbox"]  # a sandboxed one has confined itself before it loads anything


class Started(Enum):
    STARTING = 0  # no hello yet
    READY = 1  # nothing to do
    SENT = 2  # has items, has not said which it is on
    LOADING = 3  # builds or warms the verifier of `running`
    RUNNING = 4  # judges `running`


class Child(Protocol):
    """A process that was started, however it was."""

    pid: int

    def ended(self) -> bool: ...

    def wait(self, seconds: float) -> None:
        """Until it has ended, or so many seconds."""

    def kill(self) -> str:
        """End it with all it started and reap it; how it had ended, in words."""


class WorkerProcess:
    """One running `python -m verifiers.worker`. Raises OSError or VerifierError when it cannot be started.

    reads: the folders that a sandboxed one can read, besides Python's own.
    """

    def __init__(self, settings: dict[str, Any], kind: Kind = "worker", reads: frozenset[str] = frozenset()):
        self.kind, self.reads = kind, reads
        self.socket, theirs = socket.socketpair()
        self.socket.setblocking(False)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in kill
        try:
            start = start_plain if kind == "worker" else start_confined
            self._child: Child = start(settings, theirs.fileno(), self._errors.fileno(), sorted(reads))
        except BaseException:
            self.socket.close()
            self._errors.close()
            raise
        finally:
            theirs.close()
        self._reader = protocol.FrameReader(protocol.MAX_FROM_WORKER)
        self._out = memoryview(b"")
        self.state = Started.STARTING
        self.since = time.monotonic()
        self.jobs: dict[int, Any] = {}  # what it was given and has not answered, in order
        self.running: int | None = None
        self.specs: set[str] = set()  # those it was told
        self.done = 0
        self.spent = False  # replace it after this batch

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def idle(self) -> bool:
        return self.state is Started.READY

    def give(self, jobs: dict[int, Any], message: bytes) -> None:
        self.jobs = jobs
        self._out = memoryview(message)
        self.state, self.since = Started.SENT, time.monotonic()

    def flush(self) -> bool:
        """Write what the socket takes; whether something is left. Raises OSError when nobody reads."""
        with contextlib.suppress(BlockingIOError, InterruptedError):
            while self._out:
                self._out = self._out[self.socket.send(self._out) :]
        return bool(self._out)

    def read(self) -> list[Any] | None:
        """The messages that have come; None at the end of the pipe. Raises protocol.Garbage."""
        try:
            data = self.socket.recv(1 << 18)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            return None
        return self._reader.feed(data) if data else None

    def kill(self) -> str:
        """Kill it with its process group and reap it; how it ended, in words."""
        if not self._child.ended() and self._closed():
            # At the end of its pipe a process is dying by itself; let its own exit status be the reason.
            self._child.wait(0.5)
        words = self._child.kill()
        self.socket.close()
        if self.state is Started.STARTING:
            words += self._last_words()
        self._errors.close()
        return words

    def _closed(self) -> bool:
        try:
            return self.socket.recv(1, socket.MSG_PEEK) == b""
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True

    def _last_words(self) -> str:
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 400))
        text = self._errors.read().decode(errors="replace").strip()
        return f": {text}" if text else ""


# ---------------------------------------------------------------- ways of starting one


class PlainChild:
    """An ordinary child process in a group of its own, so that what it starts is killed with it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process, self.pid = process, process.pid

    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=seconds)

    def kill(self) -> str:
        code = self._process.poll()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self.wait(KILL_WAIT_S)
        return _ending(code)


def start_plain(settings: dict[str, Any], link: int, errors: int, _: list[str]) -> PlainChild:
    told = {**settings, "tier": "", "parent": os.getpid(), "fd": link}
    return PlainChild(
        subprocess.Popen(
            _command(told, sys.executable),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=[link],
            env={**os.environ, **_environment(), **settings["environment"]},
            start_new_session=True,
        )
    )


class ConfinedChild:
    """A worker in a sandbox: no network, no writes, nothing of our environment."""

    def __init__(self, process: Any) -> None:
        self._process, self.pid = process, process.pid

    def ended(self) -> bool:
        return self._process.ending is not None

    def wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            self._process.wait(time.monotonic() + seconds)

    def kill(self) -> str:
        ending = self._process.ending
        self._process.kill()
        return "killed by the pool" if ending is None else str(ending.words)


def start_confined(settings: dict[str, Any], link: int, errors: int, reads: list[str]) -> ConfinedChild:
    from verifiers import sandbox  # only where it is asked for

    wanted = Demand.of(settings["environment"])
    tier = sandbox.choose(wanted.tier, wanted.allow_weak)
    told = {**settings, "tier": str(tier), "parent": 0, "fd": link}
    limits = sandbox.Limits(cpu_s=None, memory_mb=settings["memory_mb"], open_files=256)
    environment = {**_environment(), **settings["environment"], "PATH": os.defpath, "LANG": "C.UTF-8"}
    paths = [path for path in reads if os.path.isdir(path)]
    return ConfinedChild(
        sandbox.confine(
            # Where links lead: those on the way may not be visible inside. Its modules come by PYTHONPATH and `path`.
            _command(told, os.path.realpath(sys.executable)),
            tier=tier,
            limits=limits,
            read_paths=paths,
            pass_fds=[link],
            env=environment,
            stderr=errors,
        )
    )


def _command(told: dict[str, Any], python: str) -> list[str]:
    # -P: the working directory may have a json.py; our own package is found by PYTHONPATH.
    path = [entry for entry in sys.path if entry]
    return [python, "-P", "-m", "verifiers.worker", json.dumps({**told, "path": path})]


def _ending(code: int | None) -> str:
    if code is None:
        return "killed by the pool"
    if code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
    return f"{name}{', out of memory?' if -code == signal.SIGKILL else ''}"


def _environment() -> dict[str, str]:
    package = str(Path(__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {
        **threads,  # the pool is the parallelism
        "PYTHONPATH": os.pathsep.join([package, *([inherited] if inherited else [])]),
        "PYTHONHASHSEED": "0",  # an algebra system's simplifications follow the order of sets
    }
