"""The rollout client: prompts in, groups of sampled responses out, each exactly once. No torch, no tokenizer."""

from __future__ import annotations

import asyncio
import hashlib
import os
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp

from ..errors import ServerError, TuluLiteError
from ..records import Prompt, Rollout, RolloutGroup
from .answers import Unfinished, parse_choices
from .control import Control, explain
from .state import STATE_FILE, ServerState, read_push, read_state

Decode = Callable[[Sequence[int]], str]
POLL_S = 0.2
QUIET_RETRIES_S = (
    30.0  # how long a server that says it is ready may fail requests before we stop believing it
)
TOKENS_PER_TIMEOUT = 1024  # request_timeout_s is for this many tokens


@dataclass(frozen=True, slots=True)
class Sampling:
    """How responses are sampled. temperature 0 is greedy: all n responses are then the same one."""

    n: int  # responses a prompt
    temperature: float
    max_tokens: int  # tokens a response, the end token included
    seed: int
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    stop_token_ids: tuple[int, ...] = ()  # nothing else ends a response early: give the template's end token

    def __post_init__(self) -> None:
        for name, ok, need in (
            ("n", self.n >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "at least 0"),
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "at least 0 (0: all tokens)"),
        ):
            if not ok:
                raise TuluLiteError(f"sampling.{name} is {getattr(self, name)}; it must be {need}")


def request_seed(seed: int, prompt_id: str, position: int) -> int:
    """The seed of a prompt's first response; response i uses it plus i. Below 2^62.

    A function of the sampling seed, the prompt and its position alone: a request that is sent again samples the same
    tokens, and the same prompt twice in a batch samples different ones. CPU generators use the low 32 bits only, so
    these are all random: two of 512 equal prompts with 16 responses overlap with probability 1e-3.
    """
    text = f"{seed}\0{position}\0{prompt_id}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 2


