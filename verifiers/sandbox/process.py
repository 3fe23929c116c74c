"""The parent's side of one sandboxed program: write to it, read from it, and end it with all it started."""

from __future__ import annotations

import contextlib
import os
import select
import time
from types import TracebackType
from typing import Protocol, Self

from verifiers.sandbox.tiers import Ending, Tier

STDERR_TAIL = 4096  # bytes kept of what it wrote to standard error
AHEAD = 16 << 20  # bytes of output taken in while it is being written to
KILL_WAIT_S = 10.0
PIECE = 1 << 16


class Handle(Protocol):
    """What started the program and can end it."""

    pid: int

    def fileno(self) -> int:
        """Readable when the program has ended; -1 when there is no such descriptor."""

    def poll(self) -> Ending | None:
        """How it ended, or None while it runs. Never blocks."""

    def kill(self, wait_s: float) -> Ending:
        """End and reap the whole tree; returns at once when that has been done."""


class Process:
    """One program in its sandbox. Deadlines are absolute, in seconds of time.monotonic().

    For one thread at a time. Leaving the `with` block, `kill`, or the end of this process itself in any
    manner ends everything that the program started.
    """

    def __init__(self, handle: Handle, tier: Tier, stdin: int, stdout: int, stderr: int) -> None:
        self.tier = tier
        self.pid = handle.pid  # as the host counts, 0 when not known
        self._handle = handle
        self._in, self._out, self._err = stdin, stdout, stderr
        self._ahead = bytearray()
        self._tail = bytearray()
        self._ending: Ending | None = None
        for descriptor in (stdin, stdout, stderr):
            if descriptor >= 0:
                os.set_blocking(descriptor, False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: object, trace: TracebackType | None) -> None:
        self.kill()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.kill()

    # ------------------------------------------------------------ input and output

    def write(self, data: bytes, deadline: float) -> None:
        """Write all of `data`; what the program prints meanwhile is kept for `read`.

        Raises TimeoutError at the deadline and BrokenPipeError when the program reads no more.
        """
        left = memoryview(data)
        while left:
            if self._in < 0:
                raise BrokenPipeError("the sandboxed program's standard input is closed")
            readable, writable = self._wait_io(deadline, wants_write=True)
            if not readable and not writable:
                raise TimeoutError("the sandboxed program did not take its input in time")
            if writable:
                try:
                    left = left[os.write(self._in, left[:PIECE]) :]
                except BlockingIOError:
                    continue
                except OSError:
                    self.close_stdin()
                    raise BrokenPipeError("the sandboxed program reads no more") from None

    def close_stdin(self) -> None:
        """The program sees the end of its input."""
        if self._in >= 0:
            os.close(self._in)
            self._in = -1

    def read(self, max_bytes: int, deadline: float) -> bytes:
        """Some of what the program wrote, at most `max_bytes`; b"" at the end of its output.

        Raises TimeoutError when nothing came before the deadline.
        """
        while not self._ahead and self._out >= 0:
            readable, _ = self._wait_io(deadline, limit=max_bytes)
            if not readable and not self._ahead and self._out >= 0 and time.monotonic() >= deadline:
                raise TimeoutError("the sandboxed program said nothing in time")
        taken = bytes(self._ahead[:max_bytes])
        del self._ahead[:max_bytes]
        return taken

    def communicate(self, data: bytes, max_bytes: int, deadline: float) -> bytes:
        """Give it `data` and the end of input; all it writes until it closes its output.

        Stops early, with more than `max_bytes` bytes, when there is more than that. A program that does
        not read its input is no error here. Raises TimeoutError at the deadline.
        """
        with contextlib.suppress(BrokenPipeError):
            self.write(data, deadline)
        self.close_stdin()
        collected = bytearray()
        while len(collected) <= max_bytes:
            piece = self.read(PIECE, deadline)
            if not piece:
                break
            collected += piece
        return bytes(collected)

    def stderr_tail(self) -> str:
        """The end of what it wrote to standard error, so far."""
        if self._err >= 0 and select.select([self._err], [], [], 0)[0]:
            self._drain_stderr()
        return self._tail.decode(errors="replace")

    def _wait_io(self, deadline: float, wants_write: bool = False, limit: int = PIECE) -> tuple[bool, bool]:
        """One round of select: takes in output and errors. Returns whether something came, can be written."""
        reads = [fd for fd in (self._out, self._err) if fd >= 0]
        if wants_write and len(self._ahead) >= AHEAD:
            reads = [fd for fd in reads if fd != self._out]
        poller = select.poll()  # select() fails on descriptors from 1024 on
        for descriptor in reads:
            poller.register(descriptor, select.POLLIN)
        if wants_write:
            poller.register(self._in, select.POLLOUT)
        ready = {fd for fd, _ in poller.poll(max(0.0, deadline - time.monotonic()) * 1000 + 0.5)}
        if self._err in ready:
            self._drain_stderr()
        if self._out in ready:
            try:
                piece = os.read(self._out, min(PIECE, max(limit, 1)))
            except BlockingIOError:
                piece = None
            except OSError:
                piece = b""
            if piece == b"":
                os.close(self._out)
                self._out = -1
            elif piece:
                self._ahead += piece
        return bool(ready - {self._in}), wants_write and self._in in ready

    def _drain_stderr(self) -> None:
        try:
            piece = os.read(self._err, PIECE)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            os.close(self._err)
            self._err = -1
        self._tail += piece
        del self._tail[:-STDERR_TAIL]

    # ------------------------------------------------------------ its end

    @property
    def ending(self) -> Ending | None:
        """How it ended, or None while it runs. Never blocks."""
        if self._ending is None:
            self._ending = self._handle.poll()
        return self._ending

    def wait(self, deadline: float) -> str:
        """How it ended, in words. Raises TimeoutError when it still runs at the deadline."""
        while (ending := self.ending) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the sandboxed program still runs")
            descriptor = self._handle.fileno()
            if descriptor < 0:
                time.sleep(min(left, 0.005))
                continue
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            if self._err >= 0:
                poller.register(self._err, select.POLLIN)
            if any(fd == self._err for fd, _ in poller.poll(left * 1000 + 0.5)):
                self._drain_stderr()  # a full pipe would keep it from ending
        return ending.words

    def kill(self) -> str:
        """End it with everything it started, reap it, and say how it ended. Can be called again."""
        with contextlib.suppress(OSError):
            if self._err >= 0:
                self.stderr_tail()
        self._ending = self._handle.kill(KILL_WAIT_S)
        for name in ("_in", "_out", "_err"):
            if getattr(self, name) >= 0:
                os.close(getattr(self, name))
                setattr(self, name, -1)
        return self._ending.words
