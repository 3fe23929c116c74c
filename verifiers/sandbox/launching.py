"""Start programs in sandboxes.

One supervisor for each tier and each set of visible paths is started when it is first needed and serves every
later launch. It ends with this process.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache

from verifiers.sandbox import bubblewrap, visible
from verifiers.sandbox.lockdown import encode_order
from verifiers.sandbox.process import Process
from verifiers.sandbox.supervision import ENVIRONMENT, PACKAGE, START_S, Place, StatusHandle, supervisor_of
from verifiers.sandbox.supervisor import REQUEST
from verifiers.sandbox.tiers import Limits, SandboxUnavailable, Tier


def launch(
    argv: Sequence[str],
    *,
    tier: Tier,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    files: Mapping[str, bytes] | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> Process:
    """Start one untrusted program, with pipes to it.

    files     relative names and contents, put into its private working directory
    env       its whole environment; None for a small neutral one. Nothing of ours is inherited
    pass_fds  descriptors it gets under the same numbers, besides 0, 1 and 2

    Raises SandboxUnavailable when it cannot be shut in: it then has not run at all.
    """
    order = _order(list(argv), None, limits, files, env, pass_fds)
    return _start(_place(tier), limits, order, pass_fds)


def launch_python(
    source: str,
    args: Sequence[str] = (),
    *,
    tier: Tier,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    files: Mapping[str, bytes] | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> Process:
    """As `launch` of `python -I -S -c source args`, in an interpreter that stands ready."""
    order = _order(list(args), source, limits, files, env, pass_fds)
    return _start(_place(tier), limits, order, pass_fds)


def confine(
    argv: Sequence[str],
    *,
    tier: Tier,
    limits: Limits,
    read_paths: Sequence[str] = (),
    write_dir: str | None = None,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    stderr: int | None = None,
) -> Process:
    """Start a long-lived worker that sees `read_paths` besides the interpreter, writes only to `write_dir`, and
    speaks over `pass_fds`; its standard streams are /dev/null, or `stderr` where a descriptor is given.
    """
    place = _place(tier, [str(PACKAGE.parent), *read_paths], [write_dir] if write_dir else [])
    order = _order(list(argv), None, limits, None, env, pass_fds)
    null = os.open(os.devnull, os.O_RDWR)
    try:
        streams = (null, null, null if stderr is None else stderr)
        return Process(_order_to(place, limits, order, streams, pass_fds), tier, -1, -1, -1)
    finally:
        os.close(null)


@cache
def _interpreter_paths() -> tuple[str, ...]:
    return tuple(visible.interpreter_paths())


def _place(tier: Tier, reads: Sequence[str] = (), writes: Sequence[str] = ()) -> Place:
    """Raises SandboxUnavailable where the bubblewrap program is missing."""
    wanted = [*_interpreter_paths(), *reads]
    bwrap = ""
    if tier is Tier.BUBBLEWRAP:
        bwrap = shutil.which("bwrap") or ""
        if not bwrap:
            raise SandboxUnavailable("no bubblewrap sandbox", "the program `bwrap` is not on PATH")
        wanted += bubblewrap.needed_inside()
    return Place(
        tier,
        tuple(visible.outermost(wanted)) if reads or bwrap else _interpreter_paths(),
        tuple(os.path.realpath(path) for path in writes),
        bwrap,
    )


def _order(
    argv: list[str],
    source: str | None,
    limits: Limits,
    files: Mapping[str, bytes] | None,
    env: Mapping[str, str] | None,
    pass_fds: Sequence[int],
) -> bytes:
    for name in files or {}:
        if not name or name.startswith("/") or "\0" in name or ".." in name.split("/"):
            raise SandboxUnavailable(f"sandbox: {name!r} is no relative name of a file")
    if any(number < 3 for number in pass_fds):
        raise SandboxUnavailable("sandbox: descriptors 0, 1 and 2 are the program's own streams")
    given = dict(ENVIRONMENT if env is None else env)
    return encode_order(argv, source, given, asdict(limits), files or {}, pass_fds)


def _start(place: Place, limits: Limits, order: bytes, pass_fds: Sequence[int]) -> Process:
    pipes = [os.pipe(), os.pipe(), os.pipe()]
    theirs = (pipes[0][0], pipes[1][1], pipes[2][1])
    ours = [pipes[0][1], pipes[1][0], pipes[2][0]]
    try:
        handle = _order_to(place, limits, order, theirs, pass_fds)
    except BaseException as fault:
        os.set_blocking(ours[2], False)
        with contextlib.suppress(OSError):
            if isinstance(fault, SandboxUnavailable) and (said := os.read(ours[2], 4096)):
                fault = SandboxUnavailable(fault.what, f"{fault.why}: {said[-300:].decode(errors='replace')}")
        for descriptor in ours:
            os.close(descriptor)
        raise fault from None
    finally:
        for descriptor in theirs:
            os.close(descriptor)
    return Process(handle, place.tier, *ours)


def _order_to(
    place: Place, limits: Limits, order: bytes, streams: Sequence[int], pass_fds: Sequence[int]
) -> StatusHandle:
    if place.tier is Tier.LANDLOCK and limits.processes > 1:
        raise SandboxUnavailable(
            f"the landlock sandbox runs one process, {limits.processes} were asked for",
            "without a process namespace nothing makes sure that all of them end",
            "ask for processes=1 or for the namespaces tier",
        )
    ours, theirs = socket.socketpair()
    order_out, order_in = os.pipe()
    request = REQUEST.pack(limits.memory_mb, limits.processes, limits.processes + limits.threads)
    sent = [*streams, theirs.fileno(), order_out, *pass_fds]
    try:
        if hasattr(socket, "SO_PASSCRED"):
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        supervisor = supervisor_of(place)
        try:
            socket.send_fds(supervisor.control, [request], sent)
        except ConnectionError:  # killed since we looked; a new one is started once
            supervisor.close()
            supervisor = supervisor_of(place)
            socket.send_fds(supervisor.control, [request], sent)
        theirs.close()
        os.close(order_out)
        order_out = -1
        _send_order(order_in, order)
        handle = StatusHandle(supervisor, ours, limits)
        handle.ready()
        return handle
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
        os.close(order_in)
        if order_out >= 0:
            os.close(order_out)


def _send_order(pipe: int, data: bytes) -> None:
    """Why nobody reads it, if so, is in what the other side reported."""
    os.set_blocking(pipe, False)
    left, deadline = memoryview(data), time.monotonic() + START_S
    poller = select.poll()
    poller.register(pipe, select.POLLOUT)
    with contextlib.suppress(BrokenPipeError):
        while left and time.monotonic() < deadline:
            try:
                left = left[os.write(pipe, left[: 1 << 16]) :]
            except BlockingIOError:
                poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
