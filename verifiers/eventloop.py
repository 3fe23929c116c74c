"""Async verifiers: many judgements at once in one thread with an event loop, each under its deadline.

The thread belongs to the pool's own process, so an async verifier must await and not compute: code that does
not let go cannot be killed here, only given up. The pool gives its item an error, and the others a new loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
import time
from dataclasses import dataclass
from typing import Any

from verifiers.base import Sample, Verdict, error
from verifiers.errors import VerifierError
from verifiers.leaf import Leaf
from verifiers.spec import Spec, build

LOAD_TIMEOUT_S = 60.0
BEAT_S = 0.2
BLOCKED_S = 2.0  # without a beat, in the middle of one and the same judgement
CLOSE_TIMEOUT_S = 5.0


class Inbox:
    """What the loop's thread tells the pool's, with a pipe that a selector can watch."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[tuple[str, int, Any]] = queue.SimpleQueue()
        self.fd, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._open = True
        self._lock = threading.Lock()

    def put(self, kind: str, job: int, value: Any) -> None:
        self._events.put((kind, job, value))
        with self._lock, contextlib.suppress(BlockingIOError):
            if self._open:
                os.write(self._write, b"!")

    def take(self) -> list[tuple[str, int, Any]]:
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 1 << 16)
        taken = []
        with contextlib.suppress(queue.Empty):
            while True:
                taken.append(self._events.get_nowait())
        return taken

    def close(self) -> None:
        with self._lock:
            self._open = False
            os.close(self.fd)
            os.close(self._write)


@dataclass(slots=True)
class _Loaded:
    leaf: Leaf
    slots: asyncio.Semaphore


class EventLoop:
    """One thread with an event loop, and the async verifiers that were built in it."""

    def __init__(self, base_dir: str) -> None:
        self._base_dir = base_dir
        self._loop = asyncio.new_event_loop()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._loaded: dict[str, asyncio.Task[_Loaded | Verdict]] = {}
        self._held: dict[int, asyncio.Semaphore] = {}  # the slots of running jobs
        self._beat = time.monotonic()
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="verifier-async", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._beating()
        self._loop.run_forever()
        with contextlib.suppress(Exception):
            self._loop.close()

    def _beating(self) -> None:
        self._beat = time.monotonic()
        self._loop.call_later(BEAT_S, self._beating)

    # ------------------------------------------------------------ called from the pool's thread

    def submit(
        self, job: int, spec_id: str, spec: Spec, sample: Sample, default_s: float, inbox: Inbox
    ) -> None:
        """Judge. The inbox gets ("start", job, (monotonic seconds, allowed seconds)), then ("done", job, verdict)."""

        def begin() -> None:
            if self._abandoned:
                return
            self._tasks[job] = self._loop.create_task(self._one(job, spec_id, spec, sample, default_s, inbox))

        self._loop.call_soon_threadsafe(begin)

    def cancel(self, jobs: list[int]) -> None:
        """Nobody waits for these any longer; one that will not be cancelled holds no slot either."""

        def end() -> None:
            for job in jobs:
                self._release(job)
                if job in self._tasks:
                    self._tasks[job].cancel()

        with contextlib.suppress(RuntimeError):  # closed
            self._loop.call_soon_threadsafe(end)

    def blocked_by(self) -> int | None:
        """The job that has held the loop for too long; None when it runs."""
        if time.monotonic() - self._beat < BLOCKED_S:
            return None
        current = asyncio.current_task(self._loop)
        return next((job for job, task in list(self._tasks.items()) if task is current), None)

    def stats(self) -> dict[str, Any]:
        """What the verifiers count themselves (an instance's `stats()`), by name."""
        counted = {}
        for leaf in self._leaves():
            count = getattr(leaf.instance, "stats", None)
            if callable(count):
                counted[leaf.name] = count()
        return counted

    def _leaves(self) -> list[Leaf]:
        done = [task for task in list(self._loaded.values()) if task.done() and not task.cancelled()]
        return [loaded.leaf for task in done if isinstance(loaded := task.result(), _Loaded)]

    def abandon(self) -> None:
        """It is blocked: it says nothing more, and ends by itself if it is ever let go."""
        self._abandoned = True
        asyncio.run_coroutine_threadsafe(self._close(), self._loop)

    def close(self) -> None:
        """Cancel what runs, let the verifiers close their connections, end the thread."""
        if not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):
                asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        self._thread.join(CLOSE_TIMEOUT_S)

    # ------------------------------------------------------------ in the loop's thread

    async def _close(self) -> None:
        tasks = [*self._tasks.values(), *(task for task in self._loaded.values() if not task.done())]
        for task in tasks:
            task.cancel()
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=1.0)
            for leaf in self._leaves():
                with contextlib.suppress(Exception):
                    await asyncio.wait_for(leaf.aclose(), 1.0)
        finally:
            self._loop.stop()

    async def _one(
        self, job: int, spec_id: str, spec: Spec, sample: Sample, default_s: float, inbox: Inbox
    ) -> None:
        verdict = error("cancelled")
        try:
            found = await self._load(spec_id, spec)
            if isinstance(found, Verdict):
                verdict = found
                return
            await found.slots.acquire()
            self._held[job] = found.slots
            allowed = found.leaf.layout.timeout_s or default_s
            inbox.put("start", job, (time.monotonic(), allowed))
            verdict = await found.leaf.averify(sample, allowed)
        except Exception as fault:
            verdict = error(f"{type(fault).__name__}: {fault}")
        finally:
            self._release(job)
            self._tasks.pop(job, None)
            if not self._abandoned:  # else others judge what it was to judge
                inbox.put("done", job, verdict)

    def _release(self, job: int) -> None:
        slots = self._held.pop(job, None)
        if slots is not None:
            slots.release()

    async def _load(self, spec_id: str, spec: Spec) -> _Loaded | Verdict:
        """The verifier, built once, in another thread: an import must not hold up the judgements."""
        if spec_id not in self._loaded:
            self._loaded[spec_id] = self._loop.create_task(self._build(spec))
        return await asyncio.shield(self._loaded[spec_id])

    async def _build(self, spec: Spec) -> _Loaded | Verdict:
        built: asyncio.Future[Any] = self._loop.create_future()

        def tell(made: Any) -> None:
            if not built.done():
                built.set_result(made)

        def work() -> None:
            try:
                made: Any = build(spec, self._base_dir)
                made.warm()
            except VerifierError as fault:
                made = error(str(fault))
            except BaseException as fault:
                made = error(f"the verifier does not load: {type(fault).__name__}: {fault}")
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                self._loop.call_soon_threadsafe(tell, made)

        threading.Thread(target=work, name="verifier-load", daemon=True).start()
        try:
            made = await asyncio.wait_for(built, LOAD_TIMEOUT_S)
        except TimeoutError:
            return error(f"the verifier did not load within {LOAD_TIMEOUT_S:g} s")
        if isinstance(made, Verdict):
            return made
        if not isinstance(made, Leaf) or made.layout.runs != "async":
            return error("the verifier is not async any more")
        return _Loaded(made, asyncio.Semaphore(made.layout.concurrency))
