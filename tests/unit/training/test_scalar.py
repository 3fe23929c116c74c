"""Models that give a number at every token: the same numbers as transformers', trained and kept like any other."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from tulu_lite.errors import TuluLiteError
from tulu_lite.recipe.training import LoraSettings
from tulu_lite.training import logprobs, row
from tulu_lite.training.checkpoint import export_model, load_latest, save_checkpoint
from tulu_lite.training.model import unwrapped
from tulu_lite.training.proof import choose_packing
from tulu_lite.training.scalar import ScalarModel, at_last, load_scalar_model, padding_token

Folder = Callable[..., Path]


@pytest.fixture(scope="module")
def template() -> SimpleNamespace:
    """A tokenizer of 40 tokens whose padding is its end token, as in many language models."""
    words = {"<unk>": 0, "<bos>": 1, "<eos>": 2} | {f"w{number}": number for number in range(3, 40)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<eos>",
    )
    return SimpleNamespace(tokenizer=tokenizer, source="{{ messages }}", end_token_ids=(2,))


def stirred(folder: Path, **options: Any) -> ScalarModel:
    """A model whose head (and adapters) say something."""
    model = load_scalar_model(folder, "cpu", **options)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "score" in name or "lora_" in name:
            parameter.data.normal_(std=0.3)
    return model


IDS = torch.tensor([[5, 6, 7, 8, 2], [9, 10, 2, 2, 2]])
LENGTHS = torch.tensor([5, 3])


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2, alpha=8.0)], ids=["full", "lora"])
def test_exported_and_loaded_by_transformers_it_gives_the_same_numbers(
    tmp_path: Path, llama_folder: Folder, template: SimpleNamespace, lora: LoraSettings | None
) -> None:
    """Also in a padded batch of a tokenizer that pads with its end token, which transformers would not look at."""
    model = stirred(llama_folder(), lora=lora)
    ours = at_last(model(IDS), LENGTHS).detach()
    export_model(tmp_path / "out", model, init_model=str(llama_folder()), template=template, card="card")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    assert (type(theirs).__name__, theirs.config.num_labels) == ("LlamaForSequenceClassification", 1)
    assert tokenizer.pad_token_id == theirs.config.pad_token_id == 0
    assert (template.tokenizer.pad_token_id, template.tokenizer.chat_template) == (2, None)  # as it was
    padded = IDS.clone()
    padded[1, 3:] = tokenizer.pad_token_id
    numbers = theirs(input_ids=padded, attention_mask=(padded != 0).long()).logits.squeeze(-1)
    assert ours.abs().min() > 1e-2
    torch.testing.assert_close(numbers.detach(), ours, atol=1e-5, rtol=0)
    again = load_scalar_model(tmp_path / "out", "cpu")
    torch.testing.assert_close(at_last(again(IDS), LENGTHS).detach(), ours, atol=1e-5, rtol=0)
    assert not any((tmp_path / "out" / name).exists() for name in ("generation_config.json", "adapter"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["hidden_size"] == 32


def test_padding_on_the_right_changes_no_number(llama_folder: Folder) -> None:
    model = stirred(llama_folder()).eval()
    alone = model(IDS[1:, :3])
    torch.testing.assert_close(model(IDS)[1:, :3], alone, atol=1e-6, rtol=0)


def test_a_fresh_head_is_zero_or_of_the_published_size(llama_folder: Folder) -> None:
    assert load_scalar_model(llama_folder(), "cpu")(IDS).abs().max() == 0
    torch.manual_seed(123)
    heads = [
        load_scalar_model(llama_folder(), "cpu", fresh_head="normal").base.score.weight for _ in range(2)
    ]
    assert torch.equal(heads[0], heads[1])
    assert heads[0].std().item() == pytest.approx(1 / math.sqrt(33), rel=0.35)
    kept = stirred(llama_folder())
    assert kept.base.score.weight.abs().max() > 0


def test_under_lora_adapters_and_head_are_trained_and_saved(tmp_path: Path, llama_folder: Folder) -> None:
    model = stirred(llama_folder(), lora=LoraSettings(rank=2))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name in trained if "lora_" not in name] == ["wrapped.base_model.model.score.weight"]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(IDS).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path, 1, model=model, optimizer=optimizer, state={"step": 1})
    other = load_scalar_model(llama_folder(), "cpu", lora=LoraSettings(rank=2))
    fresh = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], lr=0.1)
    assert load_latest(tmp_path, model=other, optimizer=fresh) == {"step": 1}
    assert torch.equal(other(IDS), model(IDS))


def test_gradient_checkpointing_gives_the_same_gradients(llama_folder: Folder) -> None:
    gradients = []
    for recompute in (False, True):
        model = stirred(llama_folder(), gradient_checkpointing=recompute)
        model(IDS).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-6) for name in gradients[0])


def test_other_architectures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32, num_labels=1)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    model = load_scalar_model(tmp_path, "cpu")
    assert unwrapped(torch.nn.Sequential(model)[0]) is model.wrapped
    assert model(IDS).shape == (2, 5) and model(IDS).abs().min() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": 3}, "tells 3 classes apart"),
        ({"torn": True}, "lacks 1 of the model's weights, the first being score.weight"),
        ({"bert": True}, "no linear layer `score`"),
        ({"nothing": True}, "there is no model folder"),
        ({"lora": LoraSettings(targets=("nix",))}, "its linear modules are down_proj"),
        ({"lora": LoraSettings(targets=("score",))}, "is trained whole"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "vocab_size": 40}
    if "bert" in change:
        BertForSequenceClassification(BertConfig(**sizes, num_labels=1)).save_pretrained(tmp_path)
    elif "nothing" in change:
        tmp_path = tmp_path / "nothing"
    else:
        config = LlamaConfig(**sizes, num_labels=change.get("labels", 1))
        made = LlamaForSequenceClassification(config)
        weights = {k: v for k, v in made.state_dict().items() if "torn" not in change or k != "score.weight"}
        made.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(TuluLiteError) as caught:
        load_scalar_model(tmp_path, "cpu", lora=change.get("lora"))
    assert message in " ".join(caught.value.lines())


def test_padding_is_never_an_end_token() -> None:
    def tokenizer(pad: int | None, unk: int | None, special: list[int]) -> SimpleNamespace:
        return SimpleNamespace(pad_token_id=pad, unk_token_id=unk, all_special_ids=special)

    assert padding_token(tokenizer(7, 0, [0, 2, 7]), (2,)) == 7
    assert padding_token(tokenizer(2, 0, [0, 2]), (2,)) == 0
    assert padding_token(tokenizer(2, None, [1, 2]), (2,)) == 1
    assert padding_token(tokenizer(None, None, [2]), (2,)) is None


def test_packed_rows_give_the_same_numbers(llama_folder: Folder) -> None:
    model = stirred(llama_folder())
    assert choose_packing(model, "auto", "no", "tiny")[0] == "varlen"
    attention = (torch.arange(5) < LENGTHS[:, None]).long()
    packed = model(IDS, attention)
    assert packed[1, 3:].tolist() == [0, 0]
    model.packing = "bucket"
    torch.testing.assert_close(packed, model(IDS, attention), atol=1e-6, rtol=0)
    assert packed.abs().max() > 0.1


def test_packing_is_proven_although_a_fresh_head_says_nothing(
    llama_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that see one another are found out, by hidden states."""

    def one(ids: torch.Tensor, attention: torch.Tensor, shares: bool) -> row.Row:
        found = row.row_of(ids, attention, shares)
        return replace(found, segments=row.segments_of([len(found.places)], ids.device))

    monkeypatch.setattr(logprobs, "row_of", one)
    model = load_scalar_model(llama_folder(), "cpu")
    assert choose_packing(model, "auto", "no", "tiny")[0] == "bucket"
