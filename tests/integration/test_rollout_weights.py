"""Weights that arrive, or an error; against transformers as the independent implementation."""

from __future__ import annotations

import copy
import errno
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from tulu_lite.errors import ServerError, TuluLiteError
from tulu_lite.records import Prompt
from tulu_lite.rollout import weights
from tulu_lite.rollout.answers import parse_choices
from tulu_lite.rollout.client import RolloutClient, Sampling
from tulu_lite.rollout.lean import FLAT
from tulu_lite.rollout.routes.feed import Feed
from tulu_lite.rollout.routes.files import _Bucket
from tulu_lite.rollout.sampling import request_body
from tulu_lite.rollout.weights import NeedsRestart, load_checkpoint, push_weights, serve_model

PROMPTS = [Prompt(f"p{i}", "", tuple(range(3 + i, 10 + 2 * i)), "test") for i in range(6)]
GREEDY = Sampling(1, 0.0, 12, 0)
CHECKED = 24  # 15 parameters (qkv and gate_up are fused) and 9 buffers: the rope table, four scales a layer


@torch.no_grad()
def logprobs_of(model: LlamaForCausalLM, prompt: Prompt, response: tuple[int, ...]) -> torch.Tensor:
    """[T, V] log-probabilities of each response position."""
    ids = torch.tensor([prompt.token_ids + response])
    return model(ids).logits[0].log_softmax(-1)[len(prompt.token_ids) - 1 : -1]


def assert_greedy_equal(client: RolloutClient, model: LlamaForCausalLM, version: int) -> None:
    for group in client.generate(PROMPTS, GREEDY):
        rollout = group.rollouts[0]
        assert set(rollout.weight_versions) == {version}
        log_p = logprobs_of(model, group.prompt, rollout.token_ids)
        assert tuple(log_p.argmax(-1).tolist()) == rollout.token_ids
        sampled = log_p.gather(1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
        assert (sampled - torch.tensor(rollout.logprobs)).abs().max() < 1e-4


def changed(model: LlamaForCausalLM, seed: int, size: float = 0.05) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * size)
    return other


@torch.no_grad()
def rounded(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """With weights that bfloat16 can hold; the rotary buffers, which .to(bfloat16) would round too, stay as they are."""
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())
    return model


def test_full_shared_memory_is_left_for_the_disk(client, model, rollout_server, monkeypatch):
    write = _Bucket._write

    def full(bucket, tensor):
        if str(bucket._path).startswith("/dev/shm") and bucket.size > 20_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(bucket, tensor)

    monkeypatch.setattr(_Bucket, "_write", full)
    other = changed(model, 60)
    push_weights(client, other.named_parameters(), 60)
    assert_greedy_equal(client, other, 60)
    spilled = rollout_server.folder / "pushed"
    assert len(list(spilled.glob("*/*.safetensors"))) == 1
    os.kill(rollout_server.state.pid, signal.SIGKILL)  # a new server finds them there
    generation = rollout_server.state.generation
    deadline = time.monotonic() + 60
    while rollout_server.state.generation == generation or rollout_server.state.state != "ready":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert_greedy_equal(client, other, 60)
    monkeypatch.undo()
    push_weights(client, model.named_parameters(), 61)
    assert not list(spilled.glob("*"))


@pytest.fixture
def model(client: RolloutClient, tiny_dir: Path) -> LlamaForCausalLM:
    """The model the server was started on, loaded there and here."""
    serve_model(client, tiny_dir, 0)
    return LlamaForCausalLM.from_pretrained(tiny_dir).eval()


def test_greedy_equals_transformers_before_and_after_pushes(client, model, rollout_server):
    generation = rollout_server.state.generation
    assert_greedy_equal(client, model, 0)
    for version in (1, 2):
        model = changed(model, version)
        report = push_weights(client, model.named_parameters(), version)
        assert (report.tensors, report.checked, report.unchecked) == (21, CHECKED, ())
        assert_greedy_equal(client, model, version)
    tiny_step = changed(model, 3, size=1e-6)  # one small optimiser step must arrive as well
    assert push_weights(client, tiny_step.named_parameters(), 3).checked == CHECKED
    assert_greedy_equal(client, tiny_step, 3)
    assert rollout_server.state.generation == generation


