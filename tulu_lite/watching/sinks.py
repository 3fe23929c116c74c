"""Where metrics go besides metrics.jsonl, by a word in the recipe: TensorBoard's event files, Weights & Biases.

metrics.jsonl is what counts; a sink is a copy of it. On resume a sink is brought to hold each step once: what was
logged after the save is taken out, what it never got (it was switched on later, or was killed before it wrote) is put
in. A sink that fails in the middle is said to, and left alone: it must not end a run.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import TuluLiteError
from .series import is_number

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Logged:
    """The step whose metrics these are, as a sink may want to name it."""

    id: str  # "rlvr/seed-2"
    key: str
    folder: Path
    run: str  # the recipe's name
    settings: Mapping[str, Any]  # what decides the step's result


class Sink(Protocol):
    def resume(self, kept: Rows, logged_to: int) -> None:
        """Hold the kept rows, each once. logged_to: the last step that was logged before, also if not kept."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def check_sinks(names: Iterable[str]) -> None:
    """Raises TuluLiteError for a sink whose package is not installed; to be called before anything is spent."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise TuluLiteError(
            f"watch: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} asked for, but not installed",
            cure="pip install 'tulu-lite[watch]', or take it out of `watch` (metrics.jsonl is written in any case)",
        )


class Sinks:
    """The sinks of one step. A failing one is dropped with a line in the step's log."""

    def __init__(self, names: Sequence[str], logged: Logged) -> None:
        check_sinks(names)
        self.names, self.logged = names, logged
        self.open: dict[str, Sink] | None = None  # opened by the first use: a step may end before it logs

    def resume(self, kept: Rows, logged_to: int) -> None:
        self._each(lambda sink: sink.resume(kept, logged_to))

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        numbers = {name: float(value) for name, value in values.items() if is_number(value)}
        self._each(lambda sink: sink.log(step, numbers))

    def close(self) -> None:
        if self.open:
            self._each(lambda sink: sink.close())
        self.open = {}

    def _each(self, act: Any) -> None:
        if self.open is None:
            self.open = {}
            for name in self.names:
                self._try(name, lambda name=name: self.open.__setitem__(name, OPEN[name](self.logged)))
        for name, sink in list(self.open.items()):
            if not self._try(name, lambda sink=sink: act(sink)):
                del self.open[name]

    def _try(self, name: str, act: Any) -> bool:
        try:
            act()
            return True
        except Exception as error:  # a sink's own errors are of any kind
            print(
                f"watch: {name} failed and is left alone until the step is started again: "
                f"{type(error).__name__}: {error} (metrics.jsonl goes on)",
                flush=True,
            )
            return False


class TensorBoard:
    """Event files in <step>/tensorboard/<run>, one event a step: `tensorboard --logdir <output>/steps` finds them."""

    def __init__(self, logged: Logged) -> None:
        self.folder = logged.folder / "tensorboard"
        self.writer: Any = None

    def resume(self, kept: Rows, logged_to: int) -> None:
        """The files are written anew: steps with the times at which they were first logged, where these are known."""
        old = sorted(self.folder.glob("events.out.tfevents.*"))
        times = dict(event for file in old for event in _times(file))
        self._open()
        for row in kept:
            self._write(row["step"], _numbers(row), times.get(row["step"], time.time()))
        self.writer.flush()
        for file in old:
            file.unlink()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self.writer is None:
            self._open()
        self._write(step, values, time.time())

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def _open(self) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.writer = EventFileWriter(str(self.folder), flush_secs=10)

    def _write(self, step: int, values: Mapping[str, float], stamp: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self.writer.add_event(Event(wall_time=stamp, step=step, summary=Summary(value=scalars)))


def _times(file: Path) -> list[tuple[int, float]]:
    """(step, wall time) of each event; of a file torn by a kill, those before the tear."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = []
    try:
        for event in EventFileLoader(str(file)).Load():
            if event.HasField("summary"):
                found.append((event.step, event.wall_time))
    except Exception:  # whatever the reader says of a torn file; only times are lost
        return found
    return found


class Wandb:
    """A run of Weights & Biases whose id is the step's key. Without an account (no login and no WANDB_API_KEY) it is
    written offline, for `wandb sync`; WANDB_MODE, WANDB_PROJECT and WANDB_ENTITY mean what they always do."""

    def __init__(self, logged: Logged) -> None:
        import wandb

        before = any(logged.folder.glob(f"wandb/*run-*-{logged.key[:16]}"))
        logged_in = "WANDB_MODE" in os.environ or wandb.login(prompt=False, verify=False)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", logged.run),
            id=logged.key[:16],
            name=logged.id,
            group=logged.id.partition("/")[0],
            dir=str(logged.folder),
            config=dict(logged.settings),
            resume="allow",
            mode=None if logged_in else "offline",
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                save_code=False,
                init_timeout=60,
                finish_timeout=60,
            ),
        )
        self.before = before
        self.sent = -1

    def resume(self, kept: Rows, logged_to: int) -> None:
        """Its steps only go up, so what was sent is not sent again; the steps done again come out the same."""
        if self.run.resumed:
            self.sent = self.run.step - 1
        elif self.before:
            self.sent = logged_to
        for row in kept:
            self.log(row["step"], _numbers(row))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step > self.sent:
            self.run.log(dict(values), step=step)
            self.sent = step

    def close(self) -> None:
        self.run.finish()


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if name != "step" and is_number(value)}


OPEN: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": Wandb}
