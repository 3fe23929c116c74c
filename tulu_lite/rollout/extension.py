"""What runs inside vLLM's worker: a weight transfer backend that reads safetensors files and checks what it loaded.

vLLM imports this module in each worker before the model is built (--worker-extension-cls). [vLLM 0.32]
A push is proven in three steps, each of which raises: the bytes that were read have the sender's digest; every layer got
all of its elements (q_proj alone into a fused qkv would be taken in silence); and what each layer then holds is what
was sent, by bits where the weight is kept as it is, and by its product with a probe vector where the CPU kernels keep
it packed.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from dataclasses import dataclass
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

from .digest import combined_digest, tensor_digest
from .head_sizes import allow_any_head_size
from .held import HeldWeights, tied_layers
from .launch import BACKEND
from .process import die_with_parent


def _die_with_the_api_server() -> None:
    """An engine whose API server was killed would stay behind for ever. (A process vLLM did not start is left alone.)"""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        die_with_parent(signal.SIGKILL, parent.pid)


_die_with_the_api_server()
if current_platform.is_cpu():
    allow_any_head_size()


@dataclass
class FilesInit(WeightTransferInitInfo):
    """Nothing needs to be agreed on beforehand."""


@dataclass
class FilesUpdate(WeightTransferUpdateInfo):
    """Safetensors files on this machine that together hold every weight of the model."""

    files: list[str]
    digest: str | None = (
        None  # combined_digest of the sender's tensors; None: not known (a checkpoint's own files)
    )


class FilesEngine(WeightTransferEngine[FilesInit, FilesUpdate]):
    """Loads whole models from files, layer by layer, as vLLM reloads checkpoints."""

    init_info_cls = FilesInit
    update_info_cls = FilesUpdate
    report: ClassVar[dict[str, Any]] = {}  # of the last update

    def init_transfer_engine(self, init_info: FilesInit) -> None:
        return None

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        FilesEngine.report = {}
        self._tied = tied_layers(self.model)
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: FilesUpdate) -> None:
        model: Any = self.model
        dtype = self.model_config.dtype
        assert isinstance(dtype, torch.dtype)  # vLLM has resolved "auto" by now
        self._held = HeldWeights(model, dtype, self._tied, self._sharded())
        digests: dict[str, str] = {}
        model.load_weights(self._read(update_info, digests))
        received = "" if update_info.digest is None else combined_digest(digests)
        if received and received != update_info.digest:
            raise ValueError(f"weights arrived with digest {received}, sent was {update_info.digest}")
        if missing := _incomplete_layers(model, self._tied):
            raise ValueError(f"layers that did not get all of their weights: {', '.join(missing[:8])}")
        FilesEngine.report = {"digest": received, "tensors": len(digests)}

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        self._repack_tied_layers()
        wrong, checked, unchecked = self._held.compare()
        if wrong:
            raise ValueError(f"layers that hold something else than what was sent: {', '.join(wrong[:8])}")
        FilesEngine.report |= {"checked": checked, "unchecked": unchecked}
        del self._held

    def _repack_tied_layers(self) -> None:
        """A tied layer gets nothing to load, so vLLM leaves its CPU kernel the packed copy of the former weights."""
        for name, layer in self.model.named_modules():
            if name in self._tied and hasattr(layer, "cpu_linear"):
                method: Any = layer.quant_method
                method.process_weights_after_loading(layer)

    def shutdown(self) -> None:
        return None

    def _sharded(self) -> bool:
        parallel = self.parallel_config
        return parallel.tensor_parallel_size * parallel.pipeline_parallel_size > 1

    def _read(self, update: FilesUpdate, digests: dict[str, str]) -> Iterator[tuple[str, torch.Tensor]]:
        for path in update.files:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - a safe_open file is no dict
                    tensor = file.get_tensor(name)
                    digests[name] = "" if update.digest is None else tensor_digest(tensor)
                    tensor = tensor.to(self.device)
                    self._held.expect(name, tensor)
                    yield name, tensor


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


WeightTransferEngineFactory.register_engine(BACKEND, FilesEngine)
