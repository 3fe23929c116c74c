"""An OpenAI-compatible chat endpoint: one request with its retries, limits, deadline and caps.

Every way in which it can fail ends as Outage, which a judge turns into an error without a score.
"""

from __future__ import annotations

import asyncio
import email.utils
import ipaddress
import json
import os
import random
import re
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from verifiers.errors import SpecError, VerifierError
from verifiers.judges.meter import Meter

MAX_ANSWER = 1 << 20  # bytes of a response's body
MAX_ATTEMPTS = 6
BACKOFF_S, MAX_BACKOFF_S = 0.5, 20.0
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
REFUSALS = frozenset({400, 404, 415, 422, 501})  # with these a server says that it knows no schemas


class Outage(Exception):
    """No answer was to be had. It is never taken for a score."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the endpoint is. Raises SpecError unless it is https, or http to this machine, or consented to."""

    url: str
    key_env: str | None
    allow_http: bool = False

    def __post_init__(self) -> None:
        url = self.base
        parts = urlsplit(url)
        try:
            named, _ = parts.hostname, parts.port
        except ValueError as fault:
            raise SpecError(f"judge: base_url {url!r} is no URL: {fault}") from fault
        if parts.scheme not in ("http", "https") or not named or parts.query or parts.fragment:
            raise SpecError(
                f"judge: base_url {url!r} is no URL of an endpoint",
                cure='Such as "http://127.0.0.1:8000/v1".',
            )
        if parts.username or parts.password:
            raise SpecError("judge: base_url has a user name or password in it", cure="Use `api_key_env`.")
        if parts.scheme == "http" and not is_loopback(named) and not self.allow_http:
            raise SpecError(
                f"judge: {url} is another machine, and http is not encrypted",
                "whoever listens reads the key and the texts, and can write the scores.",
                "Use https, or consent with `allow_http: true`.",
            )

    @property
    def base(self) -> str:
        """The URL; "env:NAME" stands for what that environment variable says."""
        url = self.url
        if url.startswith("env:"):
            url = os.environ.get(url[4:], "")
            if not url:
                raise SpecError(f"judge: base_url is {self.url}, and that variable is not set")
        return url.rstrip("/")

    @property
    def local(self) -> bool:
        return is_loopback(urlsplit(self.base).hostname or "")

    def key(self) -> str | None:
        """Raises VerifierError when the variable is not set."""
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "")
        if not key or not key.isprintable():
            raise VerifierError(f"judge: the environment variable {self.key_env} has no API key")
        return key


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Pace:
    """How fast one endpoint may be asked by this process: requests a minute, and at once."""

    def __init__(self, per_minute: float | None, at_once: int) -> None:
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._at_once = at_once
        self._next = 0.0
        self._slots: weakref.WeakKeyDictionary[Any, asyncio.Semaphore] = weakref.WeakKeyDictionary()

    def slot(self) -> asyncio.Semaphore:
        """Of the running event loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._slots:
            self._slots[loop] = asyncio.Semaphore(self._at_once)
        return self._slots[loop]

    async def turn(self, deadline: float) -> None:
        """Wait for this request's turn. Raises Outage when it would come after the deadline."""
        now = time.monotonic()
        turn = max(now, self._next)
        if turn > deadline:
            raise Outage("its turn under requests_per_minute comes after its deadline")
        self._next = turn + self._gap
        await asyncio.sleep(turn - now)

    def hold(self, seconds: float) -> None:
        """The server asked for a pause; it holds for every request."""
        self._next = max(self._next, time.monotonic() + seconds)


_paces: dict[tuple[Any, ...], Pace] = {}


def pace_of(address: Address, per_minute: float | None, at_once: int) -> Pace:
    """Judges that name the same endpoint and limits share them."""
    key = (address.base, address.key_env, per_minute, at_once)
    return _paces.setdefault(key, Pace(per_minute, at_once))


@dataclass(slots=True)
class Answer:
    """What a request brought."""

    content: Any
    finish_reason: str
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(slots=True)
class Failure(Exception):
    """One attempt that failed."""

    reason: str
    again: bool = True  # whether another attempt may help
    after_s: float = 0.0  # what the server asked for
    status: int = 0


