"""A server that is stopped while it is asked for something ends at once; nobody waits for the answer."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tulu_lite.errors import ServerError
from tulu_lite.recipe.server import ServerSettings
from tulu_lite.rollout import generation as generation_module
from tulu_lite.rollout import server as server_module
from tulu_lite.rollout.server import RolloutServer


class Slow:
    """Answers everything but one path, for which it lets whoever asks wait."""

    def __init__(self, path: str) -> None:
        self.asked, self.release = threading.Event(), threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.path == path:
                    outer.asked.set()
                    outer.release.wait(30)
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            do_POST = do_GET

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    for module in (server_module, generation_module):
        monkeypatch.setattr(module, "short_temporary_folder", lambda: tmp_path)
    monkeypatch.setattr(server_module, "shared_memory_folder", lambda: tmp_path)
    return tmp_path / "model"


@pytest.mark.parametrize("path", ["/inference/v1/generate", "/update_weight_version"])
def test_neither_the_first_canary_nor_filling_is_waited_for(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    slow = Slow(path)
    monkeypatch.setattr(generation_module, "free_port", lambda _: slow.port)
    popen = generation_module.subprocess.Popen  # type: ignore[attr-defined]
    monkeypatch.setattr(
        generation_module.subprocess,  # type: ignore[attr-defined]
        "Popen",
        lambda command, **given: popen(["sleep", "60"], **given),
    )
    monkeypatch.setattr(server_module, "JOIN_S", 5.0)
    server = RolloutServer(ServerSettings(), model, tmp_path / "run", tmp_path / "run" / "log.txt")
    try:
        server.start()
        assert slow.asked.wait(10)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 4.0
        assert server.state.state == "stopped"
        assert not list(tmp_path.glob("tulu-lite-*"))
    finally:
        slow.close()


@pytest.mark.parametrize("raises", [True, False])
def test_whoever_waits_for_another_model_is_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raises: bool
) -> None:
    server = RolloutServer(ServerSettings(), model, tmp_path / "run", tmp_path / "run" / "log.txt")
    done: Future[None] = Future()
    server._orders.put((model, 1, done))
    monkeypatch.setattr(server, "_set", lambda *_, **__: None)

    def bring_up(first: bool) -> None:
        if raises:
            raise generation_module.Stopping

    monkeypatch.setattr(server, "_bring_up", bring_up)
    ended: Any = type("Ended", (), {"end": lambda self: None})()
    try:
        assert server._serve_next(ended) is None
    except generation_module.Stopping:
        assert raises
    with pytest.raises(ServerError, match="was stopped"):
        done.result(0)
