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
from typing import Any

from verifiers import protocol

KILL_WAIT_S = 10.0


class Started(Enum):
    STARTING = 0  # no hello yet
    READY = 1  # nothing to do
    SENT = 2  # has items, has not said which it is on
    LOADING = 3  # builds or warms the verifier of `running`
    RUNNING = 4  # judges `running`


class WorkerProcess:
    """One running `python -m verifiers.worker`. Raises OSError when it cannot be started."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.setblocking(False)
        told = {**settings, "parent": os.getpid(), "fd": theirs.fileno(), "path": [p for p in sys.path if p]}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in kill
        try:
            # -P: the working directory may have a json.py; our own package is found by PYTHONPATH.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "verifiers.worker", json.dumps(told)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=[theirs.fileno()],
                env=_environment(),
                start_new_session=True,  # a group of its own, so that what it starts is killed with it
            )
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
        return self._process.pid

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
        if self._process.poll() is None:
            # At the end of its pipe a process is dying by itself; let its own exit status be the reason.
            with contextlib.suppress(subprocess.TimeoutExpired):
                if self._ended():
                    self._process.wait(timeout=0.5)
        code = self._process.poll()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=KILL_WAIT_S)
        self.socket.close()
        words = _ending(code)
        if self.state is Started.STARTING:
            words += self._last_words()
        self._errors.close()
        return words

    def _ended(self) -> bool:
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
        **os.environ,
        **threads,  # the pool is the parallelism
        "PYTHONPATH": os.pathsep.join([package, *([inherited] if inherited else [])]),
        "PYTHONHASHSEED": "0",  # an algebra system's simplifications follow the order of sets
    }
