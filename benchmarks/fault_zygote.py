"""Starts servers by fork from a process that has imported vLLM already: 8 of the 12 s of a start are that import.

Only for benchmarks/faults.py: a server's first process is then this one's child, which stands for its owner; what it
runs from there on is tulu_lite.rollout.launch, unchanged.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = str(Path(__file__).resolve().parents[1])


class Zygote:
    """The process, and a stand-in for subprocess.Popen that has it start a server."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._line, self._lock = ours.makefile("rw"), threading.Lock()
        self._socket = ours
        self.ask({"do": "wait"})

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self._line.write(json.dumps(order) + "\n")
            self._line.flush()
            return json.loads(self._line.readline())

    def close(self) -> None:
        self._line.close()
        self._socket.close()
        self._process.wait(30)

    def popen(self, command: list[str], *, stdout: Any, env: dict[str, str], **_: Any) -> Started:
        """As subprocess.Popen for `python -m tulu_lite.rollout.launch SPEC`; any other command is run as it is."""
        if "tulu_lite.rollout.launch" not in command:
            return subprocess.Popen(command, stdout=stdout, env=env, **_)  # type: ignore[return-value]
        return Started(
            self, self.ask({"do": "start", "spec": command[-1], "env": env, "log": stdout.name})["pid"]
        )


class Started:
    """What is used of subprocess.Popen."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self.zygote, self.pid, self.returncode = zygote, pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.zygote.ask({"do": "poll", "pid": self.pid})["code"]
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (timeout or 1e9)
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("server", timeout or 0.0)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _start(order: dict[str, Any]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(order["env"])
    import tempfile

    tempfile.tempdir = None  # TMPDIR is another now
    spec = Path(order["spec"])
    spec.write_text(json.dumps(json.loads(spec.read_text()) | {"owner_pid": parent}))
    from tulu_lite.rollout import launch

    code = 1
    try:
        code = launch.main([str(spec)])
    finally:
        sys.stdout.flush()
        os._exit(code)


def main() -> None:
    sys.path[0] = ROOT
    from tulu_lite.rollout.launch import environment
    from tulu_lite.rollout.process import die_with_parent

    die_with_parent(9)  # type: ignore[arg-type]
    settings = {"device": "cpu", "threads": 1, "max_loras": 0}
    os.environ.update(environment(settings))
    import vllm.entrypoints.launchers.api_server.entry
    import vllm.model_executor.models.llama
    import vllm.v1.engine.async_llm
    import vllm.v1.engine.core
    import vllm.v1.worker.cpu_worker  # noqa: F401

    line = socket.socket(fileno=int(sys.argv[1])).makefile("rw")
    ended: dict[int, int] = {}
    for text in line:
        order = json.loads(text)
        answer: dict[str, Any] = {}
        if order["do"] == "start":
            answer = {"pid": _start(order)}
        if order["do"] == "poll":
            pid = order["pid"]
            if pid not in ended:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    ended[pid] = os.waitstatus_to_exitcode(status)
            answer = {"code": ended.get(pid)}
        line.write(json.dumps(answer) + "\n")
        line.flush()


if __name__ == "__main__":
    main()