class RolloutClient:
    """Samples from the run's server and lives through its restarts.

    server: the run's server.json (a file, or the folder it is in), or the URL of a server that nobody supervises.
    decode: fills Rollout.text from the response's ids without its end token; without it text stays empty.
    max_in_flight: responses asked for at the same time; by default the server's max_num_seqs.
    One client may be used by several threads. Close it, or use it in a `with` block.
    """

    def __init__(
        self, server: str | Path, *, decode: Decode | None = None, max_in_flight: int | None = None
    ) -> None:
        self.decode = decode
        self._fixed: ServerState | None = None
        text = str(server)
        if text.startswith(("http://", "https://")):
            self._fixed = ServerState("ready", url=text.rstrip("/"), owner_pid=os.getpid())
            self.folder = None
        else:
            self.file = Path(text) if text.endswith(".json") else Path(text) / STATE_FILE
            self.folder = self.file.parent
        self._max_in_flight = max_in_flight
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rollout-client", daemon=True)
        self._thread.start()
        self._session: aiohttp.ClientSession | None = None
        self._places: _Places | None = None

    # What stages call

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        on_group: Callable[[RolloutGroup], None] | None = None,
        positions: Sequence[int] | None = None,
    ) -> list[RolloutGroup]:
        """Sample `sampling.n` responses for each prompt; groups in the order of the prompts.

        positions: each prompt's place in the whole batch, where several processes share it: with the seed and the
        prompt it decides what is sampled. By default its place in `prompts`.

        on_group is called in the calling thread for each group as it comes, in any order.
        Raises TuluLiteError on a prompt that does not fit, ServerError when the server cannot be brought to answer.
        """
        arrived: queue.SimpleQueue[RolloutGroup | None] = queue.SimpleQueue()
        task = self._submit(self.generate_async(prompts, sampling, arrived.put, positions))
        task.add_done_callback(lambda _: arrived.put(None))
        try:
            while (group := arrived.get()) is not None:
                if on_group is not None:
                    on_group(group)
            return task.result()
        except BaseException:
            task.cancel()
            raise

    def wait_ready(self, deadline_s: float | None = None) -> ServerState:
        """Block until the server is ready (by default as long as its own settings allow). Raises ServerError."""
        return self._submit(self._ready(deadline_s)).result()

    def state(self) -> ServerState:
        """What the server's owner last said of it, with the weight version of the last update.

        Raises ServerError when there is no server.
        """
        if self._fixed is not None:
            return self._fixed
        state = read_state(self.file)
        if state is None:
            raise ServerError(
                f"there is no rollout server: {self.file} does not exist",
                cure="start one (tulu-lite serve), or give the folder of one that runs",
            )
        push = read_push(self.file.parent)  # the owner takes a moment to tell of an update
        if push is not None and push.model == state.model:
            return replace(state, weight_version=push.version)
        return state

    def control(self) -> Control:
        """The server's control routes."""
        state = self.state()
        return Control(state.url, state.key(), state.control_timeout_s)

    def close(self) -> None:
        """Close the connections. Requests under way end with CancelledError."""
        if self._thread.is_alive():
            self._submit(self._close()).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()

    def __enter__(self) -> RolloutClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The asynchronous core, in the client's own loop

    async def generate_async(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        on_group: Callable[[RolloutGroup], None] | None = None,
        positions: Sequence[int] | None = None,
    ) -> list[RolloutGroup]:
        """As `generate`, for use in the client's loop; on_group is called there and must not block."""
        if not prompts:
            return []
        state = await self._ready(None)
        for prompt in prompts:
            _check_fits(prompt, sampling, state)
        if self._places is None:
            self._places = _Places(self._max_in_flight or state.max_num_seqs)

        async def one(position: int, prompt: Prompt) -> RolloutGroup:
            group = await self._group(position, prompt, sampling)
            if on_group is not None:
                on_group(group)
            return group

        async with asyncio.TaskGroup() as tasks:
            places = range(len(prompts)) if positions is None else positions
            running = [
                tasks.create_task(one(position, prompt))
                for position, prompt in zip(places, prompts, strict=True)
            ]
        return [task.result() for task in running]

    async def _group(self, position: int, prompt: Prompt, sampling: Sampling) -> RolloutGroup:
        """One prompt's responses, however often the server has to be asked."""
        assert self._places is not None
        greedy = sampling.temperature == 0
        asked = 1 if greedy else sampling.n
        body = _request(prompt, sampling, asked, request_seed(sampling.seed, prompt.id, position))
        trouble: _Trouble | None = None
        while True:
            try:
                async with self._places.take(asked):
                    state = await self._ready(None)
                    choices = parse_choices(await self._post(state, body, sampling), asked)
                break
            except (aiohttp.ClientError, TimeoutError, ConnectionError, _ServerFault, Unfinished) as error:
                trouble = await self._wait_out(trouble, error, state)
        rollouts = [self._decoded(rollout) for rollout in choices]
        return RolloutGroup(prompt, tuple(rollouts * sampling.n if greedy else rollouts))

    async def _post(self, state: ServerState, body: dict[str, Any], sampling: Sampling) -> Any:
        assert self._places is not None
        deadline = state.request_timeout_s * max(1.0, sampling.max_tokens / TOKENS_PER_TIMEOUT)
        deadline *= max(1.0, self._places.taken / state.max_num_seqs)
        key = state.key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        session = self._open_session()
        async with asyncio.timeout(deadline):
            async with session.post(
                f"{state.url}/inference/v1/generate", json=body, headers=headers
            ) as answer:
                if answer.status >= 500:
                    raise _ServerFault(f"HTTP {answer.status}: {explain(await answer.read())}")
                if answer.status >= 400:
                    raise ServerError(
                        f"the rollout server refused a request (HTTP {answer.status}): {explain(await answer.read())}"
                    )
                return await answer.json()

    async def _ready(self, deadline_s: float | None) -> ServerState:
        """Wait until the owner says ready. Raises ServerError when it says otherwise for good, or in the end."""
        started = time.monotonic()
        while True:
            state = self.state()
            if state.state == "ready":
                return state
            if state.state in ("failed", "stopped"):
                raise ServerError(f"the rollout server is {state.state}", state.reason)
            limit = 4 * state.ready_timeout_s if deadline_s is None else deadline_s
            if time.monotonic() - started > limit:
                raise ServerError(
                    f"the rollout server is still {state.state} after {limit:.0f} s", state.reason
                )
            await asyncio.sleep(POLL_S)

    async def _wait_out(self, trouble: _Trouble | None, error: BaseException, state: ServerState) -> _Trouble:
        """After a failed request: wait for a restart, or a moment. Raises ServerError when neither helps."""
        if trouble is None or trouble.generation != state.generation:
            trouble = _Trouble(state.generation, time.monotonic())
        if isinstance(
            error, Unfinished
        ):  # aborted by a weight update: ask again, as often as there are updates
            trouble = _Trouble(state.generation, time.monotonic())
        lasted = time.monotonic() - trouble.since
        if lasted > QUIET_RETRIES_S + (state.request_timeout_s if isinstance(error, TimeoutError) else 0):
            raise ServerError(
                f"the rollout server at {state.url} says it is ready, but a request failed for {lasted:.0f} s",
                f"the last fault was {type(error).__name__}: {error}",
            ) from error
        trouble.times += 1
        await asyncio.sleep(min(2.0, 0.1 * 2**trouble.times))
        await self._ready(None)
        return trouble

    def _decoded(self, rollout: Rollout) -> Rollout:
        if self.decode is None:
            return rollout
        ids = rollout.token_ids[:-1] if rollout.finished else rollout.token_ids
        return Rollout(
            rollout.token_ids,
            rollout.logprobs,
            rollout.weight_versions,
            rollout.finish_reason,
            self.decode(ids),
        )

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            # `_Places` holds requests back, so the pool itself needs no limit; deadlines are ours too.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3.0)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=aiohttp.ClientTimeout(total=None)
            )
        return self._session

    async def _close(self) -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        if self._session is not None:
            await self._session.close()

    def _submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(_unwrapped(coroutine), self._loop)


