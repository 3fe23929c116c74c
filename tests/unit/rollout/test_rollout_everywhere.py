"""One push for several servers: the others begin when the files are there, and nobody asks the trainer at the same time."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from tulu_lite.errors import ServerError
from tulu_lite.rollout import everywhere
from tulu_lite.rollout.state import Push

PUSH = Push(7, (), "digest", "model")


class FakeClient:
    """Three servers."""

    def __init__(self, states: tuple[str, ...] = ("ready",) * 3) -> None:
        self.members = [
            SimpleNamespace(name=number, state=lambda state=state: SimpleNamespace(state=state))
            for number, state in enumerate(states)
        ]

    def living(self) -> list[Any]:
        return self.members

    def only(self, member: Any) -> Any:
        return member


def test_the_others_load_while_the_first_does_and_all_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    loading, ended = threading.Barrier(3, timeout=20), []

    def push_first(client: Any, tensors: Any, version: int, reference: Any, on_written: Any) -> None:
        on_written(PUSH)
        loading.wait()  # raises unless the other two come while this one is at it

    def update(client: Any, push: Push, reference: Any) -> None:
        loading.wait()
        time.sleep(0.05)
        ended.append((client.name, push))

    monkeypatch.setattr(everywhere.weights, "push_weights", push_first)
    monkeypatch.setattr(everywhere, "_update_from", update)
    client: Any = FakeClient()
    everywhere.push_everywhere(client, [], 7)
    assert sorted(name for name, _ in ended) == [1, 2]
    assert {push for _, push in ended} == {PUSH}


@pytest.mark.parametrize(("state", "raises"), [("ready", True), ("failed", False)])
def test_the_fault_of_another_is_told_unless_it_is_gone_for_good(
    monkeypatch: pytest.MonkeyPatch, state: str, raises: bool
) -> None:
    def update(client: Any, push: Push, reference: Any) -> None:
        if client.name == 2:
            raise ServerError("it refused")

    monkeypatch.setattr(everywhere.weights, "push_weights", lambda *given: given[-1](PUSH))
    monkeypatch.setattr(everywhere, "_update_from", update)
    client: Any = FakeClient(("ready", "ready", state))
    if not raises:
        everywhere.push_everywhere(client, [], 7)
        return
    with pytest.raises(ServerError, match="it refused"):
        everywhere.push_everywhere(client, [], 7)


def test_a_fault_of_the_first_is_told_after_the_others_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []

    def push_first(*given: Any) -> None:
        given[-1](PUSH)
        raise ServerError("the first refused")

    def update(client: Any, push: Push, reference: Any) -> None:
        time.sleep(0.1)
        ended.append(client.name)

    monkeypatch.setattr(everywhere.weights, "push_weights", push_first)
    monkeypatch.setattr(everywhere, "_update_from", update)
    client: Any = FakeClient()
    with pytest.raises(ServerError, match="the first refused"):
        everywhere.push_everywhere(client, [], 7)
    assert sorted(ended) == [1, 2]


def test_the_trainer_is_asked_by_one_at_a_time() -> None:
    inside = threading.Lock()

    def reference(samples: Any) -> Any:
        assert inside.acquire(blocking=False), "two at once"
        time.sleep(0.02)
        inside.release()
        return samples

    asked: Any = everywhere._one_at_a_time(reference)
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda n=n: answers.append(asked(n))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(answers) == [0, 1, 2, 3]
    assert everywhere._one_at_a_time(None) is None
