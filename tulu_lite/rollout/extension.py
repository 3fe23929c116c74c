"""What runs inside vLLM's worker: a weight transfer backend that reads safetensors files and checks what it loaded.

vLLM imports this module in each worker before the model is built (--worker-extension-cls). [vLLM 0.32]
A push is proven in three steps, each of which raises: the bytes that were read have the sender's digest; every layer got
all of its elements (q_proj alone into a fused qkv would be taken in silence); and what each parameter and buffer then
holds is what was sent, by bits where the elements are kept, and by its product with a probe vector where the CPU
kernels keep it packed (`held.py`). What could not be compared is said: the sender then asks for greedy agreement.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.platforms import current_platform

from .digest import bytes_digest, combined_digest, tensor_digest
from .fingerprint import fingerprint
from .head_sizes import allow_any_head_size
from .held import HeldWeights, tied_layers
from .held_experts import repack_experts_on_update
from .launch import BACKEND
from .layer_kernels import use_them as use_layer_kernels
from .process import boot_id, die_with_parent
from .routes.handles import handle_from_json

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def _die_with_the_api_server() -> None:
    """An engine whose API server was killed would stay behind for ever. (A process vLLM did not start is left alone.)"""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        die_with_parent(signal.SIGKILL, parent.pid)


def keep_freed_memory() -> None:
    """Have malloc keep what is freed for what is asked for next. An update makes each layer anew, and fresh pages from
    the kernel cost four times what the copy into them does."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


_die_with_the_api_server()
if current_platform.is_cpu():
    allow_any_head_size()
    repack_experts_on_update()
    keep_freed_memory()
    use_layer_kernels()


@dataclass
class FilesInit(WeightTransferInitInfo):
    """files needs nothing to be agreed on beforehand; nccl and ipc: what vLLM's engine of that name asks for."""

    route: str = "files"
    info: dict[str, Any] = field(default_factory=dict)


@dataclass
class FilesUpdate(WeightTransferUpdateInfo):
    """Some of the model's weights: safetensors files on this machine, or what vLLM's engine of another route takes."""

    files: list[str] = field(default_factory=list)
    digest: str | None = (
        None  # combined_digest of these files' tensors as sent; None: not known (a checkpoint's own files)
    )
    route: str = "files"
    info: dict[str, Any] = field(default_factory=dict)


