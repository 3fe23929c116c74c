"""vLLM's own transfer engines under our messages, as far as a machine without a GPU can run them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferUpdateInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

from tulu_lite.rollout.digest import tensor_digest
from tulu_lite.rollout.extension import FilesEngine, FilesInit, FilesUpdate
from tulu_lite.rollout.routes.gpu import Messages, Source
from tulu_lite.rollout.routes.handles import handle_from_json, handle_to_json


class FakeControl:
    def __init__(self) -> None:
        self.orders: list[Any] = []

    def begin_update(self, mode: str) -> None:
        self.orders.append(("begin", mode))

    def update(self, info: dict[str, Any]) -> None:
        self.orders.append(("update", info))

    def call(self, method: str, path: str, body: Any = None) -> None:
        self.orders.append((path, body))


def test_nccl_trainer_engine_sends_what_was_declared(monkeypatch):
    control = FakeControl()
    messages = Messages(control, "nccl", "wait")
    assert isinstance(messages, VLLMWeightSyncClient)
    weights = {"a.weight": torch.randn(3, 2), "b.weight": torch.randn(4)}
    source = Source(weights.items, {"a.weight": (3, 2), "b.weight": (4,)}, torch.bfloat16)
    engine = NCCLTrainerWeightTransferEngine(client=messages, source=source)
    sent = []
    monkeypatch.setattr(
        engine, "_broadcast", lambda source, meta: sent.extend(engine._checked_iter(source, meta))
    )
    engine.send_weights()
    told = {"names": ["a.weight", "b.weight"], "dtype_names": ["bfloat16"] * 2, "shapes": [[3, 2], [4]]}
    assert control.orders == [("begin", "wait"), ("update", {"route": "nccl", "info": told})]
    assert {name: tensor_digest(tensor) for name, tensor in sent} == source.digests


def test_what_comes_over_another_route_is_noted_before_it_is_loaded(monkeypatch):
    loaded: dict[str, torch.Tensor] = {}
    handle = (
        torch.Tensor, torch.Size([4]), (1,), 0, torch.storage.TypedStorage, torch.uint8, 0, b"h", 4, 0, False,
        b"c", 0, b"e", True,
    )  # fmt: skip

    class Inner:
        """As vLLM's IPC engine: opens handles, gives the model what they hold."""

        def __init__(self, config: Any, vllm_config: Any, device: Any, model: Any) -> None:
            self.model, self.packed = model, None

        def parse_init_info(self, info: dict[str, Any]) -> Any:
            return SimpleNamespace(**info)

        def init_transfer_engine(self, info: Any) -> None:
            self.packed = info.packed

        def update_weights(self, info: dict[str, Any]) -> None:
            parsed = IPCWeightTransferUpdateInfo(**info)
            assert parsed.ipc_handles == {"GPU-a": handle}
            self.model.load_weights([(name, torch.ones(4)) for name in parsed.names])

    monkeypatch.setitem(WeightTransferEngineFactory._registry, "ipc", lambda: Inner)
    config = SimpleNamespace(parallel_config=None, model_config=None)
    model: Any = SimpleNamespace(load_weights=lambda pairs: loaded.update(pairs))
    engine = FilesEngine(SimpleNamespace(), config, torch.device("cpu"), model)
    expected = []
    engine._held = SimpleNamespace(expect=lambda name, tensor, bits: expected.append((name, bits)))
    engine._digests = {}
    engine.init_transfer_engine(FilesInit("ipc", {"packed": True}))
    info = {
        "names": ["w"], "dtype_names": ["float32"], "shapes": [[4]], "tensor_sizes": [16],
        "ipc_handles": {"GPU-a": handle_to_json(handle)},
    }  # fmt: skip
    engine.receive_weights(FilesUpdate(route="ipc", info=info))
    assert torch.equal(loaded["w"], torch.ones(4))
    assert [name for name, _ in expected] == ["w"]
    assert engine._digests == {"w": tensor_digest(torch.ones(4))}
    with pytest.raises(ValueError, match="came twice"):
        engine.receive_weights(FilesUpdate(route="ipc", info=info))
    assert handle_from_json(handle_to_json(handle)) == handle
