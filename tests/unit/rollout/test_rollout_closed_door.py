"""A server that takes no connections any more has failed, even when its process lives on and an update is under way."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tulu_lite.rollout import generation
from tulu_lite.rollout.control import Control, NoAnswer


class Closed(Control):
    """Answers nothing: refuses connections, or (slow) lets them wait until their deadline."""

    def __init__(self, slow: bool) -> None:
        self.slow = slow

    def call(self, *_: Any, **__: Any) -> Any:
        raise NoAnswer("no answer", timed_out=self.slow)


@pytest.mark.parametrize("slow", [False, True])
def test_refused_connections_are_a_fault_and_slow_answers_are_not(
    slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "HEALTH_S", 0.01)
    health = generation.Health(Closed(slow))
    deadline = time.monotonic() + (0.5 if slow else 10.0)
    while health.fault is None and time.monotonic() < deadline:
        time.sleep(0.01)
    health.stop()
    assert (health.fault is None) == slow
