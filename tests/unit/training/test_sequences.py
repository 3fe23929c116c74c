"""Both sides of pairs as sequences: in their own order whatever their lengths, and without dropout where nothing is learnt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tulu_lite.recipe.training import LoraSettings
from tulu_lite.training.logprobs import LogprobModel
from tulu_lite.training.model import load_model
from tulu_lite.training.sequences import BothSides, response_logprobs, scored_by_all

PAIRS = [
    SimpleNamespace(prompt_ids=(5, 6), chosen_ids=(7, 8, 9, 10, 2), rejected_ids=(2,)),
    SimpleNamespace(prompt_ids=(11,), chosen_ids=(12, 2), rejected_ids=(13, 14, 15, 2)),
]


def test_both_sides() -> None:
    sides = BothSides(PAIRS)
    assert list(sides) == [sides[i] for i in range(4)] == sides[:]
    assert sides[3] == ((11,), (13, 14, 15, 2))
    assert sides[1:3] == [((5, 6), (2,)), ((11,), (12, 2))]


@pytest.mark.parametrize("max_tokens", [1, 3, 100])
def test_scores_are_those_of_each_sequence_alone(llama_folder: Callable[..., Path], max_tokens: int) -> None:
    model = load_model(llama_folder(), "cpu", lora=LoraSettings(rank=2, dropout=0.5))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.1)

    def score(batch: object) -> torch.Tensor:
        return response_logprobs(model, batch, device=torch.device("cpu"), pad_id=0, chunk_tokens=8)  # type: ignore[arg-type]

    done: list[int] = []
    scores = scored_by_all(model, score, BothSides(PAIRS), max_tokens, on_progress=done.append)
    assert (model.training, done[-1]) == (True, 4)
    alone = LogprobModel(model.wrapped).eval()
    for (prompt, response), value in zip(BothSides(PAIRS), scores.tolist(), strict=True):
        ids = torch.tensor([[*prompt, *response]])
        with torch.no_grad():
            logprobs = alone.base(input_ids=ids).logits[0, :-1].log_softmax(-1)
        wanted = logprobs.gather(-1, ids[0, 1:, None])[len(prompt) - 1 :].sum().item()
        assert value == pytest.approx(wanted, abs=1e-4)
    alone.train()
