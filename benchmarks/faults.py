"""Faults, one at a time at random moments, against a real rollout server with requests in flight all the while.

    python benchmarks/faults.py --minutes 10                         # faults in turn, added to results/faults.json
    python benchmarks/faults.py --kinds kill_engine,cut --count 5    # five of each
    python benchmarks/faults.py --table                              # only write results/faults.md again

After each fault: was it found, and when; was every request answered once, with the very samples of an unbroken run;
did a process, a shared-memory file, a temporary folder or a descriptor stay behind. The same --seed gives the same
moments. Needs Linux; `full_memory` mounts a tmpfs of 4 MiB, which needs root, and is left out where it cannot.
"""

# ruff: noqa: E402, I001 - the checkout must be found before anything of it is imported

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # run from a checkout
from benchmarks.fault_rig import (
    PROMPTS,
    SAMPLED,
    Answers,
    Belongings,
    Load,
    Proxy,
    answers_of,
    before_call,
    descriptors,
    judge,
    make_model,
    proxied,
    victim,
)

from benchmarks.fault_zygote import Zygote
from tulu_lite.errors import TuluLiteError
from tulu_lite.files import write_atomic, write_json
from tulu_lite.recipe.server import ServerSettings
from tulu_lite.rollout import generation as generation_module
from tulu_lite.rollout import server as server_module
from tulu_lite.rollout.client import RolloutClient
from tulu_lite.rollout.process import group_members, is_alive
from tulu_lite.rollout.server import RolloutServer
from tulu_lite.rollout.weights import push_weights

RESULTS = Path(__file__).parent / "results"
STEPS = {"pause": "/pause", "start": "/start_weight_update", "update": "/update_weights", "finish": "/finish_weight_update"}  # fmt: skip
SPARE_DESCRIPTORS = 3  # a log file, a canary's socket that happens to be open
STOPPED_S, OTHERS_S = 15.0, 5.0  # how soon a fault must be found


