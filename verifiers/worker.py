"""One worker process of the pool: `python -m verifiers.worker SETTINGS`. It judges items until its pipe ends.

Started fresh, not forked, so it has no threads, locks or CUDA context of the trainer; imports stay lean
until an item needs more. It is killed, not asked, when an item takes too long.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import sys
import time
from dataclasses import replace
from typing import Any

from verifiers import protocol
from verifiers.base import Sample, Status, Verdict, error
from verifiers.errors import VerifierError
from verifiers.spec import Verifier, build

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """SIGKILL for this process as soon as the process that started it is gone (Linux)."""
    with contextlib.suppress(OSError, AttributeError):  # elsewhere the end of the pipe has to do
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it was gone before we asked


def limit_memory(megabytes: int) -> None:
    wanted = megabytes << 20
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, wanted))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def silence() -> None:
    """What a verifier prints goes nowhere: standard output is no channel of this protocol."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)


class Worker:
    def __init__(
        self, connection: socket.socket, base_dir: str | None, kind: str = "worker", tier: str = ""
    ) -> None:
        self._connection = connection
        self._kind, self._tier = kind, tier
        self._base_dir = base_dir
        self._specs: dict[str, Any] = {}
        self._verifiers: dict[str, Verifier | Verdict] = {}
        self._events: list[list[Any]] = []

    def send(self) -> None:
        if self._events:
            self._connection.sendall(protocol.encode(self._events))
            self._events = []

    def serve(self) -> None:
        self._events = [["hello", os.getpid()]]
        self.send()
        reader = protocol.FrameReader(protocol.MAX_TO_WORKER)
        while (messages := protocol.receive(self._connection, reader)) is not None:
            for message in messages:
                self._specs.update(message["specs"])
                for index, spec_id, fields in message["items"]:
                    self._one(index, spec_id, fields)
                self.send()

    def _one(self, index: int, spec_id: str, fields: list[Any]) -> None:
        found = self._verifiers.get(spec_id)
        if found is None:
            self._events.append(["load", index, time.monotonic()])
            self.send()
            found = self._verifiers[spec_id] = self._load(spec_id)
            if not isinstance(found, Verdict):
                self._events.append(["loaded", index, found.layout.to_json()])
        if not isinstance(found, Verdict) and found.layout.runs not in ("inline", self._kind):
            self._events.append(["moved", index])
            return
        self._events.append(["start", index, time.monotonic()])
        self.send()
        verdict = found if isinstance(found, Verdict) else _judge(found, fields)
        if self._tier and not verdict.tier:
            verdict = replace(verdict, tier=self._tier)
        self._events.append(["done", index, verdict.to_json()])

    def _load(self, spec_id: str) -> Verifier | Verdict:
        try:
            built = build(self._specs[spec_id], self._base_dir)
            if built.layout.runs in ("inline", self._kind):
                built.warm()
            return built
        except VerifierError as fault:
            return error(f"{fault}{self._hint()}")
        except BaseException as fault:
            return error(f"the verifier does not load: {type(fault).__name__}: {fault}{self._hint()}")

    def _hint(self) -> str:
        """Root's own files are not readable for the user that a sandboxed worker becomes."""
        return f" (in the {self._tier} sandbox, which sees what other users may read)" if self._tier else ""


def _judge(found: Verifier, fields: list[Any]) -> Verdict:
    response, reference, prompt, finished, info = fields
    start = time.perf_counter()
    try:
        return found.verify(Sample(response, reference, prompt, finished, info))
    except BaseException as fault:
        return Verdict(
            None,
            Status.ERROR,
            f"{type(fault).__name__}: {fault}",
            None,
            time.perf_counter() - start,
            found.name,
            found.version,
        )


def main(argument: str) -> None:
    settings = json.loads(argument)
    if settings["parent"]:  # a confined one ends with its supervisor
        die_with_parent(settings["parent"])
    connection = socket.socket(fileno=settings["fd"])
    connection.set_inheritable(False)
    limit_memory(settings["memory_mb"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    sys.path.extend(path for path in settings["path"] if path not in sys.path)
    silence()
    Worker(
        connection, settings["base_dir"], "sandbox" if settings["tier"] else "worker", settings["tier"]
    ).serve()


if __name__ == "__main__":
    main(sys.argv[1])
