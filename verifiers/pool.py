"""A pool of killable worker processes that judges many samples and survives any one of them.

Math libraries hang on adversarial input and their own alarms fail in threads, so the hard wall clock is
kept outside: an item that runs over is killed with its process and gets a verdict of status error (score
None). The clock of an item starts when a worker starts on it, after the verifier was loaded; time in the
queue is not its time. A worker that dies takes the one running item with it, the others are queued again.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from verifiers import registry
from verifiers.base import Verdict
from verifiers.dispatch import START_TIMEOUT_S, Item, OnResult, Run
from verifiers.errors import VerifierError
from verifiers.process import WorkerProcess
from verifiers.spec import Spec, Verifier, build


@dataclass(slots=True)
class PoolStats:
    """Counts since the pool was made. busy_share is of workers x wall time inside `verify`."""

    items: int = 0
    errors: int = 0
    timeouts: int = 0
    restarts: int = 0
    cache_hits: int = 0
    inline: int = 0
    wall_s: float = 0.0
    busy_s: float = 0.0
    workers: int = 0

    @property
    def items_per_s(self) -> float:
        return self.items / self.wall_s if self.wall_s else 0.0

    @property
    def busy_share(self) -> float:
        return self.busy_s / (self.wall_s * self.workers) if self.wall_s and self.workers else 0.0

    def to_json(self) -> dict[str, float]:
        return {**asdict(self), "items_per_s": self.items_per_s, "busy_share": self.busy_share}


class VerifierPool:
    """`with VerifierPool(workers=4) as pool: verdicts = pool.verify(items)`.

    workers     processes, started when there is work for them
    timeout_s   wall-clock seconds that one item may run
    memory_mb   address space of a worker (RLIMIT_AS)
    base_dir    what relative file paths in specs are relative to (default: the working directory)
    recycle_after  items after which a worker is replaced, so that no verifier's leak can grow for ever
    cache_size  verdicts remembered by (spec, sample); 0 for none

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
    ) -> None:
        for name, value, least in (
            ("workers", workers, 1),
            ("memory_mb", memory_mb, 64),
            ("recycle_after", recycle_after, 1),
            ("cache_size", cache_size, 0),
        ):
            if not isinstance(value, int) or value < least:
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
        self._inline: dict[str, Verifier | None] = {}
        self.seconds: dict[str, float] = {}  # running mean of an item's seconds, by spec
        self._closed = False
        self._fresh()

    def _fresh(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self.workers: list[WorkerProcess] = []
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

    # ------------------------------------------------------------ what a run uses

    def add_worker(self) -> WorkerProcess | None:
        """One more worker, starting; None when the pool has its number. Raises OSError."""
        if len(self.workers) >= self._size:
            return None
        settings = {"memory_mb": self._memory_mb, "base_dir": self.base_dir}
        worker = self._starter.submit(WorkerProcess, settings).result(timeout=START_TIMEOUT_S)
        self.workers.append(worker)
        return worker

    def drop_worker(self, worker: WorkerProcess) -> str:
        """Kill and reap; returns how it ended, in words."""
        self.stats.restarts += 1
        if worker in self.workers:
            self.workers.remove(worker)
        return worker.kill()

    def inline(self, spec: Spec, key: str) -> Verifier | None:
        """The verifier itself when it is one of this package's own that runs in the caller."""
        if key not in self._inline:
            found = None
            name = spec if isinstance(spec, str) else spec.get("use") if isinstance(spec, dict) else None
            if isinstance(name, str) and registry.is_built_in(name):
                built = build(spec, self.base_dir)
                found = built if built.runs == "inline" else None
            self._inline[key] = found
        return self._inline[key]

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
