"""The memory of a whole tree of processes, where no control group counts it."""

from __future__ import annotations

import os

EVERY_S = 0.02


def host_pid(proc: int, child: int) -> int:
    """A child's number as the host counts, from its number in our own process namespace; 0 if it is gone.

    `proc` is a descriptor of the host's /proc.
    """
    own = os.readlink("self", dir_fd=proc)
    depth = len(_fields(proc, int(own)).get("NSpid", "").split())
    for number in _numbers(proc, f"{own}/task/{own}/children"):
        names = _fields(proc, number).get("NSpid", "").split()  # one in each namespace, outermost first
        if 0 < depth <= len(names) and int(names[depth - 1]) == child:
            return number
    return 0


def tree_mb(proc: int, pid: int) -> float:
    """Megabytes in use by a process and all below it, file pages apart. A page that two processes share counts
    for each of them."""
    total, waiting, seen = 0, [pid], set()
    while waiting:
        number = waiting.pop()
        if number in seen:
            continue
        seen.add(number)
        fields = _fields(proc, number)
        total += sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem") if name in fields)
        try:
            tasks = _tasks(proc, number)
        except OSError:
            continue
        for task in tasks:
            waiting += _numbers(proc, f"{number}/task/{task}/children")
    return total / 1024


def _tasks(proc: int, number: int) -> list[str]:
    descriptor = os.open(f"{number}/task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc)
    try:
        return os.listdir(descriptor)
    finally:
        os.close(descriptor)


def _read(proc: int, name: str) -> str:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    except OSError:
        return ""
    try:
        return os.read(descriptor, 1 << 16).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def _numbers(proc: int, name: str) -> list[int]:
    return [int(word) for word in _read(proc, name).split()]


def _fields(proc: int, number: int) -> dict[str, str]:
    """/proc/<number>/status."""
    pairs = (line.partition(":") for line in _read(proc, f"{number}/status").splitlines())
    return {name: value.strip() for name, _, value in pairs}
