from __future__ import annotations

import errno
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from tulu_lite.errors import TuluLiteError
from tulu_lite.objectives.sft import token_loss
from tulu_lite.recipe.training import LoraSettings, TrainingSettings
from tulu_lite.training import checkpoint as module
from tulu_lite.training import folders
from tulu_lite.training.checkpoint import export_model, load_latest, save_checkpoint
from tulu_lite.training.logprobs import token_logprobs
from tulu_lite.training.model import load_model, merged_weights, unwrapped
from tulu_lite.training.optim import backward, finish_update, make_optimizer

Folder = Callable[..., Path]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Run:
    """A training run as a fresh process would build it."""

    def __init__(self, accelerator: Accelerator, folder: Path, lora: LoraSettings | None = None) -> None:
        settings = TrainingSettings(learning_rate=1e-2, weight_decay=0.1, lora=lora)
        model = load_model(folder, "cpu", lora=lora)
        optimizer, self.rate = make_optimizer(model, settings, 6)
        self.accelerator = accelerator
        self.model, self.optimizer = accelerator.prepare(model, optimizer)

    def steps(self, batch: Batch, first: int, last: int) -> list[float]:
        """Norms; each step's rows are drawn with all three generators, and adapters draw dropout."""
        ids, attention, mask = batch
        norms = []
        for step in range(first, last + 1):
            rows = [random.randrange(8), int(np.random.randint(8)), int(torch.randint(8, ()))]
            logprobs = token_logprobs(self.model, ids[rows], attention[rows], chunk_tokens=7, mask=mask[rows])
            backward(self.accelerator, self.model, token_loss(logprobs, mask[rows], 10.0))
            norms.append(
                finish_update(self.accelerator, self.model, self.optimizer, self.rate(step), 1.0, "test")
            )
        return norms

    def bits(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def save(self, folder: Path, step: int, **options: Any) -> Path:
        return save_checkpoint(
            folder, step, model=self.model, optimizer=self.optimizer, state={"step": step}, **options
        )

    def load(self, folder: Path) -> dict[str, Any] | None:
        return load_latest(folder, model=self.model, optimizer=self.optimizer)


def seed(value: int) -> None:
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4, dropout=0.3)], ids=["full", "lora"])
def test_a_resumed_run_has_the_same_bits(
    llama_folder: Folder, accelerator: Accelerator, batch: Batch, tmp_path: Path, lora: LoraSettings | None
) -> None:
    seed(1)
    unbroken = Run(accelerator, llama_folder(), lora)
    norms = unbroken.steps(batch, 1, 6)

    seed(1)
    first = Run(accelerator, llama_folder(), lora)
    assert first.load(tmp_path) is None
    assert first.steps(batch, 1, 3) == norms[:3]
    first.save(tmp_path, 3)

    seed(99)  # a fresh process knows nothing of the first
    second = Run(accelerator, llama_folder(), lora)
    assert second.load(tmp_path) == {"step": 3}
    assert same(second.bits(), first.bits())
    assert second.steps(batch, 4, 6) == norms[3:]
    assert same(second.bits(), unbroken.bits())
    # Without the optimiser's moments, or without the random states, it would not be the same.
    seed(99)
    third = Run(accelerator, llama_folder(), lora)
    third.load(tmp_path)
    seed(98)
    assert third.steps(batch, 4, 6) != norms[3:]


def test_adapters_are_saved_alone_and_nothing_is_pickled(
    llama_folder: Folder, accelerator: Accelerator, batch: Batch, tmp_path: Path
) -> None:
    run = Run(accelerator, llama_folder(), LoraSettings(rank=2))
    run.steps(batch, 1, 1)
    save = run.save(tmp_path, 1)
    assert save == tmp_path / "step-000001"
    assert sorted(path.name for path in save.iterdir()) == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    assert all("lora_" in name for name in module._shapes(save / "model.safetensors"))
    assert all("lora_" in name for name in module._shapes(save / "optimizer.safetensors"))


def test_old_saves_are_removed(
    llama_folder: Folder, accelerator: Accelerator, batch: Batch, tmp_path: Path
) -> None:
    run = Run(accelerator, llama_folder())
    (tmp_path / ".step-000004.left.tmp").mkdir()  # of a killed process
    (tmp_path / "step-notes").mkdir()  # not ours
    for step in range(1, 5):
        run.steps(batch, step, step)
        run.save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000003", "step-000004", "step-notes"]


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [torn, Path.unlink])
def test_a_torn_save_is_passed_over(
    llama_folder: Folder,
    accelerator: Accelerator,
    batch: Batch,
    tmp_path: Path,
    file: str,
    damage: Callable[[Path], None],
) -> None:
    run = Run(accelerator, llama_folder())
    run.steps(batch, 1, 1)
    run.save(tmp_path, 1)
    bits = run.bits()
    run.steps(batch, 2, 2)
    damage(run.save(tmp_path, 2) / file)
    fresh = Run(accelerator, llama_folder())
    assert fresh.load(tmp_path) == {"step": 1}
    assert same(fresh.bits(), bits)