class Rig:
    """One server on a fixed port, its client through a proxy, and two sets of weights to push in turn."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.weights = [make_model(root / f"model{i}", seed=i) for i in range(2)]
        self.shared = root / "shm"
        self.shared.mkdir()
        self.small = _mount(self.shared)
        if self.small:  # pushed weights then live in 4 MiB
            server_module.shared_memory_folder = lambda: self.shared  # type: ignore[attr-defined]
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.settings = ServerSettings(
            port=self.port, max_restarts=100_000, max_num_seqs=64, kv_cache_mb=64, ready_timeout_s=240.0,
            control_timeout_s=60.0, canary_interval_s=1.0, canary_timeout_s=8.0,
        )  # fmt: skip
        self.server = RolloutServer(self.settings, root / "model0", root / "run", root / "log.txt")
        self.server.start()
        self.server.wait_ready()
        self.proxy = Proxy(lambda: self.port)
        self.client = RolloutClient(self.server.state_file)
        self.version = 0
        self.known: list[Answers] = []
        for which in (0, 1):
            self.push(which)
            self.known.append(answers_of(self.client.generate(PROMPTS, SAMPLED)))
        self.held = 1  # which weights the server holds
        self.target = self.server  # what the next fault is done to
        self._second: RolloutServer | None = None
        self.member = proxied(self.client, self.proxy)

    def push(self, which: int) -> None:
        self.version += 1
        push_weights(self.client, list(self.weights[which].items()), self.version)

    def second(self) -> RolloutServer:
        """Another server with the same weights, started when first asked for."""
        if self._second is None:
            settings = self.settings.model_copy(update={"port": 0})
            self._second = RolloutServer(
                settings, self.root / "model0", self.root / "two", self.root / "two.txt"
            )
            self._second.start()
        self._second.wait_ready()
        with RolloutClient(self._second.state_file) as client:
            push_weights(client, list(self.weights[self.held].items()), self.version)
        return self._second

    def close(self) -> None:
        if self._second is not None:
            self._second.stop()
        self.client.close()
        self.proxy.close()
        self.server.stop()
        if self.small:
            subprocess.run(["umount", str(self.shared)], check=False)


def _mount(folder: Path) -> bool:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    return done.returncode == 0


class Watch:
    """When the owner first said that the server is not what it was."""

    def __init__(self, server: RolloutServer) -> None:
        self.server, self.generation = server, server.state.generation
        self.seen: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            state = self.server.state
            if state.state != "ready" or state.generation != self.generation:
                self.seen = time.monotonic()
                return

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


# The kinds. Each does its harm and returns when it was done; `expects` says what is to follow.

Inject = Callable[[Rig, random.Random], float]


def _signal(which: str, number: signal.Signals) -> Inject:
    def inject(rig: Rig, rng: random.Random) -> float:
        pid = victim(rig.server, which)
        now = time.monotonic()
        os.kill(pid, number)
        return now

    return inject


def _until(act: Callable[[], int]) -> None:
    """Do it as soon as there is a connection to do it to."""
    deadline = time.monotonic() + 10
    while not act():
        assert time.monotonic() < deadline, "no request was under way"
        time.sleep(0.005)


def _one_of_two(rig: Rig, rng: random.Random) -> float:
    pid = victim(rig.target, rng.choice(["engine", "api server", "warden"]))
    now = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    return now


def _cut(rig: Rig, rng: random.Random) -> float:
    _until(rig.proxy.cut)
    return time.monotonic()


def _held(rig: Rig, rng: random.Random) -> float:
    _until(rig.proxy.hold)
    return time.monotonic()


def _delayed(rig: Rig, rng: random.Random) -> float:
    rig.proxy.delay_s = rng.uniform(0.5, 2.0)
    return time.monotonic()


def _push_beside(rig: Rig) -> tuple[float, str]:
    """Push the other weights; returns when it came back and what it said went wrong."""
    which, error = 1 - rig.held, ""
    try:
        rig.push(which)
        rig.held = which
    except TuluLiteError as failure:
        error = failure.what
    return time.monotonic(), error


def _truncated(rig: Rig, rng: random.Random) -> float:
    when: list[float] = []

    def cut(body: Any) -> None:
        file = body["update_info"]["files"][0]
        os.truncate(file, rng.randrange(0, os.path.getsize(file)))
        when.append(time.monotonic())

    with before_call(STEPS["update"], cut):
        _, error = _push_beside(rig)
    assert error, "a truncated file was taken for weights"
    return when[0]


def _killed_in_push(step: str) -> Inject:
    def inject(rig: Rig, rng: random.Random) -> float:
        when: list[float] = []
        timers: list[threading.Timer] = []

        def kill(pid: int) -> None:
            when.append(time.monotonic())
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

        def arm(_: Any) -> None:
            pid = victim(rig.server, rng.choice(["engine", "api server"]))
            wait = rng.uniform(0.0, 0.03)
            timers.append(threading.Timer(wait, kill, [pid]))
            timers[-1].start()

        with before_call(STEPS[step], arm):
            _, error = _push_beside(rig)
        for timer in timers:
            timer.join()  # a quick push may be over before it strikes
        assert not error, f"the push was not done again: {error}"
        return when[0]

    return inject


PUSHER = """
import sys, time
sys.path.insert(0, {root!r})
from tulu_lite.rollout.control import Control
from tulu_lite.rollout.state import read_state, update_under_way
from pathlib import Path
state = read_state(Path({file!r}))
with update_under_way(Path({file!r}).parent, 30.0, 600.0):
    Control(state.url, None, 30.0).call("POST", "/pause?mode=keep&clear_cache=true")
    print("paused", flush=True)
    time.sleep(600)