class FilesEngine(WeightTransferEngine[FilesInit, FilesUpdate]):
    """Loads whole models from files, layer by layer, as vLLM reloads checkpoints."""

    init_info_cls = FilesInit
    update_info_cls = FilesUpdate
    report: ClassVar[dict[str, Any]] = {}  # of the last update

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._routes: dict[str, Any] = {}  # vLLM's own engines, by name

    def init_transfer_engine(self, init_info: FilesInit) -> None:
        if init_info.route != "files":
            inner = self._routes.get(init_info.route)
            if inner is not None:
                inner.shutdown()  # the trainer has started anew
            inner = WeightTransferEngineFactory._registry[init_info.route]()(
                self.config,
                self.vllm_config,
                self.device,
                Watched(self),  # type: ignore[arg-type]
            )
            inner.init_transfer_engine(inner.parse_init_info(init_info.info))
            self._routes[init_info.route] = inner

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        FilesEngine.report = {}
        model: Any = self.model
        dtype = self.model_config.dtype
        assert isinstance(dtype, torch.dtype)  # vLLM has resolved "auto" by now
        self._tied = tied_layers(model)
        self._held = HeldWeights(model, dtype, self._tied, self._sharded())
        self._digests: dict[str, str] = {}
        self._lent: list[tuple[int, int]] = []  # where the files' bytes lay in this process
        initialize_layerwise_reload(model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: FilesUpdate) -> None:
        digests: dict[str, str] = {}
        if update_info.route == "files":
            self.load(self._read(update_info, digests))
        else:
            self._receive_elsewhere(update_info)
        if update_info.digest is not None:
            received = combined_digest(digests)
            if received != update_info.digest:
                raise ValueError(f"weights arrived with digest {received}, sent was {update_info.digest}")
        if twice := digests.keys() & self._digests.keys():
            raise ValueError(f"weights that came twice: {', '.join(sorted(twice)[:8])}")
        self._digests |= digests

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        model: Any = self.model
        model.load_weights(weights)

    def _receive_elsewhere(self, update_info: FilesUpdate) -> None:
        """By vLLM's own engine, which hands what it gets to `Watched`."""
        info = dict(update_info.info)
        if "ipc_handles" in info:
            info["ipc_handles"] = {gpu: handle_from_json(data) for gpu, data in info["ipc_handles"].items()}
        inner = self._routes[update_info.route]
        inner.update_weights(info)

    def note(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Note what came over another route before it is loaded."""
        for name, tensor in weights:
            if name in self._digests:
                raise ValueError(f"the weight {name} came twice")
            bits = fingerprint(tensor)
            self._digests[name] = tensor_digest(tensor, bits)
            self._held.expect(name, tensor, bits)
            yield name, tensor

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        if missing := _incomplete_layers(self.model, self._tied):
            raise ValueError(f"layers that did not get all of their weights: {', '.join(missing[:8])}")
        finalize_layerwise_reload(self.model, self.model_config)
        self._repack_tied_layers()
        wrong, checked, unchecked = self._held.compare()
        if kept := self._still_lent():
            raise ValueError(f"layers whose weights still lie in the sender's files: {', '.join(kept[:8])}")
        if wrong:
            raise ValueError(f"layers that hold something else than what was sent: {', '.join(wrong[:8])}")
        known = all(self._digests.values())
        FilesEngine.report = {
            "digest": combined_digest(self._digests) if known else "",
            "tensors": len(self._digests),
            "checked": checked,
            "unchecked": unchecked,
            "dtype": str(self.model_config.dtype).removeprefix("torch."),
        }
        for inner in self._routes.values():
            if hasattr(inner, "_packed_importer"):
                inner._packed_importer.close()  # the trainer may use its buffer again
        del self._held, self._digests, self._lent

    def _still_lent(self) -> list[str]:
        """Parameters and buffers that were not copied out of the files, which the next push will write over."""
        return [
            name
            for name, value in [*self.model.named_parameters(), *self.model.named_buffers()]
            if any(start <= value.data_ptr() < end for start, end in self._lent)
        ]

    def _repack_tied_layers(self) -> None:
        """A tied layer gets nothing to load, so vLLM leaves its CPU kernel the packed copy of the former weights."""
        for name, layer in self.model.named_modules():
            if name in self._tied and hasattr(layer, "cpu_linear"):
                method: Any = layer.quant_method
                method.process_weights_after_loading(layer)

    def shutdown(self) -> None:
        for inner in self._routes.values():
            inner.shutdown()
        self._routes.clear()

    def _sharded(self) -> bool:
        parallel = self.parallel_config
        return parallel.tensor_parallel_size * parallel.pipeline_parallel_size > 1

    def _read(self, update: FilesUpdate, digests: dict[str, str]) -> Iterator[tuple[str, torch.Tensor]]:
        for path in update.files:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - a safe_open file is no dict
                    tensor = file.get_tensor(name)
                    start = tensor.data_ptr()
                    self._lent.append((start, start + tensor.nbytes))
                    bits = bytes_digest(tensor)
                    digests[name] = "" if update.digest is None else tensor_digest(tensor, bits)
                    tensor = tensor.to(self.device)
                    self._held.expect(name, tensor, bits if self.device.type == "cpu" else None)
                    yield name, tensor


class Watched:
    """The model as vLLM's own engines see it: what they load is noted first."""

    def __init__(self, engine: FilesEngine) -> None:
        self._engine = engine

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self._engine.load(self._engine.note(weights))


def _incomplete_layers(model: torch.nn.Module, tied: dict[str, str]) -> list[str]:
    """Names of layers that were given none or only a part of their elements since start_weight_update."""
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    missing = []
    for name, layer in model.named_modules():
        info = get_layerwise_info(layer)
        weights = {key for key, value in layer._parameters.items() if value is not None}
        if (
            name in tied
            or not info.can_load()
            or not weights
            or info.load_numel >= (info.load_numel_total or 0)
        ):
            continue
        # Only linear layers are known to have no padding; of any other, none at all is what can be told.
        if info.load_numel == 0 or (isinstance(layer, LinearBase) and weights == {"weight"}):
            missing.append(name)
    return missing


class WorkerExtension:
    """Methods that vLLM adds to its worker; called through /collective_rpc."""

    def tulu_lite_report(self) -> dict[str, Any]:
        """What the last update loaded: {digest, tensors, checked, unchecked}."""
        return dict(FilesEngine.report)

    def tulu_lite_about(self) -> dict[str, Any]:
        """What a sender needs to know: {dtype, device, gpu, host, sharded, wide}.

        gpu: the GPU's UUID, or "". host: the machine's, by its boot. wide: last parts of names of parameters that are
        kept in a wider type than the model's.
        """
        worker: Any = self
        config = worker.vllm_config
        dtype = config.model_config.dtype
        wide = {
            name.rpartition(".")[2]
            for name, value in worker.model_runner.get_model().named_parameters()
            if value.is_floating_point() and value.dtype.itemsize > dtype.itemsize
        }
        device = worker.device.type
        return {
            "dtype": str(dtype).removeprefix("torch."),
            "device": device,
            "gpu": str(torch.cuda.get_device_properties(worker.device).uuid) if device == "cuda" else "",
            "host": boot_id(),
            "sharded": config.parallel_config.world_size > 1,
            "wide": sorted(wide),
        }


WeightTransferEngineFactory.register_engine(BACKEND, FilesEngine)
