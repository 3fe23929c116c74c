from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM

from tulu_lite.recipe.training import AccelerateSettings
from tulu_lite.training.accelerator import make_accelerator

VOCABULARY = 40


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder with a tiny Llama: llama_folder(tied=True, seed=0)."""
    made: dict[tuple[bool, int], Path] = {}

    def folder(tied: bool = True, seed: int = 0) -> Path:
        if (tied, seed) not in made:
            config = LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=64,
                tie_word_embeddings=tied,
                bos_token_id=1,
                eos_token_id=2,
                initializer_range=0.2,
            )
            made[tied, seed] = tmp_path_factory.mktemp("llama")
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                LlamaForCausalLM(config).save_pretrained(made[tied, seed])
        return made[tied, seed]

    return folder


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    threads, state = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield make_accelerator(AccelerateSettings(device="cpu", threads=1), seed=3)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(state)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids, attention [8, 12], padded on the right, and mask [8, 11] of the tokens that are learnt."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, VOCABULARY, (8, 12), generator=generator)
    lengths = torch.randint(5, 13, (8, 1), generator=generator)
    attention = (torch.arange(12) < lengths).long()
    mask = attention[:, 1:] * (torch.arange(11) >= 3)
    return ids, attention, mask
