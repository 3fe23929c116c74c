from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from tulu_lite.errors import TuluLiteError
from tulu_lite.recipe.training import AccelerateSettings
from tulu_lite.training.accelerator import make_accelerator

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
