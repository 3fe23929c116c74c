"""Before the first step: agreement passes with its figures, disagreement stops with the cause, null asks nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tulu_lite.doctor.trainer import Said, trainer_logprobs
from tulu_lite.errors import TuluLiteError
from tulu_lite.records import Prompt, Rollout, RolloutGroup
from tulu_lite.stages.preflight import RESPONSES, limit_of, preflight
from tulu_lite.training.model import load_model

TINY = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.2, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(LlamaConfig(**TINY)).float().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, "cpu")


def groups_at(model, temperature: float) -> list[RolloutGroup]:
    """Five prompts with two responses each, told as a server of this temperature would."""
    groups = []
    for number in range(5):
        rollouts = []
        for sample in range(2):
            ids = tuple((7 * number + 3 * sample + i * i) % 60 + 3 for i in range(20))
            told = trainer_logprobs(model, [Said((1, 5 + number), ids, ())], temperature)
            rollouts.append(Rollout(ids, tuple(map(float, told)), (3,) * 20, "length"))
        groups.append(RolloutGroup(Prompt(f"q{number}", "", (1, 5 + number), "test"), tuple(rollouts)))
    return groups


def look(model, folder, groups, setting):
    stage = SimpleNamespace(
        preflight_logprob_gap=setting, accelerate=None, logits_chunk_tokens=64, sampling=SimpleNamespace(temperature=1.0)
    )  # fmt: skip
    recipe = SimpleNamespace(
        server=SimpleNamespace(dtype="float32"), accelerate=SimpleNamespace(mixed_precision="no")
    )
    accelerator = SimpleNamespace(
        reduce=lambda tensor, _: tensor,
        device="cpu",
        is_main_process=True,
        unwrap_model=lambda module: module,
    )
    tokenizer = type("Tokenizer", (), {"bos_token_id": 1, "__len__": lambda _: 64})()
    sampler = SimpleNamespace(
        pad_id=0,
        template=SimpleNamespace(tokenizer=tokenizer),
        client=SimpleNamespace(adapter="an adapter"),
    )
    ctx = SimpleNamespace(stage=stage, recipe=recipe, init_model=str(folder))
    return preflight(ctx, accelerator, model, sampler, groups)


def test_agreement_is_measured(model, folder):
    figures = look(model, folder, groups_at(model, 1.0), "auto")
    assert figures["preflight_gap_max"] < 1e-4
    assert figures["preflight_gap_mean"] < 1e-5
    assert abs(figures["preflight_kl"]) < 1e-6


def test_disagreement_stops_with_its_cause(model, folder):
    groups = groups_at(model, 0.8)
    with pytest.raises(TuluLiteError) as error:
        look(model, folder, groups, "auto")
    assert "before the first step" in error.value.what
    assert "preflight_logprob_gap 0.001" in error.value.what
    assert "likely cause: temperature" in error.value.why
    figures = look(model, folder, groups, 100.0)  # a limit of one's own
    assert figures["preflight_gap_mean"] > 0.05
    assert look(model, folder, groups, None) == {}


def test_a_logprob_that_is_no_number_stops_too(model, folder):
    groups = groups_at(model, 1.0)
    first = groups[0].rollouts[0]
    broken = Rollout(first.token_ids, (float("nan"), *first.logprobs[1:]), first.weight_versions, "length")
    with pytest.raises(TuluLiteError, match="disagree by nan"):
        look(model, folder, [RolloutGroup(groups[0].prompt, (broken, groups[0].rollouts[1]))], "auto")


def test_fewer_responses_than_slots(model, folder):
    assert RESPONSES > 2
    assert look(model, folder, groups_at(model, 1.0)[:1], "auto")["preflight_gap_mean"] < 1e-5


def test_limits():
    assert limit_of("auto", "float32", "float32") == 1e-3
    assert limit_of("auto", "bfloat16", "float32") == 0.05
    assert limit_of(None, "float32") is None
    assert limit_of(0.2, "float32") == 0.2
