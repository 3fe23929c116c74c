"""A key on every route. vLLM's own --api-key leaves the routes that replace weights open."""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

KEY_VARIABLE = "TULU_LITE_SERVER_KEY"  # the server's own variable; the owner fills it from `api_key_env`

App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]


class Guard:
    """ASGI middleware: a request without `Authorization: Bearer KEY` gets 401, whatever its path."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.expected = f"Bearer {os.environ[KEY_VARIABLE]}".encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        given = dict(scope["headers"]).get(b"authorization", b"")
        if scope["type"] == "http" and hmac.compare_digest(given, self.expected):
            return await self.app(scope, receive, send)
        if scope["type"] == "http":
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"error": "a key is required"}'})
        return None
