"""8-bit moments and 4-bit weights. What needs bitsandbytes runs where that is installed; it is part of the cuda extra."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tulu_lite.errors import TuluLiteError
from tulu_lite.recipe.training import LoraSettings, TrainingSettings
from tulu_lite.training.checkpoint import load_latest, save_checkpoint
from tulu_lite.training.logprobs import LogprobModel, summed_logprobs, token_logprobs
from tulu_lite.training.model import load_model, merged_weights
from tulu_lite.training.optim import backward, finish_update, make_optimizer
from tulu_lite.training.proof import choose_packing
from tulu_lite.training.whole import WholeWeights

QLORA = LoraSettings(rank=4, quantise="nf4")
needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 columns: bitsandbytes quantises in blocks of 64."""
    made = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(made)
    return made


def test_without_the_library_it_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(TuluLiteError, match="lora.quantise: nf4 needs bitsandbytes") as raised:
        load_model(folder, "cpu", lora=QLORA)
    assert "pip install bitsandbytes" in raised.value.cure


class Run:
    def __init__(self, accelerator: Accelerator, folder: Path, lora: LoraSettings | None) -> None:
        torch.manual_seed(1)
        settings = TrainingSettings(learning_rate=1e-2, optimizer="adamw_8bit", lora=lora)
        self.accelerator = accelerator
        model = load_model(folder, "cpu", lora=lora)
        choose_packing(model, "varlen", "no", "it")
        optimizer, self.rate = make_optimizer(model, settings, 10)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)

    def steps(self, first: int, last: int) -> list[float]:
        ids = torch.randint(0, 40, (4, 12), generator=torch.Generator().manual_seed(4))
        attention, losses = torch.ones_like(ids), []
        for step in range(first, last + 1):
            loss = -summed_logprobs(self.model, ids, attention, chunk_tokens=64, mask=attention[:, 1:]) / 44
            losses.append(loss.item())
            backward(self.accelerator, self.model, loss)
            finish_update(self.accelerator, self.model, self.optimizer, self.rate(step), 1.0, "test")
        return losses


@needs_bitsandbytes
@pytest.mark.parametrize("lora", [None, QLORA], ids=["full", "qlora"])
def test_it_learns_resumes_to_the_bit_and_merges(
    accelerator: Accelerator, folder: Path, tmp_path: Path, lora: Any
) -> None:
    run = Run(accelerator, folder, lora)
    losses = run.steps(1, 3)
    save_checkpoint(tmp_path, 3, model=run.model, optimizer=run.optimizer, state={"step": 3})
    rest = run.steps(4, 6)
    assert rest[-1] < losses[0] / 2
    resumed = Run(accelerator, folder, lora)
    assert load_latest(tmp_path, model=resumed.model, optimizer=resumed.optimizer) == {"step": 3}
    assert resumed.steps(4, 6) == rest
    weights = dict(merged_weights(resumed.model))
    assert WholeWeights(resumed.model).shapes() == {
        name: tuple(value.shape) for name, value in weights.items()
    }
    plain = AutoModelForCausalLM.from_pretrained(folder)
    missing, unexpected = plain.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    ids = torch.randint(0, 40, (2, 9))
    ours, merged = (
        token_logprobs(model, ids, torch.ones_like(ids), chunk_tokens=64)
        for model in (resumed.model, LogprobModel(plain))
    )
    assert (ours - merged).abs().max() < 1e-4
