"""The order of things in an rlvr stage, with a server, a learner and a judge that are stand-ins: what a kill leaves."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tulu_lite.judging import Judge
from tulu_lite.recipe import RlvrStage
from tulu_lite.records import Prompt, Rollout, RolloutGroup
from tulu_lite.rl import handover
from tulu_lite.rl.collect import Collector
from tulu_lite.rl.handover import Handover
from tulu_lite.rl.prompts import PromptStream
from tulu_lite.rl.rhythm import Feed
from tulu_lite.rl.saves import _pending_row
from tulu_lite.stages import rlvr
from tulu_lite.training.policy_batch import Clock
from verifiers.base import scored

STAGE: dict[str, Any] = {
    "name": "rl", "kind": "rlvr", "init": "base", "data": "a.jsonl", "validation": "b.jsonl", "learning_rate": 1e-2,
    "sampling": {"max_tokens": 8}, "prompts_per_step": 4, "samples_per_prompt": 2, "warmup_ratio": 0, "save_every_steps": 1,
}  # fmt: skip


class Server:
    """Holds one version of the weights; a group says which one it held when it was sampled. The last place of what a
    thread that has `asking.slow` asks for waits for `gate`."""

    def __init__(self) -> None:
        self.version, self.pool, self.pushes = 0, ThreadPoolExecutor(8), 0
        self.asking, self.gate = threading.local(), threading.Event()

    def next_version(self) -> int:
        return self.version + 1

    def wake(self, is_main: bool) -> None:
        pass

    def push(self, weights: Any, is_main: bool, version: int) -> None:
        time.sleep(0.1)  # what is asked for before has its samples by now
        self.version, self.pushes = version, self.pushes + 1

    def submit(self, prompts: Any, sampling: Any, *, on_group: Any, positions: Any) -> Future[Any]:
        slow = getattr(self.asking, "slow", False)

        def answer() -> None:
            for prompt, position in zip(prompts, positions, strict=True):
                if slow and position == 3:
                    self.gate.wait(5)
                rollout = Rollout((7, 2), (-1.0, -1.0), (self.version,) * 2, "stop", "x")
                on_group(RolloutGroup(prompt, (rollout, rollout)))

        return self.pool.submit(answer)


class Halves(Judge):
    def __init__(self) -> None:
        self.max_error_share = 0.1

    def judged(self, groups: Any) -> list[RolloutGroup]:
        return [
            replace(
                group, rollouts=tuple(one.judged(scored(float(i))) for i, one in enumerate(group.rollouts))
            )
            for group in groups
        ]


class Killed(BaseException):
    pass


@pytest.fixture
def trainer_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """A Trainer whose learning and saving are notes in `learnt` (step, versions of its samples as steps) and `saved`."""
    monkeypatch.setattr(handover, "WholeWeights", lambda model: None)
    made: list[Any] = []
    alone = SimpleNamespace(is_main_process=True, num_processes=1, wait_for_everyone=lambda: None)

    def make(server: Server, saved: Any = None, kill_after: int | None = None, **fields: Any) -> Any:
        trainer = rlvr.Trainer.__new__(rlvr.Trainer)
        trainer.stage = stage = RlvrStage.model_validate(STAGE | fields)
        trainer.steps, trainer.rank, trainer.world, trainer.is_main = stage.steps, 0, 1, True
        trainer.stream = PromptStream([Prompt(f"q{i}", "", (1, i), "s", "v") for i in range(40)], 1)
        trainer.learner = SimpleNamespace(reference=None, state={}, model=None)  # type: ignore[assignment]
        trainer.clock = Clock()
        trainer.weights = Handover(server, alone, None, False)  # type: ignore[arg-type]
        collector = Collector(server, Halves(), stage, 1, trainer.stream, trainer.weights.step_of)
        trainer.feed = Feed(collector, stage.ahead)
        trainer.recording, trainer.checked = None, True
        trainer.state = {"step": 0, "best": None, "stopped": ""}
        trainer.learnt, trainer.saved = [], saved  # type: ignore[attr-defined]

        def learn(batch: Any, step: int, fresh: bool) -> Any:
            versions = {
                v for group in batch.groups.values() for one in group.rollouts for v in one.weight_versions
            }
            trainer.learnt.append((step, sorted(versions)))  # type: ignore[attr-defined]
            return {}, []

        def save(step: int) -> None:
            if stage.rhythm == "one_behind":
                trainer._wait_for_samples()
            rows = json.loads(json.dumps([_pending_row(batch) for batch in trainer.feed.pending()]))
            trainer.saved = {"step": step, "stream": dict(trainer.stream.state)}, rows  # type: ignore[attr-defined]
            if step == kill_after:
                raise Killed

        def load(folder: Any, learner: Any) -> Any:
            if saved is None:
                return None
            state, rows = saved
            return dict(state) | {"learner": {}, "watchdog": {}, "reference": 0}, rows

        monkeypatch.setattr(rlvr, "load_all", load)
        trainer.watchdog = SimpleNamespace(state={})  # type: ignore[assignment]
        nothing = SimpleNamespace(resume=lambda step: None)
        trainer.ctx = SimpleNamespace(
            dir=Path("/none"), start_from=None, metrics=nothing, progress=lambda *_: None
        )  # type: ignore[assignment]
        trainer._learn, trainer._save = learn, save  # type: ignore[method-assign]
        trainer._look_at = lambda batch, step: {"staleness_max": 0.0}  # type: ignore[method-assign]
        trainer._validates = lambda step: False  # type: ignore[method-assign]
        for name in ("_keep_samples", "_log", "_make_room", "_finish"):
            setattr(trainer, name, lambda *_: None)
        made.append((trainer, server))
        return trainer

    yield make
    for trainer, server in made:
        server.gate.set()
        trainer.feed.close()


def test_async_goes_on_from_batches_that_were_half_there(trainer_of: Callable[..., Any]) -> None:
    """The rest of a begun batch is sampled from the weights of the save: they have to be pushed before it is asked for."""
    how: dict[str, Any] = {"rhythm": "async", "max_staleness": 2, "steps": 6}
    server = Server()
    first = trainer_of(server, kill_after=2, **how)
    collect = first.feed.collector.collect

    def held_back_later(batch: Any) -> Any:
        server.asking.slow = batch.step >= 3  # these lack their last place when step 2 is saved
        return collect(batch)

    first.feed.collector.collect = held_back_later
    with pytest.raises(Killed):
        first.train()
    _, rows = first.saved
    assert [row["step"] for row in rows] == [3, 4]
    assert any({one["place"] for one in row["rows"]} != {0, 1, 2, 3} for row in rows)
    server.gate.set()
    after = Server()
    second = trainer_of(after, saved=first.saved, **how)
    second.train()
    assert [step for step, _ in second.learnt] == [3, 4, 5, 6]
    assert all(
        max(0, step - 3) <= version <= step - 1 for step, versions in second.learnt for version in versions
    )
    assert after.pushes > 0


def killed_and_resumed(trainer_of: Callable[..., Any], **how: Any) -> tuple[Any, Any, Server]:
    """A run that was killed when it had saved step 3, the run that went on from there, and that one's server."""
    killed, after = trainer_of(Server(), kill_after=3, **how), Server()
    with pytest.raises(Killed):
        killed.train()
    resumed = trainer_of(after, saved=killed.saved, **how)
    resumed.train()
    return killed, resumed, after


