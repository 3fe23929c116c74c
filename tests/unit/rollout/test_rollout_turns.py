"""Several processes push to one server: each makes and removes files in its own turn, and leaves the others' alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tulu_lite.errors import ServerError
from tulu_lite.rollout import adapters, everywhere, weights
from tulu_lite.rollout.digest import combined_digest, tensor_digest
from tulu_lite.rollout.state import Push, ServerState, read_push, write_push

ABOUT = {"dtype": "float32", "wide": []}


class Server:
    """Takes files as the control routes do, and asks `loading` before it reads them."""

    def __init__(self, root: Path) -> None:
        self.folder, self.push_dir = root / "run", root / "shm"
        self.folder.mkdir(parents=True)
        self.push_dir.mkdir()
        self.file = self.folder / "server.json"
        self.held: dict[str, torch.Tensor] = {}
        self.loading: Callable[[], None] = lambda: None

    def wait_ready(self) -> ServerState:
        return ServerState(
            "ready", generation=1, push_dir=str(self.push_dir), control_timeout_s=5.0, model="m"
        )

    state = wait_ready

    def control(self) -> Any:
        return self

    def begin_update(self, mode: str) -> None:
        self.held = {}

    def update(self, info: dict[str, Any]) -> None:
        self.loading()
        for file in info["files"]:
            self.held |= load_file(file)

    def finish_update(self, version: int, digest: str | None) -> dict[str, Any]:
        held = combined_digest({name: tensor_digest(tensor) for name, tensor in self.held.items()})
        assert digest in (None, held)
        return {"tensors": len(self.held), "digest": held, "checked": len(self.held), "unchecked": []}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(weights, "server_about", lambda *_: ABOUT)
    monkeypatch.setattr(weights, "checkpoint_shapes", lambda _: {"w": (3,)})
    monkeypatch.setattr(weights, "_tied", lambda _: False)
    return Server(tmp_path)


def tensors(value: float) -> list[tuple[str, torch.Tensor]]:
    return [("w", torch.full((3,), value))]


def wait_for(condition: Callable[[], Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize("beforehand", [True, False])
def test_one_that_waits_for_its_turn_keeps_its_files(server: Any, beforehand: bool) -> None:
    """beforehand: its names and shapes are known, else it writes everything before it asks the server."""
    weights.push_weights(server, tensors(1.0), 1)
    faults: list[BaseException] = []
    second_came = threading.Event()

    class Given(list):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            second_came.set()
            return super().__iter__()

    def push_second() -> None:
        try:
            given: Any = Given(tensors(3.0))
            weights.push_weights(server, given if beforehand else (pair for pair in given), 3)
        except BaseException as error:
            faults.append(error)

    second = threading.Thread(target=push_second)

    def loading() -> None:
        server.loading = lambda: None
        second.start()
        assert second_came.wait(10)
        time.sleep(0.3)  # until it has made what it makes before its turn

    server.loading = loading
    weights.push_weights(server, tensors(2.0), 2)
    second.join(20)
    assert faults == []
    push = read_push(server.folder)
    assert push is not None
    assert push.version == 3
    assert load_file(push.files[0])["w"].tolist() == [3.0] * 3
    assert len(list(server.push_dir.glob("push-*"))) == 1
    assert len(list(server.push_dir.glob("spare-*"))) <= 1


def another_push(server: Any) -> Path:
    folder = server.push_dir / "push-9-x"
    folder.mkdir()
    (folder / "w.safetensors").write_bytes(b"x")
    write_push(server.folder, Push(9, (str(folder / "w.safetensors"),), "digest", "m"))
    return folder


@pytest.mark.parametrize("way", ["first", "another"])
def test_files_of_one_that_came_after_are_left(
    server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
) -> None:
    came: list[Path] = []
    monkeypatch.setattr(weights, "_survive_restart", lambda *_: came.append(another_push(server)))
    if way == "first":
        weights.push_weights(server, tensors(2.0), 2)
    else:
        pushed = tmp_path / "first-ones.safetensors"
        weights.write_files(tensors(2.0), [tmp_path])
        (tmp_path / "00000.safetensors").rename(pushed)
        digest = combined_digest({name: tensor_digest(tensor) for name, tensor in tensors(2.0)})
        everywhere._update_from(server, Push(2, (str(pushed),), digest, "other"), None)
    assert server.held["w"].tolist() == [2.0] * 3
    assert [path.exists() for path in came] == [True]
    assert not list(server.push_dir.glob("push-2-*"))
    assert not list(server.push_dir.glob("coming-*"))


def test_files_that_a_new_server_loads_survive_a_fault_after_the_update(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> None:
        raise ServerError("it restarted and does not hold it")

    monkeypatch.setattr(weights, "_survive_restart", lost)
    with pytest.raises(ServerError, match="does not hold it"):
        weights.push_weights(server, tensors(2.0), 2)
    push = read_push(server.folder)
    assert push is not None
    assert Path(push.files[0]).exists()


def test_own_files_go_after_a_fault(server: Any) -> None:
    weights.push_weights(server, tensors(1.0), 1)
    before = sorted(server.push_dir.rglob("*"))

    def broken() -> Any:
        yield from tensors(2.0)
        raise ValueError("the trainer failed")

    with pytest.raises(ValueError, match="the trainer failed"):
        weights.push_weights(server, broken(), 2)
    assert sorted(server.push_dir.rglob("*")) == before


@pytest.mark.parametrize(("outer", "inner"), [(0o755, 0o755), (0o700, 0o700)])
def test_another_user_reads_what_lies_in_a_folder_that_is_open_to_it(
    server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outer: int, inner: int
) -> None:
    """A server of server.urls runs as whoever started it; its folder for weights is made open for that."""
    server.push_dir.chmod(outer)
    modes: list[int] = []

    def loading() -> None:
        modes.extend(path.stat().st_mode & 0o777 for path in server.push_dir.iterdir())

    server.loading = loading
    weights.push_weights(server, tensors(1.0), 1)
    weights.write_files(tensors(2.0), [tmp_path])
    digest = combined_digest({name: tensor_digest(tensor) for name, tensor in tensors(2.0)})
    everywhere._update_from(server, Push(2, (str(tmp_path / "00000.safetensors"),), digest, "m"), None)

    server.members = [server]
    server.living = lambda: [server]
    monkeypatch.setattr(adapters, "_check_room", lambda *_: None)
    monkeypatch.setattr(adapters, "_load", lambda *_: loading())
    adapters.push_adapter(server, tensors(1.0), {"r": 1}, "policy-1", 1)
    assert len(modes) >= 4
    assert set(modes) == {inner}
