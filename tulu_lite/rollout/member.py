"""One server as its clients see it: where it is, how it does, what it holds. Several make a fleet (`client.py`)."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from ..errors import ServerError
from .adapter_state import ADAPTERS_FILE, Adapter, read_adapters
from .control import Control
from .state import PUSH_FILE, STATE_FILE, ServerState, read_push, read_state

POLL_S = 0.2
SUSPECT_S = (
    1.0  # a server that failed a request is asked last for so long, unless its owner says something new
)
TRUST_S = 0.2  # how long what the files said is believed without another look, when they have not changed
GLANCE_S = 0.05  # for how long nobody looks at all: of hundreds of prompts each asks who is ready

_Signature = tuple[tuple[int, int], ...]


class Member:
    """One server: a supervised one by the folder of its server.json, or one that somebody else keeps, by its URL.

    The interface of a client with one server: folder, file, state(), wait_ready(), control(). Thread-safe.
    """

    def __init__(self, server: str | Path, key_env: str | None = None) -> None:
        text = str(server)
        self._fixed: ServerState | None = None
        self.folder: Path | None = None
        if text.startswith(("http://", "https://")):
            self._fixed = ServerState(
                "ready", url=text.rstrip("/"), owner_pid=os.getpid(), api_key_env=key_env, max_loras=0
            )
        else:
            self.file = Path(text) if text.endswith(".json") else Path(text) / STATE_FILE
            self.folder = self.file.parent
        self.taken = 0  # responses asked of it and not answered; the client's loop alone changes it
        self._suspect: tuple[int, float] = (-1, 0.0)  # generation, until when
        self._glanced: tuple[float, ServerState] | None = None  # when, and what was seen
        self._seen: tuple[_Signature, float, ServerState, dict[str, Adapter]] | None = None

    @property
    def name(self) -> str:
        """How messages call it."""
        return self._fixed.url if self._fixed is not None else str(self.folder)

    def state(self) -> ServerState:
        """What the server's owner last said of it, with the weight version of the last update.

        Raises ServerError when there is no server.
        """
        return self._look()[0]

    def glance(self) -> ServerState:
        """As state(), or what it was a moment ago: for who is to be asked. Whoever has just written something, or draws
        a conclusion from nothing having changed, needs state()."""
        now, glanced = time.monotonic(), self._glanced
        if glanced is not None and now - glanced[0] < GLANCE_S:
            return glanced[1]
        state = self.state()
        self._glanced = (now, state)
        return state

    def adapters(self) -> dict[str, Adapter]:
        """The LoRA adapters that the server holds, by name."""
        return self._look()[1]

    def _look(self) -> tuple[ServerState, dict[str, Adapter]]:
        if self._fixed is not None:
            return self._fixed, {}
        assert self.folder is not None
        now = time.monotonic()
        signature = tuple(
            _signature(path) for path in (self.file, self.folder / PUSH_FILE, self.folder / ADAPTERS_FILE)
        )
        if self._seen is not None and self._seen[0] == signature and now - self._seen[1] < TRUST_S:
            return self._seen[2], self._seen[3]
        state = read_state(self.file)
        if state is None:
            raise ServerError(
                f"there is no rollout server: {self.file} does not exist",
                cure="start one (tulu-lite serve), or give the folder of one that runs",
            )
        push = read_push(self.folder)  # the owner takes a moment to tell of an update
        if push is not None and push.model == state.model:
            state = replace(state, weight_version=push.version)
        self._seen = (signature, now, state, read_adapters(self.folder))
        self._glanced = None
        return self._seen[2], self._seen[3]

    def learn(self, **known: object) -> None:
        """Complete what is known of a server that somebody else keeps (its max_model_len, its weight version)."""
        if self._fixed is not None:
            self._fixed = replace(self._fixed, **known)  # type: ignore[arg-type]
            self._glanced = None

    @property
    def supervised(self) -> bool:
        return self._fixed is None

    def control(self) -> Control:
        """The server's control routes."""
        state = self.state()
        return Control(state.url, state.key(), state.control_timeout_s)

    def wait_ready(self, deadline_s: float | None = None) -> ServerState:
        """Block until the server is ready (by default as long as its own settings allow). Raises ServerError."""
        started = time.monotonic()
        while True:
            state = self.state()
            if state.state == "ready":
                return state
            check_hope(state, time.monotonic() - started, deadline_s)
            time.sleep(POLL_S / 4)

    # For the client's choice among several

    def suspect(self) -> None:
        """Note that a request failed here."""
        self._suspect = (self.state().generation, time.monotonic() + SUSPECT_S)

    @property
    def suspected(self) -> bool:
        generation, until = self._suspect
        return time.monotonic() < until and self.state().generation == generation


def check_hope(state: ServerState, waited_s: float, deadline_s: float | None) -> None:
    """Raise ServerError when a server that is not ready will not be, or was waited for long enough."""
    if state.state in ("failed", "stopped"):
        raise ServerError(f"the rollout server is {state.state}", state.reason)
    limit = 4 * state.ready_timeout_s if deadline_s is None else deadline_s
    if waited_s > limit:
        raise ServerError(f"the rollout server is still {state.state} after {limit:.0f} s", state.reason)


def _signature(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (found.st_ino, found.st_mtime_ns)
