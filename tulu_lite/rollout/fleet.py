"""Several servers as one: copies on this machine, or servers that somebody else keeps. No torch.

`open_servers` gives what a recipe asks for; whatever it is, it is started, waited for and stopped alike, and clients
find it through its server.json. `everywhere.py` pushes weights to all of them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import ServerError
from ..recipe.server import ServerSettings
from .lease import forget_held
from .process import start_time
from .remote import RemoteServer
from .server import RolloutServer
from .state import STATE_FILE, Phase, ServerState, StateFile, write_state

FOLLOW_S = 0.2


def open_servers(
    settings: ServerSettings, model_dir: Path, run_dir: Path, log_path: Path
) -> RolloutServer | RolloutFleet:
    """The server of a run, or its several: not started yet."""
    if settings.urls:
        remote = [
            RemoteServer(settings, url, model_dir, run_dir / f"remote-{number}")
            for number, url in enumerate(settings.urls, 1)
        ]
        return RolloutFleet(remote, run_dir, log_path)
    if settings.replicas == 1:
        return RolloutServer(settings, model_dir, run_dir, log_path)
    copies = []
    for number in range(settings.replicas):
        own = settings.model_copy(update={"port": settings.port + number if settings.port else 0})
        log = log_path.with_name(f"{log_path.stem}-{number + 1}{log_path.suffix}")
        copies.append(RolloutServer(own, model_dir, run_dir / f"copy-{number + 1}", log, replica=number))
    return RolloutFleet(copies, run_dir, log_path)


class RolloutFleet:
    """Several servers with the interface of one. Each is watched, restarted and given its weights again by itself.

    The fleet is ready when every member is that has not failed for good, and failed when all of them have.
    """

    def __init__(
        self, servers: Sequence[RolloutServer | RemoteServer], run_dir: Path, log_path: Path
    ) -> None:
        self.servers = list(servers)
        self.folder, self.log = Path(run_dir).resolve(), Path(log_path).resolve()
        self.state_file = self.folder / STATE_FILE
        self._told = StateFile(self.state_file)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to start them; returns at once. Raises TuluLiteError as RolloutServer.start."""
        if self._thread is not None:
            raise RuntimeError("these servers were started already")
        forget_held(self.folder)
        started = []
        try:
            for server in self.servers:
                server.start()
                started.append(server)
        except BaseException:
            for server in started:
                server.stop()
            raise
        write_state(self.state_file, self.state)
        self._thread = threading.Thread(target=self._follow, name="rollout-fleet", daemon=True)
        self._thread.start()

    def wait_ready(self, deadline_s: float | None = None) -> None:
        """Block until every member answers that can. Raises ServerError when none can."""
        failures: list[ServerError] = []
        for server in self.servers:
            try:
                server.wait_ready(deadline_s)
            except ServerError as error:
                failures.append(error)
        if len(failures) == len(self.servers):
            raise failures[0]

    def serve_model(self, model_dir: Path, version: int = 0, deadline_s: float | None = None) -> None:
        """Have every member serve another model. Raises TuluLiteError, ServerError."""
        for server in self.servers:
            server.serve_model(model_dir, version, deadline_s)

    def stop(self) -> None:
        """End all members. May be called twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        failures = []
        for server in self.servers:
            try:
                server.stop()
            except ServerError as error:
                failures.append(error)
        if self._thread is not None:
            self._told.write(self.state)
        if failures:
            raise failures[0]

    @property
    def state(self) -> ServerState:
        """Of the whole: the least that holds for all living members, and their folders."""
        states = [server.state for server in self.servers]
        living = [state for state in states if state.state not in ("failed", "stopped")]
        order: tuple[Phase, ...] = ("starting", "restarting", "ready")
        worst = min(living, key=lambda state: order.index(state.state)) if living else states[0]
        return replace(
            worst,
            owner_pid=os.getpid(),
            owner_started=start_time(os.getpid()) or 0,
            members=tuple(str(server.folder) for server in self.servers),
        )

    @property
    def url(self) -> str:
        return self.servers[0].url

    def state_text(self) -> str:
        """One line for a display: 2 of 3 ready, weights 12; restarting: its process ended (exit code 0)."""
        states = [server.state for server in self.servers]
        ready = [state for state in states if state.state == "ready"]
        text = f"{len(ready)} of {len(states)} ready"
        if ready:
            text += f", weights {ready[0].weight_version}"
        reason = next((state.reason.splitlines()[0] for state in states if state.reason), "")
        return (f"{text}; {reason}" if len(ready) < len(states) and reason else text) + self._told.note

    def _follow(self) -> None:
        told = None
        while not self._stop.wait(FOLLOW_S):
            state = self.state
            if state != told or self._told.failure is not None:
                self._told.write(state)
                told = state

    def __enter__(self) -> RolloutFleet:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
