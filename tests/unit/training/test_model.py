from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from tulu_lite.errors import TuluLiteError
from tulu_lite.recipe.training import LoraSettings
from tulu_lite.training.logprobs import LogprobModel, token_logprobs
from tulu_lite.training.model import adapters_off, load_model, merged_weights, unwrapped

Folder = Callable[..., Path]


def collected(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in merged_weights(model)}


def stir_adapters(model: torch.nn.Module) -> None:
    """B starts at 0, so that a fresh adapter does nothing."""
    torch.manual_seed(4)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3)


@pytest.mark.parametrize("tied", [True, False])
def test_names_and_values_are_those_of_the_checkpoint(llama_folder: Folder, tied: bool) -> None:
    folder = llama_folder(tied)
    written = load_file(folder / "model.safetensors")
    weights = collected(load_model(folder, "cpu"))
    assert weights.keys() == written.keys()
    assert ("lm_head.weight" in weights) == (not tied)
    assert all(torch.equal(weights[name], written[name]) for name in written)


@pytest.mark.parametrize(
    "made",
    [
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32)),
        lambda: MixtralForCausalLM(
            MixtralConfig(
                vocab_size=40,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                num_local_experts=4,
                max_position_embeddings=32,
            )
        ),
    ],
    ids=["gpt2", "mixtral"],
)
def test_names_of_other_architectures(tmp_path: Path, made: Callable[[], Any]) -> None:
    """GPT-2 has no `model.` prefix; Mixtral's experts are one tensor in memory and many in the file."""
    torch.manual_seed(0)
    made().save_pretrained(tmp_path / "made")
    model = load_model(tmp_path / "made", "cpu")
    weights = collected(model)
    unwrapped(model).save_pretrained(tmp_path / "again")  # type: ignore[operator]
    written = load_file(tmp_path / "again" / "model.safetensors")
    assert weights.keys() == written.keys()
    assert all(torch.equal(weights[name], written[name]) for name in written)


