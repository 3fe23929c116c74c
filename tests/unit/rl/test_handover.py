"""New weights to the sampler: pushed once, known by their version, and by turns where others push too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from tulu_lite.errors import TuluLiteError
from tulu_lite.rl.handover import Handover
from tulu_lite.training.policy_batch import Clock


class FakeSampler:
    """Counts versions; others may push between the turns."""

    def __init__(self) -> None:
        self.version, self.log = 10, []  # type: ignore[var-annotated]
        self.held: Any = None

    def wake(self, is_main: bool) -> None:
        self.log.append("wake")

    def next_version(self) -> int:
        return self.version + 1

    def push(self, weights: Any, is_main: bool, version: int) -> None:
        self.version = version
        self.log.append(f"push {version}")

    @contextmanager
    def turn(self, holder: str, mark: int, weights: Any) -> Iterator[int]:
        if self.held != (holder, mark):
            weights()
            self.version += 1
            self.held = (holder, mark)
        self.log.append("turn")
        yield self.version
        self.log.append("back")

    @contextmanager
    def place(self, holder: str, runs: int) -> Iterator[None]:
        self.log.append(f"place of {holder} among {runs}")
        yield
        self.log.append("back")

    def push_adapter(self, tensors: Any, config: Any, version: int) -> None:
        self.version = version
        self.log.append(f"adapter {version}")


def handover(sampler: FakeSampler, runs: int = 1, adapts: bool = False) -> Handover:
    accelerator: Any = SimpleNamespace(num_processes=1, is_main_process=True, wait_for_everyone=lambda: None)
    made = Handover(sampler, accelerator, nn.Linear(1, 1), adapts, "rlvr/seed-1", runs)
    made.clock = Clock()
    return made


def test_weights_are_pushed_once_and_known_by_their_step() -> None:
    sampler = FakeSampler()
    weights = handover(sampler)
    with weights.turn(0):
        assert weights.step_of(11) == 0
    weights.push(0)
    assert sampler.log == ["wake", "push 11"]
    weights.push(1)
    assert (weights.step_of(11), weights.step_of(12)) == (0, 1)
    with pytest.raises(TuluLiteError, match="version 13, which this run did not push"):
        weights.step_of(13)
    assert weights.clock is not None
    assert weights.clock.take()["push_s"] >= 0


def test_turns_are_given_back_and_push_only_what_is_not_there() -> None:
    sampler = FakeSampler()
    weights = handover(sampler, runs=3)
    with weights.turn(0):
        assert sampler.log == ["turn"]
        assert weights.step_of(11) == 0
    with weights.turn(0):
        assert sampler.version == 11
    sampler.held, sampler.version = ("another", 5), 30
    with weights.turn(1):
        assert weights.step_of(31) == 1
    assert sampler.log == ["turn", "back"] * 3
    assert weights.held is None  # on a shared server nobody's weights stay


def test_adapters_of_several_runs_wait_for_a_place_and_are_pushed_within_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tulu_lite.rl.handover.adapter_tensors", lambda model: {})
    monkeypatch.setattr("tulu_lite.rl.handover.adapter_config", lambda model: {})
    sampler = FakeSampler()
    weights = handover(sampler, runs=3, adapts=True)
    for step in (0, 1, 1):
        with weights.turn(step):
            sampler.log.append(f"sample {step}")
    asked = "place of rlvr/seed-1 among 3"
    assert sampler.log == [
        asked, "wake", "adapter 11", "sample 0", "back",
        asked, "wake", "adapter 12", "sample 1", "back",
        asked, "sample 1", "back",
    ]  # fmt: skip
    assert (weights.step_of(11), weights.step_of(12)) == (0, 1)
    assert weights.clock is not None
    assert set(weights.clock.take()) >= {"wait_s", "push_s"}


def test_an_adapter_alone_on_its_server_waits_for_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tulu_lite.rl.handover.adapter_tensors", lambda model: {})
    monkeypatch.setattr("tulu_lite.rl.handover.adapter_config", lambda model: {})
    sampler = FakeSampler()
    with handover(sampler, adapts=True).turn(0):
        pass
    assert sampler.log == ["wake", "adapter 11"]
