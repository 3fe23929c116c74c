"""One client and several servers, adapters by name, cancelled requests: against small servers of our own."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from tulu_lite.errors import ServerError, TuluLiteError
from tulu_lite.records import Prompt
from tulu_lite.rollout.adapter_state import Adapter, forget_adapter, read_adapters, write_adapter
from tulu_lite.rollout.client import RolloutClient, Sampling, request_seed
from tulu_lite.rollout.process import start_time
from tulu_lite.rollout.state import ServerState, write_state

SAMPLING = Sampling(2, 1.0, 3, seed=7)
PROMPTS = [Prompt(f"p{i}", "", (i + 1, 2), "test") for i in range(24)]
TOKENS = [
    [((request_seed(7, prompt.id, position) + index) % 1000, prompt.token_ids[0], 9) for index in range(2)]
    for position, prompt in enumerate(PROMPTS)
]


class Fake:
    """A server that samples by seed, in `delay` seconds; `fails` of its requests with HTTP 500 while that is above 0."""

    def __init__(self, folder: Path, **state) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.delay, self.fails, self.version = 0.01, 0, 4
        self.most = self.now = self.given_up = 0
        self.asked: Counter = Counter()  # by model name
        self.adapters: set[str] = set()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.state = ServerState(
            "ready", generation=1, owner_pid=os.getpid(), owner_started=start_time(os.getpid()) or 0,
            max_num_seqs=8, max_model_len=64, ready_timeout_s=5.0,
        )  # fmt: skip
        self.state = replace(self.state, **state)
        self.up()

    def up(self) -> None:
        port = asyncio.run_coroutine_threadsafe(self._up(), self.loop).result(5)
        self.say(url=f"http://127.0.0.1:{port}")

    def down(self) -> None:
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result(5)

    def say(self, **changes) -> None:
        self.state = replace(self.state, **changes)
        write_state(self.folder / "server.json", self.state)

    async def _up(self) -> int:
        app = web.Application()
        app.router.add_post("/inference/v1/generate", self._serve)
        self.runner = web.AppRunner(app, shutdown_timeout=0.01, handler_cancellation=True)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        return site._server.sockets[0].getsockname()[1]

    async def _serve(self, request: web.Request) -> web.Response:
        body = await request.json()
        model, n = body.get("model", "policy"), body["sampling_params"]["n"]
        self.asked[model] += 1
        self.now += n
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.delay)
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        finally:
            self.now -= n
        if "model" in body and model not in self.adapters:
            return web.json_response({"error": {"message": f"no {model}"}}, status=404)
        if self.fails:
            self.fails -= 1
            return web.json_response({"error": {"message": "EngineCore encountered an issue"}}, status=500)
        return web.json_response({"choices": [self._choice(body, index) for index in range(n)]})

    def _choice(self, body: dict, index: int) -> dict:
        tokens = [(body["sampling_params"]["seed"] + index) % 1000, body["token_ids"][0], 9]
        content = [{"token_id": token, "logprob": -0.5} for token in tokens]
        spans = [{"version": str(self.version), "start": 0, "end": 3}]
        return {
            "index": index, "token_ids": tokens, "finish_reason": "length", "logprobs": {"content": content},
            "weight_versions": spans,
        }  # fmt: skip


@pytest.fixture
def fakes(tmp_path):
    made = [Fake(tmp_path / f"copy-{number}") for number in (1, 2)]
    yield made
    for fake in made:
        fake.down()
        fake.loop.call_soon_threadsafe(fake.loop.stop)


@pytest.fixture
def client(fakes):
    with RolloutClient([fake.folder for fake in fakes]) as client:
        yield client


def tokens_of(groups):
    return [[rollout.token_ids for rollout in group.rollouts] for group in groups]


def wait_for(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Several servers


def test_both_are_kept_busy_and_neither_beyond_its_places(fakes, client):
    assert tokens_of(client.generate(PROMPTS, SAMPLING)) == TOKENS
    assert [fake.most for fake in fakes] == [8, 8]


def test_the_least_loaded_gets_the_next(fakes, client):
    fakes[0].delay = 0.5
    client.generate(PROMPTS, SAMPLING)
    assert fakes[1].asked["policy"] > 2 * fakes[0].asked["policy"]


def test_requests_of_one_that_dies_are_asked_elsewhere_with_the_same_samples(fakes, client):
    fakes[0].delay = 60
    task = client.submit(PROMPTS, SAMPLING)
    wait_for(lambda: fakes[0].now == 8)
    fakes[0].down()  # its owner has not noticed yet
    assert tokens_of(task.result(30)) == TOKENS
    assert fakes[1].asked["policy"] == len(PROMPTS)
    fakes[0].up()


def test_one_that_fails_requests_is_asked_last_but_asked_again(fakes, client):
    fakes[0].fails = 3
    assert tokens_of(client.generate(PROMPTS, SAMPLING)) == TOKENS
    assert fakes[0].asked["policy"] < fakes[1].asked["policy"]
    time.sleep(1.1)
    before = fakes[0].asked["policy"]
    client.generate(PROMPTS, SAMPLING)
    assert fakes[0].asked["policy"] > before


def test_one_that_restarts_is_left_out_until_it_is_ready(fakes, client):
    fakes[0].say(state="restarting", reason="killed")
    client.generate(PROMPTS[:8], SAMPLING)
    assert fakes[0].asked["policy"] == 0
    fakes[0].say(state="ready", generation=2)
    time.sleep(0.25)
    client.generate(PROMPTS, SAMPLING)
    assert fakes[0].asked["policy"] > 0


def test_the_last_one_that_failed_for_good_is_told_and_not_before(fakes, client):
    fakes[0].say(state="failed", reason="no memory")
    assert tokens_of(client.generate(PROMPTS, SAMPLING)) == TOKENS
    fakes[1].delay = 60
    task = client.submit(PROMPTS, SAMPLING)
    wait_for(lambda: fakes[1].now == 8)
    fakes[1].say(state="failed", reason="the disk is full")
    fakes[1].down()
    with pytest.raises(ServerError, match=r"is failed"):
        task.result(30)
    fakes[1].up()


def test_a_fleet_is_found_by_one_name(fakes, tmp_path):
    members = tuple(str(fake.folder) for fake in fakes)
    write_state(tmp_path / "server.json", replace(fakes[0].state, members=members))
    with RolloutClient(tmp_path) as client:
        assert [member.folder for member in client.members] == [fake.folder for fake in fakes]
        assert tokens_of(client.generate(PROMPTS, SAMPLING)) == TOKENS
        assert all(fake.asked["policy"] for fake in fakes)
        with pytest.raises(TuluLiteError, match="this client has 2 servers"):
            _ = client.folder


# Cancelling


def test_cancelling_closes_the_connections_and_sends_no_more(fakes, client):
    for fake in fakes:
        fake.delay = 60
    task = client.submit(PROMPTS, SAMPLING)
    wait_for(lambda: sum(fake.now for fake in fakes) == 16)
    task.cancel()
    wait_for(lambda: sum(fake.now for fake in fakes) == 0)
    assert sum(fake.given_up for fake in fakes) == 8
    for fake in fakes:
        fake.delay = 0.01
    assert tokens_of(client.generate(PROMPTS, SAMPLING)) == TOKENS
    assert sum(fake.asked["policy"] for fake in fakes) == 8 + len(PROMPTS)


def test_a_stream_gives_groups_as_they_come(fakes, client):
    fakes[0].delay = 1.0
    stream = client.stream(PROMPTS[:6], SAMPLING)
    started = time.monotonic()
    first = next(stream)
    assert time.monotonic() - started < 0.9
    assert sorted(group.prompt.id for group in [first, *stream]) == sorted(p.id for p in PROMPTS[:6])


def test_a_stream_in_the_callers_own_loop_and_its_end(fakes, client):
    async def use() -> list:
        whole = [group async for group in client.astream(PROMPTS, SAMPLING)]
        for fake in fakes:
            fake.delay = 60
        stream = client.astream(PROMPTS, SAMPLING)
        waiting = asyncio.ensure_future(anext(stream))
        while sum(fake.now for fake in fakes) < 16:
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return whole

    assert sorted(group.prompt.id for group in asyncio.run(use())) == sorted(p.id for p in PROMPTS)
    wait_for(lambda: sum(fake.now for fake in fakes) == 0)


def test_a_stream_raises_what_went_wrong(fakes, client):
    stream = client.stream([Prompt("long", "", (1,) * 62, "test")], SAMPLING)
    with pytest.raises(TuluLiteError, match="prompt 'long' has 62 tokens"):
        next(stream)


# Adapters


def hold(fake: Fake, name: str, version: int, base: int = 4) -> Adapter:
    adapter = Adapter(name, version, "/nowhere", base, "/model")
    fake.adapters.add(adapter.served_name)
    write_adapter(fake.folder, adapter)
    return adapter


def test_requests_name_the_newest_version_which_is_then_on_every_token(fakes, client):
    for fake in fakes:
        hold(fake, "seed-1", 6)
        hold(fake, "seed-2", 9)
    groups = client.with_adapter("seed-2").generate(PROMPTS, SAMPLING)
    assert tokens_of(groups) == TOKENS
    assert {v for group in groups for rollout in group.rollouts for v in rollout.weight_versions} == {9}
    assert set(fakes[0].asked) == set(fakes[1].asked) == {"seed-2@9"}
    assert client.generate(PROMPTS[:1], SAMPLING)[0].rollouts[0].weight_versions == (4, 4, 4)


def test_a_version_that_was_replaced_on_the_way_is_asked_for_anew(fakes, client):
    for fake in fakes:
        hold(fake, "seed-1", 6)
        fake.adapters = {"seed-1@7"}  # the push of 7 has taken 6 away, and is about to record itself
    task = client.with_adapter("seed-1").submit(PROMPTS, SAMPLING)
    wait_for(lambda: all(fake.asked["seed-1@6"] for fake in fakes))
    for fake in fakes:
        hold(fake, "seed-1", 7)
    groups = task.result(30)
    assert tokens_of(groups) == TOKENS
    assert {v for group in groups for rollout in group.rollouts for v in rollout.weight_versions} == {7}


def test_other_weights_under_the_adapter_are_an_error(fakes, client):
    for fake in fakes:
        hold(fake, "seed-1", 6, base=3)
    with pytest.raises(ServerError, match=r"replaced under the adapter seed-1@6 .* weight version 3 .*\[4\]"):
        client.with_adapter("seed-1").generate(PROMPTS, SAMPLING)


def test_no_such_adapter(fakes, client):
    hold(fakes[0], "seed-1", 6)
    hold(fakes[1], "seed-1", 6)
    with pytest.raises(ServerError, match=r"holds no adapter 'seed-2' it holds seed-1"):
        client.with_adapter("seed-2").generate(PROMPTS, SAMPLING)


def test_adapters_pushed_at_the_same_time_are_all_recorded(tmp_path):
    def write(number: int) -> None:
        for version in range(5):
            write_adapter(tmp_path, Adapter(f"seed-{number}", version, "/", 0, "/model"))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = read_adapters(tmp_path)
    assert {name: adapter.version for name, adapter in held.items()} == {f"seed-{n}": 4 for n in range(6)}
    forget_adapter(tmp_path, "seed-3")
    assert "seed-3" not in read_adapters(tmp_path)


# Sampling that bends the distribution


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_p", 0.9),
        ("top_k", 20),
        ("min_p", 0.1),
        ("repetition_penalty", 1.1),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -0.5),
        ("temperature", 0.0),
    ],
)
def test_what_makes_logprobs_untrue_is_refused_for_training_and_sent_otherwise(fakes, client, name, value):
    with pytest.raises(TuluLiteError, match=rf"sampling\.{name} is .* cannot be used for training"):
        replace(SAMPLING, **{name: value}, for_training=True)
    seen = []
    fakes[0]._choice, fakes[1]._choice = (
        lambda body, index, fake=fake: (
            seen.append(body["sampling_params"])
            or Fake._choice(fake, {**body, "sampling_params": {"seed": 0} | body["sampling_params"]}, index)
        )
        for fake in fakes
    )
    client.generate(PROMPTS[:1], replace(SAMPLING, **{name: value}))
    assert seen[0][name] == value
    assert replace(SAMPLING, for_training=True).for_training
