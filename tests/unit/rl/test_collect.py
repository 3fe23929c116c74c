"""Collecting a batch: judged as it comes, filled again where a group has no signal, stopped when it must; and the feed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from tulu_lite.errors import TuluLiteError
from tulu_lite.judging import Judge
from tulu_lite.records import Prompt, Rollout, RolloutGroup
from tulu_lite.rl.collect import Collected, Collector, Stopped
from tulu_lite.rl.prompts import PromptStream
from tulu_lite.rl.rhythm import Feed
from verifiers.base import error, scored

VERSION = 40  # what the server calls the weights


class FakeSampler:
    """Answers in a thread, in reverse order; responses tell the prompt, the place and the seed."""

    def __init__(self, n: int = 2) -> None:
        self.n, self.asked, self.pool = n, [], ThreadPoolExecutor(2)  # type: ignore[var-annotated]
        self.fault: BaseException | None = None
        self.gate: threading.Event | None = None
        self.pause = 0.0  # between groups

    def submit(self, prompts: Any, sampling: Any, *, on_group: Any, positions: Any) -> Future[Any]:
        self.asked.append(
            [(prompt.id, position) for prompt, position in zip(prompts, positions, strict=True)]
        )

        def answer() -> None:
            if self.gate is not None:
                self.gate.wait(5)
            if self.fault is not None:
                raise self.fault
            for prompt, position in reversed(list(zip(prompts, positions, strict=True))):
                texts = [f"{prompt.id}:{position}:{i}" for i in range(self.n)]
                time.sleep(self.pause)
                on_group(
                    RolloutGroup(prompt, tuple(Rollout((7, 2), (-1.0, -1.0), (VERSION,) * 2, "stop", text) for text in texts))
                )  # fmt: skip

        return self.pool.submit(answer)


class FakeJudge(Judge):
    """Scores a response by a function of its text; None is an error."""

    def __init__(self, score: Callable[[str], float | None], max_error_share: float = 0.1) -> None:
        self.score, self.max_error_share = score, max_error_share
        self.calls = 0

    def judged(self, groups: Any) -> list[RolloutGroup]:
        self.calls += 1

        def verdict(rollout: Rollout) -> Any:
            score = self.score(rollout.text)
            return error("broke") if score is None else scored(score)

        return [
            replace(group, rollouts=tuple(rollout.judged(verdict(rollout)) for rollout in group.rollouts))
            for group in groups
        ]


def stream_of(count: int) -> PromptStream:
    return PromptStream([Prompt(f"q{i}", "", (1, i), "s", "v") for i in range(count)], 0)


def collector_of(stage: Any, sampler: FakeSampler, judge: FakeJudge, stream: PromptStream | None = None) -> Collector:  # fmt: skip
    return Collector(sampler, judge, stage, 5, stream or stream_of(40), lambda version: version - VERSION)


def batch_of(stream: PromptStream, step: int = 1, places: Any = range(4)) -> Collected:
    prompts = stream.take(4)
    own = {place: prompts[place] for place in places}
    return Collected(step, own, taken={prompt.id for prompt in prompts})


def by_sample(text: str) -> float:
    return float(text.endswith(":0"))


def test_a_batch_is_whole_and_in_its_places(stage_of: Any) -> None:
    stream = stream_of(40)
    batch = batch_of(stream)
    collector_of(stage_of(samples_per_prompt=2), FakeSampler(), FakeJudge(by_sample)).collect(batch)
    assert batch.whole
    assert {place: group.prompt.id for place, group in batch.groups.items()} == {place: prompt.id for place, prompt in batch.prompts.items()}  # fmt: skip
    assert all(group.scores == [1.0, 0.0] for group in batch.groups.values())
    assert all(
        rollout.weight_versions == (0, 0) for group in batch.groups.values() for rollout in group.rollouts
    )
    assert sorted(batch.tried) == sorted((prompt.id, 0.5, 2) for prompt in batch.prompts.values())


def test_the_same_prompt_twice_has_its_own_group_each(stage_of: Any) -> None:
    prompt = Prompt("q", "", (1,), "s", "v")
    batch = Collected(1, {0: prompt, 1: prompt})
    collector_of(stage_of(samples_per_prompt=2), FakeSampler(), FakeJudge(by_sample)).collect(batch)
    assert [batch.groups[place].rollouts[0].text for place in (0, 1)] == ["q:0:0", "q:1:0"]


def test_silent_groups_are_filled_again_up_to_the_bound(stage_of: Any) -> None:
    stage = stage_of(samples_per_prompt=2, refill={"max_rounds": 2})

    def run(places: Any) -> Collected:
        stream, sampler = stream_of(40), FakeSampler()
        batch = batch_of(stream, places=places)

        def score(text: str) -> float:
            _, position, sample = text.split(":")
            place, round = int(position) % 4, int(position) // 4
            return float(sample == "0") if (place, round) in ((0, 0), (1, 1), (2, 2)) else 1.0

        collector_of(stage, sampler, FakeJudge(score), stream).collect(batch)
        return batch

    batch = run(range(4))
    rounds = {place: int(group.rollouts[0].text.split(":")[1]) // 4 for place, group in batch.groups.items()}
    assert rounds == {0: 0, 1: 1, 2: 2, 3: 2}  # the last place stays silent
    assert batch.refilled == 1 + 2 + 2
    assert len(batch.tried) == 4 + 5
    asked = {prompt.id for prompt in batch.prompts.values()}
    assert all(batch.groups[place].prompt.id not in asked for place in (1, 2, 3))
    tried = [id for id, _, _ in batch.tried]
    assert len(set(tried)) == len(tried)  # nothing that was found silent is drawn again
    halves = run([0, 2]).groups | run([1, 3]).groups  # what two processes do
    assert halves == batch.groups


def test_a_batch_begun_before_asks_only_for_what_lacks(stage_of: Any) -> None:
    stream, sampler = stream_of(40), FakeSampler()
    whole = batch_of(stream)
    collector = collector_of(stage_of(samples_per_prompt=2), sampler, FakeJudge(by_sample))
    collector.collect(whole)
    begun = Collected(1, whole.prompts, {place: whole.groups[place] for place in (0, 2)})
    collector.collect(begun)
    assert begun.groups == whole.groups
    assert [position for _, position in sampler.asked[1]] == [1, 3]


def test_a_broken_verifier_stops_the_batch_early(stage_of: Any) -> None:
    stage = stage_of(samples_per_prompt=2, prompts_per_step=4)
    judge = FakeJudge(lambda text: None if text.endswith(":0") else 1.0)
    with pytest.raises(TuluLiteError, match="verifiers failed on"):
        collector_of(stage, FakeSampler(), judge).collect(batch_of(stream_of(40)))
    # one error among the responses of the whole batch is within the share, though not within that of its group
    few = FakeJudge(lambda text: None if text.endswith(":3:0") else by_sample(text), max_error_share=0.2)
    slow = FakeSampler()
    slow.pause = 0.03  # the group with the error comes first, and alone
    batch = collector_of(stage, slow, few).collect(batch_of(stream_of(40)))
    assert few.calls > 1
    assert sum(score is None for group in batch.groups.values() for score in group.scores) == 1


def test_faults_and_stops_end_it(stage_of: Any) -> None:
    sampler = FakeSampler()
    sampler.fault = OSError("the server is gone")
    with pytest.raises(OSError, match="gone"):
        collector_of(stage_of(), sampler, FakeJudge(by_sample)).collect(batch_of(stream_of(40)))
    waiting = FakeSampler()
    waiting.gate = threading.Event()
    collector = collector_of(stage_of(), waiting, FakeJudge(by_sample))
    threading.Timer(0.1, collector.stop.set).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        collector.collect(batch_of(stream_of(40)))
    assert time.monotonic() - began < 2
    waiting.gate.set()


def test_the_feed_runs_ahead_and_gives_up_its_turn(stage_of: Any) -> None:
    sampler = FakeSampler()
    sampler.gate = threading.Event()
    stream = stream_of(40)
    feed = Feed(collector_of(stage_of(samples_per_prompt=2), sampler, FakeJudge(by_sample)), ahead=1)
    turn, left = ExitStack(), threading.Event()
    turn.callback(left.set)
    feed.start([batch_of(stream, 1), batch_of(stream, 2)], turn)
    assert feed.started(2)
    assert not feed.started(3)
    assert [(batch.step, batch.whole) for batch in feed.pending()] == [(1, False), (2, False)]
    assert not left.is_set()
    sampler.gate.set()
    assert feed.take(1).whole
    feed.settle()
    assert left.wait(2)
    (pending,) = feed.pending()
    assert (pending.step, pending.whole) == (2, True)
    assert feed.take(2).groups == pending.groups
    assert feed.take_waited() >= 0
    feed.close()


def test_a_turn_lasts_until_the_slowest_batch_that_began_in_it_is_there(stage_of: Any) -> None:
    """The later of two batches may be whole first; the weights of the turn are still needed by the other."""
    sampler, stream = FakeSampler(), stream_of(40)
    first, second = batch_of(stream, 1), batch_of(stream, 2)
    gates = {1: threading.Event(), 2: threading.Event()}
    collector = collector_of(stage_of(samples_per_prompt=2), sampler, FakeJudge(by_sample))
    collect = collector.collect

    def gated(batch: Collected) -> Collected:
        gates[batch.step].wait(5)
        return collect(batch)

    collector.collect = gated  # type: ignore[method-assign]
    feed = Feed(collector, ahead=1)
    turn, left = ExitStack(), threading.Event()
    turn.callback(left.set)
    feed.start([first, second], turn)
    gates[2].set()
    assert feed.take(2).whole
    assert not left.is_set()
    gates[1].set()
    assert feed.take(1).whole
    assert left.wait(2)
    feed.close()


def test_what_a_save_holds_waits_to_be_begun_and_is_saved_again(stage_of: Any) -> None:
    feed = Feed(collector_of(stage_of(samples_per_prompt=2), FakeSampler(), FakeJudge(by_sample)), ahead=1)
    begun = batch_of(stream_of(40), 3)
    feed.restored[3] = begun
    assert not feed.started(3)
    assert [(batch.step, batch.taken) for batch in feed.pending()] == [(3, begun.taken)]
    feed.close()
