"""Two processes learn what one learns, and all of them take part in saving what is spread over them."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
from ranks import run_ranks

WORKER = Path(__file__).parent / "training_rank_worker.py"
ZERO = ["zero2", "zero3"] if find_spec("deepspeed") else []


def launch(world: int, folder: Path, out: Path, engines: list[str]) -> None:
    out.mkdir()
    Tokenizer(models.WordLevel({"<eos>": 2, "a": 3}, unk_token="a")).save(str(out / "tokenizer.json"))
    run_ranks(WORKER, str(folder), str(out), *engines, world=world)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("ranks")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(root / "model")
    launch(1, root / "model", root / "one", ["ddp", "ddp-lora"])
    launch(2, root / "model", root / "two", ["ddp", "ddp-lora", "fsdp2", *ZERO])
    return root / "one", root / "two"


@pytest.mark.parametrize(
    ("engine", "alone"),
    [("ddp", "ddp"), ("ddp-lora", "ddp-lora"), ("fsdp2", "ddp"), *((engine, "ddp") for engine in ZERO)],
)
def test_two_processes_learn_what_one_learns(results: tuple[Path, Path], engine: str, alone: str) -> None:
    one, two = results
    alone_told, told = (
        torch.tensor(json.loads((folder / f"{name}.json").read_text()), dtype=torch.float64)
        for folder, name in ((one, alone), (two, engine))
    )
    assert (alone_told[0] - told[0]).abs().max() < 1e-5  # loss and gradient norm of the first step
    # Adam's step hardly depends on a gradient's size, so that later ones differ by the rounding of the smallest
    assert told.numpy() == pytest.approx(alone_told.numpy(), rel=1e-3)
    before, after = load_file(one / f"{alone}.safetensors"), load_file(two / f"{engine}.safetensors")
    assert before.keys() == after.keys()
    apart = torch.cat([(before[name] - after[name]).abs().flatten() for name in before])
    assert (apart > 1e-4).float().mean() < 0.01
    exported = load_file(two / engine / "model.safetensors")
    assert exported.keys() == after.keys()
    assert all(torch.equal(exported[name], after[name]) for name in after)