"""


def _pusher(rig: Rig, rng: random.Random) -> float:
    """A process that has paused the server to push weights is killed."""
    root = str(Path(__file__).resolve().parents[1])
    code = PUSHER.format(root=root, file=str(rig.server.state_file))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as pusher:
        assert pusher.stdout is not None
        pusher.stdout.readline()
        time.sleep(rng.uniform(0.0, 1.0))
        now = time.monotonic()
        pusher.kill()
    return now


def _full_memory(rig: Rig, rng: random.Random) -> float:
    """The folder for weights takes a random part of a push and no more; the server must not notice."""
    free = os.statvfs(rig.shared).f_bavail * os.statvfs(rig.shared).f_frsize
    filler = rig.shared / "filler"
    filler.write_bytes(b"x" * (free - rng.randrange(1, 7) * 65536))
    now = time.monotonic()
    before = set(Path(rig.server.state.push_dir).iterdir())
    try:
        _, error = _push_beside(rig)
    finally:
        filler.unlink()
    assert not error or "full" in error, f"a full disk was not said to be full: {error!r}"
    left = set(Path(rig.server.state.push_dir).iterdir()) - before
    assert not (error and left), f"a failed push left {left} behind"
    return now


def _port_taken(rig: Rig, rng: random.Random) -> float:
    """The server is killed and a stranger takes its port for some seconds."""
    pid, hold = victim(rig.server, "api server"), rng.uniform(1.0, 6.0)
    now = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    thief = socket.socket()
    thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    while True:
        try:
            thief.bind(("127.0.0.1", rig.port))
            break
        except OSError:
            time.sleep(0.005)
    threading.Timer(hold, thief.close).start()
    return now


RESTARTS, RESUMES, GOES_ON, REFUSED = "restarts", "is asked again", "goes on", "is refused"
KINDS: dict[str, tuple[str, Inject, str]] = {
    "kill_engine": ("kill -9 of the engine", _signal("engine", signal.SIGKILL), RESTARTS),
    "kill_api": ("kill -9 of the API server", _signal("api server", signal.SIGKILL), RESTARTS),
    "kill_warden": ("kill -9 of the warden", _signal("warden", signal.SIGKILL), RESTARTS),
    "stop_engine": ("SIGSTOP of the engine", _signal("engine", signal.SIGSTOP), RESTARTS),
    "stop_api": ("SIGSTOP of the API server", _signal("api server", signal.SIGSTOP), RESTARTS),
    "replica": ("kill -9 of one of two servers", _one_of_two, RESTARTS),
    "cut": ("all connections reset", _cut, RESUMES),
    "held": ("replies that never come", _held, RESUMES),
    "delayed": ("replies 0.5 to 2 s late", _delayed, GOES_ON),
    "truncated": ("a weight file cut short during a push", _truncated, RESTARTS),
    "pusher": ("kill -9 of a process that pushes", _pusher, RESTARTS),
    "full_memory": ("shared memory full during a push", _full_memory, REFUSED),
    "port_taken": ("killed, and its port taken meanwhile", _port_taken, RESTARTS),
    **{
        f"push_{step}": (f"killed at a push's {step} call", _killed_in_push(step), RESTARTS) for step in STEPS
    },
}


def trial(rig: Rig, kind: str, seed: int) -> dict[str, Any]:
    """Inject one fault while a batch is under way, wait until all is well again, and say how it went."""
    _, inject, expected = KINDS[kind]
    rng = random.Random(f"{kind}:{seed}")
    client, rig.target = rig.client, rig.server
    if kind == "replica":
        second = rig.second()
        rig.target = rng.choice([rig.server, second])
        client = RolloutClient([rig.server.state_file, second.state_file])
    before, fds = Belongings.of(rig.target), descriptors()
    generation, held = rig.target.state.generation, rig.held
    rig.member.request_timeout_s = 4.0 if kind == "held" else None  # of requests sent from now on
    load, watch = Load(client), Watch(rig.target)
    fault = ""
    time.sleep(rng.uniform(0.05, 1.0))
    injected = time.monotonic()
    try:
        injected = inject(rig, rng)
    except (AssertionError, OSError) as error:
        fault = f"{type(error).__name__}: {error}"
    came_back = time.monotonic()
    if expected == GOES_ON:
        time.sleep(1.0)
    deadline = time.monotonic() + 240
    while expected == RESTARTS and not fault and time.monotonic() < deadline:
        if rig.target.state.generation > generation and rig.target.state.state == "ready":
            break
        time.sleep(0.02)
    batches = load.stop()
    rig.target.wait_ready()
    watch.stop()
    if client is not rig.client:
        client.close()
    rig.proxy.settle()
    rig.member.request_timeout_s = None
    found = {RESTARTS: watch.seen, RESUMES: rig.proxy.noticed, REFUSED: came_back, GOES_ON: None}[expected]
    hit = [batch for batch in batches if batch.ended >= injected]
    restarted = rig.target.state.generation - generation
    row: dict[str, Any] = {"kind": kind, "seed": seed}
    row |= {"found_s": None if found is None else round(found - injected, 3)}
    row |= {"recovered_s": round((hit[0].ended if hit else time.monotonic()) - injected, 3)}
    row |= judge(batches, [rig.known[held], rig.known[rig.held]])
    row |= _left_behind(rig, before, fds)
    row |= {"restarts": restarted, "fault": fault}
    if expected in (RESUMES, GOES_ON, REFUSED) and restarted:
        row["fault"] = row["fault"] or f"the server was restarted: {rig.target.state.reason or 'no reason'}"
    return row


def _left_behind(rig: Rig, before: Belongings, fds: int) -> dict[str, list[str]]:
    """Looked at for some seconds: the kernel may take a moment, and idle connections are kept for three."""
    deadline = time.monotonic() + 8
    while True:
        left = before.left(Belongings.of(rig.target))
        pushes = sorted(Path(rig.target.state.push_dir).glob("push-*"))
        if len(pushes) > 1:
            left["leaks"] += [str(path) for path in pushes[:-1]]
        if (more := descriptors() - fds) > SPARE_DESCRIPTORS:
            left["leaks"].append(f"{more} open files or sockets")
        if not any(left.values()) or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def first_start(root: Path, seed: int) -> dict[str, Any]:
    """A server of its own whose API server is killed at a random moment of its first start."""
    rng = random.Random(f"first_start:{seed}")
    folder = Path(tempfile.mkdtemp(dir=root))
    settings = ServerSettings(max_restarts=5, max_num_seqs=64, kv_cache_mb=64, ready_timeout_s=240.0)
    fds = descriptors()
    server = RolloutServer(settings, root / "model0", folder, folder / "log.txt")
    server.start()
    fault, found = "", None
    try:
        while not victim(server, "api server"):
            time.sleep(0.01)
        before = Belongings.of(server)
        watch = Watch(server)
        time.sleep(rng.uniform(0.0, 6.0))
        killed = time.monotonic()
        os.kill(victim(server, "api server") or server.state.pid, signal.SIGKILL)
        while server.state.state not in ("restarting", "failed") and server.state.generation < 2:
            time.sleep(0.005)
        found = time.monotonic() - killed
        server.wait_ready(240)
        watch.stop()
        with RolloutClient(server.state_file) as client:
            groups = client.generate(PROMPTS[:4], SAMPLED)
        recovered = time.monotonic() - killed
        left = before.left(Belongings.of(server))
    except TuluLiteError as error:
        fault, recovered, groups, left = str(error), 0.0, [], {"orphans": [], "leaks": []}
    finally:
        server.stop()
    alive = [str(pid) for pid in group_members(server.state.pid) if is_alive(pid)]
    row = {"kind": "first_start", "seed": seed, "found_s": found, "recovered_s": round(recovered, 3)}
    row |= {"requests": 4, "lost": 4 - len(groups), "duplicated": 0, "wrong": 0, "errors": []}
    row |= {
        "orphans": left["orphans"] + alive,
        "leaks": left["leaks"],
        "restarts": server.state.generation - 1,
    }
    if (more := descriptors() - fds) > SPARE_DESCRIPTORS:
        row["leaks"] = [*row["leaks"], f"{more} open files or sockets"]
    return row | {"fault": fault}


def passed(row: dict[str, Any]) -> bool:
    limit = STOPPED_S if row["kind"].startswith("stop_") else OTHERS_S
    harm = row["lost"] or row["duplicated"] or row["wrong"] or row["errors"] or row["orphans"] or row["leaks"]
    late = row["found_s"] is None or row["found_s"] > limit
    return not harm and not row["fault"] and not (late and row["kind"] != "delayed")


def table(rows: list[dict[str, Any]]) -> str:
    """The rows by kind, as Markdown."""
    names = {kind: name for kind, (name, _, _) in KINDS.items()}
    names |= {"first_start": "killed during its first start"}
    head = "| fault | times | found, median (max) s | answered again, median (max) s | requests | lost | twice | other samples | orphans | leaks | failed |"
    lines = [head, "|" + " --- |" * 11]
    for kind in [*names, None]:
        some = [row for row in rows if kind in (None, row["kind"])]
        if some:
            found = [row["found_s"] for row in some if row["found_s"] is not None]
            cells = [names.get(kind or "", "all"), str(len(some)), _spread(found)]
            cells += [_spread([row["recovered_s"] for row in some])]
            cells += [
                str(sum(row[name] for row in some)) for name in ("requests", "lost", "duplicated", "wrong")
            ]
            cells += [str(sum(len(row[name]) for row in some)) for name in ("orphans", "leaks")]
            lines.append("| " + " | ".join([*cells, str(sum(not passed(row) for row in some))]) + " |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({max(values):.2f})" if values else "none to be found"


def write(rows: list[dict[str, Any]], file: Path) -> None:
    write_json(file, rows)
    text = f"""# Faults at random moments

