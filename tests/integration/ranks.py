"""Processes of one group, as a launcher starts them, for tests of what is spread over several."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def deepspeed_as_it_is() -> None:
    """In a rank: import DeepSpeed so that it compiles none of its CPU kernels, which takes half a minute where no one has
    before. gloo does what they would do."""
    import deepspeed

    deepspeed.ops.__compatible_ops__.clear()


def run_ranks(script: Path, *arguments: str, world: int = 2, seconds: float = 300.0) -> None:
    """Run the script once for each rank on loopback; all must end with 0. The first that fails is told, with its last
    words, while the others, which would wait for it, are ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    shared["GLOO_SOCKET_IFNAME"] = "lo"  # the host's own name may lead anywhere
    running: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryFile() as told:
        for rank in range(world):
            places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
            group = {name: str(value) for name, value in places.items()} if world > 1 else {}
            command = [sys.executable, str(script), *arguments]
            running.append(subprocess.Popen(command, env=shared | group, stderr=told))
        deadline = time.monotonic() + seconds
        try:
            while any(process.poll() is None for process in running):
                assert not any(process.returncode for process in running), _last_words(told)
                assert time.monotonic() < deadline, f"not done after {seconds:.0f} s; {_last_words(told)}"
                time.sleep(0.05)
            assert not any(process.returncode for process in running), _last_words(told)
        finally:
            for process in running:
                process.kill()
                process.wait()


def _last_words(told) -> str:  # type: ignore[no-untyped-def]
    told.seek(0)
    return told.read()[-4000:].decode(errors="replace")


def leave() -> None:
    """End a rank's process at once, as a stage does: with DDP and gloo python's own clearing up may wait for ever.

    The group must not be destroyed before: DDP's reducer would then be the last to hold it, and wait for gloo's thread,
    which waits for the interpreter, when the model is freed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
