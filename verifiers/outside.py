"""A run's judgements in the event loop: started, watched, and given up when they do not end."""

from __future__ import annotations

import selectors
import time
from typing import TYPE_CHECKING

from verifiers.base import Verdict
from verifiers.eventloop import EventLoop, Inbox
from verifiers.jobs import Job

if TYPE_CHECKING:
    from verifiers.dispatch import Run

GRACE_S = 0.25  # past its deadline: the loop itself cancels at the deadline
LOOK_S = 0.5  # how often a loop that says nothing is looked at
MAX_ATTEMPTS = 3  # of an item beside which a loop was blocked


class Outside:
    """The async part of one `Run`, in its thread. Nothing is made until there is something to judge."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._inbox: Inbox | None = None
        self.jobs: dict[int, Job] = {}
        self._deadlines: dict[int, tuple[float, float]] = {}  # of those that run: when, and allowed seconds

    def submit(self, job: Job) -> None:
        if self._inbox is None:
            self._inbox = Inbox()
            self._run.selector.register(self._inbox.fd, selectors.EVENT_READ, None)
        self.jobs[job.id] = job
        self._loop().submit(job.id, job.spec_id, job.spec, job.sample, self._run.pool.timeout_s, self._inbox)

    def _loop(self) -> EventLoop:
        return self._run.pool.event_loop()

    def deadline(self) -> float:
        """When to look again even if nothing is said."""
        if not self.jobs:
            return float("inf")
        soonest = min((when for when, _ in self._deadlines.values()), default=float("inf"))
        return min(soonest + GRACE_S, time.monotonic() + LOOK_S)

    def attend(self) -> None:
        """Take in what was said; give up what is overdue."""
        if self._inbox is None:
            return
        for kind, id, value in self._inbox.take():
            if id not in self.jobs:
                continue  # given up before
            if kind == "start":
                began, allowed = value
                self._deadlines[id] = (began + allowed, allowed)
            else:
                self._done(id, value)
        now = time.monotonic()
        overdue = [id for id, (when, _) in self._deadlines.items() if now >= when + GRACE_S]
        for id in overdue:
            self._timed_out(id)
        if overdue:
            self._loop().cancel(overdue)
        if self.jobs and (guilty := self._loop().blocked_by()) is not None:
            self._blocked(guilty)

    def _done(self, id: int, verdict: Verdict) -> None:
        allowed = self._deadlines.get(id, (0.0, float("inf")))[1]
        self._run.pool.stats.async_s += verdict.seconds
        if verdict.seconds > allowed:
            self._timed_out(id)
            return
        self._deadlines.pop(id, None)
        self._run.finish(self.jobs.pop(id), verdict)

    def _timed_out(self, id: int) -> None:
        end, allowed = self._deadlines.pop(id)
        seconds = time.monotonic() - end + allowed
        self._run.fail(self.jobs.pop(id), f"timed out after {allowed:g} s", timed_out=True, seconds=seconds)

    def _blocked(self, guilty: int) -> None:
        """The loop is stuck in one judgement, which cannot be killed: the others go on in a new loop."""
        self._run.pool.new_event_loop()
        others, self.jobs, self._deadlines = self.jobs, {}, {}
        job = others.pop(guilty, None)
        if job is not None:
            self._run.fail(job, "it blocks the event loop: an async verifier must await, not compute")
        for other in others.values():
            other.attempts += 1
            if other.attempts >= MAX_ATTEMPTS:
                self._run.fail(other, f"its event loop was blocked {other.attempts} times")
            else:
                self.submit(other)

    def close(self) -> None:
        """The run is over: nobody waits for what is left."""
        if self._inbox is None:
            return
        if self.jobs:
            self._loop().cancel(list(self.jobs))
        self._run.selector.unregister(self._inbox.fd)
        self._inbox.close()
        self._inbox = None
