"""What a run's server and its clients tell each other through files in the server's folder.

server.json        written by the server's owner only: where the server is and how it does (`ServerState`)
last_push.json     written by whoever updated the weights last: what a restarted server loads again (`Push`)
adapters.json      written by whoever pushed a LoRA adapter: likewise (`adapter_state.py`)
update.json        a weight update is under way, by this process, until this time
requests/*.json    what clients ask of the owner: a restart, or another model
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import ServerError, TuluLiteError
from ..files import locked, read_json, write_json
from .process import is_alive, start_time

Phase = Literal["starting", "ready", "restarting", "failed", "stopped"]
STATE_FILE = "server.json"
SPILL_FOLDER = "pushed"  # beside server.json: weights that shared memory has no room for
PUSH_FILE = "last_push.json"


@dataclass(frozen=True)
class ServerState:
    """server.json. Times in seconds."""

    state: Phase
    url: str = ""
    generation: int = 0  # 1 for the first process, one more for each after it
    pid: int = 0  # the warden, whose process group is the server
    model: str = ""  # the folder the server was started on
    weight_version: int = 0  # as last seen by the owner
    reason: str = ""  # why it restarts, failed or stopped
    owner_pid: int = 0
    owner_started: int = 0
    push_dir: str = ""  # where pushed weights are written; removed with the server
    max_num_seqs: int = 256
    max_model_len: int = 0  # tokens; 0: not known yet
    weight_update: str = "wait"
    api_key_env: str | None = None
    ready_timeout_s: float = 600.0
    request_timeout_s: float = 600.0
    control_timeout_s: float = 300.0
    max_loras: int = 0  # adapters that responses of one batch may have; 0: adapters cannot be served
    max_lora_rank: int = 0
    on_cpu: bool = False
    members: tuple[
        str, ...
    ] = ()  # the servers behind this one name, by folder or URL; empty: it is one itself

    @property
    def owner_lives(self) -> bool:
        return is_alive(self.owner_pid, self.owner_started)

    def key(self) -> str | None:
        """The key for requests. Raises ServerError when the environment lacks it."""
        if not self.api_key_env:
            return None
        if not os.environ.get(self.api_key_env):
            raise ServerError(
                f"the rollout server asks for a key and the environment variable {self.api_key_env} is not set",
                cure=f"export {self.api_key_env} with the same value in every process that uses the server",
            )
        return os.environ[self.api_key_env]


def read_state(file: Path) -> ServerState | None:
    """The server's state; None when the file is not there. A server whose owner is gone reads as stopped."""
    data = read_json(file)
    if data is None:
        return None
    known = {field.name for field in fields(ServerState)}
    state = ServerState(**{name: value for name, value in data.items() if name in known})
    state = replace(state, members=tuple(state.members))
    if state.state not in ("failed", "stopped") and not state.owner_lives:
        return replace(
            state, state="stopped", reason=f"the process that owned it (pid {state.owner_pid}) is gone"
        )
    return state


def write_state(file: Path, state: ServerState) -> None:
    write_json(file, asdict(state))


class StateFile:
    """server.json as its owner keeps it. What cannot be written (the disk is full) is owed and written once it can be:
    an owner that ended for it would leave everyone who waits for the server without a word."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failure: Exception | None = None  # why the last state was not written
        self._owed: ServerState | None = None

    def write(self, state: ServerState) -> None:
        try:
            write_state(self.path, state)
        except (OSError, TuluLiteError) as error:
            self._owed, self.failure = state, error
        else:
            self._owed = self.failure = None

    def settle(self) -> bool:
        """Try to write what is owed; whether nothing is."""
        if self._owed is not None:
            self.write(self._owed)
        return self._owed is None

    @property
    def note(self) -> str:
        """For the end of a line on display; empty when all is written."""
        return f"; {self.failure}" if self.failure else ""


@dataclass(frozen=True)
class Push:
    """last_push.json: weights the server holds, and the files to load them from again."""

    version: int
    files: tuple[str, ...]
    digest: str | None  # None: a checkpoint's own files
    model: str  # the folder of the model the server was started on


def read_push(folder: Path) -> Push | None:
    data = read_json(folder / PUSH_FILE)
    return None if data is None else Push(**{**data, "files": tuple(data["files"])})


def write_push(folder: Path, push: Push) -> None:
    write_json(folder / PUSH_FILE, asdict(push))


def forget_push(folder: Path) -> None:
    """Forget the weights pushed last, and remove those that found no room in shared memory."""
    shutil.rmtree(folder / SPILL_FOLDER, ignore_errors=True)
    (folder / PUSH_FILE).unlink(missing_ok=True)


@contextmanager
def update_under_way(folder: Path, wait_s: float, lasts_s: float) -> Iterator[None]:
    """Hold the server for one weight update: others wait their turn, and the owner lets it take `lasts_s`.

    Raises UpdateHeld when another update does not end within `wait_s`. The hold ends with its process.
    """

    def held() -> UpdateHeld:
        return UpdateHeld(f"another weight update held the rollout server for {wait_s:.0f} s")

    with locked(folder / "update.lock", wait_s, held):
        file = folder / "update.json"
        pid = os.getpid()
        write_json(file, {"pid": pid, "started": start_time(pid), "until": time.time() + lasts_s})
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


class UpdateHeld(ServerError):
    """Another weight update holds the server."""


def update_until(folder: Path) -> float:
    """Unix time until which a weight update may take; 0 when none is under way (or its process is dead)."""
    data = read_json(folder / "update.json")
    if data is None or not is_alive(int(data["pid"]), data["started"]):
        return 0.0
    return float(data["until"])


def send_request(folder: Path, request: dict[str, Any]) -> None:
    """Ask the owner for something: {action: restart, generation, reason} or {action: serve, model, version}."""
    write_json(folder / "requests" / f"{time.time_ns()}-{uuid.uuid4().hex[:8]}.json", request)


def take_requests(folder: Path) -> list[dict[str, Any]]:
    """Requests in the order they were sent; each is taken once."""
    taken = []
    for file in sorted((folder / "requests").glob("*.json")):
        try:
            taken.append(json.loads(file.read_text()))
        except (OSError, ValueError):
            continue
        file.unlink(missing_ok=True)
    return taken
