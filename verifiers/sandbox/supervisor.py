"""The trusted process between the parent and its sandboxes: started once, it forks one child a launch.

It holds no secret (a fresh interpreter with an emptied environment), so a fork of it is a clean start that
costs a millisecond. It ends, with everything below it, when the parent ends in any manner: it holds a
descriptor that becomes readable then. In the namespaces tier it is the first process of a process
namespace, so the kernel itself leaves nothing of it behind.

    parent ── control socket ──> supervisor ──fork──> lockdown ──> the untrusted program
       └──────────────────── pipes, status socket ──────────────────┘
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import random
import resource
import select
import shutil
import signal
import socket
import struct
import tempfile
from dataclasses import dataclass, field
from typing import Any

from verifiers.sandbox import landlock, linux, lockdown, seccomp, view, watch
from verifiers.sandbox.cgroups import Group, Groups
from verifiers.sandbox.child import Line, become_sandbox
from verifiers.sandbox.leftovers import FOLDER_PREFIX, FOLDERS, sweep
from verifiers.sandbox.tiers import Tier

REQUEST = struct.Struct(
    ">III"
)  # memory in MB, processes, tasks: of the order, what the supervisor itself needs
OWN_MB, OWN_TASKS = 32, 4  # of a group: our start-up's, page tables, bubblewrap's own process
TICK_S = 0.01  # between looks at children where the kernel has no process descriptors
# What programs import most; loaded once here instead of in every one of them.
PRELOADED = """
abc ast base64 bisect collections collections.abc contextlib copy dataclasses datetime decimal enum fractions
functools hashlib heapq inspect io itertools json linecache math operator pprint queue random re statistics string
struct textwrap threading time traceback types typing unicodedata uuid
"""


@dataclass
class Child:
    """One running sandbox."""

    pid: int
    status: socket.socket
    pidfd: int = -1
    folder: str | None = None  # to remove when it has ended
    uid: int | None = None
    killed: str = ""  # why we killed it
    group: Group | None = None
    memory_mb: int = 0
    watched: int = 0  # as the host counts: the first process of a tree whose memory we add up


@dataclass
class Config:
    """What all sandboxes of this supervisor have in common."""

    tier: Tier
    reads: list[str]
    writes: list[str]
    parent: int  # a descriptor that is readable when the parent has ended; -1 where there is no such thing
    bwrap: str = ""
    cgroup: str = ""  # a directory to make control groups in; "" to look for one
    preload: list[str] = field(default_factory=list)


class Supervisor:
    def __init__(self, control: socket.socket, config: Config) -> None:
        self.control = control
        self.config = config
        self.lifeline = -1
        self.groups = Groups(config.cgroup, os.getpid()) if config.tier >= Tier.LANDLOCK else None
        self.children: dict[int, Child] = {}
        self.root = os.geteuid() == 0 and bool(linux.capabilities() >> 7 & 1 or not linux.ON_LINUX)
        self.in_user_namespace = False
        self.proc = -1
        self.own_pids = -1
        self.landlock = landlock.abi()
        self.prefix = ""  # bubblewrap: where the host's files are found

    # ------------------------------------------------------------ the loop

    def serve(self) -> tuple[Child, list[int]] | None:
        """Returns None at the end; in a new child, what it was given."""
        while True:
            watched = {self.control.fileno(): None}
            for descriptor in (self.config.parent, self.lifeline):
                if descriptor >= 0:
                    watched[descriptor] = None
            for child in self.children.values():
                watched[child.status.fileno()] = None
                if child.pidfd >= 0:
                    watched[child.pidfd] = None
            poller = select.poll()
            for descriptor in watched:
                poller.register(descriptor, select.POLLIN)
            ready = {fd for fd, _ in poller.poll(self.patience())}
            if ready & {self.config.parent, self.lifeline}:
                return None
            for child in list(self.children.values()):
                if child.watched:
                    self.weigh(child)
                if child.status.fileno() in ready:
                    self.heard(child)
                elif child.pidfd in ready or child.pidfd < 0:
                    self.reap(child, os.WNOHANG)
            if self.control.fileno() in ready:
                given = self.accept()
                if given is False:
                    return None
                if isinstance(given, tuple):
                    return given

    def patience(self) -> float | None:
        """Milliseconds until something has to be looked at that does not tell by itself."""
        if any(child.pidfd < 0 for child in self.children.values()):
            return TICK_S * 1000
        return watch.EVERY_S * 1000 if any(child.watched for child in self.children.values()) else None

    def weigh(self, child: Child) -> None:
        if watch.tree_mb(self.proc, child.watched) > child.memory_mb:
            child.killed = f"killed: its processes used more than {child.memory_mb} MB together"
            self.signal_tree(child)

    def accept(self) -> tuple[Child, list[int]] | bool:
        """One request. False at the end of the parent; a tuple in the child; True otherwise."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self.control, REQUEST.size, 253)
        except OSError:
            return False
        if len(data) < REQUEST.size or len(descriptors) < 5:
            for descriptor in descriptors:
                os.close(descriptor)
            return False
        status = socket.socket(fileno=descriptors[3])
        streams = [*descriptors[:3], *descriptors[4:]]  # 0, 1, 2, where the order comes from, passed ones
        try:
            return self.fork(status, streams, *REQUEST.unpack(data))
        except OSError as fault:
            with contextlib.suppress(OSError):
                lockdown.report_error(status.fileno(), f"cannot start a process: {fault}")
            status.close()
            for descriptor in streams:
                os.close(descriptor)
            return True

    def fork(
        self, status: socket.socket, streams: list[int], memory_mb: int, processes: int, tasks: int
    ) -> tuple[Child, list[int]] | bool:
        """A new child: a tuple in it, True here. Raises OSError when there is none."""
        child = Child(0, status, memory_mb=memory_mb)
        if self.root:
            child.uid = random.SystemRandom().randrange(1 << 20, 1 << 30)  # nobody else's, so counted apart
        try:
            self.make_place(child, tasks)
            if self.config.tier is Tier.NAMESPACES:
                linux.unshare(linux.CLONE_NEWPID)
            child.pid = os.fork()
        except OSError:
            self.clear_place(child)
            if self.config.tier is Tier.NAMESPACES:
                linux.setns(self.own_pids, linux.CLONE_NEWPID)
            raise
        if child.pid == 0:
            if child.group:
                child.group.enter()
            return child, streams
        if self.config.tier is Tier.NAMESPACES:
            linux.setns(self.own_pids, linux.CLONE_NEWPID)  # the next child gets a namespace of its own
        for descriptor in streams:
            os.close(descriptor)
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                child.pidfd = os.pidfd_open(child.pid)
        status.setblocking(False)
        self.children[child.pid] = child
        if processes > 1 and not child.group and self.proc >= 0:
            child.watched = watch.host_pid(self.proc, child.pid)
        return True

    def make_place(self, child: Child, tasks: int) -> None:
        """What stays outside of the child: its folder, its control group."""
        if self.config.tier <= Tier.LANDLOCK:
            child.folder = tempfile.mkdtemp("", f"{FOLDER_PREFIX}{os.getpid()}-", FOLDERS)
            if child.uid is not None:
                os.chown(child.folder, child.uid, child.uid)
        if self.groups and self.groups.version:
            child.group = self.groups.lend(child.memory_mb + OWN_MB, tasks + OWN_TASKS)

    def clear_place(self, child: Child) -> None:
        if child.group and self.groups:
            self.groups.give_back(child.group)
        if child.folder:
            shutil.rmtree(child.folder, ignore_errors=True)

    def heard(self, child: Child) -> None:
        """The parent says kill, or has closed its end, which says the same."""
        try:
            data = child.status.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        del data
        child.killed = child.killed or "killed"
        self.end(child)

    # ------------------------------------------------------------ the end of one

    def end(self, child: Child) -> None:
        """Kill one with all that it started, and reap it."""
        self.signal_tree(child)
        self.reap(child, 0)

    def signal_tree(self, child: Child) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(child.pid, signal.SIGKILL)
        if self.config.tier <= Tier.LANDLOCK:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)

    def reap(self, child: Child, options: int) -> None:
        try:
            pid, code, usage = os.wait4(child.pid, options)
        except ChildProcessError:
            pid, code, usage = child.pid, -1, None
        if pid == 0:
            return
        self.children.pop(child.pid, None)
        if self.config.tier <= Tier.LANDLOCK:
            self.signal_tree(child)
            self.sweep(child)
        if self.config.tier is not Tier.NAMESPACES:  # there the kernel ends and reaps all
            self.reap_orphans()
        self.clear_place(child)
        cpu = usage.ru_utime + usage.ru_stime if usage else 0.0
        message = {
            "status": os.waitstatus_to_exitcode(code) if usage else None,
            "cpu_s": round(cpu, 6),
            "peak_mb": usage.ru_maxrss / 1024 if usage else 0.0,
            "killed": child.killed,
        }
        with contextlib.suppress(OSError):
            child.status.setblocking(True)
            child.status.sendall(json.dumps({"end": message}).encode() + b"\n")
        child.status.close()
        if child.pidfd >= 0:
            os.close(child.pidfd)

    def sweep(self, child: Child) -> None:
        """Without a process namespace: kill what left the process group (only the limits tier lets it)."""
        if child.uid is not None:
            pid = os.fork()
            if pid == 0:
                try:
                    os.setresuid(child.uid, child.uid, child.uid)
                    os.kill(-1, signal.SIGKILL)
                finally:
                    os._exit(0)
            os.waitpid(pid, 0)

    def reap_orphans(self) -> None:
        """Orphans come to us: who left its parent behind (limits tier), or lost it (bubblewrap's inner process
        when bwrap was killed). None of them is to live."""
        while orphans := [pid for pid in _children_of(os.getpid()) if pid not in self.children]:
            for pid in orphans:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)

    def close(self) -> None:
        for child in list(self.children.values()):
            child.killed = "killed: its parent ended"
            self.end(child)
        if self.groups:
            self.groups.close()