def test_adapters_are_merged_on_the_fly(llama_folder: Folder) -> None:
    model = load_model(llama_folder(), "cpu", lora=LoraSettings(rank=4, alpha=6.0))
    stir_adapters(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = collected(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    original = load_file(llama_folder() / "model.safetensors")
    assert weights.keys() == original.keys()
    # by hand: W + alpha / rank * B A
    layer = unwrapped(model).base_model.model.model.layers[1].mlp.up_proj  # type: ignore[union-attr]
    name = "model.layers.1.mlp.up_proj.weight"
    by_hand = original[name] + 6.0 / 4 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert torch.allclose(weights[name], by_hand, atol=1e-6)
    assert torch.equal(weights["model.norm.weight"], original["model.norm.weight"])
    # and as peft merges
    merged = unwrapped(model).merge_and_unload()  # type: ignore[operator]
    for key, value in merged.state_dict().items():
        if key != "lm_head.weight":
            assert torch.allclose(weights[key], value, atol=1e-6), key


def test_what_is_not_adapted_is_not_copied(llama_folder: Folder) -> None:
    model = load_model(llama_folder(), "cpu")
    held = {parameter.data_ptr() for parameter in model.parameters()}
    assert all(tensor.data_ptr() in held and not tensor.requires_grad for _, tensor in merged_weights(model))


def test_only_adapters_are_trained(llama_folder: Folder) -> None:
    model = load_model(llama_folder(), "cpu", lora=LoraSettings(rank=4, dropout=0.25))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert not any("lm_head" in name for name in trained)
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}


def test_dropout_is_off_and_weights_are_float32(tmp_path: Path) -> None:
    config = GPT2Config(
        vocab_size=40,
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=32,
        attn_pdrop=0.5,
        resid_pdrop=0.5,
        embd_pdrop=0.5,
    )
    GPT2LMHeadModel(config).to(torch.bfloat16).save_pretrained(tmp_path)
    model = load_model(tmp_path, "cpu")
    assert model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    ids = torch.arange(12).view(2, 6)
    one, two = (token_logprobs(model, ids, torch.ones_like(ids), chunk_tokens=9) for _ in range(2))
    assert torch.equal(one, two)


def test_gradient_checkpointing_changes_nothing(llama_folder: Folder) -> None:
    found = []
    for recompute in (False, True):
        model = load_model(llama_folder(), "cpu", gradient_checkpointing=recompute)
        ids = torch.arange(12).view(2, 6)
        token_logprobs(model, ids, torch.ones_like(ids), chunk_tokens=9).sum().backward()
        found.append(
            torch.cat(
                [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
            )
        )
        assert unwrapped(model).is_gradient_checkpointing == recompute
    assert torch.allclose(found[0], found[1], atol=1e-6)


def test_without_its_adapters_a_model_is_what_it_started_from(llama_folder: Folder) -> None:
    model = load_model(llama_folder(), "cpu", lora=LoraSettings(rank=4))
    ids = torch.arange(12).view(2, 6)

    def logprobs() -> torch.Tensor:
        return token_logprobs(model, ids, torch.ones_like(ids), chunk_tokens=9).detach()

    start = logprobs()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    stir_adapters(model)
    with torch.no_grad(), adapters_off(model) as before:
        assert before is model
        assert torch.equal(logprobs(), start)
    assert not torch.allclose(logprobs(), start, atol=1e-3)
    assert trained == [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_what_is_no_model(tmp_path: Path, llama_folder: Folder) -> None:
    with pytest.raises(TuluLiteError, match="no model folder"):
        load_model(tmp_path / "nowhere", "cpu")
    with pytest.raises(TuluLiteError, match="no causal language model"):
        load_model(tmp_path, "cpu")
    shutil.copy(llama_folder() / "config.json", tmp_path)
    with pytest.raises(TuluLiteError, match="no causal language model"):
        load_model(tmp_path, "cpu")  # no weights
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(TuluLiteError, match="no causal language model"):
        load_model(tmp_path, "cpu")  # a pickle is not read


def test_a_model_that_lacks_weights(tmp_path: Path, llama_folder: Folder) -> None:
    shutil.copy(llama_folder() / "config.json", tmp_path)
    weights = load_file(llama_folder() / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TuluLiteError, match=r"lacks 1 .* model\.layers\.0\.mlp\.up_proj\.weight"):
        load_model(tmp_path, "cpu")


def test_a_model_whose_logits_are_scaled_in_an_unknown_way(
    monkeypatch: pytest.MonkeyPatch, llama_folder: Folder
) -> None:
    original = LlamaForCausalLM.forward

    def halved(self: Any, *arguments: Any, **named: Any) -> Any:
        out = original(self, *arguments, **named)
        out.logits = out.logits / 2
        return out

    monkeypatch.setattr(LlamaForCausalLM, "forward", halved)
    with pytest.raises(TuluLiteError, match="LlamaForCausalLM treats its logits"):
        load_model(llama_folder(), "cpu")


def test_lora_targets_that_do_not_fit(llama_folder: Folder) -> None:
    with pytest.raises(TuluLiteError) as raised:
        load_model(llama_folder(), "cpu", lora=LoraSettings(targets=("query",)))
    assert "q_proj" in raised.value.cure
    with pytest.raises(TuluLiteError, match="one matrix as embedding and as head"):
        load_model(llama_folder(), "cpu", lora=LoraSettings(targets=("q_proj", "lm_head")))
    model = load_model(llama_folder(False), "cpu", lora=LoraSettings(rank=2, targets=("q_proj", "lm_head")))
    stir_adapters(model)
    merged = LogprobModel(AutoModelForCausalLM.from_pretrained(llama_folder(False)))
    unwrapped(merged).load_state_dict(collected(model))
    ids = torch.arange(12).view(2, 6)
    both = [token_logprobs(m, ids, torch.ones_like(ids), chunk_tokens=9) for m in (model, merged)]
    assert torch.allclose(*both, atol=1e-5)


def test_config_is_not_touched(llama_folder: Folder) -> None:
    written = json.loads((llama_folder() / "config.json").read_text())
    assert load_model(llama_folder(), "cpu").config.attention_dropout == written["attention_dropout"]
