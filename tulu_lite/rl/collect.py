"""One step's batch: sampled, judged as its groups come, and filled again where a group has no signal. No torch."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ..judging import Judge
from ..recipe import RlvrStage
from ..records import Prompt, RolloutGroup
from ..rollout.client import Sampling
from .prompts import PromptStream
from .rewards import is_silent, passed

LOOK_S = 0.2  # between looks at whether the batch is still wanted


class Stopped(Exception):
    """The stage ends, and the batch is not wanted any more."""


class SubmitsPrompts(Protocol):
    """What collecting needs of stages.sampling.Sampler."""

    def submit(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        on_group: Callable[[RolloutGroup], None],
        positions: Sequence[int],
    ) -> Future[Any]: ...


@dataclass
class Collected:
    """This process's share of one step's batch. `groups` may be read while it grows; `lock` is then held."""

    step: int
    prompts: dict[int, Prompt]  # what was asked first, by place in the batch
    groups: dict[int, RolloutGroup] = field(default_factory=dict)  # judged and final, by place
    tried: list[tuple[str, float, int]] = field(
        default_factory=list
    )  # of every judged group: id, share passed, responses
    refilled: int = 0  # groups that were sampled instead of others
    sample_s: float = 0.0  # seconds until the last response was there
    verify_s: float = 0.0  # seconds of judging after that
    overlapped_s: float = 0.0  # seconds of judging while others were sampled
    taken: set[str] = field(
        default_factory=set
    )  # ids of what was asked first in the whole batch, by all processes
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self.taken |= {prompt.id for prompt in self.prompts.values()}

    @property
    def whole(self) -> bool:
        return self.groups.keys() == self.prompts.keys()


class Collector:
    """Collects batches; several may be under way at once, each in a thread of its own.

    The weight versions of what it collects are steps of this run: 0 for the initial weights, k for those after step k.
    """

    def __init__(
        self,
        sampler: SubmitsPrompts,
        judge: Judge,
        stage: RlvrStage,
        seed: int,
        stream: PromptStream,
        step_of: Callable[[int], int],
    ) -> None:
        self.sampler, self.judge, self.stage, self.seed, self.stream = sampler, judge, stage, seed, stream
        self.step_of = step_of  # of a weight version on the server: the step whose weights it is
        self.stop = threading.Event()

    def sampling(self, step: int) -> Sampling:
        """The seeds depend on seed, step and place alone, so that a step done again gives the same responses."""
        return Sampling(
            n=self.stage.samples_per_prompt,
            temperature=self.stage.sampling.temperature,
            max_tokens=self.stage.sampling.max_tokens,
            seed=random.Random(f"{self.seed}:{step}").getrandbits(31),
            for_training=True,
        )

    def collect(self, batch: Collected) -> Collected:
        """Fill the batch: ask for the places that it lacks, judge what comes, ask again for what teaches nothing.

        Raises what sampling and judging raise; Stopped when `stop` was set.
        """
        _Collecting(self, batch).run()
        return batch


class _Collecting:
    def __init__(self, owner: Collector, batch: Collected) -> None:
        self.owner, self.batch, self.stage = owner, batch, owner.stage
        self.arrived: queue.SimpleQueue[RolloutGroup | BaseException] = queue.SimpleQueue()
        self.asked: dict[
            int, tuple[int, int]
        ] = {}  # (place, round) by the identity of the prompt that was asked
        self.kept: list[Prompt] = []  # so that identities stay theirs
        self.tasks: list[Future[Any]] = []
        self.verdicts: list[Any] = []
        self.others: list[Prompt] = []  # what may replace groups, once some do

    def run(self) -> None:
        lacking = {
            place: prompt for place, prompt in self.batch.prompts.items() if place not in self.batch.groups
        }
        try:
            self._ask(lacking, 0)
            while self.asked:
                came = self._next()
                self._judge(came)
        finally:
            for task in self.tasks:
                task.cancel()

    def _ask(self, prompts: Mapping[int, Prompt], round: int) -> None:
        """Ask for a group for each place. Each prompt is a copy of its own, so that its group can be told by it."""
        if not prompts:
            return
        copies = [replace(prompt) for prompt in prompts.values()]
        self.kept += copies
        self.asked |= {id(prompt): (place, round) for place, prompt in zip(prompts, copies, strict=True)}
        positions = [place + round * self.stage.prompts_per_step for place in prompts]
        sampling = self.owner.sampling(self.batch.step)
        task = self.owner.sampler.submit(copies, sampling, on_group=self.arrived.put, positions=positions)
        task.add_done_callback(self._ended)
        self.tasks.append(task)

    def _ended(self, task: Future[Any]) -> None:
        error = Stopped() if task.cancelled() else task.exception()
        if error is not None:
            self.arrived.put(error)

    def _next(self) -> list[RolloutGroup]:
        """All groups that have come, at least one."""
        began = time.perf_counter()
        came: list[RolloutGroup] = []
        while not came or not self.arrived.empty():
            if self.owner.stop.is_set():
                raise Stopped
            try:
                one = self.arrived.get(timeout=LOOK_S)
            except queue.Empty:
                continue
            if isinstance(one, BaseException):
                raise one
            came.append(self._in_steps(one))
        self.batch.sample_s += time.perf_counter() - began
        return came

    def _in_steps(self, group: RolloutGroup) -> RolloutGroup:
        rollouts = tuple(
            replace(rollout, weight_versions=tuple(map(self.owner.step_of, rollout.weight_versions)))
            for rollout in group.rollouts
        )
        return replace(group, rollouts=rollouts)

    def _judge(self, came: Sequence[RolloutGroup]) -> None:
        began = time.perf_counter()
        places = [self.asked.pop(id(group.prompt)) for group in came]
        sampled_out = not self.asked
        judged = self.owner.judge.judged(came)
        self.verdicts += [rollout.verdict for group in judged for rollout in group.rollouts]
        least = len(self.batch.prompts) * self.stage.samples_per_prompt
        self.owner.judge.check_errors(self.verdicts, max(least, len(self.verdicts)))
        for (place, round), group in zip(places, judged, strict=True):
            self._settle(place, round, group)
        seconds = time.perf_counter() - began
        if sampled_out:
            self.batch.verify_s += seconds
        else:
            self.batch.sample_s += seconds
            self.batch.overlapped_s += seconds

    def _settle(self, place: int, round: int, group: RolloutGroup) -> None:
        """Keep a group, or ask for another in its place."""
        refill = self.stage.refill
        with self.batch.lock:
            self.batch.tried.append((group.prompt.id, *passed(group)))
            if refill is None or round >= refill.max_rounds or not is_silent(group, self.stage):
                self.batch.groups[place] = group
                return
            self.batch.refilled += 1
        self._ask({place: self._instead(place, round)}, round + 1)

    def _instead(self, place: int, round: int) -> Prompt:
        """What comes next in this place, another prompt than in any other place and round while there are so many:
        whatever the order in which groups come, and whichever process has the place."""
        assert self.stage.refill is not None
        count = self.stage.prompts_per_step
        if not self.others:
            most = count * self.stage.refill.max_rounds
            self.others = self.owner.stream.others(self.batch.step, self.batch.taken, most)
        return self.others[(round * count + place) % len(self.others)]
