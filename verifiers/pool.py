"""A pool of killable worker processes that judges many samples and survives any one of them.

Math libraries hang on adversarial input and their own alarms fail in threads, so the hard wall clock is
kept outside: an item that runs over is killed with its process and gets a verdict of status error (score
None). The clock of an item starts when a worker starts on it, after the verifier was loaded; time in the
queue is not its time. A worker that dies takes the one running item with it, the others are queued again.
Async verifiers run beside the workers, in an event loop of this process; verifiers that ask for the sandbox
run in workers of their own, which have confined themselves. A composition of such parts is taken apart.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any, Self

from verifiers import registry
from verifiers.base import Verdict
from verifiers.demand import Demand
from verifiers.dispatch import Item, OnResult, Run
from verifiers.errors import VerifierError
from verifiers.eventloop import EventLoop
from verifiers.inside import START_TIMEOUT_S
from verifiers.layout import Layout
from verifiers.process import Kind, WorkerProcess
from verifiers.spec import Spec, Verifier, build, canonical, parts, uses
from verifiers.stats import PoolStats

SANDBOX_LOOK_S = 0.05  # waited for a sandboxed worker before the others are looked at again


class VerifierPool:
    """`with VerifierPool(workers=4) as pool: verdicts = pool.verify(items)`.

    workers     processes, started when there is work for them
    timeout_s   wall-clock seconds that one item may run, where its verifier names no deadline of its own
    memory_mb   address space of a worker (RLIMIT_AS)
    base_dir    what relative file paths in specs are relative to (default: the working directory)
    recycle_after  items after which a worker is replaced, so that no verifier's leak can grow for ever
    cache_size  verdicts remembered by (spec, sample); 0 for none
    sandbox     the least tier that code may run in: "bubblewrap", "namespaces", "landlock" or "limits";
                None for the strongest that the machine gives
    allow_weak_sandbox  consent to resource limits only, where the machine gives nothing better

    Raises VerifierError for settings out of range.
    """

    def __init__(
        self,
        workers: int = 2,
        timeout_s: float = 5.0,
        memory_mb: int = 1024,
        base_dir: str | Path | None = None,
        recycle_after: int = 20_000,
        cache_size: int = 10_000,
        sandbox: str | None = None,
        allow_weak_sandbox: bool = False,
    ) -> None:
        for name, value, least in (
            ("workers", workers, 1),
            ("memory_mb", memory_mb, 64),
            ("recycle_after", recycle_after, 1),
            ("cache_size", cache_size, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise VerifierError(f"VerifierPool: {name} is {value!r}, it must be an integer >= {least}")
        if not 0 < timeout_s < float("inf"):
            raise VerifierError(f"VerifierPool: timeout_s is {timeout_s!r}, it must be above 0")
        self.timeout_s = float(timeout_s)
        self.base_dir = str(Path(base_dir).resolve()) if base_dir is not None else os.getcwd()
        self.stats = PoolStats(workers=workers)
        self.recycle_after = recycle_after
        self._memory_mb = memory_mb
        self._size = workers
        self._cache: OrderedDict[bytes, Verdict] = OrderedDict()
        self._cache_size = cache_size
        self._demand = Demand(sandbox, allow_weak_sandbox)
        self.layouts: dict[str, Layout] = {}  # what is known of specs, by their canonical text
        self._built: dict[str, Verifier] = {}
        self._refused: dict[str, str] = {}
        self._foreign: set[str] = set()
        self.loaded: set[str] = set()  # specs that some worker has loaded
        self.seconds: dict[str, float] = {}  # running mean of an item's seconds, by spec
        self.reads = frozenset([self.base_dir, *(path for path in sys.path if path)])
        self._closed = False
        self._fresh()

    def _fresh(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self.workers: list[WorkerProcess] = []
        self._coming: dict[Kind, Future[WorkerProcess]] = {}
        self._event_loop: EventLoop | None = None
        # A worker dies with the *thread* that started it, so one thread that lives as long as the pool does it.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="verifier-pool")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill and reap all workers. The pool cannot be used again."""
        self._closed = True
        if self._pid == os.getpid():
            for worker in self.workers:
                worker.kill()
            self.workers.clear()
            for coming in self._coming.values():
                with contextlib.suppress(Exception):
                    coming.result(timeout=START_TIMEOUT_S).kill()
            if self._event_loop is not None:
                self._event_loop.close()
            self._starter.shutdown(wait=True)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            if not self._closed:
                self.close()

    def verify(self, items: Sequence[Item], on_result: OnResult | None = None) -> list[Verdict]:
        """One verdict per item, in order; `on_result(index, verdict)` is called as each arrives.

        Raises VerifierError only for a closed pool, and whatever `on_result` raises: an item that cannot
        be judged gets a verdict of status error. Takes at most about len(items) x timeout_s / workers.
        Safe to call from several threads, which then take turns.
        """
        if self._pid != os.getpid():  # forked: the workers, and whoever holds the lock, are the parent's
            self._fresh()
        with self._lock:
            if self._closed:
                raise VerifierError("this VerifierPool is closed")
            start = time.monotonic()
            try:
                return Run(self, items, on_result).go()
            except BaseException:
                for worker in self.workers:
                    worker.kill()  # what they would still answer belongs to nobody
                self.workers.clear()
                raise
            finally:
                self.stats.wall_s += time.monotonic() - start

    def report(self) -> dict[str, Any]:
        """`stats` as JSON data, and under "own" what verifiers count themselves (a judge's cost and calls)."""
        own = self._event_loop.stats() if self._event_loop is not None else {}
        return {**self.stats.to_json(), "own": own}

    # ------------------------------------------------------------ what a run uses

    def add_worker(self, kind: Kind) -> WorkerProcess | None:
        """One more worker, starting; None when the pool has its number of that kind, or it is not there yet.

        Raises OSError or VerifierError.
        """
        if sum(worker.kind == kind for worker in self.workers) >= self._size:
            return None
        if kind not in self._coming:
            reads = self.reads if kind == "sandbox" else frozenset()
            self._coming[kind] = self._starter.submit(WorkerProcess, self._settings(), kind, reads)
        wait = START_TIMEOUT_S if kind == "worker" else SANDBOX_LOOK_S  # the first sandbox takes its time
        try:
            worker = self._coming[kind].result(timeout=wait)
        except FutureTimeout:
            return None
        except BaseException:
            del self._coming[kind]
            raise
        del self._coming[kind]
        worker.since = time.monotonic()
        self.workers.append(worker)
        return worker

    def _settings(self) -> dict[str, Any]:
        return {
            "memory_mb": self._memory_mb,
            "base_dir": self.base_dir,
            "environment": self._demand.environment(),
        }

    @property
    def starts(self) -> bool:
        """Whether a worker is about to be there."""
        return bool(self._coming)

    def see(self, spec: Spec) -> None:
        """Sandboxed workers must be able to read the files that `spec` names."""
        places = [use.rpartition(":")[0] if not use.endswith(".py") else use for use in uses(spec)]
        self.reads |= {str(Path(place).parent) for place in places if place.endswith(".py")}

    def drop_worker(self, worker: WorkerProcess) -> str:
        """Kill and reap; returns how it ended, in words."""
        self.stats.restarts += 1
        if worker in self.workers:
            self.workers.remove(worker)
        return worker.kill()

    def event_loop(self) -> EventLoop:
        if self._event_loop is None:
            self._event_loop = EventLoop(self.base_dir)
        return self._event_loop

    def new_event_loop(self) -> None:
        """The one there is is blocked."""
        if self._event_loop is not None:
            self._event_loop.abandon()
            self.stats.loops += 1
        self._event_loop = None

    def layout(self, spec: Spec, key: str) -> Layout | None:
        """Where a spec's parts run, as far as this process can know without loading code of others.

        Raises VerifierError for a spec of known verifiers that cannot be built.
        """
        if key in self._refused:
            raise VerifierError(self._refused[key])
        if key not in self._built and key not in self._foreign:
            if all(registry.is_known_here(use) for use in uses(spec)):
                try:
                    self._built[key] = build(spec, self.base_dir)
                except VerifierError as fault:
                    self._refused[key] = str(fault)
                    raise
                self.learn(spec, key, self._built[key].layout)
            else:
                self._foreign.add(key)
        return self.layouts.get(key)

    def learn(self, spec: Spec, key: str, layout: Layout) -> None:
        """What was found out about a spec; the first word holds."""
        if key in self.layouts:
            return
        self.layouts[key] = layout
        for part, child in zip(parts(spec), layout.children, strict=True):
            self.learn(part, canonical(part), child)

    def inline(self, key: str) -> Verifier | None:
        """The verifier itself when it is one of this package's own that runs in the caller."""
        return self._built.get(key)

    @property
    def caches(self) -> bool:
        return self._cache_size > 0

    def cached(self, key: bytes) -> Verdict | None:
        verdict = self._cache.get(key)
        if verdict is not None:
            self._cache.move_to_end(key)
        return verdict

    def remember(self, key: bytes, verdict: Verdict) -> None:
        if self._cache_size and verdict.scored:
            self._cache[key] = verdict
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