@dataclass
class Endpoint:
    """Sends requests. One session an event loop; `aclose` ends it."""

    address: Address
    pace: Pace
    meter: Meter
    request_timeout_s: float = 60.0
    structured: bool = True  # ask for the schema; turned off when the server refuses it
    _sessions: weakref.WeakKeyDictionary[Any, Any] = field(default_factory=weakref.WeakKeyDictionary)

    async def ask(self, body: Mapping[str, Any], schema: Mapping[str, Any], deadline: float) -> Answer:
        """One answer before `deadline` (of time.monotonic()). Raises Outage."""
        attempt, last = 0, "no time was left"
        while attempt < MAX_ATTEMPTS:
            attempt += 1
            with_schema = self.structured
            try:
                async with self.pace.slot():
                    await self.pace.turn(deadline)
                    return await self._once(self._body(body, schema, with_schema), deadline)
            except Failure as failure:
                last = failure.reason
                if with_schema and failure.status in REFUSALS:
                    self.structured = False  # an older server: the reply is read just as strictly
                    attempt -= 1
                    continue
                if not failure.again:
                    raise Outage(last) from None
                await self._pause(failure, attempt, deadline)
            self.meter.count("retries")
        raise Outage(f"{last} ({attempt} attempts)")

    def _body(self, body: Mapping[str, Any], schema: Mapping[str, Any], with_schema: bool) -> dict[str, Any]:
        if not with_schema:
            return dict(body)
        named = {"name": "judgement", "strict": True, "schema": schema}
        return {**body, "response_format": {"type": "json_schema", "json_schema": named}}

    async def _pause(self, failure: Failure, attempt: int, deadline: float) -> None:
        """Exponential back-off with full jitter, never shorter than what the server asked for."""
        backoff = random.uniform(0.0, min(MAX_BACKOFF_S, BACKOFF_S * 2 ** (attempt - 1)))
        wait = max(backoff, failure.after_s)
        if time.monotonic() + wait >= deadline:
            asked = f"; it asks to wait {failure.after_s:g} s" if failure.after_s else ""
            raise Outage(f"{failure.reason} ({attempt} attempts){asked}")
        if failure.after_s:
            self.pace.hold(failure.after_s)
        await asyncio.sleep(wait)

    async def _once(self, body: Mapping[str, Any], deadline: float) -> Answer:
        import aiohttp

        left = min(self.request_timeout_s, deadline - time.monotonic())
        if left <= 0:
            raise Outage("no time was left")
        start = time.monotonic()
        try:
            async with asyncio.timeout(left):
                status, headers, raw = await self._post(aiohttp, body)
        except TimeoutError:
            raise Failure(f"no answer within {left:.3g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as fault:
            raise Failure(f"{type(fault).__name__}: {self._clean(str(fault))}") from None
        if status != 200:
            after = retry_after(headers.get("Retry-After"))
            said = self._clean(raw[:400].decode(errors="replace"))
            raise Failure(f"HTTP {status}: {said}", status in RETRIED, after, status)
        answer = self._read(raw)
        self.meter.answered(time.monotonic() - start, answer.tokens_in, answer.tokens_out)
        return answer

    async def _post(self, aiohttp: Any, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        key = self.address.key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = self._url()
        # A redirect would carry the key and the texts elsewhere.
        async with self._session(aiohttp).post(
            url, json=body, headers=headers, allow_redirects=False
        ) as response:
            raw = bytearray()
            async for piece in response.content.iter_chunked(1 << 16):
                raw += piece
                if len(raw) > MAX_ANSWER:
                    raise Failure(f"the answer is larger than {MAX_ANSWER} bytes", again=False)
            return response.status, response.headers, bytes(raw)

    def _url(self) -> str:
        return f"{self.address.base}/chat/completions"

    def _read(self, raw: bytes) -> Answer:
        return read_answer(raw)

    def _session(self, aiohttp: Any) -> Any:
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None or session.closed:
            session = self._sessions[loop] = aiohttp.ClientSession(
                trust_env=not self.address.local,  # a proxy has no business between this machine and itself
                timeout=aiohttp.ClientTimeout(total=None),  # each request has its own
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return session

    def _clean(self, text: str) -> str:
        """An error's text for a verdict: short, on one line, without the key."""
        key = os.environ.get(self.address.key_env) if self.address.key_env else None
        text = text.replace(key, "...") if key else text
        return re.sub(r"\s+", " ", text)[:200]

    async def aclose(self) -> None:
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.close()


def retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for (a number, or a date); 0 when it says nothing usable."""
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), 1e6) if seconds == seconds else 0.0


def read_answer(raw: bytes) -> Answer:
    """The first choice of a chat completion. Raises a failure that another attempt may mend."""
    try:
        data = json.loads(raw)
        choice = data["choices"][0]
        content, ended = choice["message"].get("content"), str(choice.get("finish_reason") or "")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as fault:
        raise Failure(f"the answer is no chat completion ({type(fault).__name__})") from None
    usage = data.get("usage")
    counts = [
        usage.get(name) if isinstance(usage, dict) else None
        for name in ("prompt_tokens", "completion_tokens")
    ]
    tokens = [count if type(count) is int and 0 <= count < 1 << 40 else 0 for count in counts]
    return Answer(content, ended, *tokens)