def test_sampled_logprobs_equal_transformers_at_the_sampling_temperature(client, model):
    for temperature in (1.0, 0.7):
        worst = 0.0
        for group in client.generate(PROMPTS, Sampling(4, temperature, 40, 11)):
            for rollout in group.rollouts:
                ids = torch.tensor([group.prompt.token_ids + rollout.token_ids])
                with torch.no_grad():
                    logits = model(ids).logits[0, len(group.prompt.token_ids) - 1 : -1] / temperature
                want = logits.log_softmax(-1).gather(1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
                worst = max(worst, (want - torch.tensor(rollout.logprobs)).abs().max().item())
        assert worst < 1e-4


def test_a_lean_answer_is_the_ordinary_one_without_what_nobody_reads(client):
    sampling = Sampling(3, 0.8, 20, 5, stop_token_ids=(4,))
    asked = request_body(PROMPTS[1], sampling, 3, 77)
    plain = asked | {"sampling_params": {k: v for k, v in asked["sampling_params"].items() if k not in FLAT}}
    lean, ordinary = (
        client.control().call("POST", "/inference/v1/generate", body) for body in (asked, plain)
    )
    assert all(isinstance(choice["logprobs"], list) for choice in lean["choices"])
    assert all(isinstance(choice["logprobs"], dict) for choice in ordinary["choices"])
    assert parse_choices(lean, 3) == parse_choices(ordinary, 3)
    assert len(json.dumps(lean)) < len(json.dumps(ordinary)) / 3


def test_checkpoint_in_bfloat16_and_in_shards_loads_into_a_float32_server(client, model, tmp_path):
    other = rounded(changed(model, 5))
    copy.deepcopy(other).bfloat16().save_pretrained(tmp_path / "bf16", max_shard_size="40KB")
    assert len(list((tmp_path / "bf16").glob("*.safetensors"))) > 1
    report = load_checkpoint(client, tmp_path / "bf16", 7)
    assert (report.tensors, report.checked) == (21, CHECKED)
    assert_greedy_equal(client, other, 7)


def test_bfloat16_trainer_pushes_to_a_float32_server(client, model):
    other = rounded(changed(model, 6))
    push_weights(client, copy.deepcopy(other).bfloat16().named_parameters(), 8)
    assert_greedy_equal(client, other, 8)


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.k_proj.weight", "lm_head.weight"])
def test_push_without_a_weight_fails_and_changes_nothing(client, model, rollout_server, name):
    generation = rollout_server.state.generation
    other = changed(model, 9)
    tensors = [(key, value) for key, value in other.named_parameters() if key != name]
    with pytest.raises(TuluLiteError, match=f"weights are missing: {name}"):
        push_weights(client, tensors, 9)
    assert_greedy_equal(client, model, 0)
    assert rollout_server.state.generation == generation


def test_push_of_another_shape_or_name_fails(client, model):
    good = dict(model.named_parameters())
    with pytest.raises(TuluLiteError, match=r"another shape.*norm.weight \[63\] \(served: \[64\]\)"):
        push_weights(client, (good | {"model.norm.weight": torch.ones(63)}).items(), 9)
    with pytest.raises(TuluLiteError, match=r"does not have: extra\.weight"):
        push_weights(client, (good | {"extra.weight": torch.ones(3)}).items(), 9)


def test_server_itself_finds_a_missing_part_and_goes_back_to_the_former_weights(
    client, model, rollout_server, monkeypatch
):
    """Without the check of names: q_proj alone into a fused qkv, which vLLM takes without a word."""
    former = changed(model, 20)
    push_weights(client, former.named_parameters(), 20)
    generation = rollout_server.state.generation
    monkeypatch.setattr(weights, "_check_names", lambda *_: None)
    broken = changed(model, 21)
    tensors = [
        (key, value) for key, value in broken.named_parameters() if "layers.1.self_attn.k_proj" not in key
    ]
    with pytest.raises(ServerError, match=r"layers that did not get all.*layers\.1\.self_attn\.qkv_proj"):
        push_weights(client, tensors, 21)
    client.wait_ready()
    assert rollout_server.state.generation == generation + 1
    assert_greedy_equal(client, former, 20)


def test_a_restart_between_an_update_and_its_record_loses_nothing(client, model, rollout_server, monkeypatch):
    """The server dies when it holds the weights, and its owner restarts it before last_push.json names them."""
    generation = rollout_server.state.generation
    write = weights.write_push

    def die_first(folder, push):
        os.kill(rollout_server.state.pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while rollout_server.state.generation == generation or rollout_server.state.state != "ready":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        write(folder, push)

    monkeypatch.setattr(weights, "write_push", die_first)
    other = changed(model, 25)
    push_weights(client, other.named_parameters(), 25)
    assert client.state().weight_version == 25
    assert_greedy_equal(client, other, 25)


@pytest.mark.parametrize("mode", ["wait", "keep", "abort"])
def test_each_token_is_of_the_weights_whose_version_it_carries(
    client, model, rollout_server, monkeypatch, mode
):
    """Four updates while 48 long responses are sampled: each token's log-probability is that of its version's model."""
    monkeypatch.setattr(weights, "Feed", lambda control, version, _: Feed(control, version, mode))
    generation = rollout_server.state.generation
    models = {0: model}
    prompts = [Prompt(f"p{i}", "", tuple(range(3 + i, 12 + i)), "test") for i in range(12)]
    with ThreadPoolExecutor(1) as background:
        task = background.submit(client.generate, prompts, Sampling(4, 1.0, 400, 17))
        for version in range(1, 5):
            time.sleep(0.25)
            models[version] = changed(models[version - 1], 50 + version)
            push_weights(client, list(models[version].named_parameters()), version)
        groups = task.result()
    seen = set()
    for group in groups:
        assert len(group.rollouts) == 4
        for rollout in group.rollouts:
            versions = torch.tensor(rollout.weight_versions)
            assert versions.tolist() == sorted(versions.tolist())
            for version in versions.unique().tolist():
                log_p = logprobs_of(models[version], group.prompt, rollout.token_ids)
                want = log_p.gather(1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
                apart = (want - torch.tensor(rollout.logprobs)).abs()[versions == version]
                assert apart.max() < 1e-4, (mode, version)
            seen.add(len(versions.unique()))
    assert max(seen) > 1 if mode == "keep" else seen == {1}
    assert rollout_server.state.generation == generation


def test_pushed_files_are_removed_when_superseded(client, model, rollout_server):
    generation = rollout_server.state.generation
    for version in (30, 31):
        push_weights(client, model.named_parameters(), version)
    folders = list(Path(rollout_server.state.push_dir).glob("push-*"))
    assert len(folders) == 1
    assert folders[0].name.startswith("push-31-")
    load_checkpoint(client, Path(rollout_server.state.model), 32)
    assert not list(Path(rollout_server.state.push_dir).glob("push-*"))
    deadline = time.monotonic() + 5
    while rollout_server.state.weight_version != 32:  # the owner follows
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert rollout_server.state.generation == generation


def test_another_model_needs_a_restart_and_tied_weights_and_small_heads_are_handled(
    client, model, rollout_server, tiny_dir, tmp_path, make_llama
):
    tied = make_llama(tmp_path / "tied", seed=4, tie_word_embeddings=True, head_dim=16, num_attention_heads=4)
    with pytest.raises(NeedsRestart, match=r"head_dim, num_attention_heads, tie_word_embeddings differ"):
        load_checkpoint(client, tmp_path / "tied", 40)
    rollout_server.serve_model(tmp_path / "tied", 40)
    assert_greedy_equal(client, tied, 40)
    tied = changed(tied, 41)
    push_weights(client, tied.named_parameters(), 41)  # without lm_head
    assert_greedy_equal(client, tied, 41)
    push_weights(client, tied.state_dict().items(), 42)  # with it
    assert_greedy_equal(client, tied, 42)
    with pytest.raises(TuluLiteError, match=r"is not a folder"):
        rollout_server.serve_model(tmp_path / "nothing")
    assert_greedy_equal(client, tied, 42)
    serve_model(client, tiny_dir, 43)
    assert_greedy_equal(client, model, 43)
