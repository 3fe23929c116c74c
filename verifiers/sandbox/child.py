"""From the fork to the untrusted program, in each tier."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from verifiers.sandbox import bubblewrap, landlock, linux, lockdown, seccomp, view
from verifiers.sandbox.tiers import Tier

if TYPE_CHECKING:
    from verifiers.sandbox.supervisor import Child, Config, Supervisor


@dataclass
class Line:
    """The descriptor of the status socket, whose number changes on the way."""

    number: int


def become_sandbox(supervisor: Supervisor, child: Child, line: Line, streams: list[int]) -> str:
    """Everything between the fork and the untrusted program. Returns source to run, or never returns."""
    config = supervisor.config
    order = lockdown.receive_order(streams[3])
    if config.tier is Tier.BUBBLEWRAP:
        start_bubblewrap(supervisor, child, line, streams, order)
    if config.tier is Tier.NAMESPACES:
        own_file_system(supervisor, child, order)
        keep, count = 0, True
        rules = bubblewrap.private_rules(config.reads, config.writes)
    else:
        os.setsid()
        assert child.folder
        os.chdir(child.folder)
        # The interpreter may lie where only root may look, as below /root.
        hidden = child.uid is not None and linux.ON_LINUX and not _reachable(config.reads)
        keep = 1 << linux.CAP_DAC_READ_SEARCH if hidden else 0
        count = child.uid is not None  # else all of the user's processes would be counted
        rules = host_rules(config, child.folder)
    lockdown.drop_user(child.uid, keep)
    if linux.ON_LINUX:  # after the change of user, which clears it
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    lockdown.write_files(order["files"])
    line.number = lockdown.arrange_descriptors(
        streams[:3], streams[4:], order["numbers"], child.status.detach()
    )
    lockdown.set_limits(order["limits"], count)
    lockdown.restrict(config.tier, rules, filter_program(supervisor, order))
    return lockdown.start(order, line.number)


def own_file_system(supervisor: Supervisor, child: Child, order: lockdown.Order) -> None:
    """A mount namespace with a fresh private directory, and where we are no root a user namespace."""
    linux.unshare(linux.CLONE_NEWNS)
    owner = child.uid if child.uid is not None else os.geteuid()
    group = child.uid if child.uid is not None else os.getegid()
    options = f"size={order['limits']['file_mb']}m,nr_inodes=4096,mode=700,uid={owner},gid={group}"
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("private", view.PRIVATE, "tmpfs", flags, options)
    os.chdir(view.PRIVATE)
    if supervisor.in_user_namespace:
        lockdown.own_user_namespace(supervisor.proc)


def start_bubblewrap(
    supervisor: Supervisor, child: Child, line: Line, streams: list[int], order: lockdown.Order
) -> NoReturn:
    """Become bwrap, which starts our own start-up inside its walls."""
    config = supervisor.config
    program = os.open(config.bwrap, os.O_RDONLY | os.O_CLOEXEC)
    order["filter_program"] = filter_program(supervisor, order)
    order["rules"] = bubblewrap.private_rules(config.reads, config.writes)
    again = lockdown.encode_order(**order)
    box = os.memfd_create("order")
    os.write(box, again)
    os.lseek(box, 0, os.SEEK_SET)
    passed = streams[4:]
    low = bubblewrap.FIRST_PASSED
    numbers = [bubblewrap.ORDER, bubblewrap.LINE, *range(low, low + len(passed))]
    # `program` takes the place of the line that closes when a program is started.
    lines = [box, child.status.detach(), *passed]
    program = lockdown.arrange_descriptors(streams[:3], lines, numbers, program)
    line.number = bubblewrap.LINE
    lockdown.drop_user(child.uid)
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    os.execve(
        program,
        bubblewrap.arguments(supervisor.prefix, config.reads, config.writes, order["limits"]["file_mb"]),
        {},
    )


def host_rules(config: Config, folder: str) -> list[tuple[str, int]]:
    """Landlock's rules in the host's file system. The program's own folder can be read only: nothing else
    would bound what it fills the disk with."""
    reads = [(path, landlock.READ) for path in [*config.reads, folder]]
    devices = [(path, landlock.DEVICE) for path in view.DEVICES]
    return [*reads, *devices, *((path, landlock.WRITE) for path in config.writes)]


def filter_program(supervisor: Supervisor, order: lockdown.Order) -> bytes:
    outside = supervisor.config.tier is Tier.LANDLOCK and supervisor.landlock < landlock.SCOPED_SIGNALS_ABI
    if supervisor.config.tier is Tier.LIMITS:
        return b""
    return seccomp.program(seccomp.Rules(order["limits"]["processes"] > 1, os.getpid() if outside else None))


def _reachable(paths: list[str]) -> bool:
    """Whether any user can read these: every directory above them may be passed by all."""
    for path in paths:
        while len(path) > 1:
            path = os.path.dirname(path)
            with contextlib.suppress(OSError):
                if not os.stat(path).st_mode & 0o001:
                    return False
    return True
