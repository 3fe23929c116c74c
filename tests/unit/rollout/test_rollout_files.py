"""Checkpoint headers, digests, versions, state files and the launcher's arguments."""

from __future__ import annotations

import json
import os
import signal
import struct
import time
from pathlib import Path

import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from tulu_lite.errors import TuluLiteError
from tulu_lite.files import locked
from tulu_lite.recipe.server import ServerSettings
from tulu_lite.rollout.answers import weight_versions
from tulu_lite.rollout.checkpoint import (
    checkpoint_files,
    checkpoint_shapes,
    config_differences,
    write_safetensors,
)
from tulu_lite.rollout.digest import combined_digest, tensor_digest
from tulu_lite.rollout.launch import arguments, environment
from tulu_lite.rollout.routes.files import write_files
from tulu_lite.rollout.state import (
    Push,
    ServerState,
    UpdateHeld,
    read_push,
    read_state,
    send_request,
    take_requests,
    update_under_way,
    update_until,
    write_push,
    write_state,
)
from tulu_lite.rollout.weights import _check_names


def test_written_safetensors_are_read_back_by_the_library(tmp_path):
    tensors = [
        ("a.weight", torch.randn(3, 5)),
        ("b.bfloat16", torch.randn(7).to(torch.bfloat16)),
        ("c.empty", torch.zeros(0, 4)),
        ("d.scalar", torch.tensor(3, dtype=torch.int64)),
        ("e.half", torch.randn(2, 2, 2).half()),
    ]
    write_safetensors(tmp_path / "model.safetensors", tensors)
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == dict(tensors).keys()
    for name, tensor in tensors:
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    assert checkpoint_shapes(tmp_path) == {name: tuple(tensor.shape) for name, tensor in tensors}


def test_push_files_are_split_into_buckets_and_take_views_and_doubles_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tulu_lite.rollout.routes.files.BUCKET_BYTES", 100)
    matrix = torch.arange(12.0).reshape(3, 4)
    given_tensors = [("t", matrix.t()), ("u", torch.nn.Parameter(torch.ones(20))), ("v", torch.ones(30))]
    written = write_files(iter(given_tensors), [tmp_path])
    assert len(written.files) == 2
    merged = {name: tensor for file in written.files for name, tensor in load_file(file).items()}
    assert torch.equal(merged["t"], matrix.t())
    assert written.shapes == {"t": (4, 3), "u": (20,), "v": (30,)}
    assert written.digests == {name: tensor_digest(tensor) for name, tensor in merged.items()}
    (tmp_path / "other").mkdir()
    with pytest.raises(TuluLiteError, match="'t' was given twice"):
        write_files([("t", matrix), ("t", matrix)], [tmp_path / "other"])


def test_digest_by_hand_and_its_sensitivity():
    tensor = torch.tensor([[1.0, 2.0]])
    by_hand = xxhash.xxh3_64_hexdigest(struct.pack("<2f", 1.0, 2.0))
    assert tensor_digest(tensor) == f"float32:1x2:{by_hand}"
    one = combined_digest({"a": "x", "b": "y"})
    assert one == combined_digest({"b": "y", "a": "x"})
    assert one != combined_digest({"a": "y", "b": "x"})
    assert tensor_digest(torch.tensor([1.0, 2.0])) != tensor_digest(torch.tensor([2.0, 1.0]))


def test_sharded_checkpoint_and_what_is_missing(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "x-1.safetensors")
    save_file({"b": torch.ones(3, 1)}, tmp_path / "x-2.safetensors")
    index = {"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert checkpoint_shapes(tmp_path) == {"a": (2,), "b": (3, 1)}
    (tmp_path / "x-2.safetensors").unlink()
    with pytest.raises(TuluLiteError, match=r"has no x-2\.safetensors"):
        checkpoint_files(tmp_path)
    (tmp_path / "x-2.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(TuluLiteError, match="is not a safetensors file"):
        checkpoint_shapes(tmp_path)


def test_config_differences_ignore_what_does_not_change_the_model(tmp_path):
    base = {
        "hidden_size": 64,
        "rope_theta": 1e4,
        "torch_dtype": "float32",
        "eos_token_id": 2,
        "sliding_window": None,
    }
    for name, config in {
        "a": base,
        "b": {**base, "torch_dtype": "bfloat16", "eos_token_id": 5},
        "c": {**base, "hidden_size": 32, "rope_theta": 5e5},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    (tmp_path / "b" / "config.json").write_text(
        json.dumps({k: v for k, v in base.items() if k != "sliding_window"})
    )
    assert config_differences(tmp_path / "a", tmp_path / "b") == []
    assert config_differences(tmp_path / "a", tmp_path / "c") == ["hidden_size", "rope_theta"]


def test_names_of_a_push(tmp_path):
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": true}')
    served = {"embed": (4, 2), "norm": (2,)}
    _check_names(served, served, tmp_path)
    _check_names(served | {"lm_head.weight": (4, 2)}, served, tmp_path)  # a tied copy
    with pytest.raises(TuluLiteError, match="missing: norm"):
        _check_names({"embed": (4, 2)}, served, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TuluLiteError, match=r"does not have: lm_head\.weight"):
        _check_names(served | {"lm_head.weight": (4, 2)}, served, tmp_path)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), min_size=1, max_size=8))
def test_weight_version_spans(runs):
    spans, versions = [], []
    for version, length in runs:
        spans.append({"version": str(version), "start": len(versions), "end": len(versions) + length})
        versions += [version] * length
    assert weight_versions(spans, len(versions)) == tuple(versions)
    for bad in (spans[1:], spans[:-1], [{**spans[0], "start": 1}, *spans[1:]]):
        with pytest.raises(ValueError, match="weight version"):
            weight_versions(bad, len(versions))


