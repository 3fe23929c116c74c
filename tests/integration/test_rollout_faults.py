"""What goes wrong while people wait: killed, stopped, hung and badly started servers, killed owners."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tulu_lite.errors import ServerError, TuluLiteError
from tulu_lite.records import Prompt
from tulu_lite.rollout.client import RolloutClient, Sampling
from tulu_lite.rollout.process import group_members, is_alive
from tulu_lite.rollout.server import RolloutServer
from tulu_lite.rollout.weights import push_weights

PROMPTS = [Prompt(f"q{i}", "", tuple(range(5, 15 + i)), "test") for i in range(24)]
SAMPLED = Sampling(4, 1.0, 300, 17)
ROOT = Path(__file__).resolve().parents[2]


def child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def api_server_of(server: RolloutServer) -> int:
    return child_of(server.state.pid)


def engine_of(server: RolloutServer) -> int:
    return child_of(api_server_of(server))


def in_background(client: RolloutClient) -> tuple[threading.Thread, list]:
    result: list = []
    thread = threading.Thread(target=lambda: result.extend(client.generate(PROMPTS, SAMPLED)), daemon=True)
    thread.start()
    return thread, result


def test_same_seed_same_samples_whatever_else_is_in_the_batch(client):
    whole = client.generate(PROMPTS, SAMPLED)
    assert whole == client.generate(PROMPTS, SAMPLED)
    assert client.generate(PROMPTS[:3], SAMPLED) == whole[:3]
    assert len({rollout.token_ids for group in whole for rollout in group.rollouts}) == 24 * 4
    same = [PROMPTS[0]] * 8  # the same prompt many times is sampled anew each time
    assert (
        len({rollout.token_ids for group in client.generate(same, SAMPLED) for rollout in group.rollouts})
        == 32
    )


def test_order_length_stop_and_callback(client):
    seen = []
    groups = client.generate(PROMPTS, Sampling(2, 1.0, 5, 3), seen.append)
    assert [group.prompt for group in groups] == PROMPTS
    assert sorted(group.prompt.id for group in seen) == sorted(prompt.id for prompt in PROMPTS)
    assert {r.finish_reason for group in groups for r in group.rollouts} == {"length"}
    stop = groups[0].rollouts[0].token_ids[2]
    stopped = client.generate(PROMPTS[:1], Sampling(2, 1.0, 5, 3, stop_token_ids=(stop,)))[0].rollouts[0]
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == groups[0].rollouts[0].token_ids[:3]
    greedy = client.generate(PROMPTS[:1], Sampling(3, 0.0, 5, 3))[0].rollouts
    assert len(greedy) == 3
    assert len(set(greedy)) == 1


def test_prompt_that_does_not_fit_is_named(client):
    with pytest.raises(TuluLiteError, match=r"prompt 'long' has 510 tokens; with 10 .* is 520.*takes 512"):
        client.generate([Prompt("long", "", (1,) * 510, "test")], Sampling(1, 1.0, 10, 0))


def test_every_route_wants_the_key(rollout_server):
    for path in ("/health", "/v1/models", "/weight_info"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(rollout_server.url + path, timeout=10)


@pytest.mark.parametrize("victim", ["engine", "api server", "warden"])
def test_killed_mid_generation_gives_the_samples_of_an_unbroken_run(client, rollout_server, tiny_dir, victim):
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny_dir)
    push_weights(client, ((n, p * 1.01) for n, p in model.named_parameters()), 50)
    unbroken = client.generate(PROMPTS, SAMPLED)
    assert unbroken[0].rollouts[0].weight_versions[0] == 50
    before = group_members(rollout_server.state.pid)
    generation = rollout_server.state.generation
    pids = {"engine": engine_of, "api server": api_server_of, "warden": lambda server: server.state.pid}
    target = pids[victim](rollout_server)
    thread, result = in_background(client)
    time.sleep(0.3)
    assert thread.is_alive(), "the fault must come while responses are under way"
    os.kill(target, signal.SIGKILL)
    thread.join(120)
    assert result == unbroken
    assert rollout_server.state.generation == generation + 1
    assert rollout_server.state.weight_version == 50
    assert not any(is_alive(pid) for pid in before)


def test_an_owner_that_waits_for_an_answer_sees_the_server_die_meanwhile(client, rollout_server, tiny_dir):
    """After a push the owner asks for the version: of an engine that dies just then the answer may never come."""
    from transformers import LlamaForCausalLM

    generation, control = rollout_server.state.generation, rollout_server._current.control
    over = threading.Event()

    def version() -> int:
        os.kill(engine_of(rollout_server), signal.SIGKILL)
        over.wait(60)
        return 0

    control.version = version  # of this life of the server alone
    model = LlamaForCausalLM.from_pretrained(tiny_dir)
    started = time.monotonic()
    push_weights(client, ((n, p * 1.02) for n, p in model.named_parameters()), 52)
    try:
        while rollout_server.state.generation == generation:
            assert time.monotonic() - started < 15
            time.sleep(0.05)
        rollout_server.wait_ready()
        assert rollout_server.state.weight_version == 52
        assert client.generate(PROMPTS[:1], SAMPLED)[0].rollouts[0].weight_versions[0] == 52
    finally:
        over.set()


def test_long_responses_in_every_place_are_not_taken_for_a_hang(client, rollout_server):
    generation = rollout_server.state.generation
    client.generate(PROMPTS[:16], Sampling(4, 1.0, 480, 1))  # 64 at once, without an answer for seconds
    assert rollout_server.state.generation == generation
    assert rollout_server.state.state == "ready"


def test_stopped_engine_is_found_by_the_canary(client, rollout_server):
    unbroken = client.generate(PROMPTS, SAMPLED)
    generation = rollout_server.state.generation
    thread, result = in_background(client)
    time.sleep(0.3)
    stopped = time.monotonic()
    os.kill(engine_of(rollout_server), signal.SIGSTOP)
    while rollout_server.state.state == "ready":
        assert time.monotonic() - stopped < 15
        time.sleep(0.05)
    assert "it is hung" in rollout_server.state.reason
    thread.join(120)
    assert result == unbroken
    assert rollout_server.state.generation == generation + 1


def test_pusher_killed_while_the_server_is_paused_does_not_hang_it(client, rollout_server):
    """The engine stays paused for ever; only a request that does not come shows it."""
    generation = rollout_server.state.generation
    client.control().call("POST", "/pause?mode=keep&clear_cache=true")
    assert len(client.generate(PROMPTS[:2], Sampling(1, 1.0, 4, 0))) == 2
    assert rollout_server.state.generation == generation + 1


def test_fixed_port_in_use(tiny_dir, tmp_path, server_settings):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = RolloutServer(server_settings(port=port), tiny_dir, tmp_path, tmp_path / "log")
        with pytest.raises(TuluLiteError, match=f"server.port: port {port}.*set server.port to 0"):
            server.start()


def test_bad_model_paths(tiny_dir, tmp_path, server_settings):
    with pytest.raises(TuluLiteError, match="is not a folder"):
        RolloutServer(server_settings(), tmp_path / "none", tmp_path, tmp_path / "log").start()
    with pytest.raises(TuluLiteError, match=r"no config\.json"):
        RolloutServer(server_settings(), tmp_path, tmp_path, tmp_path / "log").start()


def test_model_without_weights_fails_at_once_with_the_log(tiny_dir, tmp_path, server_settings):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text((tiny_dir / "config.json").read_text())
    server = RolloutServer(
        server_settings(ready_timeout_s=300.0), model, tmp_path / "run", tmp_path / "log.txt"
    )
    started = time.monotonic()
    server.start()
    with pytest.raises(ServerError, match="Cannot find any model weights") as error:
        server.wait_ready()
    assert time.monotonic() - started < 100
    assert "the last lines of its log" in error.value.why
    assert str(tmp_path / "log.txt") in error.value.cure
    assert server.state.state == "failed"
    server.stop()
    with (
        RolloutClient(tmp_path / "run") as client,
        pytest.raises(ServerError, match="Cannot find any model weights"),
    ):
        client.generate(PROMPTS[:1], SAMPLED)
    assert not group_members(server.state.pid)
    assert not Path(server.state.push_dir).exists()


def test_first_start_that_was_killed_is_tried_again(tiny_dir, tmp_path, server_settings):
    server = RolloutServer(server_settings(), tiny_dir, tmp_path / "run", tmp_path / "log.txt")
    with server:
        deadline = time.monotonic() + 60
        while not group_members(server.state.pid):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1.0)
        os.kill(api_server_of(server), signal.SIGKILL)
        server.wait_ready()
        assert server.state.generation == 2
        with RolloutClient(tmp_path / "run") as client:
            assert len(client.generate(PROMPTS[:2], Sampling(1, 1.0, 4, 0))) == 2


OWNER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from tulu_lite.recipe.server import ServerSettings
from tulu_lite.rollout.client import RolloutClient
from tulu_lite.rollout.server import RolloutServer
settings = ServerSettings.model_validate_json({settings!r})
server = RolloutServer(settings, Path({model!r}), Path({run!r}), Path({run!r}) / "log")
server.start()
assert not {{"torch", "vllm", "transformers"}} & set(sys.modules)
server.wait_ready()
time.sleep(600)
"""


