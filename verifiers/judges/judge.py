"""What all judges have in common: settings, and one question asked, read and remembered."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verifiers.base import Verdict, error
from verifiers.errors import BadReference, SpecError
from verifiers.judges.endpoint import Address, Answer, Endpoint, Outage, pace_of
from verifiers.judges.memory import Memory, key_of
from verifiers.judges.meter import Meter
from verifiers.judges.prompts import Question
from verifiers.judges.quoting import Quotation, cache_folder
from verifiers.judges.reading import Unreadable, read_reply

DEFAULT_CACHE = "default"
READINGS = 2  # times that a question is asked when the reply cannot be read
SPARE = 0.97  # of its deadline: a judge that gives up itself can say why


@dataclass(kw_only=True, eq=False)
class Judge:
    """Settings of every judge.

    base_url             the endpoint, such as "http://127.0.0.1:8000/v1"; "env:NAME" reads a variable
    model                the model's name there
    api_key_env          environment variable with the API key
    temperature          of sampling; above 0 the same response can get different verdicts
    max_tokens           of the reply
    timeout_s            deadline of one verdict, all of its requests and retries together
    request_timeout_s    of one request
    concurrency          verdicts at once
    requests_per_minute  of this process to this endpoint
    requests_at_once     of this process to this endpoint
    max_characters       of the response and of every other text; what is longer loses its middle
    cache                file of replies; "" keeps nothing (for a server whose weights change)
    structured           ask the server to keep to the JSON schema; one that cannot is asked without
    allow_http           consent to unencrypted http to another machine
    price_in, price_out  per million tokens, for the cost in the figures
    extra_body           further fields of the request, as the server knows them
    """

    base_url: str
    model: str
    api_key_env: str | None = None
    temperature: float = 0.0
    max_tokens: int = 1024
    timeout_s: float = 120.0
    request_timeout_s: float = 60.0
    concurrency: int = 16
    requests_per_minute: float | None = None
    requests_at_once: int = 32
    max_characters: int = 20_000
    cache: str = DEFAULT_CACHE
    structured: bool = True
    allow_http: bool = False
    price_in: float = 0.0
    price_out: float = 0.0
    extra_body: dict[str, Any] = field(default_factory=dict)

    calls = 1  # requests of one verdict

    def __post_init__(self) -> None:
        self._check_numbers()
        address = Address(self.base_url, self.api_key_env, self.allow_http)
        address.key()
        if self.requests_per_minute:
            # No more at once than can have their turn in a quarter of the deadline
            turns = self.timeout_s / 4 * self.requests_per_minute / 60
            self.concurrency = max(1, min(self.concurrency, int(turns / self.calls)))
        self.cacheable = self.temperature == 0
        self.meter = Meter(self.price_in, self.price_out)
        pace = pace_of(address, self.requests_per_minute, self.requests_at_once)
        self._endpoint = Endpoint(address, pace, self.meter, self.request_timeout_s, self.structured)
        self._memory: Memory | None = None
        if self.cache:
            default = self.cache == DEFAULT_CACHE
            file = cache_folder() / "judgements.sqlite" if default else Path(self.cache).expanduser()
            self._memory = Memory(file)

    def _check_numbers(self) -> None:
        for name, least, most in (
            ("temperature", 0, 2),
            ("max_tokens", 16, 1 << 20),
            ("timeout_s", 1, 86_400),
            ("request_timeout_s", 0.1, 86_400),
            ("concurrency", 1, 10_000),
            ("requests_at_once", 1, 10_000),
            ("max_characters", 100, 1 << 22),
            ("price_in", 0, 1e9),
            ("price_out", 0, 1e9),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not least <= value <= most:
                raise SpecError(f"judge: {name} is {value!r}, it must be between {least} and {most}")
        if self.requests_per_minute is not None and not 0 < self.requests_per_minute <= 1e7:
            raise SpecError(f"judge: requests_per_minute is {self.requests_per_minute!r}, it must be above 0")
        if not self.model:
            raise SpecError("judge: model is empty")
        if taken := {"messages", "model", "response_format", "stream", "n"} & set(self.extra_body):
            raise SpecError(f"judge: extra_body cannot have {', '.join(sorted(taken))}")

    def quote(self, **texts: str) -> Quotation:
        """Texts by name, in the order in which the judge sees them; underscores in a name are spaces."""
        return Quotation.of(
            {name.replace("_", " "): text for name, text in texts.items()}, self.max_characters
        )

    async def ask(self, question: Question, deadline: float) -> dict[str, Any]:
        """The judge's reply, read. Raises Outage or Unreadable."""
        key = key_of(self._endpoint.address.base, self.model, self._sampling(), question.identity())
        known = await self._recall(key, question)
        if known is not None:
            return known
        body = {"model": self.model, "messages": question.messages(), **self._sampling()}
        # Hosted services prepare every new schema for seconds; a server of our own takes it as it comes.
        asked = question.reply_schema(fixed=self._endpoint.address.local)
        fault = Unreadable("it was not asked")
        for _ in range(READINGS):
            try:
                answer = await self._endpoint.ask(body, asked, deadline)
                reply = self._read(answer, question)
            except Unreadable as unreadable:
                fault = unreadable
                continue
            except Outage:
                self.meter.count("failures")
                raise
            if self._memory is not None and self.cacheable:
                await asyncio.to_thread(self._memory.put, key, json.dumps(reply), self.model)
            return reply
        self.meter.count("failures")
        raise fault

    def _sampling(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "max_tokens": self.max_tokens, **self.extra_body}

    def _read(self, answer: Answer, question: Question) -> dict[str, Any]:
        if answer.finish_reason not in ("stop", ""):
            raise Unreadable(f"the reply ended because of {answer.finish_reason[:40]!r}")
        reply = read_reply(answer.content, question.reply_schema(fixed=True))
        del reply["mark"]
        return reply

    async def _recall(self, key: str, question: Question) -> dict[str, Any] | None:
        if self._memory is None or not self.cacheable:
            return None
        kept = await asyncio.to_thread(self._memory.get, key)
        if kept is None:
            return None
        try:
            reply = read_reply(kept, question.schema)
        except Unreadable:  # the file was changed by somebody
            return None
        self.meter.count("cached")
        return reply

    async def ask_all(self, questions: list[Question]) -> list[dict[str, Any]]:
        """All at once; the first that fails ends the others. Raises Outage or Unreadable."""
        deadline = time.monotonic() + SPARE * self.timeout_s
        tasks = [asyncio.ensure_future(self.ask(question, deadline)) for question in questions]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def stats(self) -> dict[str, Any]:
        faults = self._memory.faults if self._memory is not None else 0
        return {**self.meter.to_json(), "cache_faults": faults}

    async def aclose(self) -> None:
        await self._endpoint.aclose()
        if self._memory is not None:
            await asyncio.to_thread(self._memory.close)


def no_answer(fault: Outage | Unreadable) -> Verdict:
    return error(f"the judge {'gave no answer' if isinstance(fault, Outage) else 'cannot be read'}: {fault}")


def text_of(reference: Any, what: str) -> str:
    """A reference that must be text. Raises BadReference."""
    if isinstance(reference, bool) or not isinstance(reference, (str, int, float)):
        raise BadReference(f"the reference must be {what}, got {type(reference).__name__}")
    if not str(reference).strip():
        raise BadReference(f"the reference must be {what}, and is empty")
    return str(reference)


def grade(score: int) -> float:
    """1 to 5 as 0 to 1."""
    return (score - 1) / 4


def analyses(replies: Mapping[str, Mapping[str, Any]]) -> str:
    """What the judge wrote, by what it was asked."""
    return "; ".join(f"{name}: {reply['analysis']}" for name, reply in replies.items())
