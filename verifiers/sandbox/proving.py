"""Run the attacks in a tier and look at the host afterwards."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from verifiers.sandbox import linux
from verifiers.sandbox.attacks import ATTACKS, PRELUDE, Attack
from verifiers.sandbox.launching import launch_python
from verifiers.sandbox.process import Process
from verifiers.sandbox.tiers import Limits, SandboxUnavailable, Tier

CANARY = "SANDBOX_CANARY"
_IPCRM = {"shm": "-m", "sem": "-s", "msg": "-q"}
HANG_S = 1.0  # how long something that does not end by itself is watched
LONGEST_S = 20.0
LIMITS = {"cpu_s": 5, "memory_mb": 512, "file_mb": 8, "processes": 1, "threads": 16, "open_files": 64}


@dataclass(frozen=True, slots=True)
class Outcome:
    attack: Attack
    tier: Tier
    stopped: bool
    seen: str  # what it printed, or what was found on the host

    @property
    def claimed(self) -> bool:
        """Whether the tier is documented to stop it."""
        return self.tier >= self.attack.stopped_from and self.tier not in self.attack.not_in

    @property
    def ok(self) -> bool:
        return self.stopped or not self.claimed


class Scene:
    """What attacks go for. Leaving it removes all of it."""

    def __enter__(self) -> Self:
        self.token = secrets.token_hex(8)
        self._stack = contextlib.ExitStack()
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: object, trace: TracebackType | None) -> None:
        self._stack.close()

    def _build(self) -> None:
        # Not in a directory that a private one hides anyway, if there is another.
        folder = tempfile.mkdtemp(prefix="scene-", dir="/var/tmp" if os.access("/var/tmp", os.W_OK) else None)
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        os.chmod(folder, 0o755)
        self.secret, self.outside = f"{folder}/home/.ssh/id", f"{folder}/outside"
        os.makedirs(os.path.dirname(self.secret))
        os.mkdir(self.outside)
        os.chmod(self.outside, 0o777)  # only the sandbox stands before it
        for path in (self.secret, f"{self.outside}/keep"):
            with open(path, "w") as file:
                file.write(self.token)
        self.tcp = self._stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.udp = self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.udp.bind(("127.0.0.1", self.tcp.getsockname()[1]))
        self.log = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self.log.bind(f"{self.outside}/log")
        os.chmod(f"{self.outside}/log", 0o777)
        self.abstract = f"scene-{self.token}"
        self.unix = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        if linux.ON_LINUX:
            self.unix.bind("\0" + self.abstract)
            self.unix.listen()
        for listener in (self.tcp, self.udp, self.log, self.unix):
            listener.setblocking(False)
        self.victim = self._new_victim()
        self.key = secrets.randbelow(1 << 30) + 1
        old = os.environ.get(CANARY)
        os.environ[CANARY] = self.token
        self._stack.callback(os.environ.pop, CANARY, None)
        assert old is None

    def _new_victim(self) -> subprocess.Popen[bytes]:
        victim = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"])
        self._stack.callback(victim.wait)
        self._stack.callback(victim.kill)
        return victim

    def source(self, attack: Attack, lifeline: int) -> str:
        """The attack as a program; an exception of its own is a failed attack."""
        facts = {
            "SECRET": self.secret,
            "OUTSIDE": self.outside,
            "PORT": self.tcp.getsockname()[1],
            "ABSTRACT": self.abstract,
            "VICTIM": self.victim.pid,
            "PARENT": os.getpid(),
            "KEY": self.key,
            "LIFELINE": lifeline,
        }
        given = "".join(f"{name} = {value!r}\n" for name, value in facts.items())
        return f"{PRELUDE}{given}try:\n    exec({attack.source!r})\nexcept Exception as fault:\n    print('no', repr(fault))\n"

    def damage(self) -> str:
        """What is not as it was; put right again, so that the next attack finds it whole."""
        found = []
        if sorted(os.listdir(self.outside)) != ["keep", "log"]:
            found.append(f"files: {sorted(os.listdir(self.outside))}")
            for name in set(os.listdir(self.outside)) - {"log"}:
                os.unlink(f"{self.outside}/{name}")
        if not os.path.exists(f"{self.outside}/keep") or not os.path.getsize(f"{self.outside}/keep"):
            found.append("a file was destroyed")
        with open(f"{self.outside}/keep", "w") as file:
            file.write(self.token)
        if self.victim.poll() is not None:
            found.append("the other process is dead")
            self.victim = self._new_victim()
        for listener in (self.tcp, self.unix, self.udp, self.log):
            with contextlib.suppress(OSError):
                if listener.type == socket.SOCK_DGRAM:
                    listener.recv(10)
                else:
                    listener.accept()[0].close()
                found.append("something came over the network")
        for kind in ("shm", "sem", "msg"):
            for number in self._left_ipc(kind):
                found.append(f"shared {kind} was left")
                subprocess.run(["ipcrm", _IPCRM[kind], number], check=False, capture_output=True)
        with contextlib.suppress(OSError):
            os.unlink(f"/dev/shm/{self.abstract}")
            found.append("a file in /dev/shm was left")
        return "; ".join(found)

    def _left_ipc(self, kind: str) -> list[str]:
        try:
            with open(f"/proc/sysvipc/{kind}") as table:
                rows = [line.split() for line in table]
        except OSError:
            return []
        return [row[1] for row in rows if row[0] == str(self.key)]


def run_attack(attack: Attack, tier: Tier, scene: Scene) -> Outcome:
    """Raises nothing that an attack can cause, and SandboxUnavailable when the sandbox does not start."""
    alive, held = os.pipe()  # readable at its end when no process of the sandbox is left
    try:
        with launch_python(
            scene.source(attack, held),
            tier=tier,
            limits=Limits(**{**LIMITS, **attack.limits}),
            pass_fds=[held],
        ) as program:
            os.close(held)
            held = -1
            said, ending = _listen(program, attack)
            program.kill()
        left = _left_over(alive)
    except SandboxUnavailable as fault:
        if tier is not Tier.LANDLOCK or attack.limits.get("processes", 1) == 1:
            raise  # a sandbox that does not start proves nothing
        return Outcome(attack, tier, True, f"refused: {fault.what}")
    finally:
        os.close(alive)
        if held >= 0:
            os.close(held)
    damage = "; ".join(part for part in (left, scene.damage()) if part)
    stopped = not damage and scene.token not in said and _stopped(attack, said, ending)
    words = " ".join(said.split())[:300] or program.stderr_tail()[-200:]
    return Outcome(
        attack, tier, stopped, f"{words}; {ending}" + (f"; ON THE HOST: {damage}" if damage else "")
    )


def _listen(program: Process, attack: Attack) -> tuple[str, str]:
    """What it printed and how it ended, "" if it did not by itself."""
    burns = attack.hangs and "cpu_s" in attack.limits
    deadline = time.monotonic() + (HANG_S if attack.hangs and not burns else LONGEST_S)
    said, ending = b"", ""
    with contextlib.suppress(TimeoutError):
        while piece := program.read(1 << 16, deadline):
            said += piece
        ending = program.wait(deadline)
    return said.decode(errors="replace"), ending


def _left_over(alive: int) -> str:
    """After the kill nothing may hold the lifeline; the kernel gets a moment to take processes apart."""
    poller = select.poll()
    poller.register(alive, select.POLLIN)
    return "" if poller.poll(1000) else "a process was left"


def _stopped(attack: Attack, said: str, ending: str) -> bool:
    if attack.hangs:
        return ending.startswith("killed") if "cpu_s" in attack.limits else True  # and nothing was left
    if attack.name == "leave a daemon":
        return True  # it may start one; none may be left
    if attack.name == "fill the memory with many":
        return said.count("held") <= 3
    return "GOT" not in said


def prove(tier: Tier, attacks: Iterable[Attack] = ATTACKS) -> list[Outcome]:
    """All attacks in one tier. Raises SandboxUnavailable when there is no such tier here."""
    with launch_python("", tier=tier) as program:
        program.wait(time.monotonic() + LONGEST_S)
    with Scene() as scene:
        return [
            run_attack(attack, tier, scene)
            for attack in attacks
            if not attack.only_x86 or linux.MACHINE == "x86_64"
        ]
