"""What benchmarks/faults.py needs around a server: a load that never stops, a proxy that fails, a look at what leaks."""

from __future__ import annotations

import collections
import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tulu_lite.records import Prompt, RolloutGroup
from tulu_lite.rollout.client import RolloutClient, Sampling
from tulu_lite.rollout.control import Control
from tulu_lite.rollout.member import Member
from tulu_lite.rollout.process import PREFIX, group_members, is_alive, shared_memory_of
from tulu_lite.rollout.server import RolloutServer
from tulu_lite.rollout.state import ServerState

PROMPTS = [Prompt(f"q{i}", "", tuple(range(5, 15 + i)), "fault") for i in range(12)]
SAMPLED = Sampling(4, 1.0, 100, 17)
TINY = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.1, "tie_word_embeddings": False,
}  # fmt: skip

Answers = dict[str, tuple[Any, ...]]  # prompt id -> (token ids, logprobs) of each response


def make_model(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Save a random Llama of 0.15M parameters; returns its weights by name."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**TINY)).float()
    model.save_pretrained(folder)
    return {name: value.detach() for name, value in model.named_parameters()}


def answers_of(groups: list[RolloutGroup]) -> Answers:
    return {
        group.prompt.id: tuple((rollout.token_ids, rollout.logprobs) for rollout in group.rollouts)
        for group in groups
    }


def children_of(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def victim(server: RolloutServer, which: str) -> int:
    """Pid of the server's `warden`, `api server` or `engine`; 0 while it is not there."""
    pid = server.state.pid
    for _ in range({"warden": 0, "api server": 1, "engine": 2}[which]):
        pid = (children_of(pid) or [0])[0] if pid else 0
    return pid


class Proxy:
    """Passes bytes between clients and the server, until it is told to fail."""

    def __init__(self, target: Callable[[], int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._held: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.delay_s = 0.0
        self.noticed: float | None = None  # when a client first came again, or gave up a held connection
        self._failed = False
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def cut(self) -> int:
        """Reset every connection, both ways; returns how many there were."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
            self._failed, self.noticed = True, None
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    end.shutdown(socket.SHUT_RDWR)
                    end.close()
        return len(pairs)

    def hold(self) -> int:
        """Let no more replies through on the connections there are now; returns how many."""
        with self._lock:
            self._held |= {pair[0] for pair in self._pairs}
            self._failed, self.noticed = True, None
            return len(self._held)

    def settle(self) -> None:
        self._failed, self.delay_s = False, 0.0
        with self._lock:
            self._held.clear()

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._failed and self.noticed is None:
                self.noticed = time.monotonic()
            try:
                server = socket.create_connection(("127.0.0.1", self._target()), 5)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._pairs.append((client, server))
            threading.Thread(target=self._pass, args=(client, server), daemon=True).start()

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            while True:
                held = client in self._held
                ready, _, _ = select.select([client] if held else [client, server], [], [], 0.05)
                for end in ready:
                    data = end.recv(1 << 16)
                    if not data:
                        if held and self.noticed is None:
                            self.noticed = time.monotonic()
                        return self._drop(client, server)
                    if end is server and self.delay_s:
                        time.sleep(self.delay_s)
                    (server if end is client else client).sendall(data)
        return self._drop(client, server)

    def _drop(self, client: socket.socket, server: socket.socket) -> None:
        with self._lock:
            self._pairs = [pair for pair in self._pairs if pair[0] is not client]
            self._held.discard(client)
        client.close()
        server.close()


class ProxiedMember(Member):
    """A server as its clients see it, reached through the proxy."""

    def __init__(self, server: Path, proxy: Proxy) -> None:
        super().__init__(server)
        self.proxy = proxy
        self.request_timeout_s: float | None = None

    def state(self) -> ServerState:
        state = super().state()
        if state.url:
            state = replace(state, url=f"http://127.0.0.1:{self.proxy.port}")
        if self.request_timeout_s is not None:
            state = replace(state, request_timeout_s=self.request_timeout_s)
        return state


def proxied(client: RolloutClient, proxy: Proxy) -> ProxiedMember:
    """Have the client's one server reached through the proxy from now on."""
    member = client._named[0] = ProxiedMember(client._named[0].file, proxy)
    return member


@dataclass
class Batch:
    """One call of generate: what came, how often, when."""

    began: float
    ended: float = 0.0
    times: collections.Counter[str] = field(default_factory=collections.Counter)
    groups: list[RolloutGroup] = field(default_factory=list)
    error: str = ""


class Load:
    """Batches one after another, from a thread, until it is stopped."""

    def __init__(self, client: RolloutClient) -> None:
        self.client = client
        self.batches: list[Batch] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            batch = Batch(time.monotonic())
            self.batches.append(batch)

            def count(group: RolloutGroup, batch: Batch = batch) -> None:
                batch.times[group.prompt.id] += 1

            try:
                batch.groups = self.client.generate(PROMPTS, SAMPLED, count)
            except Exception as error:
                batch.error = f"{type(error).__name__}: {error}"
            batch.ended = time.monotonic()
            if batch.error:
                return

    def stop(self, wait_s: float = 180.0) -> list[Batch]:
        """End after the batch under way; returns all of them."""
        self._stop.set()
        self._thread.join(wait_s)
        if self._thread.is_alive():
            self.batches[-1].error = f"not answered after {wait_s:.0f} s"
        return self.batches


def judge(batches: list[Batch], references: list[Answers]) -> dict[str, Any]:
    """What of all that was asked for got lost, came twice, or differs from the unbroken runs.

    references: the unbroken samples under each of the weights that were served meanwhile. Each response is of one of
    them; a group that was asked for just as new weights came may hold responses of both (`mixed`).
    """
    lost = duplicated = wrong = mixed = requests = 0
    errors = [batch.error for batch in batches if batch.error]
    for batch in batches:
        got = answers_of(batch.groups)
        for prompt in PROMPTS:
            requests += 1
            times = batch.times[prompt.id]
            lost += times == 0 or (not batch.error and prompt.id not in got)
            duplicated += times > 1
            if prompt.id in got:
                wrong += sum(
                    all(answer != known[prompt.id][number] for known in references)
                    for number, answer in enumerate(got[prompt.id])
                )
                mixed += all(got[prompt.id] != known[prompt.id] for known in references)
    return {
        "requests": requests,
        "lost": lost,
        "duplicated": duplicated,
        "wrong": wrong,
        "mixed": mixed,
        "errors": errors[:2],
    }


@dataclass
class Belongings:
    """What the server's processes hold before a fault, and must not leave behind."""

    pids: list[int]
    shared: set[Path]
    folders: set[Path]

    @classmethod
    def of(cls, server: RolloutServer) -> Belongings:
        pids = [server.state.pid, *group_members(server.state.pid)]
        current = server._current
        return cls(pids, shared_memory_of(pids), {current.folder} if current is not None else set())

    def left(self, now: Belongings) -> dict[str, list[str]]:
        """Of a server that was replaced: processes and files that are still there."""
        kept = {path for path in self.shared - now.shared if path.exists()}
        return {
            "orphans": [str(pid) for pid in self.pids if pid not in now.pids and is_alive(pid)],
            "leaks": [
                str(path) for path in (kept | {f for f in self.folders - now.folders if f.exists()})
                if not in_private_folder(path)
            ],
        }  # fmt: skip


def in_private_folder(path: Path) -> bool:
    """Whether a file is pushed weights or an adapter: they outlive a server that has read them."""
    return any(part.startswith(PREFIX) for part in path.parent.parts)


def descriptors() -> int:
    """Open files and sockets of this process, which owns the server and holds the client."""
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def before_call(path: str, act: Callable[[Any], None]) -> Iterator[None]:
    """Have `act(body)` run just before this process's next control call to `path`, once."""
    original = Control.call
    waiting = [act]

    def call(self: Control, method: str, where: str, body: Any = None, timeout_s: float | None = None) -> Any:
        if where.partition("?")[0] == path and waiting:
            waiting.pop()(body)
        return original(self, method, where, body, timeout_s)

    Control.call = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        Control.call = original  # type: ignore[method-assign]
