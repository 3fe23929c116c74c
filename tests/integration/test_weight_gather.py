"""Whole weights out of a model that is spread over two processes, without a second copy of it in any of them."""

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

WORKER = Path(__file__).parent / "gather_rank_worker.py"
ENGINES = ["ddp", "fsdp2", *(["zero2", "zero3"] if find_spec("deepspeed") else [])]
SHAPE = {
    "vocab_size": 512, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip
# glibc gives freed memory back to the system: what a process holds is then what is in use, to the megabyte
RETURNED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_are_gathered_one_by_one_and_written_as_they_come(
    tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in RETURNED_AT_ONCE.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    run_ranks(WORKER, str(tmp_path), engine)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    held = {
        name: tensor
        for file in sorted((tmp_path / f"{engine}-out").iterdir())
        for name, tensor in load_file(file).items()
    }
    assert held.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(held[name], value.bfloat16()) for name, value in model.named_parameters())
    told = [json.loads((tmp_path / f"{engine}-{rank}.json").read_text()) for rank in range(2)]
    # a gathered weight, its parts on the way there, its cast, and the code's own pages
    kept = 4 * told[0]["largest"] + 8 * 2**20
    for process in told:
        assert process["peak"] < kept < told[0]["all"] / 8
    with torch.no_grad():
        want = model(torch.tensor([[5, 6, 7, 8, 9]])).logits[0, 2:-1].log_softmax(-1)
    assert torch.allclose(torch.load(tmp_path / f"{engine}-log_p.pt")[0], want, atol=1e-5)
