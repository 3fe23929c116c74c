from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from tulu_lite.errors import TuluLiteError
from tulu_lite.objectives.sft import token_loss
from tulu_lite.recipe.training import LoraSettings, TrainingSettings
from tulu_lite.training.logprobs import token_logprobs
from tulu_lite.training.model import load_model
from tulu_lite.training.optim import accumulating, backward, finish_update, make_optimizer, rate_of

Folder = Callable[..., Path]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def settings(**fields: object) -> TrainingSettings:
    return TrainingSettings.model_validate({"learning_rate": 1.0e-2, **fields})


def test_rates_by_hand() -> None:
    def rates(schedule: str, warmup: float, total: int) -> list[float]:
        rate = rate_of(settings(learning_rate=0.5, schedule=schedule, warmup_ratio=warmup), total)
        return [rate(update) for update in range(1, total + 1)]

    assert rates("linear", 0.25, 6) == pytest.approx([0.25, 0.5, 0.5, 0.375, 0.25, 0.125])  # W = ceil(1.5)
    assert rates("constant", 0.4, 5) == pytest.approx([0.25, 0.5, 0.5, 0.5, 0.5])
    assert rates("cosine", 0.0, 3) == pytest.approx(
        [0.5, 0.25 * (1 + math.cos(math.pi / 3)), 0.25 * (1 + math.cos(2 * math.pi / 3))]
    )
    assert rates("linear", 0.0, 1) == [0.5]
    assert rates("linear", 0.9, 1) == [0.5]


def rates_of(total: int, **fields: object) -> list[float]:
    rate = rate_of(settings(learning_rate=0.5, **fields), total)
    return [rate(update) for update in range(1, total + 1)]


def test_wsd_by_hand() -> None:
    rates = rates_of(10, schedule="wsd", warmup_steps=2, decay_ratio=0.4)
    assert rates == pytest.approx([0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.375, 0.25, 0.125])
    rates = rates_of(4, schedule="wsd", warmup_ratio=0.0, decay_ratio=1.0, min_rate_ratio=0.2)
    assert rates == pytest.approx([0.5, 0.4, 0.3, 0.2])


def test_least_rates_by_hand() -> None:
    assert rates_of(4, schedule="linear", warmup_ratio=0, min_rate_ratio=0.2) == pytest.approx(
        [0.5, 0.4, 0.3, 0.2]
    )
    third = 0.1 + 0.4 * (1 + math.cos(math.pi / 2)) / 2
    assert rates_of(4, schedule="cosine", warmup_ratio=0, min_rate_ratio=0.2)[2] == pytest.approx(third)


def test_warm_up_in_steps_takes_the_place_of_the_ratio() -> None:
    assert rates_of(8, schedule="constant", warmup_ratio=0.9, warmup_steps=4)[:5] == pytest.approx(
        [0.125, 0.25, 0.375, 0.5, 0.5]
    )
    assert rates_of(3, schedule="constant", warmup_ratio=0.9, warmup_steps=0) == [0.5] * 3


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"schedule": "wsd", "warmup_ratio": 0.6, "decay_ratio": 0.6}, "more than the whole run"),
        ({"schedule": "constant", "min_rate_ratio": 0.1}, "no meaning with schedule: constant"),
    ],
)
def test_schedules_that_make_no_sense(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings(**fields)


def test_8_bit_moments_need_a_library(llama_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(TuluLiteError, match="adamw_8bit needs bitsandbytes") as raised:
        make_optimizer(load_model(llama_folder(), "cpu"), settings(optimizer="adamw_8bit"), 10)
    assert "pip install bitsandbytes" in raised.value.cure


def test_decay_is_on_matrices_only(llama_folder: Folder) -> None:
    model = load_model(llama_folder(), "cpu")
    optimizer, _ = make_optimizer(model, settings(weight_decay=0.1, betas=[0.8, 0.95]), 10)
    decayed, plain = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1
    assert {parameter.dim() for parameter in decayed["params"]} == {2}
    assert plain["weight_decay"] == 0.0
    assert {parameter.dim() for parameter in plain["params"]} == {1}
    assert decayed["betas"] == (0.8, 0.95)
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))


def test_only_adapters_are_in_the_optimiser(llama_folder: Folder) -> None:
    lora = LoraSettings(rank=2)
    optimizer, _ = make_optimizer(load_model(llama_folder(), "cpu", lora=lora), settings(lora=lora), 10)
    assert [
        parameter.shape
        for group in optimizer.param_groups
        for parameter in group["params"]
        if 2 not in parameter.shape
    ] == []


def prepared(accelerator: Accelerator, folder: Path) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = load_model(folder, accelerator.device)
    optimizer, _ = make_optimizer(model, settings(), 10)
    return accelerator.prepare(model, optimizer)


def gradients(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat(
        [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    )


def test_one_batch_is_four_micro_batches(
    llama_folder: Folder, accelerator: Accelerator, batch: Batch
) -> None:
    found, losses = [], []
    ids, attention, mask = batch
    for size in (8, 2):
        model, optimizer = prepared(accelerator, llama_folder())
        total = 0.0
        for start in range(0, 8, size):
            rows = slice(start, start + size)
            with accumulating(accelerator, model, last=start + size == 8):
                logprobs = token_logprobs(model, ids[rows], attention[rows], chunk_tokens=7, mask=mask[rows])
                loss = token_loss(logprobs, mask[rows], float(mask.sum()))
                backward(accelerator, model, loss)
            total += loss.item()
        losses.append(total)
        found.append(gradients(model))
        finish_update(accelerator, model, optimizer, 1e-2, 1.0, "test")
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert (found[0] - found[1]).abs().max() < 1e-5
    assert found[0].abs().max() > 1e-2


def test_update_clips_steps_and_clears(llama_folder: Folder, accelerator: Accelerator, batch: Batch) -> None:
    model, optimizer = prepared(accelerator, llama_folder())
    ids, attention, mask = batch
    backward(accelerator, model, -token_logprobs(model, ids, attention, chunk_tokens=99, mask=mask).sum())
    wanted = gradients(model).norm().item()
    before = torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])
    norm = finish_update(accelerator, model, optimizer, 1e-3, 0.5, "test")
    assert norm == pytest.approx(wanted, rel=1e-5)
    assert wanted > 0.5
    moment = [state["exp_avg"].flatten() / 0.1 for state in optimizer.state.values()]
    assert torch.cat(moment).norm().item() == pytest.approx(
        0.5, rel=1e-4
    )  # the clipped gradient is what was used
    after = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert (after - before).abs().max().item() == pytest.approx(
        1e-3, rel=1e-2
    )  # Adam's first step is the rate
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_the_run(
    llama_folder: Folder, accelerator: Accelerator, batch: Batch, value: float
) -> None:
    model, optimizer = prepared(accelerator, llama_folder())
    ids, attention, mask = batch
    before = [parameter.detach().clone() for parameter in model.parameters()]
    backward(
        accelerator, model, token_logprobs(model, ids, attention, chunk_tokens=99, mask=mask).sum() * value
    )
    with pytest.raises(TuluLiteError, match="stage sft, step 7: the norm of the gradient is") as raised:
        finish_update(accelerator, model, optimizer, 1e-3, 0.5, "stage sft, step 7")
    assert "learning_rate" in raised.value.cure
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert not optimizer.state
