"""One call of `VerifierPool.verify`: which worker gets what, and what became of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import selectors
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from verifiers import protocol
from verifiers.base import Sample, Verdict, error
from verifiers.errors import VerifierError
from verifiers.process import Started, WorkerProcess
from verifiers.spec import Spec, canonical, portable

if TYPE_CHECKING:
    from verifiers.pool import VerifierPool

Item = tuple[Spec, Sample]
OnResult = Callable[[int, Verdict], None]

LOAD_TIMEOUT_S = 60.0  # building a verifier: imports of a user's file, of a computer algebra system
START_TIMEOUT_S = 60.0  # a worker process until it says hello
BATCH_SECONDS = 0.05  # work sent to a worker at once
BATCH_ITEMS = 64
BATCH_BYTES = 1 << 20
INLINE_CHARACTERS = 20_000  # longer responses go to a worker even for an inline verifier
MAX_ATTEMPTS = 3  # of an item whose worker died beside it, and of starting a worker


@dataclass(slots=True)
class Job:
    """One item on its way through the workers."""

    index: int
    spec_id: str  # the canonical spec
    fields: list[Any]
    size: int  # bytes, about
    key: bytes  # of the cache
    attempts: int = 0


class Run:
    """One call of `verify`: a single-threaded loop over the workers' sockets."""

    def __init__(self, pool: VerifierPool, items: Sequence[Item], on_result: OnResult | None) -> None:
        self.pool = pool
        self.items = items
        self.on_result = on_result
        self.results: list[Verdict | None] = [None] * len(items)
        self.unreported: deque[tuple[int, Verdict]] = deque()
        self.next_item = 0
        self.queue: deque[Job] = deque()
        self.specs: dict[str, Spec] = {}
        self.broken: dict[str, str] = {}  # specs that kill workers while loading: why
        self.kills: dict[str, int] = {}
        self.failed_starts = 0
        self.selector = selectors.DefaultSelector()

    def go(self) -> list[Verdict]:
        try:
            for worker in self.pool.workers:
                self.selector.register(worker.socket, selectors.EVENT_READ, worker)
            while True:
                self._assign()
                self._report()
                if not any(worker.jobs for worker in self.pool.workers) and not self._pending():
                    break
                self._wait()
                self._report()
        finally:
            self.selector.close()
        return [verdict or error("lost by the pool") for verdict in self.results]

    # ------------------------------------------------------------ results

    def _finish(self, index: int, verdict: Verdict) -> None:
        stats = self.pool.stats
        stats.items += 1
        stats.errors += verdict.score is None
        stats.busy_s += verdict.seconds
        self.results[index] = verdict
        self.unreported.append((index, verdict))

    def _report(self) -> None:
        """Tell the caller; apart from the judging, so that what his function raises is nobody's fault here."""
        while self.unreported:
            index, verdict = self.unreported.popleft()
            if self.on_result is not None:
                self.on_result(index, verdict)

    def _fail(self, job: Job, reason: str) -> None:
        self._finish(job.index, replace(error(reason), verifier=_label(job.spec_id)))

    # ------------------------------------------------------------ the queue

    def _waiting(self) -> int:
        return len(self.queue) + len(self.items) - self.next_item

    def _pending(self) -> bool:
        return self._waiting() > 0

    def _next_job(self) -> Job | None:
        """The next item that a worker must judge; what needs none is finished on the way."""
        while True:
            if self.queue:
                job = self.queue.popleft()
            elif self.next_item < len(self.items):
                made = self._prepare(self.next_item)
                self.next_item += 1
                if made is None:
                    continue
                job = made
            else:
                return None
            if job.spec_id in self.broken:
                self._fail(job, self.broken[job.spec_id])
                continue
            return job

    def _prepare(self, index: int) -> Job | None:
        try:
            spec, sample = self.items[index]
            spec_id = canonical(spec)
            fields = [
                sample.response,
                sample.reference,
                sample.prompt,
                bool(sample.finished),
                dict(sample.info),
            ]
            if not isinstance(sample.response, str):
                raise TypeError(f"the response is {type(sample.response).__name__}, not text")
            body = json.dumps(fields)
            key = hashlib.sha256(f"{spec_id}\0{body}".encode()).digest()
            known = self.pool.cached(key)
            if known is not None:
                self.pool.stats.cache_hits += 1
                self._finish(index, replace(known, seconds=0.0))
                return None
            own = self.pool.inline(spec, spec_id)
            if own is not None and len(sample.response) <= INLINE_CHARACTERS:
                self.pool.stats.inline += 1
                verdict = own.verify(sample)
                self.pool.remember(key, verdict)
                self._finish(index, verdict)
                return None
            if spec_id not in self.specs:
                self.specs[spec_id] = portable(spec, self.pool.base_dir)
        except VerifierError as fault:
            self._finish(index, error(str(fault)))
            return None
        except Exception as fault:  # a bad item must not take the others with it
            self._finish(index, error(f"the item cannot be sent: {type(fault).__name__}: {fault}"))
            return None
        if len(body) > protocol.MAX_ITEM:
            self._finish(index, error(f"the item is {len(body)} bytes, more than {protocol.MAX_ITEM}"))
            return None
        return Job(index, spec_id, fields, len(body), key)

    def _assign(self) -> None:
        """Give every idle worker a batch, starting workers while there is more to do."""
        while True:
            ready = next((w for w in self.pool.workers if w.idle), None)
            starting = sum(w.state is Started.STARTING for w in self.pool.workers)
            if ready is None and starting and starting >= self._waiting():
                return
            job = self._next_job()
            if job is None:
                return
            if ready is None:
                self.queue.appendleft(job)
                if not self._start_worker():
                    return
                continue
            self._send(ready, self._batch(job))

    def _start_worker(self) -> bool:
        try:
            worker = self.pool.add_worker()
        except Exception as fault:
            self._start_failed(f"{type(fault).__name__}: {fault}")
            return self._pending()
        if worker is None:
            return False
        self.selector.register(worker.socket, selectors.EVENT_READ, worker)
        return True

    def _start_failed(self, reason: str) -> None:
        self.failed_starts += 1
        if self.failed_starts < MAX_ATTEMPTS:
            return
        while (job := self._next_job()) is not None:
            self._fail(job, f"no verifier worker starts: {reason}")

    def _batch(self, first: Job) -> list[Job]:
        seconds = self.pool.seconds.get(first.spec_id, BATCH_SECONDS / 4)
        share = 1 + self._waiting() // (2 * self.pool.stats.workers)
        most = max(1, min(BATCH_ITEMS, share, int(BATCH_SECONDS / max(seconds, 1e-6))))
        batch, size = [first], first.size
        while len(batch) < most and size < BATCH_BYTES:
            job = self._next_job()
            if job is None:
                break
            batch.append(job)
            size += job.size
        return batch

    def _send(self, worker: WorkerProcess, batch: list[Job]) -> None:
        specs = {j.spec_id: self.specs[j.spec_id] for j in batch if j.spec_id not in worker.specs}
        worker.specs.update(specs)
        message = {"specs": specs, "items": [[j.index, j.spec_id, j.fields] for j in batch]}
        worker.give({job.index: job for job in batch}, protocol.encode(message))
        self._flush(worker)

    def _flush(self, worker: WorkerProcess) -> None:
        try:
            left = worker.flush()
        except OSError:
            self._lost(worker, "closed its pipe")
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if left else 0)
        self.selector.modify(worker.socket, events, worker)

    # ------------------------------------------------------------ the workers

    def _wait(self) -> None:
        """Until a worker speaks or the next deadline passes; then see to it."""
        now = time.monotonic()
        deadlines = [self._deadline(worker) for worker in self.pool.workers if not worker.idle]
        wait = min(deadlines, default=now) - now
        for key, events in self.selector.select(max(0.0, min(wait, 1.0))):
            worker = key.data
            if events & selectors.EVENT_WRITE:
                self._flush(worker)
            if events & selectors.EVENT_READ and worker in self.pool.workers:
                self._read(worker)
        now = time.monotonic()
        for worker in [w for w in self.pool.workers if not w.idle]:
            if now >= self._deadline(worker):
                self._overdue(worker)

    def _deadline(self, worker: WorkerProcess) -> float:
        allowed = {
            Started.STARTING: START_TIMEOUT_S,
            Started.SENT: START_TIMEOUT_S,
            Started.LOADING: LOAD_TIMEOUT_S,
            Started.RUNNING: self.pool.timeout_s,
        }
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

    def _event(self, worker: WorkerProcess, event: list[Any]) -> None:
        kind, index = event[0], event[1]
        if kind == "hello":
            worker.state = Started.READY
            self.failed_starts = 0
            return
        job = worker.jobs[index]
        if kind in ("load", "start"):
            worker.state = Started.LOADING if kind == "load" else Started.RUNNING
            worker.running = index
            # Never before it was sent: a worker must not be able to give itself more time or less.
            worker.since = max(worker.since, min(float(event[2]), time.monotonic()))
        elif kind == "done" and worker.running == index:
            verdict = Verdict.from_json(event[2])
            del worker.jobs[index]
            worker.running = None
            worker.state = Started.SENT if worker.jobs else Started.READY
            worker.since = time.monotonic()
            worker.done += 1
            self._done(worker, job, verdict, bool(event[3]))
        else:
            raise ValueError(f"event {kind!r} out of turn")

    def _done(self, worker: WorkerProcess, job: Job, verdict: Verdict, cache: bool) -> None:
        if verdict.seconds > self.pool.timeout_s:  # late, though it came before it was killed
            self.pool.stats.timeouts += 1
            self._fail(job, self._timed_out())
            return
        known = self.pool.seconds.get(job.spec_id)
        self.pool.seconds[job.spec_id] = (
            verdict.seconds if known is None else 0.9 * known + 0.1 * verdict.seconds
        )
        if cache:
            self.pool.remember(job.key, verdict)
        if verdict.score is None and verdict.reason.startswith("MemoryError"):
            worker.spent = True  # its heap is full; the next items deserve a clean one
        self._finish(job.index, verdict)

    def _timed_out(self) -> str:
        return f"timed out after {self.pool.timeout_s:g} s"

    def _overdue(self, worker: WorkerProcess) -> None:
        if worker.state is Started.RUNNING:
            self.pool.stats.timeouts += 1
            self._lost(worker, self._timed_out(), timed_out=True)
        elif worker.state is Started.LOADING:
            job = worker.jobs[worker.running] if worker.running is not None else None
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
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(worker.socket)
        ended = self.pool.drop_worker(worker)
        if starting:
            self._start_failed(f"{how} ({ended})")
            return
        jobs = dict(worker.jobs)
        guilty = jobs.pop(worker.running, None) if worker.running is not None else None
        suspect = next(iter(jobs), None) if guilty is None else None  # the one it would have begun with
        for job in reversed(jobs.values()):
            self._requeue(job, job.index != suspect)
        if guilty is None:
            return
        if loading and not timed_out:
            self.kills[guilty.spec_id] = self.kills.get(guilty.spec_id, 0) + 1
            if self.kills[guilty.spec_id] >= MAX_ATTEMPTS - 1:
                self.broken[guilty.spec_id] = f"its worker {how} while loading the verifier ({ended})"
        during = " while loading the verifier" if loading else ""
        self._fail(guilty, how if timed_out else f"its worker {how}{during} ({ended})")

    def _requeue(self, job: Job, innocent: bool) -> None:
        job.attempts += not innocent
        if job.attempts >= MAX_ATTEMPTS:
            self._fail(job, f"its worker died {job.attempts} times before starting on it")
        else:
            self.queue.appendleft(job)


def _label(spec_id: str) -> str:
    """A verifier's name as far as its spec tells it."""
    spec = json.loads(spec_id)
    if isinstance(spec, dict):
        return str(spec.get("name") or spec.get("use") or next(iter(spec), ""))
    return str(spec)