class _ServerFault(Exception):
    """HTTP 5xx: the engine died or is about to."""


@dataclass(slots=True)
class _Trouble:
    generation: int
    since: float
    times: int = 0


class _Places:
    """How many responses are in flight; waits for room, first come first served."""

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    def take(self, count: int) -> _Place:
        return _Place(self, count)

    def give_back(self, count: int) -> None:
        self.taken -= count
        while self._waiting and self._fits(self._waiting[0][0]):
            wanted, ready = self._waiting.pop(0)
            if not ready.done():
                self.taken += wanted
                ready.set_result(None)

    async def acquire(self, count: int) -> None:
        if not self._waiting and self._fits(count):
            self.taken += count
            return
        ready = asyncio.get_running_loop().create_future()
        self._waiting.append((count, ready))
        try:
            await ready
        except asyncio.CancelledError:
            if ready.done() and not ready.cancelled():
                self.give_back(count)
            raise

    def _fits(self, count: int) -> bool:
        return self.taken == 0 or self.taken + count <= self.limit


class _Place:
    def __init__(self, places: _Places, count: int) -> None:
        self.places, self.count = places, count

    async def __aenter__(self) -> None:
        await self.places.acquire(self.count)

    async def __aexit__(self, *_: object) -> None:
        self.places.give_back(self.count)


async def _unwrapped(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Of several faults at once, raise one that says most instead of a group of them."""
    try:
        return await coroutine
    except BaseExceptionGroup as group:
        known = group.subgroup(TuluLiteError)
        first: BaseException = known if known is not None else group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None


def _request(prompt: Prompt, sampling: Sampling, n: int, seed: int) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "n": n,
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens,
        "logprobs": 0,  # of the sampled token alone
        "detokenize": False,
        "ignore_eos": True,  # what ends a response is said here, not in a config file
        "stop_token_ids": list(sampling.stop_token_ids),
    }
    if sampling.temperature > 0:
        parameters |= {"seed": seed, "top_p": sampling.top_p, "top_k": sampling.top_k}
    return {"token_ids": list(prompt.token_ids), "sampling_params": parameters}


def _check_fits(prompt: Prompt, sampling: Sampling, state: ServerState) -> None:
    if not prompt.token_ids:
        raise TuluLiteError(f"prompt {prompt.id!r} has no tokens")
    length = len(prompt.token_ids) + sampling.max_tokens
    if state.max_model_len and length > state.max_model_len:
        raise TuluLiteError(
            f"prompt {prompt.id!r} has {len(prompt.token_ids)} tokens; with {sampling.max_tokens} for the response that "
            f"is {length}, and the server takes {state.max_model_len}",
            cure="lower max_tokens, drop long prompts, or raise server.max_model_len",
        )
    if sampling.n > state.max_num_seqs:
        raise TuluLiteError(
            f"sampling.n is {sampling.n}, and the server samples at most {state.max_num_seqs} at once",
            cure="raise server.max_num_seqs",
        )
