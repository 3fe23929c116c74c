"""The client against a small server of our own that fails on demand: each request is answered exactly once."""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import web

from tulu_lite.errors import ServerError, TuluLiteError
from tulu_lite.records import Prompt
from tulu_lite.rollout.client import RolloutClient, Sampling, request_seed
from tulu_lite.rollout.lean import FLAG, NO_LOGPROB, sampled_logprobs
from tulu_lite.rollout.process import start_time
from tulu_lite.rollout.state import ServerState, write_state

SAMPLING = Sampling(2, 1.0, 3, seed=7)
PROMPTS = [Prompt(f"p{i}", "", (i + 1, 2), "test") for i in range(20)]


def answer(body: dict, version: int = 4) -> dict:
    """Three tokens a response that depend on prompt, seed and index alone, like a seeded sampler's."""
    parameters = body["sampling_params"]
    choices = []
    for index in range(parameters["n"]):
        first = (parameters.get("seed", 0) + index) % 1000
        tokens = [first, body["token_ids"][0], 9]
        content = [{"token_id": token, "logprob": -0.5, "rank": 1, "top_logprobs": []} for token in tokens]
        spans = [{"version": str(version), "start": 0, "end": 3}]
        choices.append(
            {"index": index, "token_ids": tokens, "finish_reason": "length", "logprobs": {"content": content},
             "weight_versions": spans}
        )  # fmt: skip
    return {"choices": choices[::-1]}  # any order


class FakeServer:
    """Runs `handle(self, number, body)` for each request; counts them."""

    def __init__(self, folder: Path, handle) -> None:
        self.folder, self.handle = folder, handle
        self.requests = 0
        self.in_flight = self.most_in_flight = 0
        self.answered: Counter = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.runner: web.AppRunner | None = None
        self.state = ServerState(
            "ready", generation=1, owner_pid=os.getpid(), owner_started=start_time(os.getpid()) or 0,
            max_num_seqs=8, max_model_len=64, ready_timeout_s=5.0,
        )  # fmt: skip
        self.up()

    def up(self) -> None:
        port = asyncio.run_coroutine_threadsafe(self._up(), self._loop).result(5)
        self.say(url=f"http://127.0.0.1:{port}")

    def down(self) -> None:
        assert self.runner is not None
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self._loop).result(5)

    def say(self, **changes) -> None:
        self.state = replace(self.state, **changes)
        write_state(self.folder / "server.json", self.state)

    async def _up(self) -> int:
        app = web.Application()
        app.router.add_post("/inference/v1/generate", self._serve)
        self.runner = web.AppRunner(app, shutdown_timeout=0.01)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        return site._server.sockets[0].getsockname()[1]

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests += 1
        number = self.requests
        self.in_flight += body["sampling_params"]["n"]
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0.005)
            response = await self.handle(self, number, body)
        finally:
            self.in_flight -= body["sampling_params"]["n"]
        if response.status == 200:
            self.answered[body["token_ids"][0]] += 1
        return response


async def good(server, number, body):
    return web.json_response(answer(body))


@pytest.fixture
def serve(tmp_path):
    servers = []

    def start(handle=good):
        servers.append(FakeServer(tmp_path, handle))
        return servers[-1]

    yield start
    for server in servers:
        server.down()


@pytest.fixture
def client(tmp_path):
    with RolloutClient(tmp_path) as client:
        yield client


def expected(prompts, sampling, version=4):
    return [
        [
            ((request_seed(sampling.seed, prompt.id, position) + index) % 1000, prompt.token_ids[0], 9)
            for index in range(sampling.n)
        ]
        for position, prompt in enumerate(prompts)
    ]


def tokens_of(groups):
    return [[rollout.token_ids for rollout in group.rollouts] for group in groups]


def test_groups_come_in_order_with_versions_and_callback_in_the_calling_thread(serve, client):
    server = serve()
    threads = set()
    groups = client.generate(PROMPTS, SAMPLING, lambda group: threads.add(threading.current_thread()))
    assert tokens_of(groups) == expected(PROMPTS, SAMPLING)
    assert groups[3].rollouts[1].weight_versions == (4, 4, 4)
    assert groups[3].rollouts[1].logprobs == (-0.5, -0.5, -0.5)
    assert threads == {threading.current_thread()}
    assert set(server.answered.values()) == {1}
    assert client.generate([], SAMPLING) == []


def test_no_more_in_flight_than_the_server_samples_at_once(serve, client):
    server = serve()
    client.generate(PROMPTS, SAMPLING)
    assert server.most_in_flight == 8


