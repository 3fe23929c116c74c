"""Who is asked next: the least loaded of the servers that are ready, no more at once than each has places for."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any

from .member import POLL_S, Member, check_hope
from .state import ServerState


class Places:
    """The places of several servers. Waiters are served first come, first served; all methods run in one loop. The first
    of the line looks after the servers, the others sleep until they have a place or are the first.

    limit: responses in flight at each server; None: its max_num_seqs.
    """

    def __init__(self, members: Sequence[Member], limit: int | None) -> None:
        self.members, self.limit = members, limit
        self._waiting: deque[_Waiter] = deque()
        self._ready_at = 0.0  # when the first of the line last saw a server that was ready

    def take(self, count: int, avoid: Collection[Member] = ()) -> _Place:
        """`async with places.take(n) as (member, state)`: n places of a server that is ready.

        avoid: servers that are asked only when no other is ready. Raises ServerError when there is no hope for any.
        """
        return _Place(self, count, avoid)

    async def wait_ready(self) -> list[ServerState]:
        """The states of the servers that are ready, once one is. Raises ServerError when there is no hope for any."""
        started = time.monotonic()
        while not (ready := self._ready()):
            self._check_hope(time.monotonic() - started)
            await asyncio.sleep(POLL_S)
        return [state for _, state in ready]

    def capacity(self, state: ServerState) -> int:
        return self.limit or state.max_num_seqs

    async def acquire(self, count: int, avoid: Collection[Member]) -> tuple[Member, ServerState]:
        loop = asyncio.get_running_loop()
        waiter = _Waiter(count, avoid, loop.create_future(), loop.create_future())
        self._waiting.append(waiter)
        started = time.monotonic()
        try:
            while True:
                if not waiter.granted.done() and waiter is self._waiting[0]:
                    self._serve()
                if waiter.granted.done():
                    return waiter.granted.result()
                if waiter is not self._waiting[0]:
                    news: list[asyncio.Future[Any]] = [waiter.granted, waiter.first]
                    await asyncio.wait(news, return_when=asyncio.FIRST_COMPLETED)
                    continue
                # Not the servers' readiness is waited for, but places, as long as one is ready.
                self._check_hope(time.monotonic() - max(started, self._ready_at))
                await asyncio.wait([waiter.granted], timeout=POLL_S)
                if not waiter.granted.done() and self._ready():
                    self._ready_at = time.monotonic()
        except BaseException:
            if waiter.granted.done():
                self.give_back(waiter.granted.result()[0], count)
            else:
                self._waiting.remove(waiter)
                self._wake_first()
            raise

    def give_back(self, member: Member, count: int) -> None:
        member.taken -= count
        self._serve()

    def _serve(self) -> None:
        """Give free places to whoever waits longest, as long as there are any."""
        try:
            while self._waiting:
                waiter = self._waiting[0]
                found = self._best(waiter)
                if found is None:
                    return
                self._waiting.popleft()
                found[0].taken += waiter.count
                waiter.granted.set_result(found)
        finally:
            self._wake_first()

    def _wake_first(self) -> None:
        """Whoever is the first of the line now must know it, whatever became of the one before: it looks on."""
        if self._waiting and not self._waiting[0].first.done():
            self._waiting[0].first.set_result(None)

    def _best(self, waiter: _Waiter) -> tuple[Member, ServerState] | None:
        """The server with the smallest share of its places taken that has room, of those that are ready."""
        ready = self._ready()
        for ranked in (
            [pair for pair in ready if pair[0] not in waiter.avoid and not pair[0].suspected],
            [pair for pair in ready if pair[0] not in waiter.avoid],
            ready,
        ):
            if ranked:
                member, state = min(ranked, key=lambda pair: pair[0].taken / self.capacity(pair[1]))
                fits = member.taken == 0 or member.taken + waiter.count <= self.capacity(state)
                return (member, state) if fits else None
        return None

    def _ready(self) -> list[tuple[Member, ServerState]]:
        states = [(member, member.glance()) for member in self.members]
        return [(member, state) for member, state in states if state.state == "ready"]

    def _check_hope(self, waited_s: float) -> None:
        """Raise ServerError when none of the servers is ready and none will be."""
        states = [member.glance() for member in self.members]
        if any(state.state == "ready" for state in states):
            return
        hopeful = [state for state in states if state.state not in ("failed", "stopped")]
        check_hope((hopeful or states)[0], waited_s, None)


class _Waiter:
    def __init__(
        self,
        count: int,
        avoid: Collection[Member],
        granted: asyncio.Future[tuple[Member, ServerState]],
        first: asyncio.Future[None],
    ) -> None:
        self.count, self.avoid, self.granted, self.first = count, avoid, granted, first


class _Place:
    def __init__(self, places: Places, count: int, avoid: Collection[Member]) -> None:
        self.places, self.count, self.avoid = places, count, avoid

    async def __aenter__(self) -> tuple[Member, ServerState]:
        self.member, state = await self.places.acquire(self.count, self.avoid)
        return self.member, state

    async def __aexit__(self, *_: object) -> None:
        self.places.give_back(self.member, self.count)
