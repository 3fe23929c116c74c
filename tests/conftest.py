"""A stand-in for a judge's endpoint, on loopback: it answers what a test tells it to, also badly."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def completion(content: Any, finish_reason: str = "stop", **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10},
        **more,
    }


def mark_of(body: dict[str, Any]) -> str:
    """The code of a request's marks."""
    return str(body["messages"][0]["content"].split("<<<NAME ")[1].split()[0])


class FakeJudge:
    """`answer(body, number)` decides each reply: text is a completion's content, a dict the whole body, a tuple
    (status, headers, bytes) anything, a number a pause without an answer, None a closed connection. MARK in a
    text or whole body becomes the request's code.
    """

    def __init__(self) -> None:
        self.answer: Callable[[dict[str, Any], int], Any] = lambda body, number: "{}"
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                fake._serve(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def args(self, **more: Any) -> dict[str, Any]:
        return {"base_url": self.url, "model": "fake", "cache": "", **more}

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self.requests.append({**body, "path": handler.path})
            self.headers.append(dict(handler.headers))
            number = len(self.requests)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self._reply(handler, self.answer(body, number), mark_of(body))
        finally:
            with self._lock:
                self.at_once -= 1

    def _reply(self, handler: BaseHTTPRequestHandler, reply: Any, mark: str) -> None:
        if isinstance(reply, float):
            time.sleep(reply)
            reply = None
        if reply is None:
            handler.close_connection = True
            handler.connection.close()
            return
        status, headers = 200, {}
        if isinstance(reply, tuple):
            status, headers, raw = reply
        else:
            whole = completion(reply) if isinstance(reply, str) else reply
            raw = json.dumps(whole).replace("MARK", mark).encode()
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(raw)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def fake_judge() -> Iterator[FakeJudge]:
    judge = FakeJudge()
    yield judge
    judge.close()
