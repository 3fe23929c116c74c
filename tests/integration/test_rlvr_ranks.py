"""PPO and GRPO on two processes make the updates, and tell the figures, of one: under DDP, FSDP2 and ZeRO."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
from ranks import run_ranks

WORKER = Path(__file__).parent / "rlvr_rank_worker.py"
ZERO = ["zero2", "zero3"] if find_spec("deepspeed") else []
ENGINES = ["ddp", "fsdp2", *ZERO]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("rlvr-ranks")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.2, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(root / "model")
    for world, name, engines in ((1, "one", ["ddp"]), (2, "two", ENGINES)):
        (root / name).mkdir()
        run_ranks(WORKER, str(root / "model"), str(root / name), *engines, world=world)
    return root / "one", root / "two"


@pytest.mark.parametrize("objective", ["ppo", "grpo"])
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_learn_what_one_learns(results: tuple[Path, Path], engine: str, objective: str) -> None:
    one, two = results
    alone = json.loads((one / f"ddp-{objective}.json").read_text())
    together = json.loads((two / f"{engine}-{objective}.json").read_text())
    for step, (wanted, got) in enumerate(zip(alone, together, strict=True), 1):
        assert got == pytest.approx(wanted, rel=2e-3, abs=1e-4), step
    before = load_file(one / f"ddp-{objective}.safetensors")
    after = load_file(two / f"{engine}-{objective}.safetensors")
    assert before.keys() == after.keys()
    # Adam's step hardly depends on a gradient's size, so that where that is all but zero its rounding shows.
    apart = torch.cat([(before[name] - after[name]).abs().flatten() for name in before])
    assert (apart > 1e-4).float().mean() < 0.01