A 0.15M-parameter Llama on a real vLLM server (CPU, {os.cpu_count()} cores shared with other work, {platform.machine()}), batches
of {len(PROMPTS)} prompts with {SAMPLED.n} responses of {SAMPLED.max_tokens} tokens in flight all the time. Found: from the fault until the owner says
so (or, where only connections fail, until the client asks again). Answered again: from the fault until the batch that
it hit is whole. {sum(row.get("whole_start", True) for row in rows)} of these faults were followed by whole starts of the server, 12 to 15 s of one core and most of the
time to the answer; the other servers were forked from a process that had imported vLLM. Samples are compared with those
of an unbroken run, ids and logprobs, to the last bit. A fault counts as failed when anything of that is not so, or
when it was found later than {OTHERS_S:.0f} s ({STOPPED_S:.0f} s for a stopped process). Made by `python benchmarks/faults.py`.

"""
    write_atomic(file.with_suffix(".md"), text + table(rows) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kinds", default=",".join([*KINDS, "first_start"]))
    parser.add_argument("--count", type=int, default=1_000_000, help="of each kind")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first; by default after those in the file"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "faults.json")
    parser.add_argument(
        "--whole-starts", action="store_true", help="do not fork servers from one that has vLLM imported"
    )
    parser.add_argument("--table", action="store_true", help="only write the table of what is there")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started and mounted is ended
    rows = json.loads(options.output.read_text()) if options.output.exists() else []
    kinds = options.kinds.split(",")
    before = len(rows)
    if not options.table:
        run(kinds, options, rows)
    write(rows, options.output)
    print(table(rows))
    sys.exit(0 if all(passed(row) for row in rows[before:]) else 1)


def run(kinds: list[str], options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    until = time.monotonic() + options.minutes * 60
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    zygote = None if options.whole_starts else Zygote()
    if zygote is not None:
        generation_module.subprocess = SimpleNamespace(**(vars(subprocess) | {"Popen": zygote.popen}))  # type: ignore[attr-defined,assignment]
    rig = Rig(root)
    done = dict.fromkeys(kinds, 0)
    have = {kind: sum(row["kind"] == kind for row in rows) for kind in kinds}
    try:
        while time.monotonic() < until and min(done.values()) < options.count:
            kind = min(kinds, key=lambda kind: (done[kind] >= options.count, have[kind], kinds.index(kind)))
            seed = options.seed or have[kind] + 1
            done[kind] += 1
            have[kind] += 1
            if kind == "full_memory" and not rig.small:
                continue
            row = first_start(root, seed) if kind == "first_start" else trial(rig, kind, seed)
            rows.append(row | {"whole_start": options.whole_starts})
            write_json(options.output, rows)
            mark = "ok" if passed(row) else f"FAILED {json.dumps(row)}"
            print(
                f"{len(rows):4d} {kind:12s} found {row['found_s']} recovered {row['recovered_s']} {mark}",
                flush=True,
            )
    finally:
        rig.close()
        if zygote is not None:
            zygote.close()
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
