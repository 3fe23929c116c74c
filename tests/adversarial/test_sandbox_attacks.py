"""Escapes and harm to the host, tried in the strongest sandbox of this machine; the host is looked at afterwards."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from verifiers.sandbox import Limits, Tier, launch_python, probe
from verifiers.sandbox.attacks import ATTACKS, FILES, NETWORK, PROCESSES, Attack
from verifiers.sandbox.proving import Scene, run_attack
from verifiers.sandbox.supervision import shut_down

STRONGEST = probe().strongest or Tier.LIMITS
WALLED = [tier for tier in probe().available if tier >= Tier.LANDLOCK]
pytestmark = pytest.mark.skipif(not WALLED, reason="this machine gives no sandbox but resource limits")


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Scene() as made:
        yield made


def _left_behind() -> dict[str, set[str]]:
    """Names on the host that a sandbox could have made."""
    found = {
        place: set(os.listdir(place)) for place in ("/dev/shm", "/tmp", "/var/tmp") if os.path.isdir(place)
    }
    found["/tmp"] = {
        name for name in found.get("/tmp", ()) if name.startswith(("sandbox-", "fill", "scene-"))
    }
    found["/dev/shm"] = {name for name in found.get("/dev/shm", ()) if name.startswith(("scene", "fill"))}
    with open("/proc/self/mounts") as table:
        found["mounts"] = {line.split()[1] for line in table}
    for kind in ("shm", "sem", "msg"):
        with open(f"/proc/sysvipc/{kind}") as table:
            found[kind] = {line.split()[0] for line in table}
    return found


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_the_strongest_sandbox_stops(attack: Attack, scene: Scene) -> None:
    if attack.only_x86 and os.uname().machine != "x86_64":
        pytest.skip("an attack by x86 machine code")
    outcome = run_attack(attack, STRONGEST, scene)
    assert outcome.stopped or not outcome.claimed, outcome.seen


@pytest.mark.parametrize("attack", [*FILES, *NETWORK, *PROCESSES], ids=lambda attack: attack.name)
@pytest.mark.skipif(Tier.LANDLOCK not in WALLED, reason="this kernel has no Landlock")
def test_without_namespaces_landlock_and_seccomp_stop(attack: Attack, scene: Scene) -> None:
    outcome = run_attack(attack, Tier.LANDLOCK, scene)
    assert outcome.stopped or not outcome.claimed, outcome.seen


def test_an_attack_that_gets_through_is_seen(scene: Scene) -> None:
    """The proof is worth something only if it can fail: the same scene without walls."""
    for attack in ATTACKS:
        if attack.name in ("read a secret", "write outside", "connect to the host", "list processes"):
            outcome = run_attack(attack, Tier.LIMITS, scene)
            assert not outcome.stopped and not outcome.claimed, attack.name
    assert run_attack(Attack("none", "got('through')"), STRONGEST, scene).ok is False


def test_nothing_is_left_on_the_host() -> None:
    shut_down()
    before = _left_behind()
    hostile = (
        "import os, time\nopen('left', 'w').write('x')\n"
        "for _ in range(3):\n    if os.fork() == 0:\n        time.sleep(60)\ntime.sleep(60)"
    )
    for tier in WALLED:
        processes = 8 if tier >= Tier.NAMESPACES else 1
        alive, held = os.pipe()
        with launch_python(hostile, tier=tier, limits=Limits(processes=processes), pass_fds=[held]):
            os.close(held)
            time.sleep(0.1)
        assert select.select([alive], [], [], 5)[0], f"a process of the {tier} sandbox still runs"
        os.close(alive)
    shut_down()
    after = _left_behind()
    assert {place: after[place] - before[place] for place in after} == {place: set() for place in after}


@pytest.mark.parametrize("tier", WALLED, ids=str)
def test_all_of_it_dies_when_the_parent_is_killed(tier: Tier) -> None:
    alive, held = os.pipe()
    forks = "os.fork(); os.fork(); " if tier >= Tier.NAMESPACES else ""
    parent = (
        "import sys, time\nfrom verifiers.sandbox import Limits, Tier, launch_python\n"
        f"p = launch_python('import os, time; {forks}time.sleep(100)', tier=Tier({int(tier)}),\n"
        f"    limits=Limits(processes={8 if forks else 1}), pass_fds=[{held}])\n"
        "print('up', flush=True)\ntime.sleep(100)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, pass_fds=[held]) as process:
        os.close(held)
        assert process.stdout and process.stdout.readline() == b"up\n"
        process.kill()
    assert select.select([alive], [], [], 5)[0], "something of the sandbox outlived its parent"
    os.close(alive)


def test_sandboxes_do_not_see_each_other() -> None:
    """Two at once: neither another's files nor its processes, and no trace of the one before."""
    look = "import os\nprint(sorted(os.listdir('.')), os.path.exists('/proc/2'), flush=True)\ninput()"
    deadline = time.monotonic() + 20
    with launch_python(look, tier=STRONGEST, files={"mine": b"1"}) as first:
        assert first.read(100, deadline).startswith(b"['mine'] False")
        with launch_python(look, tier=STRONGEST, files={"other": b"2"}) as second:
            assert second.read(100, deadline).startswith(b"['other'] False")