def test_state_and_push_files(tmp_path):
    assert read_state(tmp_path / "server.json") is None
    assert read_push(tmp_path) is None
    state = ServerState("ready", url="http://x:1", owner_pid=os.getpid(), owner_started=1)
    write_state(tmp_path / "server.json", state)
    assert read_state(tmp_path / "server.json").state == "stopped"  # that start time is not this process's
    push = Push(3, ("a", "b"), "2:0", "/m")
    write_push(tmp_path, push)
    assert read_push(tmp_path) == push


def test_requests_are_taken_in_order_and_once(tmp_path):
    assert take_requests(tmp_path) == []
    for number in range(3):
        send_request(tmp_path, {"action": "restart", "generation": number})
    assert [request["generation"] for request in take_requests(tmp_path)] == [0, 1, 2]
    assert take_requests(tmp_path) == []


def test_one_update_at_a_time(tmp_path):
    with update_under_way(tmp_path, 1.0, 5.0):
        assert update_until(tmp_path) > time.time() + 4
        with pytest.raises(UpdateHeld, match="another weight update"), update_under_way(tmp_path, 0.1, 5.0):
            pass
    assert update_until(tmp_path) == 0.0


def test_an_update_that_is_over_is_not_held_by_a_process_that_was_forked_during_it(tmp_path):
    with update_under_way(tmp_path, 1.0, 5.0):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
    try:
        with update_under_way(tmp_path, 0.1, 5.0):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_forked_process_that_leaves_the_block_does_not_end_the_hold_of_its_parent(tmp_path):
    def refusal() -> Exception:
        return TimeoutError()

    pid = os.getpid()
    try:
        with locked(tmp_path / "lock", 1.0, refusal):
            child = os.fork()
            if not child:
                raise KeyError
            os.waitpid(child, 0)
            with pytest.raises(TimeoutError), locked(tmp_path / "lock", 0.1, refusal):
                pass
    finally:
        if os.getpid() != pid:
            os._exit(0)


def spec(model: Path, **settings) -> dict:
    values = ServerSettings(**settings).model_dump(mode="json")
    return {"model": str(model), "host": "127.0.0.1", "port": 1234, "settings": values}


def options(words: list[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            found[word] = None if following.startswith("--") else following
    return found


def test_cpu_and_cuda_arguments(tmp_path):
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 512}')
    cpu = options(arguments(spec(tmp_path, kv_cache_mb=64), on_cpu=True))
    cuda = options(arguments(spec(tmp_path, tensor_parallel=2), on_cpu=False))
    assert cpu["--dtype"] == "float32"
    assert cuda["--dtype"] == "auto"
    assert cpu["--kv-cache-memory-bytes"] == str(64 * 2**20)
    assert cpu.keys() - cuda.keys() == {
        "--enforce-eager", "--kv-cache-memory-bytes", "--block-size", "--no-enable-chunked-prefill",
        "--max-num-batched-tokens", "--distributed-executor-backend",
    }  # fmt: skip
    assert cuda.keys() - cpu.keys() == {"--gpu-memory-utilization"}
    assert cuda["--tensor-parallel-size"] == "2"
    for found in (cpu, cuda):
        assert found["--host"] == "127.0.0.1"
        assert found["--logprobs-mode"] == "processed_logprobs"
        assert found["--generation-config"] == "vllm"
        assert "--max-model-len" not in found
        assert "--middleware" not in found


def test_engine_args_win_and_the_key_guards_every_route(tmp_path):
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 20000}')
    found = options(
        arguments(spec(tmp_path, engine_args={"block-size": 64, "enable_prefix_caching": False}), on_cpu=True)
    )
    assert found["--block-size"] == "64"
    assert "--no-enable-prefix-caching" in found
    assert found["--max-num-batched-tokens"] == "20000"
    keyed = options(arguments(spec(tmp_path, host="0.0.0.0", api_key_env="K"), on_cpu=True))
    assert keyed["--middleware"] == "tulu_lite.rollout.guard.Guard"


@pytest.mark.parametrize(("rank", "room"), [(1, "1"), (24, "32"), (512, "512"), (513, "513")])
def test_adapters_get_the_least_room_that_vllm_has(tmp_path, rank, room):
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 512}')
    described = spec(tmp_path, max_loras=1)
    described["settings"]["max_lora_rank"] = rank
    assert options(arguments(described, on_cpu=True))["--max-lora-rank"] == room


def test_settings_refuse_an_open_host_and_our_own_arguments():
    with pytest.raises(ValidationError, match="can be reached from other machines"):
        ServerSettings(host="0.0.0.0")
    ServerSettings(host="0.0.0.0", api_key_env="K")
    ServerSettings(host="::1")
    with pytest.raises(ValidationError, match=r"engine_args\.logprobs-mode"):
        ServerSettings(engine_args={"logprobs-mode": "raw"})


@pytest.mark.parametrize(
    "name", ["middleware", "uds", "ssl-keyfile", "ssl_certfile", "root-path", "grpc", "config", "middlew"]
)
def test_settings_refuse_arguments_that_take_the_guard_or_the_server_away(name):
    """Further arguments win over ours, and the key's guard is one of ours: it would be gone without a word."""
    with pytest.raises(ValidationError, match=f"engine_args.{name}: it would take the key's guard away"):
        ServerSettings(host="0.0.0.0", api_key_env="K", engine_args={name: "x"})


def test_environment_of_the_cpu():
    settings = ServerSettings(threads=3).model_dump(mode="json")
    found = environment(settings)
    assert found["VLLM_SERVER_DEV_MODE"] == "1"
    assert found["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in environment({**settings, "device": "cuda"})
