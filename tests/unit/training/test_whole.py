"""Names and shapes told beforehand are those that come."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from tulu_lite.training.logprobs import LogprobModel
from tulu_lite.training.model import load_model
from tulu_lite.training.whole import WholeWeights


def tiny(**changes):
    shape = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**shape, **heads, **changes))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_shapes_are_those_of_what_comes(tied, lora):
    model = tiny(tie_word_embeddings=tied)
    if lora:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    whole = WholeWeights(LogprobModel(model))
    come = {name: tuple(tensor.shape) for name, tensor in whole}
    assert whole.shapes() == come
    assert ("lm_head.weight" in come) != tied
    assert {name: tuple(tensor.shape) for name, tensor in whole} == come  # a second pass


def test_reference_is_the_models_own_log_probability():
    model = tiny()
    whole = WholeWeights(LogprobModel(model))
    (rows,) = whole.reference([((5, 6), (7, 8, 9))])
    want = model(torch.tensor([[5, 6, 7, 8, 9]])).logits[0, 1:-1].log_softmax(-1)
    assert torch.allclose(rows, want, atol=1e-6)
    whole.done()
    whole.follow()


def test_capped_attention_is_done_as_the_model_means_it(tmp_path):
    shape = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "head_dim": 8,
    }
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "attn_logit_softcapping": 0.5}
    torch.manual_seed(0)
    made = Gemma2ForCausalLM(Gemma2Config(**shape, **heads, query_pre_attn_scalar=8, initializer_range=0.5))
    made.save_pretrained(tmp_path)
    eager = Gemma2ForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    (rows,) = WholeWeights(load_model(tmp_path, "cpu")).reference([((5, 6, 7), (8, 9))])
    want = eager(torch.tensor([[5, 6, 7, 8, 9]])).logits[0, 2:-1].log_softmax(-1)
    assert torch.allclose(rows, want, atol=1e-5)


def test_a_model_whose_names_are_converted_tells_no_shapes():
    model = tiny()
    model._weight_conversions = ["anything"]
    assert WholeWeights(LogprobModel(model)).shapes() is None
