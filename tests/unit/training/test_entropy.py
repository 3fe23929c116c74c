"""The exact entropy beside the log-probabilities, in chunks, with and without its gradient."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tulu_lite.training import logprobs as module
from tulu_lite.training.logprobs import LogprobModel, token_logprobs, token_logprobs_and_entropy

CONFIG = LlamaConfig(
    vocab_size=17, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, initializer_range=0.5, tie_word_embeddings=False,
)  # fmt: skip


@pytest.mark.parametrize("chunk", [2, 1000])
@pytest.mark.parametrize("trained", [False, True])
def test_entropy_is_that_of_the_whole_distribution(
    chunk: int, trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEAST_CHUNK_ELEMENTS", 1)
    torch.manual_seed(0)
    causal = LlamaForCausalLM(CONFIG).double()
    model = LogprobModel(causal)
    ids = torch.randint(0, 17, (2, 6))
    attention = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    mask = torch.tensor([[0, 1, 1, 1, 1], [0, 0, 1, 0, 0]])
    logprobs, entropy = token_logprobs_and_entropy(
        model, ids, attention, chunk_tokens=chunk, temperature=0.7, mask=mask, trained=trained
    )
    log_p = (causal(input_ids=ids).logits[:, :-1] / 0.7).log_softmax(-1)
    wanted = -(log_p.exp() * log_p).sum(-1) * mask
    assert torch.allclose(entropy, wanted, atol=1e-12)
    assert entropy[0, 1] > 0.1
    alone = token_logprobs(model, ids, attention, chunk_tokens=chunk, temperature=0.7, mask=mask)
    assert torch.equal(logprobs, alone)
    weight = causal.lm_head.weight
    assert logprobs.requires_grad
    (own,) = torch.autograd.grad(entropy.sum() + 0 * logprobs.sum(), weight)
    (plain,) = torch.autograd.grad(wanted.sum(), weight)
    assert torch.allclose(own, plain if trained else torch.zeros_like(plain), atol=1e-12)
