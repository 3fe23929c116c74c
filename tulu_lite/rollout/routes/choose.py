"""Which way weights take, by where they are and where the server is. No torch."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

Route = Literal["files", "nccl", "ipc"]


def choose_route(device: str, trainer_gpus: Collection[str], about: dict[str, Any]) -> Route:
    """files: either side is no GPU, or the two share some GPUs and not others, which NCCL and IPC both refuse.
    ipc: every GPU of the server holds a process of the trainer. nccl: they have no GPU in common.

    device: of the trainer's weights, cpu or cuda. trainer_gpus: UUIDs of its processes' GPUs. about: server_about.
    """
    server_gpus = set(about["gpus"])
    if device != "cuda" or about["device"] != "cuda" or not trainer_gpus or "" in server_gpus:
        return "files"
    if server_gpus <= set(trainer_gpus):
        return "ipc"
    return "files" if server_gpus & set(trainer_gpus) else "nccl"
