"""Requests over kept connections, each with a deadline, and what can go wrong with one that asking again may cure."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp

from ..errors import ServerError
from .answers import Unfinished
from .control import explain
from .state import ServerState

TOKENS_PER_TIMEOUT = 1024  # request_timeout_s is for this many tokens


class ServerFault(Exception):
    """HTTP 5xx: the engine died or is about to."""


class AdapterUnknown(Exception):
    """HTTP 404: an adapter in a version that was replaced while the request was on its way."""


FAULTS = (aiohttp.ClientError, TimeoutError, ConnectionError, ServerFault, AdapterUnknown, Unfinished)


class Session:
    """Connections of one client. Used in its loop alone."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self, state: ServerState, body: dict[str, Any], max_tokens: int, overload: float = 1.0
    ) -> Any:
        """The answer to one request to sample. Cancelling it closes the connection, which ends it on the server.

        overload: responses in flight for each place; with more than one, a response may wait its turn.
        Raises FAULTS for what another try may cure, ServerError for what none will.
        """
        deadline = state.request_timeout_s * max(1.0, max_tokens / TOKENS_PER_TIMEOUT) * max(1.0, overload)
        key = state.key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with (
            asyncio.timeout(deadline),
            self._open().post(f"{state.url}/inference/v1/generate", json=body, headers=headers) as answer,
        ):
            if answer.status == 404 and "model" in body:
                raise AdapterUnknown(explain(await answer.read()))
            if answer.status >= 500:
                raise ServerFault(f"HTTP {answer.status}: {explain(await answer.read())}")
            if answer.status >= 400:
                raise ServerError(
                    f"the rollout server refused a request (HTTP {answer.status}): {explain(await answer.read())}"
                )
            return json.loads(await answer.read())

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            # `Places` holds requests back, so the pool itself needs no limit; deadlines are ours too.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3.0)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=aiohttp.ClientTimeout(total=None)
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
