"""What listens where a rollout server should, and is none: a proxy's page, another program's JSON."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tulu_lite.errors import ServerError
from tulu_lite.recipe.server import ServerSettings
from tulu_lite.rollout import remote as remote_module
from tulu_lite.rollout.control import Control, Refused
from tulu_lite.rollout.remote import RemoteServer

PAGE, JSON, EMPTY = (
    b"<html>Sign in</html>",
    b'{"data": [], "results": [], "choices": [], "status": "ok"}',
    b"",
)


class Stranger:
    """Answers every request with 200 and `body`."""

    def __init__(self) -> None:
        self.body = PAGE
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(200)
                self.send_header("Content-Length", str(len(outer.body)))
                self.end_headers()
                self.wfile.write(outer.body)

            do_POST = do_GET

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    made = Stranger()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.mark.parametrize("body", [PAGE, JSON, EMPTY])
@pytest.mark.parametrize(
    "ask",
    [
        lambda control: control.max_model_len(),
        lambda control: control.version(),
        lambda control: control.about(),
        lambda control: control.greedy([1], 1),
        lambda control: control.finish_update(1, None),
    ],
)
def test_every_answer_of_another_program_is_refused(
    stranger: Stranger, body: bytes, ask: Callable[[Control], Any]
) -> None:
    stranger.body = body
    with pytest.raises(Refused, match="is no rollout server"):
        ask(Control(stranger.url, None, 5.0))


@pytest.fixture
def remote(stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteServer]:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    monkeypatch.setattr(remote_module, "LOOK_S", 0.02)
    monkeypatch.setattr(remote_module, "shared_memory_folder", lambda: tmp_path)
    server = RemoteServer(ServerSettings(), stranger.url, tmp_path / "model", tmp_path / "run")
    yield server
    server.stop()


def test_the_watch_over_a_stranger_goes_on_and_says_what_is_wrong(remote: RemoteServer) -> None:
    remote.start()
    with pytest.raises(ServerError, match="no rollout server"):
        remote.wait_ready(1.0)
    assert remote._thread is not None
    assert remote._thread.is_alive()


def test_a_watch_that_fails_says_so(remote: RemoteServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("cannot be foreseen")

    monkeypatch.setattr(RemoteServer, "_welcome", broken)
    remote.start()
    with pytest.raises(ServerError, match="is failed") as told:
        remote.wait_ready(10.0)
    assert "cannot be foreseen" in told.value.why
