"""The rollout client: prompts in, groups of sampled responses out, each exactly once. No torch, no tokenizer."""

from __future__ import annotations

import asyncio
import copy
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ServerError, TuluLiteError
from ..records import Prompt, Rollout, RolloutGroup
from .adapter_state import Adapter
from .answers import Unfinished, at_version, parse_choices
from .control import Control
from .member import Member, check_hope
from .places import Places
from .requests import FAULTS, AdapterUnknown, Session
from .sampling import Sampling, check_fits, request_body, request_seed
from .state import ServerState

__all__ = ["RolloutClient", "Sampling", "request_seed"]

Decode = Callable[[Sequence[int]], str]
QUIET_RETRIES_S = (
    30.0  # how long a server that says it is ready may fail requests before we stop believing it
)
Servers = str | Path | Sequence[str | Path]


class RolloutClient:
    """Samples from the run's server, or from several, and lives through their restarts.

    server: the run's server.json (a file, or the folder it is in), the URL of a server that nobody supervises, or a
        list of these: requests go to the least loaded, and those of a server that failed to another.
    decode: fills Rollout.text from the response's ids without its end token; without it text stays empty.
    max_in_flight: responses asked for at the same time of each server; by default its max_num_seqs.
    key_env: servers given by URL only: the environment variable that holds their key.
    One client may be used by several threads. Close it, or use it in a `with` block.
    """

    def __init__(
        self,
        server: Servers,
        *,
        decode: Decode | None = None,
        max_in_flight: int | None = None,
        key_env: str | None = None,
    ) -> None:
        self.decode = decode
        self.adapter: str | None = None
        named = [server] if isinstance(server, (str, Path)) else list(server)
        if not named:
            raise TuluLiteError("a rollout client was given no server")
        self._named = [Member(one, key_env) for one in named]
        self._key_env = key_env
        self._shared = _Shared(max_in_flight)

    def with_adapter(self, name: str) -> RolloutClient:
        """This client, sampling from a LoRA adapter that the server holds: always from its newest version, which is
        then the weight version of each token. It shares the connections, and needs no closing of its own."""
        bound = copy.copy(self)
        bound.adapter = name
        return bound

    def only(self, member: Member) -> RolloutClient:
        """This client with one of its members alone, for what is done to each."""
        bound = copy.copy(self)
        bound._named = [member]
        return bound

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

        on_group is called in the calling thread for each group as it comes, in any order. An exception there, or in
        the calling thread, ends the requests under way, on the server too.
        Raises TuluLiteError on a prompt that does not fit, ServerError when no server can be brought to answer.
        """
        arrived: queue.SimpleQueue[RolloutGroup | None] = queue.SimpleQueue()
        task = self.submit(prompts, sampling, arrived.put, positions)
        task.add_done_callback(lambda _: arrived.put(None))
        try:
            while (group := arrived.get()) is not None:
                if on_group is not None:
                    on_group(group)
            return task.result()
        except BaseException:
            task.cancel()
            raise

    def submit(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        on_group: Callable[[RolloutGroup], None] | None = None,
        positions: Sequence[int] | None = None,
    ) -> Future[list[RolloutGroup]]:
        """`generate` in the background. Cancelling the future ends its requests on the server.

        on_group is called in the client's own thread and must not block.
        """
        return self._submit(self._generate(prompts, sampling, on_group, positions))

    def stream(
        self, prompts: Sequence[Prompt], sampling: Sampling, positions: Sequence[int] | None = None
    ) -> Iterator[RolloutGroup]:
        """The groups as they come, in any order. Closing the iterator ends what is under way."""
        arrived: queue.SimpleQueue[RolloutGroup | None] = queue.SimpleQueue()
        task = self.submit(prompts, sampling, arrived.put, positions)
        task.add_done_callback(lambda _: arrived.put(None))
        try:
            while (group := arrived.get()) is not None:
                yield group
            task.result()
        finally:
            task.cancel()

    async def astream(
        self, prompts: Sequence[Prompt], sampling: Sampling, positions: Sequence[int] | None = None
    ) -> AsyncIterator[RolloutGroup]:
        """`stream` for the caller's own event loop. Closing or cancelling it ends what is under way."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[RolloutGroup | None] = asyncio.Queue()

        def put(group: RolloutGroup | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(arrived.put_nowait, group)

        task = self.submit(prompts, sampling, put, positions)
        task.add_done_callback(lambda _: put(None))
        try:
            while (group := await arrived.get()) is not None:
                yield group
            task.result()
        finally:
            task.cancel()

    # What the server is and does

    @property
    def members(self) -> list[Member]:
        """The servers behind this client, in a fixed order. Raises ServerError when there is none."""
        found: list[Member] = []
        for member in self._named:
            names = member.state().members
            if not names:
                found.append(member)
                continue
            known = self._shared.members
            found += [known.setdefault(name, Member(name, member.state().api_key_env)) for name in names]
        return found

    def living(self) -> list[Member]:
        """The members that have not failed or stopped for good. Raises ServerError when there is none."""
        members = self.members
        living = [member for member in members if member.state().state not in ("failed", "stopped")]
        if not living:
            check_hope(members[0].state(), 0.0, None)
        return living

    @property
    def folder(self) -> Path | None:
        """The folder of the one server's server.json; None: a server known by its URL alone."""
        return self._one().folder

    @property
    def file(self) -> Path:
        return self._one().file

    @property
    def shared_folder(self) -> Path:
        """Where all who share the server, or the servers, find one another. Raises TuluLiteError for a mere URL."""
        folder = self._named[0].folder
        if folder is None:
            raise TuluLiteError(
                f"those who share {self._named[0].name} have no folder to meet in",
                "the server is known by its URL alone",
                "give the client the server.json of a run",
            )
        return folder

    def _one(self) -> Member:
        """What can be asked only of a client with one server, told to it where there are several."""
        one = self._named[0]
        several = len(self._named) > 1 or (one.file.exists() and len(one.state().members) > 1)
        if one.supervised and several:
            raise TuluLiteError(
                f"this client has {len(self.members)} servers, and what was asked is done to one",
                cure="use everywhere.push_everywhere or everywhere.load_everywhere, or one of client.members",
            )
        return one

    def wait_ready(self, deadline_s: float | None = None) -> ServerState:
        """Block until all servers that have not failed for good are ready; returns the first's state.

        deadline_s: by default as long as their own settings allow. Raises ServerError when none can be ready.
        """
        ready: list[ServerState] = []
        failed: ServerError | None = None
        for member in self.members:
            try:
                ready.append(member.wait_ready(deadline_s))
            except ServerError as error:
                failed = error
        if not ready:
            assert failed is not None
            raise failed
        return ready[0]

    def state(self) -> ServerState:
        """What the (first) server's owner last said of it. Raises ServerError when there is no server."""
        return self.members[0].state()

    def control(self) -> Control:
        """The (first) server's control routes."""
        return self.members[0].control()

    def close(self) -> None:
        """Close the connections. Requests under way end with CancelledError."""
        self._shared.close()

    def __enter__(self) -> RolloutClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The asynchronous core, in the client's own loop

    async def _generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        on_group: Callable[[RolloutGroup], None] | None,
        positions: Sequence[int] | None,
    ) -> list[RolloutGroup]:
        if not prompts:
            return []
        for state in await self._shared.places(self.members).wait_ready():
            for prompt in prompts:
                check_fits(prompt, sampling, state)

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
        """One prompt's responses, all of one server, however often one has to be asked."""
        greedy = sampling.temperature == 0
        asked = 1 if greedy else sampling.n
        body = request_body(prompt, sampling, asked, request_seed(sampling.seed, prompt.id, position))
        trouble: _Trouble | None = None
        avoid: set[Member] = set()
        places = self._shared.places(self.members)
        while True:
            async with places.take(asked, avoid) as (member, state):
                try:
                    choices = await self._ask(member, state, body, sampling, asked, places)
                    break
                except FAULTS as fault:
                    error = fault
            if not isinstance(error, (Unfinished, AdapterUnknown)):
                member.suspect()
                avoid = {member}
            trouble = await self._wait_out(trouble, error, member, state)
        rollouts = [self._decoded(rollout) for rollout in choices]
        return RolloutGroup(prompt, tuple(rollouts * sampling.n if greedy else rollouts))

    async def _ask(
        self,
        member: Member,
        state: ServerState,
        body: dict[str, Any],
        sampling: Sampling,
        asked: int,
        places: Places,
    ) -> list[Rollout]:
        overload = member.taken / places.capacity(state)
        session = self._shared.session
        if self.adapter is None:
            return parse_choices(await session.post(state, body, sampling.max_tokens, overload), asked)
        adapter = self._adapter(member)
        if adapter is None:  # a server that somebody else keeps: its adapters' names are its own
            named = body | {"model": self.adapter}
            return parse_choices(await session.post(state, named, sampling.max_tokens, overload), asked)
        named = body | {"model": adapter.served_name}
        answer = await session.post(state, named, sampling.max_tokens, overload)
        return at_version(parse_choices(answer, asked), adapter)

    def _adapter(self, member: Member) -> Adapter | None:
        """The bound adapter as this server holds it; None where only the server knows."""
        if not member.supervised:
            return None
        held = member.adapters()
        assert self.adapter is not None
        if self.adapter not in held:
            raise ServerError(
                f"the rollout server holds no adapter {self.adapter!r}",
                f"it holds {', '.join(held) or 'none'}",
                "push it first: adapters.push_adapter(client, tensors, config, name, version)",
            )
        return held[self.adapter]

    async def _wait_out(
        self, trouble: _Trouble | None, error: BaseException, member: Member, state: ServerState
    ) -> _Trouble:
        """After a failed request: a moment's pause. Raises ServerError when it fails for too long on servers that
        say they are ready."""
        now = time.monotonic()
        lives = tuple(one.state().generation for one in self.members)
        if trouble is None or trouble.lives != lives or isinstance(error, Unfinished):
            trouble = _Trouble(lives, now)  # aborted by an update: ask again, as often as there are updates
        lasted = now - trouble.since
        if lasted > QUIET_RETRIES_S + (state.request_timeout_s if isinstance(error, TimeoutError) else 0):
            raise ServerError(
                f"the rollout server at {state.url} says it is ready, but a request failed for {lasted:.0f} s",
                f"the last fault was {type(error).__name__}: {error}",
            ) from error
        trouble.times += 1
        others = sum(one.state().state == "ready" for one in self.members if one is not member)
        await asyncio.sleep(0.02 if others and trouble.times == 1 else min(2.0, 0.1 * 2**trouble.times))
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

    def _submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(_unwrapped(coroutine), self._shared.loop)


@dataclass(slots=True)
class _Trouble:
    lives: tuple[int, ...]  # generation of each server
    since: float
    times: int = 0


class _Shared:
    """What a client and its views by adapter have together: a loop in a thread of its own, connections, places."""

    def __init__(self, max_in_flight: int | None) -> None:
        self.members: dict[str, Member] = {}
        self._max_in_flight = max_in_flight
        self._places: dict[tuple[int, ...], Places] = {}
        self.session = Session()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="rollout-client", daemon=True)
        self._thread.start()

    def places(self, members: Sequence[Member]) -> Places:
        """The places of these servers; who waits for one of fewer servers waits in another line."""
        line = tuple(id(member) for member in members)
        if line not in self._places:
            self._places[line] = Places(members, self._max_in_flight)
        return self._places[line]

    def close(self) -> None:
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._close(), self.loop).result(10)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(10)
            self.loop.close()

    async def _close(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.session.close()


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
