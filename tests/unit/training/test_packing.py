"""Packed rows give what their sequences give alone, on several architectures; those that cannot are refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Olmo2Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from tulu_lite.errors import TuluLiteError
from tulu_lite.recipe.training import LoraSettings
from tulu_lite.training import logprobs
from tulu_lite.training import row as module
from tulu_lite.training.logprobs import LogprobModel, summed_logprobs, token_logprobs
from tulu_lite.training.model import load_model
from tulu_lite.training.packing import micro_batches, micro_batches_of
from tulu_lite.training.proof import choose_packing

V = 37
SMALL: dict[str, Any] = {
    "vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MIXED = ["sliding_attention", "full_attention"]
VARLEN = {
    "llama": LlamaConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL),
    "olmo2": Olmo2Config(**SMALL),
    "gemma3-window": Gemma3TextConfig(**SMALL, sliding_window=4, layer_types=MIXED),
    "mistral-window": MistralConfig(**SMALL, sliding_window=4),
    "qwen3-moe": Qwen3MoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8),
    "gpt2": GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3),
}
BLOCK = VARLEN | {"gemma2-softcap": Gemma2Config(**SMALL, sliding_window=4, attn_logit_softcapping=2.0)}
INEXACT = {
    "mamba": MambaConfig(vocab_size=V, hidden_size=16, num_hidden_layers=2, state_size=4),
    "lfm2-conv": Lfm2Config(
        **{name: value for name, value in SMALL.items() if name != "head_dim"},
        layer_types=["conv", "full_attention"],
    ),
    "bloom-alibi": BloomConfig(vocab_size=V, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.3),
}


def make(config: Any) -> LogprobModel:
    torch.manual_seed(1)
    eager = getattr(config, "attn_logit_softcapping", None) or config.model_type in ("mamba", "bloom")
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager" if eager else "sdpa")
    if config.model_type == "qwen3_moe":
        model.set_experts_implementation("eager")  # the others know no float64
    return LogprobModel(model.double().eval())


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, attention [6, 13], sorted by nothing, and a mask [6, 12] in which one row has no token."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([5, 13, 1, 12, 4, 5])[:, None]
    ids = torch.randint(3, V, (6, 13), generator=generator)
    attention = (torch.arange(13) < lengths).long()
    return ids, attention, attention[:, 1:] * torch.randint(0, 2, (6, 12), generator=generator)


def alike() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, attention [9, 40] and mask [9, 39]: a prompt with five responses (two of them the same, one of one token), one
    alone, and one with three, the first two of which also begin alike."""
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(3, V, (9, 40), generator=generator)
    ids[1:5, :17], ids[7:, :20], ids[7, :23] = ids[0, :17], ids[6, :20], ids[6, :23]
    ids[2] = ids[1]
    lengths = torch.tensor([18, 25, 25, 30, 30, 33, 31, 33, 40])[:, None]
    attention = (torch.arange(40) < lengths).long()
    mask = attention[:, 1:] * torch.randint(0, 2, (9, 39), generator=generator)
    mask[:, 16] = 1  # what follows the prompt is learnt by all who share it
    return ids, attention, mask


