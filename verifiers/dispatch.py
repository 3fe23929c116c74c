"""One call of `VerifierPool.verify`: what is judged where, and what became of it."""

from __future__ import annotations

import hashlib
import json
import selectors
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from verifiers import protocol
from verifiers.base import Sample, Verdict, error
from verifiers.errors import VerifierError
from verifiers.inside import Inside
from verifiers.jobs import Combining, Job, Sink, fields_of
from verifiers.layout import Layout, allowed_seconds
from verifiers.outside import Outside
from verifiers.spec import Spec, canonical, portable

if TYPE_CHECKING:
    from verifiers.pool import VerifierPool

Item = tuple[Spec, Sample]
OnResult = Callable[[int, Verdict], None]

AHEAD_ITEMS = 4096  # taken from the caller before they can be judged
AHEAD_BYTES = 256 << 20
PULL_SECONDS = 0.01  # spent on taking items in (and on inline verifiers) before the workers are looked at
INLINE_CHARACTERS = 20_000  # longer responses go to a worker even for an inline verifier


class Run:
    """One call of `verify`: a single-threaded loop over the workers' sockets and the event loop's inbox."""

    def __init__(self, pool: VerifierPool, items: Sequence[Item], on_result: OnResult | None) -> None:
        self.pool = pool
        self.items = items
        self.on_result = on_result
        self.results: list[Verdict | None] = [None] * len(items)
        self.unreported: deque[tuple[int, Verdict]] = deque()
        self.next_item = 0
        self.next_job = 0
        self.ahead_items = self.ahead_bytes = 0  # of jobs that have no verdict yet
        self.leaders: dict[bytes, Job] = {}  # by cache key: jobs that others like them wait for
        self.specs: dict[str, Spec] = {}  # portable
        self.selector = selectors.DefaultSelector()
        self.inside = Inside(self)
        self.outside = Outside(self)

    def go(self) -> list[Verdict]:
        try:
            while True:
                self._pull()
                self.inside.assign()
                self._report()
                if self.next_item >= len(self.items) and not self.inside.busy and not self.outside.jobs:
                    break
                self._wait()
                self._report()
        finally:
            self.outside.close()
            self.selector.close()
        return [verdict or error("lost by the pool") for verdict in self.results]

    # ------------------------------------------------------------ results

    def _result(self, index: int, verdict: Verdict) -> None:
        """The verdict of the caller's item."""
        self.pool.stats.items += 1
        self.pool.stats.errors += verdict.score is None
        self.results[index] = verdict
        self.unreported.append((index, verdict))

    def _report(self) -> None:
        """Tell the caller; apart from the judging, so that what his function raises is nobody's fault here."""
        while self.unreported:
            index, verdict = self.unreported.popleft()
            if self.on_result is not None:
                self.on_result(index, verdict)

    def finish(self, job: Job, verdict: Verdict, cached: bool = False) -> None:
        """The verdict of a job: remembered, counted, and told to whoever wants to know."""
        self.ahead_items -= 1
        self.ahead_bytes -= job.size
        self.pool.stats.of(verdict.verifier or job.label()).add(verdict, cached)
        layout = self.pool.layouts.get(job.spec_id)
        keep = verdict.score is not None and not cached and layout is not None and layout.cache
        if keep:
            self.pool.remember(job.key, verdict)
        if job.leads:
            self.leaders.pop(job.key, None)
            followers, job.followers = job.followers, []
            for follower in followers:
                if keep:
                    self.pool.stats.cache_hits += 1
                    self.finish(follower, replace(verdict, seconds=0.0), cached=True)
                else:  # errors are nobody else's, and some verifiers never say the same twice
                    self.route(follower)
        job.sink(verdict)

    def fail(self, job: Job, reason: str, timed_out: bool = False, seconds: float = 0.0) -> None:
        layout = self.pool.layouts.get(job.spec_id)
        name, version = (layout.name, layout.version) if layout is not None else (job.label(), "")
        if timed_out:
            self.pool.stats.timeouts += 1
            self.pool.stats.of(name).timeouts += 1
        self.finish(job, replace(error(reason), verifier=name, version=version, seconds=seconds))

    # ------------------------------------------------------------ taking items in

    def _room(self) -> bool:
        return self.ahead_items < AHEAD_ITEMS and self.ahead_bytes < AHEAD_BYTES

    def _pull(self) -> None:
        """Take items from the caller, as many as there is room for; what can be judged here is."""
        until = time.monotonic() + PULL_SECONDS
        while self.next_item < len(self.items) and self._room():
            index = self.next_item
            self.next_item += 1
            sink = partial(self._result, index)
            try:
                spec, sample = self.items[index]
            except Exception as fault:
                sink(error(f"the item is no (spec, sample): {type(fault).__name__}: {fault}"))
                continue
            self._begin(spec, sample, sink)
            if time.monotonic() > until:
                break
        stats = self.pool.stats
        stats.most_waiting = max(stats.most_waiting, self.ahead_items)

    def _begin(self, spec: Spec, sample: Sample, sink: Sink) -> None:
        """A new job, on its way. A bad item must not take the others with it."""
        try:
            spec_id = canonical(spec)
            body = json.dumps(fields_of(sample))
            key = hashlib.sha256(f"{spec_id}\0{body}".encode()).digest()
            layout = self.pool.layout(spec, spec_id)
            if spec_id not in self.specs:
                self.specs[spec_id] = portable(spec, self.pool.base_dir) if self._travels(layout) else spec
            if len(body) > protocol.MAX_ITEM:
                raise VerifierError(f"the item is {len(body)} bytes, more than {protocol.MAX_ITEM}")
        except VerifierError as fault:
            sink(error(str(fault)))
            return
        except Exception as fault:
            sink(error(f"the item cannot be sent: {type(fault).__name__}: {fault}"))
            return
        self.next_job += 1
        job = Job(self.next_job, spec, spec_id, sample, len(body), key, sink)
        self.ahead_items += 1
        self.ahead_bytes += job.size
        known = self.pool.cached(key)
        if known is not None:
            self.pool.stats.cache_hits += 1
            self.finish(job, replace(known, seconds=0.0), cached=True)
        elif self.pool.caches and (layout is None or layout.cache):
            self._follow_or_lead(job)
        else:
            self.route(job)

    def _travels(self, layout: Layout | None) -> bool:
        """Whether a worker must be able to find the verifier."""
        return layout is None or layout.runs in ("inline", "worker", "sandbox")

    def _follow_or_lead(self, job: Job) -> None:
        leader = self.leaders.get(job.key)
        if leader is not None:
            leader.followers.append(job)
            return
        job.leads = True
        self.leaders[job.key] = job
        self.route(job)

    def route(self, job: Job) -> None:
        """To where it is judged. Of a verifier that only a worker can load, the worker says where that is."""
        layout = self.pool.layouts.get(job.spec_id)
        if layout is None or layout.runs == "worker":
            self.inside.queues["worker"].append(job)
        elif layout.runs == "sandbox":
            self.inside.queues["sandbox"].append(job)
        elif layout.runs == "async":
            self.outside.submit(job)
        elif layout.runs == "mixed":
            Combining(layout, job.spec, job.sample, self._begin, partial(self.finish, job)).advance()
        else:
            own = self.pool.inline(job.spec_id)
            if own is None or len(job.sample.response) > INLINE_CHARACTERS:
                self.inside.queues["worker"].append(job)
            else:
                self.pool.stats.inline += 1
                self.finish(job, own.verify(job.sample))

    # ------------------------------------------------------------ waiting

    def _wait(self) -> None:
        """Until something is said or the next deadline passes; then see to it."""
        now = time.monotonic()
        wait = min(self.inside.deadline(), self.outside.deadline(), now + 1.0) - now
        if self.next_item < len(self.items) and self._room():
            wait = 0.0
        for key, events in self.selector.select(max(0.0, wait)):
            if key.data is not None:  # else the event loop's inbox, which is read below
                self.inside.hear(key.data, events)
        self.outside.attend()
        self.inside.attend()

    def allowed(self, job: Job) -> float:
        layout = self.pool.layouts.get(job.spec_id)
        return self.pool.timeout_s if layout is None else allowed_seconds(layout, self.pool.timeout_s)
