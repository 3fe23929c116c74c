"""When batches are sampled: each when its turn comes, or some steps ahead of training in the background. No torch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

from .collect import Collected, Collector


class Feed:
    """Batches by step, collected in threads, at most `ahead` steps before they are trained on.

    ahead 0: strictly on-policy. Nothing of it decides what is sampled: that is a function of the seed, the step, and the
    weights that the sampler holds when a batch is started (and, with updates in flight, while it is).
    """

    def __init__(self, collector: Collector, ahead: int) -> None:
        self.collector, self.ahead = collector, ahead
        self.waited_s = 0.0
        self.restored: dict[int, Collected] = {}  # by step: batches of a save, as far as they had come
        self._threads = ThreadPoolExecutor(ahead + 1, thread_name_prefix="collect")
        self._batches: dict[int, Collected] = {}
        self._futures: dict[int, Future[Collected]] = {}

    def started(self, step: int) -> bool:
        return step in self._batches

    def start(self, batches: Sequence[Collected], turn: ExitStack | None = None) -> None:
        """Begin with the batches of some steps, also those that a save holds a part of. turn: closed when the last
        response of all of them is there and judged."""
        ended = _LastOf(len(batches), turn or ExitStack())
        for batch in batches:
            self._batches[batch.step] = batch
            self._futures[batch.step] = self._threads.submit(self._run, batch, ended)

    def _run(self, batch: Collected, ended: Callable[[], None]) -> Collected:
        try:
            return self.collector.collect(batch)
        finally:
            ended()

    def settle(self) -> None:
        """Wait until all that was begun is whole, so that none of it meets other weights."""
        for future in self._futures.values():
            self._wait(future)

    def take(self, step: int) -> Collected:
        """The step's batch, whole."""
        batch = self._wait(self._futures.pop(step))
        del self._batches[step]
        return batch

    def take_waited(self) -> float:
        """Seconds spent waiting for batches since it was last asked."""
        waited, self.waited_s = self.waited_s, 0.0
        return waited

    def pending(self) -> list[Collected]:
        """What was begun and not yet taken, as far as it has come: copies."""
        found = []
        for batch in (*self._batches.values(), *self.restored.values()):
            with batch.lock:
                groups, tried = dict(batch.groups), list(batch.tried)
            found.append(
                Collected(batch.step, batch.prompts, groups, tried, batch.refilled, taken=batch.taken)
            )
        return found

    def _wait(self, future: Future[Collected]) -> Collected:
        began = time.perf_counter()
        try:
            return future.result()
        finally:
            self.waited_s += time.perf_counter() - began

    def close(self) -> None:
        """End what is under way, on the server too."""
        self.collector.stop.set()
        self._threads.shutdown(wait=True, cancel_futures=True)


class _LastOf:
    """Called as each of `count` ends; the last one closes the turn, in its own thread."""

    def __init__(self, count: int, turn: ExitStack) -> None:
        self.left, self.turn, self.lock = count, turn, threading.Lock()

    def __call__(self) -> None:
        with self.lock:
            self.left -= 1
            last = self.left == 0
        if last:
            self.turn.close()
