"""A server that takes no connections any more has failed, even when its process lives on and an update is under way."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tulu_lite.recipe.server import ServerSettings
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
    slow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "HEALTH_S", 0.01)
    canary = generation.Canary(Closed(slow), ServerSettings(canary_interval_s=600.0), tmp_path)
    deadline = time.monotonic() + (0.5 if slow else 10.0)
    while canary.fault is None and time.monotonic() < deadline:
        time.sleep(0.01)
    canary.stop()
    assert (canary.fault is None) == slow
