"""Control groups: caps on the memory and the number of processes of a sandbox, where we may make groups.

Version 2 needs a directory that was given to this user with the memory and pids controllers switched on below
it (systemd's Delegate=yes, or one named in VERIFIERS_CGROUP); version 1 needs root. Groups are kept and used
again, because making one costs more than all else at a launch.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

PREFIX = "verifiers-sandbox-"
# (version 2, version 1) of the files that we write.
_FILES = {
    "memory": (("memory.max", "memory.swap.max"), ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")),
    "pids": (("pids.max",), ("pids.max",)),
}


@dataclass(slots=True)
class Group:
    """One group: its directory, or in version 1 one for each controller; open, since our view of files changes."""

    directories: dict[str, int]
    version: int
    name: str

    def limit(self, memory_mb: int, tasks: int) -> None:
        """Raises OSError. Swap is capped where the kernel counts it."""
        for controller, value in (("memory", memory_mb << 20), ("pids", tasks)):
            first, *swap = _FILES[controller][0 if self.version == 2 else 1]
            for name in swap:
                with contextlib.suppress(OSError):  # version 1: memory and swap may not be below memory
                    _write(self.directories[controller], name, "0" if self.version == 2 else "-1")
            _write(self.directories[controller], first, str(value))
            for name in swap if self.version == 1 else ():
                with contextlib.suppress(OSError):
                    _write(self.directories[controller], name, str(value))

    def enter(self) -> None:
        """Put the calling process in. Raises OSError."""
        for directory in set(self.directories.values()):
            _write(directory, "cgroup.procs", "0")


class Groups:
    """Makes, lends and removes the groups of one supervisor. `version` is 0 where there are none to be had."""

    def __init__(self, wanted: str = "", owner: int = 0) -> None:
        self._bases: dict[str, int] = {}
        self._free: list[Group] = []
        self._made = 0
        self._name = f"{PREFIX}{owner}-"
        self.version = 0
        for version, paths in candidates(wanted):
            try:
                self._bases = {
                    name: os.open(path, os.O_PATH | os.O_DIRECTORY) for name, path in paths.items()
                }
                self.version = version
                self.give_back(self.lend(64, 4))
                return
            except OSError:
                self.close()
                self.version = 0

    def lend(self, memory_mb: int, tasks: int) -> Group:
        """Raises OSError."""
        if not self._free:
            self._free.append(self._make())
        self._free[-1].limit(memory_mb, tasks)
        return self._free.pop()

    def give_back(self, group: Group) -> None:
        """A group that nothing is in any more."""
        self._free.append(group)

    def close(self) -> None:
        for group in self._free:
            for controller, base in self._bases.items():
                with contextlib.suppress(OSError):
                    os.rmdir(group.name, dir_fd=base)
                with contextlib.suppress(OSError):
                    os.close(group.directories[controller])
        self._free.clear()

    def _make(self) -> Group:
        name = f"{self._name}{self._made}"
        self._made += 1
        directories: dict[str, int] = {}
        for controller, base in self._bases.items():
            with contextlib.suppress(FileExistsError):  # version 2 has one directory for both
                os.mkdir(name, 0o755, dir_fd=base)
            directories[controller] = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=base)
        return Group(directories, self.version, name)


def candidates(wanted: str, root: str = "/") -> list[tuple[int, dict[str, str]]]:
    """(version, directory of each controller) where groups could be made: ours, as the kernel names it."""
    if wanted:
        return [(2, {"memory": wanted, "pids": wanted})]
    found: list[tuple[int, dict[str, str]]] = []
    try:
        with open(os.path.join(root, "proc/self/cgroup")) as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
        with open(os.path.join(root, "proc/self/mounts")) as file:
            mounts = [line.split() for line in file]
    except OSError:
        return []
    ours = {controller: path for _, controllers, path in lines for controller in controllers.split(",")}
    for _, point, kind, *_ in mounts:
        if kind == "cgroup2" and "" in ours:
            base = os.path.join(root, point.lstrip("/"), ours[""].lstrip("/"))
            found.append((2, {"memory": base, "pids": base}))
    first: dict[str, str] = {}
    for _, point, kind, options, *_ in mounts:
        for controller in {"memory", "pids"} & set(options.split(",")):
            if kind == "cgroup" and controller in ours:
                first[controller] = os.path.join(root, point.lstrip("/"), ours[controller].lstrip("/"))
    return [*found, *([(1, first)] if len(first) == 2 else [])]


def _write(directory: int, name: str, text: str) -> None:
    descriptor = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
