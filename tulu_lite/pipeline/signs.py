"""Whether a run that the ledger holds for running still does, and until when one that was killed did. No torch."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..rollout.process import boot_id, is_alive, pid_namespace, start_time


def this_process() -> dict[str, Any]:
    """What tells this process from all others: its host, the space that its pid is of (each start of a machine and each
    container has one), and when it started."""
    return {"host": socket.gethostname(), "space": _space(), "process_started": start_time(os.getpid())}


def _space() -> str:
    namespace = pid_namespace()
    return f"{boot_id()} {namespace}" if namespace else ""


def killed(run: dict[str, Any]) -> bool:
    """Whether the process of a running run is known to be gone. One of another machine or container, whose processes
    cannot be seen from here, may run; so may one that was noted without its process."""
    if run["status"] != "running" or not run["space"]:
        return False
    if run["space"] == _space():
        return not is_alive(int(run["pid"]), run["process_started"])
    started_anew = run["space"].partition(" ")[0] != _space().partition(" ")[0]
    return started_anew and run["host"] == socket.gethostname()


def last_sign(began: float, steps: Iterable[dict[str, Any]]) -> float:
    """When a run that began then, or one of its steps, last wrote something; at least `began`, and not in the future."""
    stamps = [began]
    for step in steps:
        stamps += [step["started"], step["ended"] or 0.0, _newest(Path(step["folder"]))]
    return max(began, min(time.time(), max(stamps)))


def _newest(folder: Path) -> float:
    """Of the files and folders right in a step's folder; each line of a log and each save is one."""
    stamps = [0.0]
    try:
        for path in (folder, *folder.iterdir()):
            stamps.append(path.stat().st_mtime)
    except OSError:  # removed, or by now
        pass
    return max(stamps)
