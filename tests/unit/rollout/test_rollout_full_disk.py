"""A disk that is full while server.json is written: its owner goes on, and tells it as soon as there is room."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tulu_lite.errors import ServerError, TuluLiteError
from tulu_lite.recipe.server import ServerSettings
from tulu_lite.rollout import fleet as fleet_module
from tulu_lite.rollout import remote as remote_module
from tulu_lite.rollout import server as server_module
from tulu_lite.rollout import state as state_module
from tulu_lite.rollout.fleet import RolloutFleet
from tulu_lite.rollout.remote import RemoteServer
from tulu_lite.rollout.server import RolloutServer
from tulu_lite.rollout.state import ServerState, read_state, write_state


class Disk:
    """Has no room for server.json while `full` is set."""

    def __init__(self) -> None:
        self.full = threading.Event()
        self.refused = 0

    def write(self, file: Path, state: ServerState) -> None:
        if self.full.is_set():
            self.refused += 1
            raise TuluLiteError(f"the disk is full: could not write {file}")
        write_state(file, state)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Disk]:
    made = Disk()
    for module in (state_module, server_module, remote_module, fleet_module):
        if hasattr(module, "write_state"):
            monkeypatch.setattr(module, "write_state", made.write)
        if hasattr(module, "shared_memory_folder"):
            monkeypatch.setattr(module, "shared_memory_folder", lambda: tmp_path)
    monkeypatch.setattr(server_module, "short_temporary_folder", lambda: tmp_path)
    yield made
    made.full.clear()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def told(server: Any) -> str:
    state = read_state(server.state_file)
    return state.state if state else ""


class Quick(RolloutServer):
    """Comes up without a process. `fails`: or does not."""

    fails = False

    def __init__(self, model: Path, run: Path, disk: Disk) -> None:
        super().__init__(ServerSettings(), model, run, run / "log.txt")
        self.disk, self.begun = disk, threading.Event()

    def _bring_up(self, first: bool) -> Any:
        assert self.begun.wait(10)
        self.disk.full.set()
        if self.fails:
            raise ServerError("it does not start")
        self._set("ready", reason="")
        return SimpleNamespace(fault=lambda: None)


def test_a_server_goes_on_and_says_so_later(disk: Disk, model: Path, tmp_path: Path) -> None:
    server = Quick(model, tmp_path / "run", disk)
    server.start()
    try:
        server.begun.set()
        server.wait_ready(10)
        wait_for(lambda: disk.refused > 2)
        assert told(server) == "starting"
        assert "the disk is full" in server.state_text()
        disk.full.clear()
        wait_for(lambda: told(server) == "ready")
        assert server.state_text() == "ready, weights 0"
    finally:
        server.stop()
    assert told(server) == "stopped"


def test_a_server_that_fails_tells_all_who_wait(disk: Disk, model: Path, tmp_path: Path) -> None:
    server = Quick(model, tmp_path / "run", disk)
    server.fails = True
    server.start()
    try:
        refused: list[BaseException] = []

        def order() -> None:
            try:
                server.serve_model(model, deadline_s=20)
            except BaseException as error:
                refused.append(error)

        ordered = threading.Thread(target=order)
        ordered.start()
        wait_for(lambda: not server._orders.empty())
        server.begun.set()
        with pytest.raises(ServerError, match="it does not start"):
            server.wait_ready(10)
        ordered.join(10)
        assert "is failed: it does not start" in str(refused)
        with pytest.raises(ServerError, match="is failed"):  # and whoever comes after
            server.serve_model(model, deadline_s=20)
        assert told(server) == "starting"
        disk.full.clear()
        wait_for(lambda: told(server) == "failed")
    finally:
        server.stop()


def test_a_start_without_room_is_refused(disk: Disk, model: Path, tmp_path: Path) -> None:
    disk.full.set()
    with pytest.raises(TuluLiteError, match="the disk is full"):
        Quick(model, tmp_path / "run", disk).start()
    assert not list(tmp_path.glob("tulu-lite-*"))


class Answers:
    """The control routes of a server that is well when it is asked to be."""

    def __init__(self, *_: Any) -> None:
        self.well = threading.Event()

    def healthy(self) -> bool:
        return self.well.is_set()

    def set_version(self, version: int) -> None: ...

    def max_model_len(self) -> int:
        return 64


def test_a_remote_server_is_watched_on(
    disk: Disk, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "LOOK_S", 0.02)
    monkeypatch.setattr(remote_module, "Control", Answers)
    server = RemoteServer(ServerSettings(), "http://127.0.0.1:1", model, tmp_path / "run")
    server.start()
    try:
        disk.full.set()
        server.control.well.set()  # type: ignore[attr-defined]
        server.wait_ready(10)
        disk.full.clear()
        wait_for(lambda: told(server) == "ready")
    finally:
        server.stop()


def test_a_fleet_is_followed_on(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "FOLLOW_S", 0.02)
    member: Any = SimpleNamespace(
        state=ServerState("starting"), folder=tmp_path, start=lambda: None, stop=lambda: None
    )
    fleet = RolloutFleet([member], tmp_path / "run", tmp_path / "log.txt")
    fleet.start()
    try:
        disk.full.set()
        member.state = ServerState("ready")
        wait_for(lambda: disk.refused > 2)
        disk.full.clear()
        wait_for(lambda: told(fleet) == "ready")
    finally:
        fleet.stop()
