"""A rollout server by hand: `serve` blocks until it is interrupted; `status` says how one does."""

from __future__ import annotations

import signal
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import ServerError
from ..recipe.server import ServerSettings
from .control import Control
from .server import RolloutServer
from .state import STATE_FILE, read_state

_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(model_dir: Path, settings: ServerSettings, run_dir: Path) -> None:
    """Serve a model until SIGINT, SIGTERM or SIGHUP; prints its URL and every change of its state.

    Call it in the main thread. Raises TuluLiteError when the server cannot start or fails for good.
    """
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in _ENDINGS}
    server = RolloutServer(settings, model_dir, run_dir, Path(run_dir) / "log.txt")
    try:
        server.start()
        print(f"the rollout server starts on {model_dir}; its log is {server.log}", flush=True)
        shown = ""
        while not stop.wait(0.2):
            state = server.state
            text = f"{server.state_text()}, {state.url}" if state.state == "ready" else server.state_text()
            if text != shown:
                print(text, flush=True)
                shown = text
            if state.state in ("failed", "stopped"):
                server.wait_ready(0.0)  # raises what it failed of
    finally:
        server.stop()
        for number, handler in before.items():
            signal.signal(number, handler)
    print(server.state_text(), flush=True)


def status(run_dir: Path) -> dict[str, Any]:
    """What a run's server is and does: server.json's fields, and `answers`: whether it answers now.

    `state` is "none" when the folder has no server.
    """
    state = read_state(Path(run_dir) / STATE_FILE)
    if state is None:
        return {"state": "none", "answers": False}
    answers = False
    if state.state == "ready":
        try:
            answers = Control(state.url, state.key(), 5.0).healthy()
        except ServerError:
            answers = False
    return asdict(state) | {"answers": answers}
