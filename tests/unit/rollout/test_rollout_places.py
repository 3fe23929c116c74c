"""The line for places: in order, without a busy crowd, and never without somebody who looks after the servers."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tulu_lite.errors import ServerError
from tulu_lite.rollout import member as member_module
from tulu_lite.rollout import places as places_module
from tulu_lite.rollout.member import Member
from tulu_lite.rollout.places import Places
from tulu_lite.rollout.process import start_time
from tulu_lite.rollout.state import ServerState, write_state


class Server:
    """A member whose state is set by hand, and that counts how often it is asked."""

    suspected = False

    def __init__(self, state: str = "ready", places: int = 1) -> None:
        self.now = ServerState("ready", max_num_seqs=places, ready_timeout_s=0.1)
        self.say(state)
        self.taken = self.asked = 0

    def say(self, state: Any) -> None:
        self.now = replace(self.now, state=state)

    def state(self) -> ServerState:
        self.asked += 1
        return self.now

    glance = state


class Line:
    """Prompts that wait, and in which order they got their places."""

    def __init__(self, *servers: Any) -> None:
        self.places = Places(servers, None)
        self.order: list[int] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def prompt(self, number: int, count: int, lasts_s: float) -> None:
        async with self.places.take(count):
            self.order.append(number)
            await asyncio.sleep(lasts_s)

    async def join(self, *counts: int, lasts_s: float = 0.0) -> None:
        for count in counts:
            self.tasks.append(asyncio.create_task(self.prompt(len(self.tasks), count, lasts_s)))
        await asyncio.sleep(0.01)

    async def end(self) -> list[Any]:
        return await asyncio.wait_for(asyncio.gather(*self.tasks, return_exceptions=True), 10)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places_module, "POLL_S", 0.05)


def test_only_the_first_of_the_line_looks_after_the_servers() -> None:
    async def wait() -> tuple[int, Line]:
        server = Server()
        line = Line(server)
        await line.join(1, lasts_s=0.6)
        await line.join(*[1] * 200)
        server.asked = 0
        await asyncio.sleep(0.5)
        asked = server.asked
        await line.end()
        return asked, line

    asked, line = asyncio.run(wait())
    assert asked < 60  # three a look, ten looks
    assert line.order == list(range(201))


def test_when_the_first_gives_up_the_next_looks_on() -> None:
    async def wait() -> Line:
        server = Server("restarting", places=4)
        server.now = replace(server.now, ready_timeout_s=60.0)
        line = Line(server)
        await line.join(1, 1, 1, 1)
        for number in (1, 0):  # one in the middle of the line, and the first
            line.tasks[number].cancel()
        await asyncio.sleep(0.2)
        server.say("ready")
        ended = await line.end()
        assert [isinstance(end, asyncio.CancelledError) for end in ended] == [True, True, False, False]
        assert server.taken == 0
        return line

    assert asyncio.run(wait()).order == [2, 3]


def test_a_small_one_behind_a_large_one_that_gives_up_is_served_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(places_module, "POLL_S", 60.0)

    async def wait() -> Line:
        line = Line(Server(places=4))
        await line.join(2, lasts_s=60.0)
        await line.join(4, 1)
        assert line.order == [0]  # nobody overtakes
        line.tasks[1].cancel()
        await asyncio.sleep(0.05)
        line.tasks[0].cancel()
        await line.end()
        return line

    assert asyncio.run(wait()).order == [0, 2]


def test_one_that_gives_up_at_the_moment_it_is_served_gives_its_place_on() -> None:
    async def wait() -> Line:
        server = Server()
        line = Line(server)
        await line.join(1, lasts_s=60.0)
        await line.join(1, 1)
        line.places.give_back(server, 1)  # type: ignore[arg-type]
        line.tasks[1].cancel()
        server.taken += 1  # the one place is still the first prompt's
        await asyncio.sleep(0.05)
        line.tasks[0].cancel()
        await line.end()
        assert server.taken == 0
        return line

    assert asyncio.run(wait()).order == [0, 2]


@pytest.mark.parametrize("state", ["failed", "restarting"])
def test_all_learn_that_there_is_no_hope(state: str) -> None:
    async def wait() -> list[Any]:
        server = Server()
        line = Line(server)
        await line.join(1, lasts_s=0.3)
        await line.join(*[1] * 20)
        server.say(state)
        return await line.end()

    ended = asyncio.run(wait())
    assert ended[0] is None
    assert [type(end) for end in ended[1:]] == [ServerError] * 20


def test_who_waits_for_places_has_no_deadline_while_a_server_is_ready() -> None:
    async def wait() -> list[Any]:
        server = Server()
        line = Line(server)
        await line.join(1, lasts_s=0.8)  # a server that is not ready would be given up after 0.4 s
        await line.join(1, 1)
        await asyncio.sleep(0.6)
        server.say("restarting")
        await asyncio.sleep(0.1)
        server.say("ready")
        return await line.end()

    assert asyncio.run(wait()) == [None] * 3


def test_a_glance_looks_at_the_files_now_and_then_and_a_look_always(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, stats = [100.0], []
    monkeypatch.setattr(member_module.time, "monotonic", lambda: now[0])  # type: ignore[attr-defined]
    theirs = member_module._signature
    monkeypatch.setattr(member_module, "_signature", lambda path: stats.append(path) or theirs(path))
    pid = os.getpid()
    state = ServerState("ready", owner_pid=pid, owner_started=start_time(pid) or 0)
    write_state(tmp_path / "server.json", state)
    member = Member(tmp_path)
    for _ in range(100):
        assert member.glance().state == "ready"
    assert len(stats) == 3
    write_state(tmp_path / "server.json", replace(state, state="restarting"))
    assert member.glance().state == "ready"
    assert member.state().state == "restarting"
    assert member.glance().state == "restarting"
    write_state(tmp_path / "server.json", state)
    now[0] += 1.5 * member_module.GLANCE_S
    assert member.glance().state == "ready"