def _children_of(pid: int) -> list[int]:
    """Linux only; elsewhere none are found."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(number) for number in file.read().split()]
    except OSError:
        return []


# ---------------------------------------------------------------- set-up of the supervisor itself


def enter_namespaces(supervisor: Supervisor) -> None:
    """Namespaces of the supervisor, shared by its sandboxes: an empty network and no shared memory.

    Returns only in the supervisor, the first process of the new process namespace. Raises OSError.
    """
    flags = linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWNET | linux.CLONE_NEWIPC
    flags |= linux.CLONE_NEWUTS | linux.CLONE_NEWCGROUP
    uid, gid = os.geteuid(), os.getegid()
    if not linux.capabilities() >> linux.CAP_SYS_ADMIN & 1:
        flags |= linux.CLONE_NEWUSER
        supervisor.in_user_namespace, supervisor.root = True, False
    linux.unshare(flags)
    if supervisor.in_user_namespace:
        lockdown.map_user(supervisor.proc, f"{uid} {uid} 1", f"{gid} {gid} 1")
    supervisor.lifeline, held = os.pipe()
    pid = os.fork()
    if pid:
        linux.close_all_but({held})
        _, code = os.waitpid(pid, 0)
        os._exit(0 if code == 0 else 1)
    os.close(held)
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    supervisor.own_pids = os.open("self/ns/pid", os.O_RDONLY | os.O_CLOEXEC, dir_fd=supervisor.proc)


def make_view(config: Config) -> None:
    """Put the view that all sandboxes share together at BASE, in a mount namespace of our own. Raises OSError."""
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("sandbox", view.BASE, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=1m,mode=755")
    view.build(view.BASE, config.reads, config.writes)


def enter_view() -> None:
    """Leave the host's file system for the view, for good. Raises OSError."""
    os.chdir(view.BASE)
    linux.pivot_root(".", ".")
    linux.umount(".", linux.MNT_DETACH)
    os.chdir("/")
    flags = linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("none", "/", flags=flags)