def test_requests_that_fail_are_sent_again_and_only_those(serve, client):
    async def flaky(server, number, body):
        if number % 3 == 0:
            return web.json_response({"error": {"message": "EngineCore encountered an issue"}}, status=500)
        return web.json_response(answer(body))

    server = serve(flaky)
    assert tokens_of(client.generate(PROMPTS, SAMPLING)) == expected(PROMPTS, SAMPLING)
    assert set(server.answered.values()) == {1}
    assert server.requests > len(PROMPTS)


def test_a_restart_in_mid_flight_on_another_port_loses_nothing(serve, client):
    """The server dies with requests open; its owner says restarting, then ready at another URL."""

    async def first_life(server, number, body):
        if server.state.generation == 1 and number > 6:
            await asyncio.sleep(60)
        return web.json_response(answer(body))

    server = serve(first_life)

    def fail_and_come_back():
        time.sleep(0.2)
        server.say(state="restarting", reason="killed")
        server.down()
        time.sleep(0.3)
        server.state = replace(server.state, state="ready", generation=2)
        server.up()

    thread = threading.Thread(target=fail_and_come_back)
    thread.start()
    assert tokens_of(client.generate(PROMPTS, SAMPLING)) == expected(PROMPTS, SAMPLING)
    thread.join()
    assert set(server.answered.values()) == {1}


def test_aborted_responses_are_sampled_anew(serve, client):
    async def aborting(server, number, body):
        data = answer(body, version=5)
        if number <= 4:
            data["choices"][0] |= {"finish_reason": "abort", "token_ids": []}
        return web.json_response(data)

    serve(aborting)
    groups = client.generate(PROMPTS, SAMPLING)
    assert tokens_of(groups) == expected(PROMPTS, SAMPLING)
    assert groups[0].rollouts[0].weight_versions == (5, 5, 5)


def test_server_that_failed_for_good_is_told_with_its_reason(serve, client):
    async def hang(server, number, body):
        await asyncio.sleep(60)

    server = serve(hang)

    def fail():
        time.sleep(0.2)
        server.say(state="failed", reason="out of memory; the log says ...")
        server.down()

    threading.Thread(target=fail).start()
    with pytest.raises(ServerError, match="is failed out of memory"):
        client.generate(PROMPTS, SAMPLING)
    server.up()


def test_deadline_then_retries_then_error(serve, client, monkeypatch):
    monkeypatch.setattr("tulu_lite.rollout.client.QUIET_RETRIES_S", 0.3)

    async def hang(server, number, body):
        await asyncio.sleep(60)

    serve(hang).say(request_timeout_s=0.2)
    with pytest.raises(ServerError, match=r"says it is ready, but a request failed.*TimeoutError"):
        client.generate(PROMPTS[:2], SAMPLING)


def test_a_refused_request_is_an_error_at_once(serve, client):
    async def refuse(server, number, body):
        return web.json_response({"error": {"message": "no such parameter"}}, status=400)

    server = serve(refuse)
    with pytest.raises(ServerError, match=r"HTTP 400.*no such parameter"):
        client.generate(PROMPTS[:1], SAMPLING)
    assert server.requests == 1


def test_lean_answers_say_the_same(serve, client):
    asked = []

    async def lean(server, number, body):
        data = answer(body)
        asked.append(body["sampling_params"])
        for choice in data["choices"]:
            choice["logprobs"] = [entry["logprob"] for entry in choice["logprobs"]["content"]]
        return web.json_response(data)

    serve(lean)
    assert tokens_of(client.generate(PROMPTS[:3], SAMPLING)) == expected(PROMPTS[:3], SAMPLING)
    assert all(parameters["extra_args"] == {FLAG: True} for parameters in asked)


