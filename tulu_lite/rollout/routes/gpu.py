"""Weights from GPU to GPU: vLLM's own NCCL and CUDA IPC transfers, under this package's versions, deadlines and proof.
[vLLM 0.32]

The trainer's side is vLLM's TrainerWeightTransferEngine, which all of the trainer's processes run; the server's side is
vLLM's engine inside ours (`extension.py`), which notes what passes and compares it afterwards with what is held.
Written on a machine without a GPU: the choice of route and the order of messages are tested, the transfer itself is not.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from ...errors import TuluLiteError
from ..checkpoint import Shapes
from ..control import Control
from ..digest import tensor_digest
from ..fingerprint import fingerprint
from .choose import Route
from .handles import handle_to_json


class Messages:
    """vLLM's VLLMWeightSyncClient: its four calls as our server's orders, each with a deadline.

    Finishing is left to the caller, who then compares digests; `spoken` says whether the server was asked anything.
    """

    def __init__(self, control: Control, route: Route, mode: str) -> None:
        self.control, self.route, self.mode = control, route, mode
        self.spoken = False

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        body = {"init_info": {"route": self.route, "info": init_info}}
        self.control.call("POST", "/init_weight_transfer_engine", body)

    def start_weight_update(self) -> None:
        self.spoken = True
        self.control.begin_update(self.mode)

    def update_weights(self, update_info: Any) -> None:
        info = {key: value for key, value in update_info.items() if value is not None}
        if "ipc_handles" in info:
            info["ipc_handles"] = {
                gpu: handle_to_json(arguments) for gpu, arguments in info["ipc_handles"].items()
            }
        self.control.update({"route": self.route, "info": info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        return None

    def shutdown_weight_transfer_engine(self) -> None:
        self.control.call("POST", "/shutdown_weight_transfer_engine")


class Source:
    """vLLM's WeightSource over weights whose names and shapes are known: cast to the server's type, and digested.

    make: gives a fresh iterator of (name, tensor). wide: last parts of names that the server keeps in float32.
    """

    def __init__(
        self,
        make: Callable[[], Iterable[tuple[str, torch.Tensor]]],
        shapes: Shapes,
        dtype: torch.dtype,
        wide: Iterable[str] = (),
    ) -> None:
        self.make, self.shapes, self.dtype, self.wide = make, shapes, dtype, frozenset(wide)
        self.digests: dict[str, str] = {}

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(name, self._type(name), shape) for name, shape in self.shapes.items()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.digests = {}
        for name, given in self.make():
            whole: Any = given.full_tensor() if hasattr(given, "full_tensor") else given
            tensor = whole.detach().to(self._type(name)).contiguous()
            self.digests[name] = tensor_digest(tensor, fingerprint(tensor))
            yield name, tensor

    def _type(self, name: str) -> torch.dtype:
        return torch.float32 if name.rpartition(".")[2] in self.wide else self.dtype


def open_transfer(
    route: Route,
    messages: Messages,
    source: Source,
    *,
    rank: int,
    server_gpus: int,
    address: str | None = None,
) -> Any:
    """vLLM's trainer-side engine, connected to the server; every process of the trainer calls it.

    server_gpus: how many workers the server has. address: this machine's, as the server's machine reaches it.
    """
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    info: Any
    if route == "nccl":
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        host = address or "127.0.0.1"
        port = _free_port(host) if rank == 0 else 1  # only the sender listens
        info = NCCLTrainerInitInfo(
            rank=rank, master_address=host, master_port=port, world_size=1 + server_gpus, packed=True
        )
    elif route == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        info = IPCTrainerInitInfo(rank=rank, packed=True)
    else:
        raise TuluLiteError(f"{route} is no route between GPUs")
    return WeightTransferTrainerFactory.trainer_init(info, client=messages, source=source)  # type: ignore[arg-type]


def trainer_gpus() -> list[str]:
    """UUIDs of the GPUs of all the trainer's processes; every one of them calls it."""
    from ...training.sharding import from_all

    own = (
        str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        if torch.cuda.is_available()
        else ""
    )
    return [gpu for gpu in from_all(own) if gpu]


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
