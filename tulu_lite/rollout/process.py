"""Processes that never outlive their owner: parent-death signals, groups, private folders. Linux; standard library."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ..files import write_json

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PREFIX = "tulu-lite-"  # of every private folder we make
OWNER_FILE = "owner.json"
UNPLACED_S = 86_400.0  # how long an owner that does not say where its pid counts is taken for alive
SHARED_MEMORY = Path("/dev/shm")
LIBRARY_FILES = (  # what libraries call the shared memory that they make, always at the top of SHARED_MEMORY
    "psm_",  # Python's multiprocessing.shared_memory, and so vLLM's queues between its processes
    "sem.",  # POSIX semaphores
    "torch_",  # torch.multiprocessing
    "VLLM_OBJECT_STORAGE_SHM_BUFFER",  # vLLM 0.32: envs.py, v1/kv_offload/cpu and distributed/ec_transfer
    "vllm_offload_",
    "vllm_ec_",
    "nccl-",
    "cuda.shm.",
    "__KMP_REGISTERED_LIB_",  # OpenMP
)


def _prctl(option: int, argument: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, argument, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def die_with_parent(number: signal.Signals, parent_pid: int | None = None) -> None:
    """Have the kernel send this process `number` when its parent's forking thread ends.

    parent_pid: the parent there should be. When it is already gone, this process exits at once: the signal would
    never come.
    """
    _prctl(PR_SET_PDEATHSIG, int(number))
    if parent_pid is not None and os.getppid() != parent_pid:
        os._exit(0)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies, instead of pid 1."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/<pid>/stat from `state` on: [state, ppid, pgrp, ..., starttime at 19]; None: no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def status_of(pid: int) -> str:
    """The process's state as ps shows it: R, S, D, T (stopped), t (traced), Z; "" when there is none."""
    fields = _stat(pid)
    return "" if fields is None else fields[0]


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot: with the pid it names one process for good."""
    fields = _stat(pid)
    return None if fields is None else int(fields[19])


def boot_id() -> str:
    """Names this machine since it was started; the same in all its containers."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def pid_namespace() -> str:
    """Names the container, or whatever else gives out pids of its own; "" where that cannot be told."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def is_alive(pid: int, started: int | None = None) -> bool:
    """Whether the process runs (a zombie does not). `started` guards against a pid that was used again."""
    fields = _stat(pid)
    if fields is None or fields[0] in "ZX":
        return False
    return started is None or int(fields[19]) == started


def group_members(group: int) -> list[int]:
    """Pids of the living processes of a process group, ours left out."""
    members = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            fields = _stat(int(name))
            if fields is not None and fields[0] not in "ZX" and int(fields[2]) == group:
                members.append(int(name))
    return members


def shared_memory_of(pids: list[int]) -> set[Path]:
    """Files under /dev/shm that the processes have open or mapped."""
    found = set()
    for pid in pids:
        for path in _open_files(pid):
            if path.startswith("/dev/shm/") and not path.endswith(" (deleted)"):
                found.add(Path(path))
    return found


def _open_files(pid: int) -> Iterator[str]:
    try:
        for link in os.listdir(f"/proc/{pid}/fd"):
            try:
                yield os.readlink(f"/proc/{pid}/fd/{link}")
            except OSError:
                continue
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if "/dev/shm/" in line:
                yield line[line.index("/dev/shm/") :]
    except OSError:
        return


def end_group(group: int, grace_s: float) -> None:
    """End every process of a group, ours excepted: SIGTERM, then SIGKILL after `grace_s`; 0 kills at once.

    What libraries made in shared memory and only they had open is removed: a killed process cannot do it. Other files
    there are somebody's own: a model that was put there, a log, pushed weights that the next engine reads.
    """
    leaks: set[Path] = set()
    if grace_s > 0:
        _signal_each(group_members(group), signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while members := group_members(group):
        leaks |= shared_memory_of(members)
        if time.monotonic() >= deadline:
            _signal_each(members, signal.SIGKILL)
        if time.monotonic() >= deadline + 30:
            raise TimeoutError(f"processes {members} do not die after SIGKILL")
        reap()
        time.sleep(0.02)
    reap()
    leaks = {path for path in leaks if is_librarys(path)}
    if leaks:  # whoever has them open now is of another group
        leaks -= shared_memory_of([int(name) for name in os.listdir("/proc") if name.isdigit()])
    for path in leaks:
        path.unlink(missing_ok=True)


def is_librarys(path: Path) -> bool:
    """Whether a file is shared memory that a library made for itself, by its place and name."""
    return path.parent == SHARED_MEMORY and path.name.startswith(LIBRARY_FILES)


def _signal_each(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def reap() -> None:
    """Collect orphans that this process adopted. For the warden only: it would take another's exit status."""
    if not _is_warden:
        return
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


_is_warden = False


def be_warden() -> None:
    """Mark this process as the head of a server's group: it adopts orphans and reaps any child."""
    global _is_warden
    adopt_orphans()
    _is_warden = True


def private_folder(parent: Path, *, sweep: bool = True) -> Path:
    """A new folder under `parent` that only this user can enter and that names its owner, this process.

    sweep: first remove the folders of owners that are dead.
    """
    if sweep:
        sweep_folders(parent)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    owner = {"pid": os.getpid(), "started": start_time(os.getpid())}
    write_json(folder / OWNER_FILE, owner | _here())
    return folder


def folder_within(parent: Path, prefix: str) -> Path:
    """A new folder in a private one, for whoever may enter that: a server that somebody else started may run as another
    user (`remote.py`), and tempfile makes folders for this one alone."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    os.chmod(folder, parent.stat().st_mode & 0o777)
    return folder


def _here() -> dict[str, str]:
    """Where our pids count."""
    return {"boot": boot_id(), "pid_namespace": pid_namespace()}


def sweep_folders(parent: Path) -> list[Path]:
    """Remove private folders of ours whose owner is dead; returns what was removed.

    Several containers or machines may share `parent`, and a pid says nothing outside its own: what an owner elsewhere
    left stays. An owner of an earlier version does not say where it was: its folder goes when, besides, nothing was
    made in it for a day.
    """
    removed = []
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            about = folder.stat()
            if about.st_uid != os.getuid():
                continue
            owner = json.loads((folder / OWNER_FILE).read_text())
            if "boot" in owner:
                elsewhere = {name: owner.get(name) for name in _here()} != _here()
            else:
                elsewhere = time.time() - about.st_mtime < UNPLACED_S
            if elsewhere or is_alive(int(owner["pid"]), owner["started"]):
                continue
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not one of ours, or being made this very moment
        shutil.rmtree(folder, ignore_errors=True)
        removed.append(folder)
    return removed
