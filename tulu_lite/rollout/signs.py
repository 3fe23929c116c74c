"""Signs of a server in trouble that can be read without asking it. Linux; standard library."""

from __future__ import annotations

import time
from pathlib import Path

from ..files import read_json
from .process import group_members, is_alive, status_of

LOOK_S = 0.5  # between looks at the processes
STOPPED_LOOKS = 4  # in how many looks running a process must be stopped

UPDATE_FILE = "update.json"  # in the server's folder while a weight update is under way (state.py)
SLEEP_FILE = "sleep.json"  # in the server's folder while the server sleeps (sleeping.py)


class StoppedProcess:
    """Finds a process of the server's group that was stopped (SIGSTOP) and stays so.

    Such a process holds its sockets open: the API server of a stopped engine says that it is healthy, and a stopped
    API server answers nobody but takes connections. A request's deadline would find it too, but only after the longest
    time that a prompt may take. A process under a debugger (state t) is left alone.
    """

    def __init__(self, group: int) -> None:
        self.group = group
        self._next = 0.0
        self._times: dict[int, int] = {}

    def look(self) -> str | None:
        """What is wrong, or None. Cheap: looks at most every LOOK_S."""
        now = time.monotonic()
        if now < self._next:
            return None
        self._next = now + LOOK_S
        stopped = [pid for pid in group_members(self.group) if status_of(pid) == "T"]
        self._times = {pid: self._times.get(pid, 0) + 1 for pid in stopped}
        for pid, times in self._times.items():
            if times >= STOPPED_LOOKS:
                return f"it is hung: its process {pid} is stopped (SIGSTOP) and does not go on"
        return None


def is_asleep(folder: Path) -> bool:
    """Whether the server of this folder was put to sleep: it then samples nothing, and that is no fault."""
    return read_json(folder / SLEEP_FILE) is not None


def forget_sleep(folder: Path) -> None:
    """The server is awake: it was woken, or has just started."""
    (folder / SLEEP_FILE).unlink(missing_ok=True)


def abandoned_update(folder: Path) -> str | None:
    """What is wrong when the process that updated the weights died on the way; None else.

    The engine is then paused for ever, or holds a part of the new weights.
    """
    update = read_json(folder / UPDATE_FILE)
    if update is None or is_alive(int(update["pid"]), update["started"]):
        return None
    return f"the process that updated its weights (pid {update['pid']}) died on the way"


def forget_abandoned_update(folder: Path) -> None:
    """The server was started anew: what that update left is gone."""
    if abandoned_update(folder) is not None:
        (folder / UPDATE_FILE).unlink(missing_ok=True)