def test_a_save_of_another_model_is_passed_over(
    llama_folder: Folder, accelerator: Accelerator, batch: Batch, tmp_path: Path
) -> None:
    other = Run(accelerator, llama_folder(tied=False))
    other.steps(batch, 1, 1)
    other.save(tmp_path, 1)
    run = Run(accelerator, llama_folder())
    bits = run.bits()
    assert run.load(tmp_path) is None
    assert same(run.bits(), bits)
    assert Run(accelerator, llama_folder(tied=False), LoraSettings(rank=2)).load(tmp_path) is None


def test_a_full_disk(
    llama_folder: Folder,
    accelerator: Accelerator,
    batch: Batch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(accelerator, llama_folder())
    run.steps(batch, 1, 1)
    run.save(tmp_path, 1)
    bits = run.bits()
    original = folders.save_file

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        if path.name == "optimizer.safetensors":
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        original(tensors, path, metadata=metadata)

    run.steps(batch, 2, 2)
    with monkeypatch.context() as patch:
        patch.setattr(folders, "save_file", full)
        with pytest.raises(TuluLiteError, match="disk is full") as raised:
            run.save(tmp_path, 2, keep=1)
    assert isinstance(raised.value.__cause__, OSError)
    assert raised.value.__cause__.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    fresh = Run(accelerator, llama_folder())
    assert fresh.load(tmp_path) == {"step": 1}
    assert same(fresh.bits(), bits)


# Export


@pytest.fixture
def template() -> SimpleNamespace:
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, **{f"w{i}": i for i in range(3, 40)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    fast.chat_template = "the model's own"
    return SimpleNamespace(tokenizer=fast, source="{{ messages[0]['content'] }} w9", end_token_ids=(2, 7))


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("sharded", [False, True])
def test_export_is_an_ordinary_folder(
    llama_folder: Folder, accelerator: Accelerator, batch: Batch, tmp_path: Path, template: Any,
    monkeypatch: pytest.MonkeyPatch, lora: LoraSettings | None, sharded: bool,
) -> None:  # fmt: skip
    if sharded:
        monkeypatch.setattr(module, "SHARD_BYTES", 9000)
    run = Run(accelerator, llama_folder(), lora)
    run.steps(batch, 1, 2)
    out = tmp_path / "model"
    out.mkdir()
    (out / "left by a killed run").touch()
    export_model(out, run.model, init_model=str(llama_folder()), template=template, card="# A card\n")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not (out / "left by a killed run").exists()
    assert (out / "README.md").read_text() == "# A card\n"
    assert len(list(out.glob("*.safetensors"))) > (1 if sharded else 0)
    assert (out / "model.safetensors").exists() == (not sharded)

    loaded, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    weights = dict(merged_weights(loaded))
    assert same(weights, dict(merged_weights(run.model)))
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    ids, attention, _ = batch
    ours = token_logprobs(run.model, ids, attention, chunk_tokens=99)
    assert torch.allclose(
        ours, token_logprobs(load_model(out, "cpu"), ids, attention, chunk_tokens=99), atol=1e-5
    )

    config, original = (json.loads((folder / "config.json").read_text()) for folder in (out, llama_folder()))
    assert config == original | {"dtype": "float32"}
    assert GenerationConfig.from_pretrained(out).eos_token_id == [2, 7]
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == template.source
    assert template.tokenizer.chat_template == "the model's own"
    text = tokenizer.apply_chat_template([{"role": "user", "content": "w5"}], tokenize=False)
    assert text == "w5 w9"

    assert (out / "adapter").exists() == (lora is not None)
    if lora is not None:
        from peft import PeftModel

        adapted = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(llama_folder()), out / "adapter"
        )
        assert same(adapted.state_dict(), unwrapped(run.model).state_dict())


def test_an_export_that_fails_leaves_the_old_one(
    llama_folder: Folder,
    accelerator: Accelerator,
    tmp_path: Path,
    template: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(accelerator, llama_folder())
    out = tmp_path / "model"
    export_model(out, run.model, init_model=str(llama_folder()), template=template, card="old")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders, "save_file", full)
    with pytest.raises(TuluLiteError, match="disk is full"):
        export_model(out, run.model, init_model=str(llama_folder()), template=template, card="new")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (out / "README.md").read_text() == "old"
    AutoModelForCausalLM.from_pretrained(out)