def test_one_behind_goes_on_as_it_would_have(trainer_of: Callable[..., Any]) -> None:
    how: dict[str, Any] = {"rhythm": "one_behind", "steps": 6}
    whole = trainer_of(Server(), **how)
    whole.train()
    killed, resumed, _ = killed_and_resumed(trainer_of, **how)
    assert (
        [*killed.learnt, *resumed.learnt]
        == whole.learnt
        == [(1, [0]), (2, [0]), (3, [1]), (4, [2]), (5, [3]), (6, [4])]
    )


def test_a_whole_batch_of_the_last_step_needs_no_push(trainer_of: Callable[..., Any]) -> None:
    how: dict[str, Any] = {"rhythm": "one_behind", "steps": 4}
    _, resumed, after = killed_and_resumed(trainer_of, **how)
    assert resumed.learnt == [(4, [2])]
    assert after.pushes == 0


def test_a_run_that_was_stopped_early_does_not_train_on_after_a_kill(trainer_of: Callable[..., Any]) -> None:
    stopped = {"step": 2, "stream": {"place": 8, "rates": {}}, "stopped": "far behind"}, []
    trainer = trainer_of(Server(), saved=stopped, steps=6)
    trainer.train()
    assert trainer.learnt == []


def test_a_best_model_stays_until_a_save_names_the_next(tmp_path: Path) -> None:
    """A kill between a better validation and the next save goes on with the model that the save names; there are never
    more than these two."""
    trainer = rlvr.Trainer.__new__(rlvr.Trainer)
    trainer.is_main, trainer.ctx = True, SimpleNamespace(dir=tmp_path)  # type: ignore[assignment]

    def left(best: int | None, saved: str) -> list[str]:
        for step in (50, 60, 70):
            (tmp_path / f"best-{step:06d}").mkdir(exist_ok=True)
        trainer.state = {"best": best and {"step": best, "folder": f"best-{best:06d}"}}
        trainer.saved_best = saved
        trainer._drop_former_best()
        return sorted(path.name for path in tmp_path.iterdir())

    assert left(70, "best-000050") == ["best-000050", "best-000070"]
    assert left(50, "best-000050") == ["best-000050"]
    assert left(60, "") == ["best-000060"]
    assert left(None, "") == []
