"""A run's judgements in worker processes: who gets what, and what became of it."""

from __future__ import annotations

import contextlib
import selectors
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from verifiers import protocol
from verifiers.base import Verdict
from verifiers.jobs import Job
from verifiers.layout import Layout
from verifiers.process import Kind, Started, WorkerProcess

if TYPE_CHECKING:
    from verifiers.dispatch import Run

LOAD_TIMEOUT_S = 60.0  # building a verifier: imports of a user's file, of a computer algebra system
START_TIMEOUT_S = 60.0  # a worker process until it says hello
BATCH_SECONDS = 0.05  # work sent to a worker at once
BATCH_ITEMS = 64
LOOK_S = 0.05  # while a sandboxed worker is being started
BATCH_BYTES = 1 << 20
MAX_ATTEMPTS = 3  # of an item whose worker died beside it, and of starting a worker
KINDS: tuple[Kind, ...] = ("worker", "sandbox")


class Inside:
    """The workers' part of one `Run`, in its thread."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.pool = run.pool
        self.queues: dict[Kind, deque[Job]] = {kind: deque() for kind in KINDS}
        self.broken: dict[str, str] = {}  # specs that kill workers while loading: why
        self.kills: dict[str, int] = {}
        self.failed_starts = dict.fromkeys(KINDS, 0)
        self.selector = run.selector
        for worker in self.pool.workers:
            self.selector.register(worker.socket, selectors.EVENT_READ, worker)

    @property
    def busy(self) -> bool:
        """Whether a job waits for a worker or is at one."""
        return any(self.queues.values()) or any(worker.jobs for worker in self.pool.workers)

    def deadline(self) -> float:
        """When the next worker will be overdue."""
        soonest = min((self._deadline(w) for w in self.pool.workers if not w.idle), default=float("inf"))
        return min(soonest, time.monotonic() + LOOK_S) if self.pool.starts else soonest

    def hear(self, worker: WorkerProcess, events: int) -> None:
        """A worker's socket can be written to or read."""
        if events & selectors.EVENT_WRITE:
            self._flush(worker)
        if events & selectors.EVENT_READ and worker in self.pool.workers:
            self._read(worker)

    def attend(self) -> None:
        """Give up what is overdue."""
        now = time.monotonic()
        for worker in [w for w in self.pool.workers if not w.idle]:
            if now >= self._deadline(worker):
                self._overdue(worker)

    def _next(self, kind: Kind) -> Job | None:
        queue = self.queues[kind]
        while queue:
            job = queue.popleft()
            if job.spec_id not in self.broken:
                return job
            self._run.fail(job, self.broken[job.spec_id])
        return None

    def assign(self) -> None:
        """Give every idle worker a batch, starting workers while there is more to do."""
        for kind in KINDS:
            while (job := self._next(kind)) is not None:
                self._drop_blind(kind, job)
                ready = next((w for w in self.pool.workers if w.idle and w.kind == kind), None)
                if ready is not None:
                    self._send(ready, self._batch(kind, job))
                    continue
                self.queues[kind].appendleft(job)
                starting = [w for w in self.pool.workers if w.state is Started.STARTING and w.kind == kind]
                if len(starting) >= len(self.queues[kind]) or not self._start_worker(kind):
                    break

    def _drop_blind(self, kind: Kind, job: Job) -> None:
        """Sandboxed workers that were started before anybody knew of this job's file cannot read it."""
        if kind != "sandbox":
            return
        self.pool.see(self._run.specs[job.spec_id])
        for worker in [w for w in self.pool.workers if w.kind == kind and w.idle]:
            if worker.reads != self.pool.reads:
                self.selector.unregister(worker.socket)
                self.pool.drop_worker(worker)
                self.pool.stats.recycled += 1

    def _start_worker(self, kind: Kind) -> bool:
        try:
            worker = self.pool.add_worker(kind)
        except Exception as fault:
            self._start_failed(kind, f"{type(fault).__name__}: {fault}")
            return bool(self.queues[kind])
        if worker is None:
            return False
        self.selector.register(worker.socket, selectors.EVENT_READ, worker)
        return True

    def _start_failed(self, kind: Kind, reason: str) -> None:
        self.failed_starts[kind] += 1
        if self.failed_starts[kind] < MAX_ATTEMPTS:
            return
        what = "verifier worker" if kind == "worker" else "sandboxed verifier worker"
        while (job := self._next(kind)) is not None:
            self._run.fail(job, f"no {what} starts: {reason}")

    def _batch(self, kind: Kind, first: Job) -> list[Job]:
        seconds = self.pool.seconds.get(first.spec_id, BATCH_SECONDS / 4)
        share = 1 + len(self.queues[kind]) // (2 * self.pool.stats.workers)
        most = max(1, min(BATCH_ITEMS, share, int(BATCH_SECONDS / max(seconds, 1e-6))))
        batch, size = [first], first.size
        while len(batch) < most and size < BATCH_BYTES:
            job = self._next(kind)
            if job is None:
                break
            batch.append(job)
            size += job.size
        return batch

    def _send(self, worker: WorkerProcess, batch: list[Job]) -> None:
        specs = {j.spec_id: self._run.specs[j.spec_id] for j in batch if j.spec_id not in worker.specs}
        worker.specs.update(specs)
        message = {"specs": specs, "items": [[j.id, j.spec_id, j.fields()] for j in batch]}
        worker.give({job.id: job for job in batch}, protocol.encode(message))
        self._flush(worker)

    def _flush(self, worker: WorkerProcess) -> None:
        try:
            left = worker.flush()
        except OSError:
            self._lost(worker, "closed its pipe")
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if left else 0)
        self.selector.modify(worker.socket, events, worker)

    def _deadline(self, worker: WorkerProcess) -> float:
        allowed = {
            Started.STARTING: START_TIMEOUT_S,
            Started.SENT: START_TIMEOUT_S,
            Started.LOADING: LOAD_TIMEOUT_S,
        }
        if worker.state is Started.RUNNING and worker.running is not None:
            return worker.since + self._run.allowed(worker.jobs[worker.running])
        return worker.since + allowed.get(worker.state, START_TIMEOUT_S)

    def _read(self, worker: WorkerProcess) -> None:
        garbage = ""
        try:
            messages = worker.read()
        except protocol.Garbage as fault:  # what came before it still says which item did it
            messages, garbage = fault.before, str(fault)
        if messages is None:
            self._lost(worker, "died")
            return
        try:
            for message in messages:
                for event in message:
                    self._event(worker, event)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as fault:
            garbage = f"{type(fault).__name__}: {fault}"
        if garbage:
            self._lost(worker, f"sent garbage ({garbage[:200]})")
            return
        if not worker.jobs and worker.idle and (worker.done >= self.pool.recycle_after or worker.spent):
            self.selector.unregister(worker.socket)
            self.pool.drop_worker(worker)
            self.pool.stats.recycled += 1

    def _event(self, worker: WorkerProcess, event: list[Any]) -> None:
        kind, index = event[0], event[1]
        if kind == "hello":
            worker.state = Started.READY
            self.failed_starts[worker.kind] = 0
            return
        job = worker.jobs[index]
        if kind in ("load", "start"):
            worker.state = Started.LOADING if kind == "load" else Started.RUNNING
            worker.running = index
            # Never before it was sent: a worker must not be able to give itself more time or less.
            worker.since = max(worker.since, min(float(event[2]), time.monotonic()))
        elif kind == "loaded" and worker.running == index:
            self.pool.learn(job.spec, job.spec_id, Layout.from_json(event[2]))
            self.pool.loaded.add(job.spec_id)
        elif kind == "moved" and self._elsewhere(worker, job):
            self._answered(worker, index)
            self._run.route(job)
        elif kind == "done" and worker.running == index:
            verdict = Verdict.from_json(event[2])
            self._answered(worker, index)
            worker.done += 1
            self._done(worker, job, verdict)
        else:
            raise ValueError(f"event {kind!r} out of turn")

    def _elsewhere(self, worker: WorkerProcess, job: Job) -> bool:
        layout = self.pool.layouts.get(job.spec_id)
        return layout is not None and layout.runs not in ("inline", worker.kind)

    def _answered(self, worker: WorkerProcess, index: int) -> None:
        del worker.jobs[index]
        worker.running = None
        worker.state = Started.SENT if worker.jobs else Started.READY
        worker.since = time.monotonic()

    def _done(self, worker: WorkerProcess, job: Job, verdict: Verdict) -> None:
        self.pool.stats.busy_s += verdict.seconds
        if verdict.seconds > self._run.allowed(job):  # late, though it came before it was killed
            self._run.fail(job, self._timed_out(job), timed_out=True, seconds=verdict.seconds)
            return
        known = self.pool.seconds.get(job.spec_id)
        self.pool.seconds[job.spec_id] = (
            verdict.seconds if known is None else 0.9 * known + 0.1 * verdict.seconds
        )
        if verdict.score is None and verdict.reason.startswith("MemoryError"):
            worker.spent = True  # its heap is full; the next items deserve a clean one
        self._run.finish(job, verdict)

    def _timed_out(self, job: Job) -> str:
        return f"timed out after {self._run.allowed(job):g} s"

    def _overdue(self, worker: WorkerProcess) -> None:
        job = worker.jobs.get(worker.running) if worker.running is not None else None
        if worker.state is Started.RUNNING and job is not None:
            self.pool.stats.busy_s += self._run.allowed(job)
            self._lost(worker, self._timed_out(job), timed_out=True)
        elif worker.state is Started.LOADING:
            reason = f"the verifier did not load within {LOAD_TIMEOUT_S:g} s"
            if job is not None:
                self.broken[job.spec_id] = reason
            self._lost(worker, reason, timed_out=True)
        else:
            self._lost(worker, f"did not answer within {START_TIMEOUT_S:g} s")

    def _lost(self, worker: WorkerProcess, how: str, timed_out: bool = False) -> None:
        """A worker is gone or must go: the running item is at fault, the others are queued again."""
        starting = worker.state is Started.STARTING
        loading = worker.state is Started.LOADING
        seconds = time.monotonic() - worker.since if worker.state is Started.RUNNING else 0.0
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(worker.socket)
        ended = self.pool.drop_worker(worker)
        if starting:
            self._start_failed(worker.kind, f"{how} ({ended})")
            return
        jobs = dict(worker.jobs)
        worker.jobs = {}
        guilty = jobs.pop(worker.running, None) if worker.running is not None else None
        suspect = next(iter(jobs), None) if guilty is None else None  # the one it would have begun with
        for job in reversed(jobs.values()):
            self._requeue(worker.kind, job, job.id != suspect)
        if guilty is None:
            return
        if (
            loading
            and not timed_out
            and self._may_load(guilty, f"its worker {how} while loading the verifier ({ended})")
        ):
            self._requeue(worker.kind, guilty, innocent=False)
            return
        during = " while loading the verifier" if loading else ""
        reason = how if timed_out else f"its worker {how}{during} ({ended})"
        self._run.fail(guilty, reason, timed_out=timed_out and not loading, seconds=seconds)

    def _may_load(self, job: Job, reason: str) -> bool:
        """Whether to try again after a worker died while it loaded a verifier: that was no item's fault, and it
        may have been somebody else's. One that never loaded is given up for all items after a few deaths."""
        if job.spec_id in self.pool.loaded:
            return True
        self.kills[job.spec_id] = self.kills.get(job.spec_id, 0) + 1
        if self.kills[job.spec_id] < MAX_ATTEMPTS - 1:
            return True
        self.broken[job.spec_id] = reason
        return False

    def _requeue(self, kind: Kind, job: Job, innocent: bool) -> None:
        job.attempts += not innocent
        if job.attempts >= MAX_ATTEMPTS:
            self._run.fail(job, f"its worker died {job.attempts} times before it started on it")
        else:
            self.queues[kind].appendleft(job)