@pytest.mark.parametrize(
    ("ids", "token_ids", "logprobs", "found"),
    [
        ([7, 8], [7, 8], [-0.5, -2.0], [-0.5, -2.0]),
        ([7, 8], [7, 9], [-0.5, -2.0], [-0.5, NO_LOGPROB]),  # of another token
        ([7, 8], [7, 8], [float("nan"), -math.inf], [NO_LOGPROB, NO_LOGPROB]),
    ],
)
def test_what_has_no_logprob_is_said(ids, token_ids, logprobs, found):
    flat = SimpleNamespace(start_indices=[0, 1], token_ids=token_ids, logprobs=logprobs)
    assert sampled_logprobs(ids, flat) == found
    with pytest.raises(ValueError, match="zip"):
        sampled_logprobs(ids[:1], flat)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.update(weight_versions=[{"version": "4", "start": 0, "end": 2}]),
            "weight versions for 2 of 3",
        ),
        (lambda c: c.update(weight_versions=None), "cannot be read"),
        (lambda c: c["logprobs"]["content"].pop(), "logprobs are of other tokens"),
        (lambda c: c["logprobs"]["content"][0].update(logprob=-9999.0), "not finite"),
        (lambda c: c.update(logprobs=[-0.5, -0.5]), "2 logprobs for 3 tokens"),
        (lambda c: c.update(logprobs=[-0.5, -0.5, -9999.0]), "not finite"),
        (lambda c: c.update(index=1), "asked for 2 responses"),
        (lambda c: c.update(finish_reason="error"), "ended by 'error'"),
    ],
)
def test_an_answer_that_is_not_whole_is_an_error(serve, client, change, message):
    async def broken(server, number, body):
        data = answer(body)
        change(data["choices"][1])  # index 0
        return web.json_response(data)

    serve(broken)
    with pytest.raises(ServerError, match=message):
        client.generate(PROMPTS[:1], SAMPLING)


def test_prompts_that_do_not_fit_are_named_before_anything_is_asked(serve, client):
    server = serve()
    with pytest.raises(
        TuluLiteError, match=r"prompt 'long' has 62 tokens; with 3 .* 65, and the server takes 64"
    ):
        client.generate([PROMPTS[0], Prompt("long", "", (1,) * 62, "test")], SAMPLING)
    with pytest.raises(TuluLiteError, match="prompt 'none' has no tokens"):
        client.generate([Prompt("none", "", (), "test")], SAMPLING)
    with pytest.raises(TuluLiteError, match="at most 8 at once"):
        client.generate(PROMPTS, Sampling(9, 1.0, 3, 0))
    assert server.requests == 0


def test_greedy_asks_once_and_decode_leaves_the_end_token_out(serve, tmp_path):
    async def stopped(server, number, body):
        data = answer(body)
        for choice in data["choices"]:
            choice["finish_reason"] = "stop"
        return web.json_response(data)

    server = serve(stopped)
    with RolloutClient(tmp_path, decode=lambda ids: " ".join(map(str, ids))) as client:
        groups = client.generate(PROMPTS[:1], Sampling(3, 0.0, 3, 0))
    assert server.requests == 1
    assert [rollout.text for rollout in groups[0].rollouts] == ["0 1"] * 3


def test_an_exception_in_the_callback_ends_the_call_and_the_client_lives(serve, client):
    serve()

    def fail(group):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        client.generate(PROMPTS, SAMPLING, fail)
    assert tokens_of(client.generate(PROMPTS, SAMPLING)) == expected(PROMPTS, SAMPLING)


def test_url_alone(serve):
    server = serve()
    with RolloutClient(server.state.url, max_in_flight=4) as client:
        assert tokens_of(client.generate(PROMPTS, SAMPLING)) == expected(PROMPTS, SAMPLING)
    assert server.most_in_flight == 4


def test_no_server_and_a_dead_owner(client, serve):
    with pytest.raises(ServerError, match="there is no rollout server"):
        client.generate(PROMPTS, SAMPLING)
    serve().say(owner_started=1)
    with pytest.raises(ServerError, match="is stopped the process that owned it"):
        client.generate(PROMPTS, SAMPLING)


def test_seeds_differ_by_every_part_and_their_low_bits_are_random():
    seeds = {request_seed(s, p, i) for s in range(5) for p in ("a", "b") for i in range(500)}
    assert len(seeds) == 5000
    low = sorted({seed & 0xFFFFFFFF for seed in seeds})  # a CPU generator sees no more
    assert len(low) > 4990
    assert max(seeds) < 2**62
    assert request_seed(7, "p0", 0) == request_seed(7, "p0", 0)
    assert request_seed(1, "1", 1) != request_seed(11, "", 1)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"n": 0}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_bad_sampling_is_named(changes, name):
    with pytest.raises(TuluLiteError, match=f"sampling.{name} is"):
        replace(SAMPLING, **changes)


def test_client_server_and_launcher_import_no_torch():
    code = (
        "import sys, tulu_lite.rollout.client, tulu_lite.rollout.server, tulu_lite.rollout.serve, tulu_lite.rollout.launch\n"
        "import tulu_lite.rollout.weights\n"
        "bad = {'torch', 'vllm', 'transformers', 'safetensors', 'numpy'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3], timeout=60)