def values_and_gradients(
    model: LogprobModel, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    ids, attention, mask = batch
    weights = torch.randn(mask.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    model.zero_grad()
    logprobs = token_logprobs(model, ids, attention, chunk_tokens=4, mask=mask)
    (logprobs * weights).sum().backward()
    return logprobs.detach(), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


def assert_exact(model: LogprobModel, way: str, rounding: float = 1e-10) -> None:
    batches = batch(), alike()
    alone = [values_and_gradients(model, one) for one in batches]
    assert choose_packing(model, way, "no", "it")[0] == way  # type: ignore[arg-type]
    assert model.shares == (way == "varlen")
    # Norms are in float32 whatever the model is: what is summed before them and what after differs in its last bits.
    roundings = (rounding, max(rounding, 2e-5))
    for (wanted, gradients), one, nearly in zip(alone, batches, roundings, strict=True):
        ours, got = values_and_gradients(model, one)
        assert (ours - wanted).abs().max() < rounding
        assert wanted.abs().max() > 0.5
        assert gradients.keys() == got.keys()
        for name, gradient in gradients.items():
            assert (got[name] - gradient).abs().max() < nearly, name


def rounding_of(name: str) -> float:
    """Gemma's norms and soft caps are in float32 whatever the model is."""
    return 1e-5 if name.startswith("gemma") else 1e-10


@pytest.mark.parametrize("name", VARLEN)
def test_varlen_is_exact(name: str) -> None:
    assert_exact(make(VARLEN[name]), "varlen", rounding_of(name))


@pytest.mark.parametrize("name", ["llama", "gemma3-window", "gemma2-softcap"])
def test_block_is_exact(name: str) -> None:
    assert_exact(make(BLOCK[name]), "block", rounding_of(name))


@pytest.mark.parametrize("name", INEXACT)
def test_what_cannot_be_packed_is_refused(name: str) -> None:
    model = make(INEXACT[name])
    for way in ("varlen", "block"):
        with pytest.raises(TuluLiteError, match=f"packing: {way} is not exact for it") as raised:
            choose_packing(model, way, "no", "it")  # type: ignore[arg-type]
        assert "bucket" in raised.value.cure
    way, note = choose_packing(model, "auto", "no", "it")
    assert way == model.packing == "bucket"
    assert "since varlen is not exact here" in note
    assert_exact(model, "bucket")


def test_adapters_are_packed_too(llama_folder: Any) -> None:
    model = load_model(llama_folder(), "cpu", lora=LoraSettings(rank=2, dropout=0.5))
    assert choose_packing(model, "varlen", "no", "it")[0] == "varlen"
    assert model.training


def test_the_choice_is_said() -> None:
    model = make(VARLEN["llama"])
    assert choose_packing(model, "auto", "no", "it") == (
        "varlen",
        "packing: varlen (no padding; each sequence attends to itself alone, what neighbours begin with in common "
        "computed once)",
    )
    assert not model.training  # as it was


def test_a_leak_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the sequences one group without edges, the proof would say so."""

    def one(ids: torch.Tensor, attention: torch.Tensor, shares: bool) -> module.Row:
        row = module.row_of(ids, attention, shares)
        return replace(row, segments=module.segments_of([len(row.places)], ids.device))

    monkeypatch.setattr(logprobs, "row_of", one)
    with pytest.raises(TuluLiteError, match="varlen is not exact"):
        choose_packing(make(VARLEN["llama"]), "varlen", "no", "it")


def test_sums_are_exact_too() -> None:
    model = make(VARLEN["llama"])
    ids, attention, mask = batch()
    wanted = token_logprobs(model, ids, attention, chunk_tokens=4, mask=mask).sum()
    choose_packing(model, "varlen", "no", "it")
    assert summed_logprobs(model, ids, attention, chunk_tokens=4, mask=mask).item() == pytest.approx(
        wanted.item(), abs=1e-10
    )


def test_common_beginnings_are_taken_up_only_where_they_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were each to see too little of what is before it, the proof would say so, and rows would go without."""
    monkeypatch.setattr(
        module.Segments, "mask", lambda self, part, window: torch.ones(part.length, self.seen(part)).bool()
    )
    model = make(VARLEN["llama"])
    way, note = choose_packing(model, "auto", "no", "it")
    assert (way, model.shares, "in common" in note) == ("bucket", False, False)
    monkeypatch.undo()
    original = module.Segments.mask

    def blind(self: module.Segments, part: module.Part, window: int | None) -> torch.Tensor | None:
        found = original(self, part, window)
        if part.after is not None:
            assert found is not None
            found = found.clone()
            found[:, 0] = False
        return found

    monkeypatch.setattr(module.Segments, "mask", blind)
    way, note = choose_packing(model, "auto", "no", "it")
    assert (way, model.shares, "in common" in note) == ("varlen", False, False)


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 20)), max_size=40),
    st.lists(st.integers(0, 40), min_size=6, max_size=6),
    st.integers(1, 150),
)
def test_a_beginning_counts_once_in_each_micro_batch(
    items: list[tuple[int, int]], beginnings: list[int], most: int
) -> None:
    begin = [(which, beginnings[which]) for which, _ in items]
    lengths = [beginnings[which] + own for which, own in items]
    parts = micro_batches(lengths, most, begin)
    assert sorted(i for part in parts for i in part) == list(range(len(items)))
    for part in parts:
        once = sum(beginnings[which] for which in {begin[i][0] for i in part} if beginnings[which] >= 16)
        every = sum(beginnings[begin[i][0]] for i in part if beginnings[begin[i][0]] < 16)
        assert once + every + sum(items[i][1] for i in part) <= most or len(part) == 1
    order = [begin[i][0] for part in parts for i in part if begin[i][1] >= 16]
    assert sum(one != other for one, other in pairwise(order)) < max(len(set(order)), 1)


@settings(max_examples=100)
@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_micro_batches_hold_real_tokens(lengths: list[int], most: int) -> None:
    parts = micro_batches(lengths, most)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    for part in parts:
        assert sum(lengths[i] for i in part) <= most or len(part) == 1
    order = [lengths[i] for part in parts for i in part]
    assert order == sorted(order)


def test_only_varlen_counts_a_beginning_once() -> None:
    lengths, begin = [20, 20, 20], [("a", 18)] * 3
    assert micro_batches_of("varlen", lengths, 24, begin) == [[0, 1, 2]]
    assert micro_batches_of("block", lengths, 24, begin) == [[0], [1], [2]]


def test_micro_batches_by_hand() -> None:
    assert micro_batches([3, 9, 3, 4, 20], 10) == [[0, 2, 3], [1], [4]]
