"""A tiny random Llama and one real rollout server that the tests share. Slow to start: shared by the whole session."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tulu_lite.recipe.server import ServerSettings
from tulu_lite.rollout.client import RolloutClient
from tulu_lite.rollout.server import RolloutServer

KEY_VARIABLE = "TULU_LITE_TEST_KEY"
TINY = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.1, "tie_word_embeddings": False,
}  # fmt: skip


def _make_llama(folder: Path, seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """Save a random Llama in float32 and return it."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(TINY | changes))).float()
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_llama() -> Callable[..., LlamaForCausalLM]:
    return _make_llama


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    _make_llama(folder)
    return folder


def _server_settings(**changes: Any) -> ServerSettings:
    """Settings that find a hung server within seconds and allow many restarts."""
    values: dict[str, Any] = {"canary_interval_s": 0.5, "canary_timeout_s": 4.0, "max_restarts": 20}
    values |= {"max_num_seqs": 64, "kv_cache_mb": 64, "ready_timeout_s": 180.0, "control_timeout_s": 30.0}
    return ServerSettings(**(values | changes))


@pytest.fixture(scope="session")
def server_settings() -> Callable[..., ServerSettings]:
    return _server_settings


@pytest.fixture(scope="session")
def rollout_server(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RolloutServer]:
    """The shared server, which asks for a key. Tests may kill it, push to it and change its model."""
    os.environ[KEY_VARIABLE] = "a-key-for-tests"
    folder = tmp_path_factory.mktemp("server")
    server = RolloutServer(_server_settings(api_key_env=KEY_VARIABLE), tiny_dir, folder, folder / "log.txt")
    server.start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()
        assert server.state.state == "stopped", server.state.reason


@pytest.fixture
def client(rollout_server: RolloutServer) -> Iterator[RolloutClient]:
    rollout_server.wait_ready()
    with RolloutClient(rollout_server.state_file) as client:
        yield client
