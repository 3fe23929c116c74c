"""The parent's side of supervisors: start them, keep them, hear from them how a program ended."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verifiers.sandbox import leftovers, view
from verifiers.sandbox.lockdown import LENGTH
from verifiers.sandbox.supervisor import PRELOADED
from verifiers.sandbox.tiers import Ending, Limits, SandboxUnavailable, Tier

START_S = 30.0  # for a supervisor or a sandbox to stand; a machine under load may need seconds
PACKAGE = Path(__file__).resolve().parent
# The supervisor needs this room's modules and not the whole package.
_BOOT = """
import sys, types
for name, path in zip(("verifiers", "verifiers.sandbox"), sys.argv[2:4]):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from verifiers.sandbox import lockdown, supervisor
source = supervisor.main(int(sys.argv[1]))
if source is not None:
    lockdown.run_source(source)
"""
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "HOME": view.PRIVATE,
    "TMPDIR": view.PRIVATE,
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


@dataclass(frozen=True, slots=True)
class Place:
    """What sandboxes of one supervisor share."""

    tier: Tier
    reads: tuple[str, ...]
    writes: tuple[str, ...] = ()
    bwrap: str = ""  # the program of that tier


class SupervisorHandle:
    """One running supervisor. Raises SandboxUnavailable when it cannot be set up."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.owner = os.getpid()
        self.control, theirs = socket.socketpair()
        parent = os.pidfd_open(os.getpid()) if hasattr(os, "pidfd_open") else -1
        arguments = [str(theirs.fileno()), str(PACKAGE.parent), str(PACKAGE)]
        try:
            self._popen = subprocess.Popen(
                # Not -I: it would ignore the hash seed, and set orders would differ from run to run
                [sys.executable, "-P", "-s", "-S", "-c", _BOOT, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=ENVIRONMENT,
                pass_fds=[theirs.fileno(), *([parent] if parent >= 0 else [])],
                start_new_session=True,
                cwd="/",
            )
        except BaseException:
            self.control.close()
            raise
        finally:
            theirs.close()
            if parent >= 0:
                os.close(parent)
        settings = {
            "tier": int(place.tier),
            "reads": list(place.reads),
            "writes": list(place.writes),
            "parent": parent,
            "bwrap": place.bwrap,
            "cgroup": os.environ.get("VERIFIERS_CGROUP", ""),
            "preload": PRELOADED.split(),
        }
        self._set_up(json.dumps(settings).encode())

    def _set_up(self, settings: bytes) -> None:
        self.control.settimeout(START_S)
        try:
            self.control.sendall(LENGTH.pack(len(settings)) + settings)
            answer = json.loads(self.control.makefile("rb").readline() or b'{"error": "it ended at once"}')
        except (OSError, ValueError) as fault:
            answer = {"error": f"it does not answer: {fault}"}
        if "error" in answer:
            self.close()
            raise SandboxUnavailable(f"the {self.place.tier} sandbox cannot be set up", answer["error"])

    def close(self) -> None:
        """End it and every sandbox it holds."""
        if self.owner != os.getpid():  # a fork's copy; the supervisor is the original's
            return
        self.control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._popen.wait(timeout=5) == 0:
                return  # it has cleared up behind itself
        self._popen.kill()
        self._popen.wait()
        leftovers.sweep(os.environ.get("VERIFIERS_CGROUP", ""))


_supervisors: dict[Place, SupervisorHandle] = {}
_lock = threading.Lock()


def supervisor_of(place: Place) -> SupervisorHandle:
    with _lock:
        found = _supervisors.get(place)
        if found is None or found.owner != os.getpid() or found._popen.poll() is not None:
            if found is not None:
                found.close()
            found = _supervisors[place] = SupervisorHandle(place)
        return found


@atexit.register
def shut_down() -> None:
    """End all supervisors of this process; a later launch starts new ones."""
    with _lock:
        for handle in _supervisors.values():
            handle.close()
        _supervisors.clear()


def _forget_after_fork() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)


