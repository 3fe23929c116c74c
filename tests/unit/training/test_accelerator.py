from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs

from tulu_lite.errors import TuluLiteError
from tulu_lite.recipe.training import AccelerateSettings
from tulu_lite.training import accelerator as module
from tulu_lite.training.accelerator import COLLECTIVE_WAIT, make_accelerator

CPU = AccelerateSettings(device="cpu", threads=1)


def test_one_process_on_the_cpu(accelerator: Accelerator) -> None:
    assert accelerator.device.type == "cpu"
    assert accelerator.num_processes == 1
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.usefixtures("accelerator")  # restores threads and determinism
def test_everything_is_seeded() -> None:
    def draws(seed: int) -> tuple[float, float, float]:
        make_accelerator(CPU, seed)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draws(5) == draws(5)
    assert all(one != other for one, other in zip(draws(5), draws(6), strict=True))
    make_accelerator(CPU, 2**40)


@pytest.mark.parametrize(
    ("variable", "engine"), [("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ACCELERATE_USE_FSDP", "FSDP")]
)
def test_an_engine_that_would_be_dropped_without_a_word(
    monkeypatch: pytest.MonkeyPatch, variable: str, engine: str
) -> None:
    monkeypatch.setenv(variable, "true")
    with pytest.raises(TuluLiteError, match=f"{engine} was asked for"):
        make_accelerator(CPU, 0)


def test_processes_that_did_not_join(monkeypatch: pytest.MonkeyPatch, accelerator: Accelerator) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TuluLiteError, match="2 training processes were launched, but accelerate joined 1"):
        make_accelerator(CPU, 0)


@pytest.mark.usefixtures("accelerator")
def test_processes_that_were_never_started() -> None:
    with pytest.raises(TuluLiteError, match="num_processes is 2, but 1 runs") as raised:
        make_accelerator(CPU.model_copy(update={"num_processes": 2}), 0)
    assert "accelerate launch --multi_gpu --num_processes 2" in raised.value.cure


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(TuluLiteError, match="torch sees no GPU"):
        make_accelerator(CPU.model_copy(update={"device": "cuda"}), 0)


def test_processes_wait_long_for_what_one_of_them_does_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, accelerator: Accelerator
) -> None:
    given: dict[str, Any] = {}

    def make(**named: Any) -> Accelerator:
        given.update(named)
        return accelerator

    monkeypatch.setattr(module, "Accelerator", make)
    make_accelerator(CPU, 0)
    (handler,) = [one for one in given["kwargs_handlers"] if isinstance(one, InitProcessGroupKwargs)]
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group(
        "gloo", store=store, rank=0, world_size=1, **handler.to_kwargs()
    )  # as accelerate does
    try:
        for group in (dist.group.WORLD, dist.new_group([0])):  # an engine makes some of the second kind
            assert group._get_backend(torch.device("cpu")).options._timeout == COLLECTIVE_WAIT
    finally:
        dist.destroy_process_group()
    assert dist.distributed_c10d._get_default_timeout("nccl") == COLLECTIVE_WAIT
