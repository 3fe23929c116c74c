"""Each cause of a gap between sampler and trainer, made on purpose, is named; where there is none, none is named."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tulu_lite.doctor.causes import Case, diagnose
from tulu_lite.doctor.figures import LIMITS_16, LIMITS_32, gap_of, growth, limits_for
from tulu_lite.doctor.trainer import Said, places, server_logprobs, trainer_logprobs, with_rope
from tulu_lite.recipe.training import LoraSettings
from tulu_lite.training.logprobs import LogprobModel
from tulu_lite.training.model import load_model

TINY = {
    "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.1, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(LlamaConfig(**TINY)).float().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder) -> LogprobModel:
    return load_model(folder, "cpu").eval()


@pytest.fixture(scope="module")
def sequences() -> list[Said]:
    draw = np.random.default_rng(0)
    rows = [tuple(int(t) for t in draw.integers(3, 90, size=80)) for _ in range(4)]
    return [Said((1, *row[:7]), row[7:], (0.0,) * 73) for row in rows]


def told(responses: list[Said], logprobs) -> list[Said]:
    """The responses as a server would tell them that says these log-probabilities."""
    out, start = [], 0
    for item in responses:
        end = start + len(item.token_ids)
        out.append(Said(item.prompt_ids, item.token_ids, tuple(map(float, logprobs[start:end])), (3,)))
        start = end
    return out


def by(server: LogprobModel, responses: list[Said], temperature: float = 1.0) -> list[Said]:
    return told(responses, trainer_logprobs(server, responses, temperature))


def case(model: LogprobModel, responses: list[Said], **changes) -> Case:
    return Case(model, responses, **({"temperature": 1.0, "bos_id": 1, "version": 3} | changes))


def test_nothing_is_named_where_nothing_is_wrong(model, sequences):
    found = diagnose(case(model, by(model, sequences)), LIMITS_32)
    assert found.gap.max < 1e-5
    assert found.cause is None


@pytest.mark.parametrize(("server", "trainer"), [(0.7, 1.0), (1.0, 0.7), (1.3, 0.9)])
def test_temperature(model, sequences, server, trainer):
    found = diagnose(case(model, by(model, sequences, server), temperature=trainer), LIMITS_32)
    assert found.cause is not None
    assert found.cause.cause == "temperature"
    assert found.cause.supposed.startswith(f"{server:g} instead of {trainer:g}")
    assert ("raw logprobs" in found.cause.says) == (server == 1.0)


def test_rope_theta_and_scaling(model, sequences, folder):
    for theta in (500_000.0, 3_000.0):  # one that many models have, and one that must be searched for
        with with_rope(model, theta) as other:
            responses = by(other, sequences)
        found = diagnose(case(model, responses), LIMITS_32)
        assert found.cause is not None
        assert found.cause.cause == "rope theta"
        assert float(found.cause.supposed.split()[0]) == pytest.approx(theta, rel=0.02)
    config = LlamaConfig(
        **TINY, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
    )
    scaled = LlamaForCausalLM(config)
    scaled.load_state_dict(model.base.state_dict())
    found = diagnose(case(LogprobModel(scaled.eval()), by(model, sequences)), LIMITS_32)
    assert found.cause is not None
    assert found.cause.cause == "rope scaling"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype(model, sequences, dtype):
    server = copy.deepcopy(model).to(getattr(torch, dtype))
    found = diagnose(case(model, by(server, sequences)), LIMITS_32)
    assert found.cause is not None
    assert (found.cause.cause, found.cause.supposed) == ("dtype", dtype)
    back = diagnose(case(server, by(model, sequences), trainer_dtype=dtype), LIMITS_32)
    assert back.cause is not None
    assert (back.cause.cause, back.cause.supposed) == ("dtype", "float32")


@pytest.mark.parametrize(
    ("how", "name"), [({"top_k": 40}, "top_k 40"), ({"top_p": 0.9, "top_k": 0}, "top_p 0.9")]
)
def test_truncated_sampling(model, how, name):
    torch.manual_seed(0)
    ids = torch.tensor([[1, 5, 6], [1, 7, 8]])
    out = model.base.generate(
        ids, do_sample=True, max_new_tokens=40, output_scores=True, return_dict_in_generate=True, eos_token_id=None,
        pad_token_id=0, **how,
    )  # fmt: skip
    scores = torch.stack(out.scores, 1).log_softmax(-1)  # [B, T, V], what was cut off at -inf
    drawn = out.sequences[:, 3:]
    lp = scores.gather(-1, drawn[..., None]).squeeze(-1)
    responses = [
        Said(tuple(prompt), tuple(tokens), tuple(values), (3,))
        for prompt, tokens, values in zip(ids.tolist(), drawn.tolist(), lp.tolist(), strict=True)
    ]
    found = diagnose(case(model, responses), LIMITS_32)
    assert found.cause is not None
    assert (found.cause.cause, found.cause.supposed) == ("truncated sampling", name)
    assert found.gap.bias > 0  # the server's are never below the trainer's


def test_vocabulary_padding(model, sequences):
    from tulu_lite.doctor.trainer import trainer_logits

    logits = trainer_logits(model, sequences)
    targets = torch.tensor([token for item in sequences for token in item.token_ids])
    padded = torch.nn.functional.pad(logits, (0, 28))  # 100 rows to 128
    lp = padded.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1).numpy()
    found = diagnose(case(model, told(sequences, lp)), LIMITS_32)
    assert found.cause is not None
    assert found.cause.cause == "vocabulary padding"
    assert found.cause.supposed.startswith("28 rows")
    lp = logits[:, :90].log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1).numpy()
    found = diagnose(case(model, told(sequences, lp), tokenizer_size=90), LIMITS_32)
    assert found.cause is not None
    assert "only the tokenizer's 90 tokens" in found.cause.supposed


def test_template(model, sequences):
    twice = [Said((1, *item.prompt_ids), item.token_ids, item.logprobs) for item in sequences]
    lp = trainer_logprobs(model, twice, 1.0)
    found = diagnose(case(model, told(sequences, lp)), LIMITS_32)
    assert found.cause is not None
    assert (found.cause.cause, found.cause.supposed) == ("template", "another BOS in front")


def test_stale_version_and_perturbed_weight(model, sequences, folder, tmp_path):
    found = diagnose(case(model, by(model, sequences), version=4), LIMITS_32)
    assert found.cause is not None
    assert found.cause.cause == "stale weights"
    assert "version 3, and the trainer is at 4" in found.cause.says
    other = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[3] *= 1.5
    other.save_pretrained(tmp_path)
    files = (tmp_path / "model.safetensors",)
    found = diagnose(case(model, by(LogprobModel(other.eval()), sequences), server_files=files), LIMITS_32)
    assert found.cause is not None
    assert found.cause.cause == "weights"
    assert "model.layers.1.mlp.up_proj.weight" in found.cause.says
    assert "1 of 21" in found.cause.supposed


def test_adapters_off(folder, model, sequences):
    adapted = load_model(folder, "cpu", lora=LoraSettings(rank=4)).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    found = diagnose(case(adapted, by(model, sequences)), LIMITS_32)
    assert found.cause is not None
    assert found.cause.cause == "LoRA not applied"


def test_figures():
    server = np.log(np.array([0.5, 0.25, 0.25, 0.5]))
    trainer = np.log(np.array([0.5, 0.5, 0.25, 0.125]))
    gap = gap_of(server, trainer, [0, 15, 16, 40])
    assert gap.mean == pytest.approx(3 * np.log(2) / 4)
    assert gap.max == pytest.approx(2 * np.log(2))
    assert gap.k1 == pytest.approx(np.log(2) / 4)  # differences -log 2 and 2 log 2
    assert gap.k3 == pytest.approx((2 - 1 - np.log(2) + 0.25 - 1 + 2 * np.log(2)) / 4)
    assert [(b.first, b.last, b.tokens) for b in gap.buckets] == [(0, 15, 2), (16, 31, 1), (32, 63, 1)]
    assert growth(gap) == pytest.approx(4.0)
    assert gap.to_json()["quantiles"]["0.5"] == pytest.approx(np.log(2) / 2)
    assert not gap.within(LIMITS_32)
    assert limits_for("float32", "bfloat16") == LIMITS_16
    assert limits_for("float32", "float32").max == 1e-4
    with pytest.raises(ValueError, match="no tokens"):
        gap_of(server[:0], trainer[:0], [])


def test_places(sequences):
    assert places(sequences)[:3].tolist() == [8, 9, 10]
    assert len(places(sequences)) == len(server_logprobs(sequences)) == 4 * 73