@dataclass
class StatusHandle:
    """One sandboxed program, by its status socket to the supervisor."""

    supervisor: SupervisorHandle
    status: socket.socket
    limits: Limits
    pid: int = 0
    pidfd: int = -1
    ending: Ending | None = None
    buffer: bytearray = field(default_factory=bytearray)

    def fileno(self) -> int:
        return self.status.fileno()

    def poll(self) -> Ending | None:
        if self.ending is None:
            self.status.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while self.ending is None:
                    self._take(self._receive())
        return self.ending

    def _receive(self) -> bytes:
        try:
            return self.status.recv(4096)
        except ConnectionError:
            return b""

    def _take(self, data: bytes) -> None:
        if not data:
            self._end(Ending("killed with its supervisor"))
            return
        self.buffer += data
        while b"\n" in self.buffer and self.ending is None:
            line, _, rest = bytes(self.buffer).partition(b"\n")
            self.buffer = bytearray(rest)
            message = json.loads(line)
            if "error" in message:
                self._end(Ending(f"could not start: {message['error']}"))
            elif "end" in message:
                self._end(ending_of(message["end"], self.limits, self.supervisor.place.tier))

    def _end(self, ending: Ending) -> None:
        self.ending = ending

    def kill(self, wait_s: float) -> Ending:
        if self.poll() is None:
            with contextlib.suppress(OSError):
                self.status.send(b"K")
            deadline = time.monotonic() + wait_s
            while self.poll() is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    self.supervisor.close()  # takes every sandbox with it
                    self._end(Ending("killed with its supervisor, which did not answer"))
                    break
                _wait_readable(self.status.fileno(), left)
        if self.pidfd >= 0:
            with contextlib.suppress(OSError):  # its first process, should it have survived its parent
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            _wait_readable(self.pidfd, wait_s)  # until the last process of its namespace is gone
            os.close(self.pidfd)
            self.pidfd = -1
        self.status.close()
        assert self.ending is not None
        return self.ending

    def ready(self) -> None:
        """Wait until the program runs, shut in. Raises SandboxUnavailable."""
        self.status.settimeout(START_S)
        line = b""
        try:
            while b"\n" not in line:
                data, ancillary, _, _ = self.status.recvmsg(4096, 64)
                if not data:
                    break
                line += data
                for level, kind, content in ancillary:
                    if (level, kind) == (socket.SOL_SOCKET, _SCM_CREDENTIALS) and not self.pid:
                        self.pid = struct.unpack("=iII", content[:12])[0]
        except OSError as fault:
            line = json.dumps({"error": f"it does not answer: {fault}"}).encode() + b"\n"
        first, _, rest = line.partition(b"\n")
        message: dict[str, Any] = json.loads(first) if first else {"error": "its supervisor ended"}
        if "end" in message:  # before it was shut in, so nothing untrusted has run
            message = {"error": f"its start-up failed, exit status {message['end']['status']}"}
        if "error" in message:
            self.status.close()
            raise SandboxUnavailable(
                f"a program could not be started in the {self.supervisor.place.tier} sandbox",
                message["error"],
            )
        if self.pid and hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self.pidfd = os.pidfd_open(self.pid)
        if rest:
            self._take(rest)


_SCM_CREDENTIALS = getattr(socket, "SCM_CREDENTIALS", 2)


def _wait_readable(descriptor: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(seconds * 1000 + 0.5))


def ending_of(message: Mapping[str, Any], limits: Limits, tier: Tier) -> Ending:
    """How a program ended, in words, from what its supervisor saw."""
    status, cpu = message["status"], message["cpu_s"]
    if tier is Tier.BUBBLEWRAP and status is not None and 128 < status <= 192:
        status = 128 - status  # so bwrap passes on the signal that ended its child
    if status is None:
        words = "ended, nobody saw how"
    elif status >= 0:
        words = f"exit status {status}"
    elif status == -signal.SIGKILL and message["killed"]:
        words = message["killed"]
    elif status in (-signal.SIGKILL, -signal.SIGXCPU) and limits.cpu_s and cpu >= limits.cpu_s - 0.2:
        words = f"killed: over its limit of {limits.cpu_s} s of CPU time"
    else:
        name = signal.Signals(-status).name if -status in signal.valid_signals() else str(-status)
        words = f"killed by {name}{', out of memory?' if status == -signal.SIGKILL else ''}"
    return Ending(words, status, cpu, message["peak_mb"])
