"""`reward_model`: a reward model behind vLLM's pooling routes scores a response.

    {use: reward_model, args: {base_url: "http://127.0.0.1:8000/v1", model: my-reward-model, scale: 2}}

The server is `vllm serve FOLDER --runner pooling`, or a recipe's `judges` entry of kind reward. What it scores are token
ids: those that the policy sampled where the model was trained on such, else its own tokenizer's, by its own chat
template. An outage or an answer that is no number is an error without a score, never a 0.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from verifiers.base import Sample, Verdict, error, scored
from verifiers.errors import SpecError
from verifiers.judges.endpoint import Address, Answer, Endpoint, Failure, Outage, pace_of
from verifiers.judges.judge import SPARE
from verifiers.judges.meter import Meter
from verifiers.registry import verifier

SPACE = " \t\r\nĠĊĉ▁"  # white space, also as tokenizers write it


@dataclass
class Route(Endpoint):
    """A route beside /v1 of a vLLM server, and what is read from its answer."""

    route: str = ""
    structured: bool = False

    def _url(self) -> str:
        return f"{self.address.base.removesuffix('/v1')}/{self.route}"

    def _read(self, raw: bytes) -> Answer:
        try:
            data = json.loads(raw)
            return read_reward(data) if self.route == "classify" else read_tokens(data)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as fault:
            raise Failure(f"the answer of /{self.route} cannot be used ({type(fault).__name__})") from None


def read_reward(data: Any) -> Answer:
    """The number of one sequence. Raises ValueError and the like for an answer without it."""
    (row,) = data["data"]
    (value,) = row["probs"]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no reward")
    tokens = data.get("usage", {}).get("prompt_tokens", 0)
    return Answer(float(value), "", tokens_in=tokens if type(tokens) is int else 0)


def read_tokens(data: Any) -> Answer:
    """A conversation's token ids up to its end token: what a template writes after it is white space."""
    ids, texts = data["tokens"], data["token_strs"]
    if len(ids) != len(texts) or any(type(i) is not int for i in ids):
        raise ValueError("no token ids")
    end = len(ids)
    while end and not texts[end - 1].strip(SPACE):
        end -= 1
    if not end:
        raise ValueError("no tokens")
    return Answer(ids[:end], "")


@verifier("reward_model", runs="async", strip_thinking=False)
@dataclass(kw_only=True, eq=False)
class RewardModel:
    """A reward model's number r for the prompt with its response, as 1 / (1 + exp(-(r - shift) / scale)) in [0, 1]; r
    itself is in the verdict's `extracted`.

    base_url, model, api_key_env, timeout_s, request_timeout_s, concurrency, requests_at_once, allow_http: as of the other
    judges. tokens: "sampled", the policy's own token ids (the row's info has them as `token_ids`), right for a model that
    was trained on such; "text", the response by the reward model's own tokenizer and chat template; "auto", what the
    recipe that serves it says, else "text". shift, scale: of r; a difference of `scale` in r around `shift` is from 0.5
    to 0.73.
    """

    base_url: str
    model: str
    shift: float = 0.0
    scale: float = 1.0
    tokens: Literal["auto", "sampled", "text"] = "auto"
    api_key_env: str | None = None
    timeout_s: float = 120.0
    request_timeout_s: float = 60.0
    concurrency: int = 64
    requests_at_once: int = 64
    allow_http: bool = False

    cacheable = False  # the same address may serve another model tomorrow

    def __post_init__(self) -> None:
        for name, least, most in (
            ("scale", 1e-6, 1e6),
            ("shift", -1e6, 1e6),
            ("timeout_s", 1, 86_400),
            ("request_timeout_s", 0.1, 86_400),
            ("concurrency", 1, 10_000),
            ("requests_at_once", 1, 10_000),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not least <= value <= most:
                raise SpecError(f"reward_model: {name} is {value!r}, it must be between {least} and {most}")
        if not self.model:
            raise SpecError("reward_model: model is empty")
        address = Address(self.base_url, self.api_key_env, self.allow_http)
        address.key()
        self.meter = Meter()
        pace = pace_of(address, None, self.requests_at_once)
        self._classify, self._tokenize = (
            Route(address, pace, self.meter, self.request_timeout_s, route=route)
            for route in ("classify", "tokenize")
        )

    def _by_sampled(self) -> bool:
        if self.tokens != "auto":
            return self.tokens == "sampled"
        named = self.base_url.removeprefix("env:") if self.base_url.startswith("env:") else ""
        return os.environ.get(f"{named}_TOKENS", "") == "sampled" if named else False

    async def verify(self, sample: Sample) -> Verdict:
        deadline = time.monotonic() + SPARE * self.timeout_s
        try:
            ids = await self._ids(sample, deadline)
            body = {"model": self.model, "input": [list(ids)], "use_activation": False}
            reward = (await self._classify.ask(body, {}, deadline)).content
        except Outage as fault:
            self.meter.count("failures")
            return error(f"the reward model gave no reward: {fault}")
        return scored(_sigmoid((reward - self.shift) / self.scale), f"reward {reward:.6g}", repr(reward))

    async def _ids(self, sample: Sample, deadline: float) -> Sequence[int]:
        if self._by_sampled():
            ids = sample.info.get("token_ids")
            if not ids or any(type(i) is not int for i in ids):
                raise Outage(
                    "it scores the tokens that were sampled, and this row has no `token_ids`; with `tokens: text` it "
                    "scores the text"
                )
            return list(ids)
        turns = [
            {"role": "user", "content": sample.prompt},
            {"role": "assistant", "content": sample.response},
        ]
        body = {
            "model": self.model,
            "messages": turns,
            "add_generation_prompt": False,
            "return_token_strs": True,
        }
        return (await self._tokenize.ask(body, {}, deadline)).content  # type: ignore[no-any-return]

    def stats(self) -> dict[str, Any]:
        return self.meter.to_json()

    async def aclose(self) -> None:
        await self._classify.aclose()
        await self._tokenize.aclose()


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
