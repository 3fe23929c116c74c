"""Who has to wait before it samples from a server that several runs share."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tulu_lite.rollout import lease
from tulu_lite.stages.sampling import Sampler


def sampler(folder: Path, *on_cpu: bool) -> Sampler:
    members = [SimpleNamespace(state=lambda cpu=cpu: SimpleNamespace(on_cpu=cpu)) for cpu in on_cpu]
    client: Any = SimpleNamespace(living=lambda: members, shared_folder=folder)
    template: Any = None
    return Sampler(client, template, 64)


def tickets(folder: Path) -> int:
    return len(list(folder.glob("places/lease/[0-9]*.json")))


@pytest.mark.parametrize(("runs", "places"), [(2, 1), (3, 2), (4, 2), (5, 3)])
def test_half_of_the_runs_sample_at_a_time_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: int, places: int
) -> None:
    asked: list[int] = []
    take = lease._take
    monkeypatch.setattr(lease, "_take", lambda *given: asked.append(given[-1]) or take(*given))
    with sampler(tmp_path, True, True).place("seed-1", runs):
        assert tickets(tmp_path) == 1
    assert asked == [places]
    assert tickets(tmp_path) == 0


@pytest.mark.parametrize(("on_cpu", "runs"), [((False,), 3), ((True, False), 3), ((True,), 1)])
def test_nobody_waits_on_a_gpu_or_alone(tmp_path: Path, on_cpu: tuple[bool, ...], runs: int) -> None:
    with sampler(tmp_path, *on_cpu).place("seed-1", runs):
        assert tickets(tmp_path) == 0