@pytest.mark.parametrize("also_the_warden", [False, True])
def test_killed_owner_leaves_nothing(tiny_dir, tmp_path, server_settings, also_the_warden):
    run = tmp_path / "run"
    settings = server_settings().model_dump_json()
    code = OWNER.format(root=str(ROOT), model=str(tiny_dir), run=str(run), settings=settings)
    owner = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    state: dict = {}
    while state.get("state") != "ready":
        assert time.monotonic() < deadline
        assert owner.poll() is None
        time.sleep(0.2)
        if (run / "server.json").exists():
            state = json.loads((run / "server.json").read_text())
    push_dir, processes = Path(state["push_dir"]), [state["pid"], *group_members(state["pid"])]
    (push_dir / "push-1-x").mkdir()
    (push_dir / "push-1-x" / "00000.safetensors").write_bytes(b"x" * 1000)
    owner.kill()
    if also_the_warden:
        os.kill(state["pid"], signal.SIGKILL)
    owner.wait(10)
    deadline = time.monotonic() + 10
    while any(is_alive(pid) for pid in processes):
        assert time.monotonic() < deadline, "a process outlived its owner"
        time.sleep(0.05)
    with RolloutClient(run) as client, pytest.raises(ServerError, match=r"is stopped.*is gone"):
        client.generate(PROMPTS[:1], SAMPLED)
    if also_the_warden:  # then the next start sweeps
        assert push_dir.exists()
        next_one = RolloutServer(server_settings(), tiny_dir, tmp_path / "next", tmp_path / "next" / "log")
        next_one.start()
        next_one.stop()
    deadline = time.monotonic() + 5
    while push_dir.exists():
        assert time.monotonic() < deadline, "pushed weights stayed behind"
        time.sleep(0.05)