# ---------------------------------------------------------------- main


def set_up(control: socket.socket) -> Supervisor:
    """Read the configuration and put this process where its sandboxes will start from. Raises OSError."""
    size = struct.unpack(">I", control.recv(4, socket.MSG_WAITALL))[0]
    settings: dict[str, Any] = json.loads(control.recv(size, socket.MSG_WAITALL))
    config = Config(**{**settings, "tier": Tier(settings["tier"])})
    for name in config.preload:
        with contextlib.suppress(ImportError):
            __import__(name)
    sweep(config.cgroup)
    supervisor = Supervisor(control, config)
    if linux.ON_LINUX:
        supervisor.proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    if config.tier is Tier.NAMESPACES:
        enter_namespaces(supervisor)
        make_view(config)
        enter_view()
    elif config.tier is Tier.BUBBLEWRAP and supervisor.root:
        with contextlib.suppress(OSError):  # so that a user without rights can pass above the interpreter
            linux.unshare(linux.CLONE_NEWNS)
            make_view(config)
            supervisor.prefix = view.BASE
    if config.tier >= Tier.LANDLOCK:
        for fork in (False, True):
            seccomp.program(seccomp.Rules(fork))  # assembled once, inherited by every child
    gc.collect()
    gc.freeze()
    return supervisor


def main(descriptor: int) -> str | None:
    """Serve until the parent ends. In a child: the source it is to run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    control = socket.socket(fileno=descriptor)
    control.set_inheritable(False)
    try:
        supervisor = set_up(control)
    except Exception as fault:
        with contextlib.suppress(OSError):
            control.sendall(json.dumps({"error": _words(fault)}).encode() + b"\n")
        return None
    control.sendall(b"{}\n")
    given = supervisor.serve()
    if given is None:
        supervisor.close()
        return None
    child, streams = given
    line = Line(child.status.fileno())
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return become_sandbox(supervisor, child, line, streams)
    except BaseException as fault:
        with contextlib.suppress(OSError):
            lockdown.report_error(line.number, _words(fault))
        os._exit(125)


def _words(fault: BaseException) -> str:
    if isinstance(fault, OSError) and fault.errno:
        return f"{fault.strerror} ({errno.errorcode.get(fault.errno, fault.errno)})"
    return f"{type(fault).__name__}: {fault}"
