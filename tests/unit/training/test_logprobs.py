from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    PhiConfig,
    Qwen3Config,
)

from tulu_lite.errors import TuluLiteError
from tulu_lite.training import logprobs as module
from tulu_lite.training.logprobs import LogprobModel, token_logprobs

V = 37
SMALL: dict[str, Any] = {
    "vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SMALL, tie_word_embeddings=False),
    "llama-tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SMALL),
    "gemma2-softcap": Gemma2Config(**SMALL, final_logit_softcapping=3.0, sliding_window=4),
    "granite-scaling": GraniteConfig(**SMALL, logits_scaling=4.0),
    "cohere-scale": Cohere2Config(**SMALL, logit_scale=0.3),
    "gpt2": GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3),
    "neox": GPTNeoXConfig(**{k: v for k, v in SMALL.items() if k not in ("num_key_value_heads", "head_dim")}),
    "phi-bias": PhiConfig(**SMALL),
}


def make(name: str, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="sdpa").to(dtype).eval()


def example(rows: int = 5, length: int = 9, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, V, (rows, length), generator=generator)
    lengths = torch.randint(2, length + 1, (rows, 1), generator=generator)
    attention = (torch.arange(length) < lengths).long()
    mask = attention[:, 1:] * torch.randint(0, 2, (rows, length - 1), generator=generator)
    return ids, attention, mask


def plain(
    model: Any, ids: torch.Tensor, attention: torch.Tensor, mask: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """The textbook way, with all logits at once."""
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1] / temperature
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1) * mask


def gradients(model: Any, logprobs: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (logprobs * weights).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.fixture
def tiny_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_CHUNK_ELEMENTS", 0)


@pytest.mark.usefixtures("tiny_chunks")
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("chunk_tokens", [4, 1000])
def test_values_and_gradients_are_those_of_the_plain_way(name: str, chunk_tokens: int) -> None:
    model = make(name)
    ids, attention, mask = example()
    weights = torch.randn(mask.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    wanted = plain(model, ids, attention, mask, 0.7)
    ours = token_logprobs(
        LogprobModel(model), ids, attention, chunk_tokens=chunk_tokens, temperature=0.7, mask=mask
    )
    assert ours.shape == mask.shape
    assert ours.dtype == torch.float64
    assert (ours - wanted).abs().max() < 1e-12
    assert (ours[mask == 0] == 0).all()
    expected, got = gradients(model, wanted, weights), gradients(model, ours, weights)
    assert expected.keys() == got.keys()
    for parameter, gradient in expected.items():
        assert (got[parameter] - gradient).abs().max() < 1e-10, parameter


@settings(max_examples=15)
@given(
    st.integers(1, 6),
    st.integers(2, 9),
    st.integers(1, 60),
    st.sampled_from([0.5, 1.0, 1.7]),
    st.integers(0, 99),
)
def test_any_shape_and_chunk(rows: int, length: int, chunk: int, temperature: float, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LEAST_CHUNK_ELEMENTS", 0)
        model = LLAMA
        ids, attention, mask = example(rows, length, seed)
        with torch.no_grad():
            ours = token_logprobs(
                LogprobModel(model), ids, attention, chunk_tokens=chunk, temperature=temperature, mask=mask
            )
            assert (ours - plain(model, ids, attention, mask, temperature)).abs().max() < 1e-12


LLAMA = make("llama")


class LargestLogits(TorchDispatchMode):
    """The most rows of any tensor as wide as the vocabulary, weights and their gradients aside."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.dim() and tensor.shape[-1] == V:
                self.rows = max(self.rows, tensor.numel() // V)
        return out


@pytest.mark.usefixtures("tiny_chunks")
def test_the_logits_of_a_whole_batch_never_exist() -> None:
    model = make("llama-tied")
    ids, attention, _ = example(rows=12, length=14)
    mask = attention[:, 1:]
    chunk = 16
    assert mask.sum() > 3 * chunk
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with LargestLogits() as largest:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            ours = token_logprobs(LogprobModel(model), ids, attention, chunk_tokens=chunk, mask=mask)
        ours.sum().backward()
    assert largest.rows == chunk  # (as many as the head's [V, D] has columns)
    assert not [
        tensor.shape for tensor in kept if tensor.shape[-1] == V and tensor.numel() != 16 * V
    ]  # nothing is kept
    with LargestLogits() as largest:
        plain(model, ids, attention, mask)
    assert largest.rows >= mask.numel()  # the detector does see them


def test_small_vocabularies_are_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = module._logprobs

    def counted(head: Any, config: Any, hidden: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls.append(len(hidden))
        return original(head, config, hidden, *rest)

    monkeypatch.setattr(module, "_logprobs", counted)
    ids, attention, mask = example()
    token_logprobs(LogprobModel(make("llama")), ids, attention, chunk_tokens=1, mask=mask)
    assert calls == [int(mask.sum())]


def test_default_mask_is_every_real_token() -> None:
    model = make("llama")
    ids, attention, _ = example()
    ours = token_logprobs(LogprobModel(model), ids, attention, chunk_tokens=100)
    assert (ours - plain(model, ids, attention, attention[:, 1:])).abs().max() < 1e-12


def test_a_batch_that_teaches_nothing_still_reaches_every_weight() -> None:
    model = make("llama")
    ids, attention, mask = example()
    logprobs = token_logprobs(
        LogprobModel(model), ids, attention, chunk_tokens=8, mask=torch.zeros_like(mask)
    )
    assert (logprobs == 0).all()
    found = gradients(model, logprobs, torch.ones_like(logprobs))
    assert all((gradient == 0).all() for gradient in found.values())


def test_what_stands_in_the_padding_does_not_matter() -> None:
    model = make("llama")
    ids, attention, mask = example()
    other = torch.where(attention.bool(), ids, (ids + 11) % V)
    one, two = (
        token_logprobs(LogprobModel(model), x, attention, chunk_tokens=8, mask=mask) for x in (ids, other)
    )
    assert torch.equal(one, two)


def test_padding_on_the_left_is_refused() -> None:
    ids, attention, _ = example()
    with pytest.raises(TuluLiteError, match="right"):
        token_logprobs(LogprobModel(make("llama")), ids, attention.flip(1), chunk_tokens=8)


def test_low_precision_gives_float32() -> None:
    model = make("llama", torch.bfloat16)
    ids, attention, mask = example()
    ours = token_logprobs(LogprobModel(model), ids, attention, chunk_tokens=8, mask=mask)
    assert ours.dtype == torch.float32
    logits = model(input_ids=ids).logits[:, :-1].float()
    assert torch.allclose(
        ours, logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1) * mask, atol=0.05
    )
