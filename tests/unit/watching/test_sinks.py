"""TensorBoard's files read back with TensorBoard's reader, W&B as it is called, and what happens when one fails."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tulu_lite.errors import TuluLiteError
from tulu_lite.watching import sinks
from tulu_lite.watching.sinks import Logged, Sinks, TensorBoard, Wandb, check_sinks

ROWS = [{"step": step, "loss": 1.0 / step, "note": "text", "on": True} for step in range(1, 8)]


def logged(folder: Path) -> Logged:
    return Logged("rl/seed-2", "0123456789abcdef" * 4, folder, "run", {"stage": {"kind": "rlvr"}})


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=False)
    events.Reload()
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]


def test_tensorboard_holds_what_was_logged(tmp_path: Path) -> None:
    sink = Sinks(["tensorboard"], logged(tmp_path))
    for row in ROWS:
        sink.log(row["step"], {name: value for name, value in row.items() if name != "step"})
    sink.close()
    assert scalars(tmp_path, "loss") == [(step, 1.0 / step) for step in range(1, 8)]


def test_a_resumed_run_has_each_step_once_and_keeps_its_times(tmp_path: Path) -> None:
    first = TensorBoard(logged(tmp_path))
    first.resume([], 0)
    for row in ROWS:
        first.log(row["step"], {"loss": row["loss"]})
    first.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"), purge_orphaned_data=False).Reload()
    times = {event.step: event.wall_time for event in events.Scalars("loss")}

    second = TensorBoard(logged(tmp_path))
    second.resume(ROWS[:4], 7)
    second.log(5, {"loss": 9.0})
    second.close()
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    assert scalars(tmp_path, "loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3), (4, 1 / 4), (5, 9.0)]
    events = EventAccumulator(str(tmp_path / "tensorboard"), purge_orphaned_data=False).Reload()
    assert {e.step: e.wall_time for e in events.Scalars("loss") if e.step < 5} == {
        s: times[s] for s in range(1, 5)
    }


def test_a_file_torn_by_a_kill_costs_its_times_only(tmp_path: Path) -> None:
    first = TensorBoard(logged(tmp_path))
    for row in ROWS:
        first.log(row["step"], {"loss": row["loss"]})
    first.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-11])
    second = TensorBoard(logged(tmp_path))
    second.resume(ROWS, 7)
    second.close()
    assert [step for step, _ in scalars(tmp_path, "loss")] == list(range(1, 8))


def test_a_sink_switched_on_later_gets_what_it_missed(tmp_path: Path) -> None:
    sink = Sinks(["tensorboard"], logged(tmp_path))
    sink.resume(ROWS[:5], 6)
    sink.close()
    assert [step for step, _ in scalars(tmp_path, "loss")] == [1, 2, 3, 4, 5]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["loss"]  # neither text nor true and false


class FakeRun:
    def __init__(self, server_step: int = 0, resumed: bool = False) -> None:
        self.step, self.resumed, self.sent, self.finished = server_step, resumed, [], False

    def log(self, values: dict[str, float], step: int) -> None:
        self.sent.append((step, values["loss"]))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for the package: what it is told, without its network."""
    fake = SimpleNamespace(run=FakeRun(), account=False, asked={})

    def init(**asked: Any) -> FakeRun:
        fake.asked = asked
        return fake.run

    fake.init, fake.login, fake.Settings = init, lambda **_: fake.account, lambda **given: given
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for variable in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    return fake


def test_wandb_gets_the_step_by_its_key_and_offline_without_an_account(
    wandb: SimpleNamespace, tmp_path: Path
) -> None:
    sink = Wandb(logged(tmp_path))
    sink.resume([], 0)
    sink.log(1, {"loss": 1.0})
    sink.close()
    asked = wandb.asked
    assert (asked["id"], asked["name"], asked["group"], asked["project"]) == (
        "0123456789abcdef",
        "rl/seed-2",
        "rl",
        "run",
    )
    assert (asked["mode"], asked["resume"], asked["dir"]) == ("offline", "allow", str(tmp_path))
    assert wandb.run.sent == [(1, 1.0)] and wandb.run.finished


def test_wandb_is_online_with_an_account_or_as_its_own_variable_says(
    wandb: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb.account = True
    Wandb(logged(tmp_path))
    assert wandb.asked["mode"] is None
    wandb.account = False
    monkeypatch.setenv("WANDB_MODE", "disabled")
    Wandb(logged(tmp_path))
    assert wandb.asked["mode"] is None


def test_a_resumed_run_sends_wandb_no_step_twice(wandb: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "wandb" / "offline-run-20260101_000000-0123456789abcdef").mkdir(parents=True)
    sink = Wandb(logged(tmp_path))
    sink.resume(ROWS[:4], 6)  # saved at 4, killed after 6
    for row in ROWS[4:]:
        sink.log(row["step"], {"loss": row["loss"]})
    assert wandb.run.sent == [(7, 1 / 7)]


def test_wandb_online_is_asked_how_far_it_got(wandb: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "wandb" / "run-20260101_000000-0123456789abcdef").mkdir(parents=True)
    wandb.run = FakeRun(server_step=3, resumed=True)  # it has steps up to 2; the rest died with the process
    sink = Wandb(logged(tmp_path))
    sink.resume(ROWS[:4], 6)
    assert [step for step, _ in wandb.run.sent] == [3, 4]


def test_wandb_switched_on_later_gets_what_it_missed(wandb: SimpleNamespace, tmp_path: Path) -> None:
    sink = Wandb(logged(tmp_path))
    sink.resume(ROWS[:4], 6)
    assert [step for step, _ in wandb.run.sent] == [1, 2, 3, 4]


def test_a_package_that_is_not_there_is_said_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else there(name))
    check_sinks(["tensorboard"])
    with pytest.raises(
        TuluLiteError, match=r"watch: wandb is asked for, but not installed.*tulu-lite\[watch\]"
    ):
        check_sinks(["tensorboard", "wandb"])
    with pytest.raises(TuluLiteError, match="wandb"):
        Sinks(["wandb"], logged(tmp_path))


def test_a_failing_sink_is_left_alone_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def __init__(self, _: Logged) -> None:
            self.asked = 0

        def log(self, step: int, values: dict[str, float]) -> None:
            raise ConnectionError("no route")

    monkeypatch.setitem(sinks.OPEN, "wandb", Broken)
    sink = Sinks(["wandb", "tensorboard"], logged(tmp_path))
    for row in ROWS:
        sink.log(row["step"], {"loss": row["loss"]})
    sink.close()
    assert capsys.readouterr().out.count("watch: wandb failed") == 1
    assert len(scalars(tmp_path, "loss")) == 7


def test_without_sinks_nothing_is_written(tmp_path: Path) -> None:
    sink = Sinks([], logged(tmp_path))
    sink.resume(ROWS, 7)
    sink.log(8, {"loss": 1.0})
    sink.close()
    assert list(tmp_path.iterdir()) == []
