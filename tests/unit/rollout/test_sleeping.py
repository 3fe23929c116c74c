"""Sleep and wake against a control server that notes what it is asked; the signs of trouble that are read from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tulu_lite.files import write_json
from tulu_lite.recipe.server import ServerSettings
from tulu_lite.rollout import generation, signs
from tulu_lite.rollout.client import RolloutClient
from tulu_lite.rollout.control import Control
from tulu_lite.rollout.launch import arguments
from tulu_lite.rollout.machine import gpus
from tulu_lite.rollout.process import start_time
from tulu_lite.rollout.signs import SLEEP_FILE, forget_sleep, is_asleep
from tulu_lite.rollout.sleeping import put_to_sleep, wake
from tulu_lite.rollout.state import STATE_FILE, ServerState, write_state


class Fake(ThreadingHTTPServer):
    """Answers as vLLM's control routes do; `calls` is what it was asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.sleeping = False
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: Fake

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.calls.append(self.path)
        if self.path.startswith("/sleep"):
            self.server.sleeping = True
        if self.path.startswith("/wake_up"):
            self.server.sleeping = False
        self._say({})

    def do_GET(self) -> None:
        self._say({"is_sleeping": self.server.sleeping})

    def _say(self, data: dict) -> None:
        text = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def fake() -> Iterator[Fake]:
    server = Fake()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def client(fake, tmp_path) -> Iterator[RolloutClient]:
    url = f"http://127.0.0.1:{fake.server_address[1]}"
    own = os.getpid()
    write_state(
        tmp_path / STATE_FILE, ServerState("ready", url, 1, owner_pid=own, owner_started=start_time(own))
    )
    with RolloutClient(tmp_path) as client:
        yield client


@pytest.mark.parametrize("level", [1, 2])
def test_sleep_and_wake(client, fake, tmp_path, level):
    wake(client)
    assert fake.calls == []  # it was awake
    put_to_sleep(client, level)
    assert is_asleep(tmp_path)
    wake(client)
    wake(client)
    assert fake.calls == [f"/sleep?level={level}&mode=wait", "/wake_up"]
    assert not is_asleep(tmp_path)


def test_a_server_that_started_anew_is_not_woken(client, fake, tmp_path):
    put_to_sleep(client, 1)
    fake.sleeping = False
    wake(client)
    assert fake.calls == ["/sleep?level=1&mode=wait"]
    assert not is_asleep(tmp_path)


def test_the_sampler_sleeps_only_where_colocated_and_on_the_main_process(client, fake):
    from tulu_lite.stages.sampling import Sampler

    for level, is_main in ((0, True), (2, False)):
        sampler = Sampler(client, None, 64, level)
        sampler.sleep(is_main)
        sampler.wake(is_main)
    assert fake.calls == []
    sampler = Sampler(client, None, 64, 2)
    sampler.sleep(True)
    sampler.wake(True)
    assert fake.calls == ["/sleep?level=2&mode=wait", "/wake_up"]


def test_no_canary_disturbs_a_sleeping_server(tmp_path):
    asked = []

    class Counting(Control):
        def __init__(self) -> None:
            self.scores = False

        def call(self, *what, **_):
            return None

        def _exchange(self, *_):
            return b""

        def canary(self, timeout_s):
            asked.append(timeout_s)

    (tmp_path / SLEEP_FILE).write_text("{}")
    canary = generation.Canary(Counting(), ServerSettings(canary_interval_s=0.01), tmp_path)
    time.sleep(0.3)
    assert asked == []
    forget_sleep(tmp_path)
    deadline = time.monotonic() + 10
    while not asked and time.monotonic() < deadline:
        time.sleep(0.01)
    canary.stop()
    assert asked


def test_sleep_mode_is_asked_of_vllm_on_gpus_alone(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for colocate, on_cpu, there in ((True, False, True), (False, False, False), (True, True, False)):
        settings = ServerSettings(colocate=colocate).model_dump(mode="json")
        spec = {"model": str(tmp_path), "host": "127.0.0.1", "port": 1, "settings": settings}
        assert ("--enable-sleep-mode" in arguments(spec, on_cpu)) == there


def test_a_stopped_process_is_found_and_a_running_one_is_not(monkeypatch):
    monkeypatch.setattr(signs, "LOOK_S", 0.01)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        stopped = signs.StoppedProcess(child.pid)
        for _ in range(10):
            assert stopped.look() is None
            time.sleep(0.011)
        os.kill(child.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while (fault := stopped.look()) is None and time.monotonic() < deadline:
            time.sleep(0.011)
        assert fault is not None
        assert f"process {child.pid} is stopped" in fault
        os.kill(child.pid, signal.SIGCONT)  # one that goes on in time is left alone
        time.sleep(0.05)
        assert stopped.look() is None
    finally:
        child.kill()
        child.wait()


def test_an_update_whose_process_died_is_found(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    write_json(tmp_path / signs.UPDATE_FILE, {"pid": child.pid, "started": start_time(child.pid), "until": 0})
    assert signs.abandoned_update(tmp_path) is None
    signs.forget_abandoned_update(tmp_path)
    assert (tmp_path / signs.UPDATE_FILE).exists()
    child.kill()
    child.wait()
    assert f"(pid {child.pid}) died on the way" in (signs.abandoned_update(tmp_path) or "")
    signs.forget_abandoned_update(tmp_path)
    assert signs.abandoned_update(tmp_path) is None
    assert not (tmp_path / signs.UPDATE_FILE).exists()


def test_gpus_as_nvidia_smi_tells():
    text = "0, GPU-aa, NVIDIA H200, 143771\n1, GPU-bb, NVIDIA H200, 143771\n"
    assert [gpu.number for gpu in gpus(lambda: text, {})] == [0, 1]
    assert gpus(lambda: text, {})[0].memory == 143771 * 2**20
    assert [gpu.number for gpu in gpus(lambda: text, {"CUDA_VISIBLE_DEVICES": "1"})] == [1]
    assert [gpu.number for gpu in gpus(lambda: text, {"CUDA_VISIBLE_DEVICES": "GPU-bb,0"})] == [1, 0]
    assert gpus(lambda: text, {"CUDA_VISIBLE_DEVICES": ""}) == []
    assert [gpu.number for gpu in gpus(lambda: text, {"CUDA_VISIBLE_DEVICES": "0,7,1"})] == [0]
    assert gpus(lambda: "", {}) == []
