"""A reward model as a recipe's judge: the real server scores what transformers scores."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification

from tulu_lite.datasets.chat import ChatTemplate, load_tokenizer
from tulu_lite.pipeline.judges import Judges, announce
from tulu_lite.recipe import load_recipe
from tulu_lite.training.checkpoint import export_model
from tulu_lite.training.scalar import load_scalar_model
from verifiers import Sample, VerifierPool

BASE = Path(__file__).parents[2] / "data" / "quickstart" / "base"
VARIABLE = "TULU_LITE_JUDGE_RM"


@pytest.fixture
def template() -> ChatTemplate:
    return ChatTemplate.load("tulu", load_tokenizer(str(BASE), None), str(BASE))


def test_served_scores_are_those_of_transformers(
    tmp_path: Path, template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By token ids as they were sampled, and by text; 40 at once, of many lengths, in float32."""
    folder = tmp_path / "reward"
    model = load_scalar_model(BASE, "cpu", fresh_head="normal")
    model.base.score.weight.data *= 3
    export_model(folder, model, init_model=str(BASE), template=template, card="")
    stage = {"name": "sft", "kind": "sft", "data": "rows.jsonl", "learning_rate": 1e-3}
    server = {"max_model_len": 128, "kv_cache_mb": 64, "max_num_seqs": 32}
    judges = {"rm": {"kind": "reward", "model": str(folder), "server": server}}
    recipe_file = tmp_path / "recipe.yaml"
    data = {"name": "r", "model": str(BASE), "output": "out", "stages": [stage], "judges": judges}
    recipe_file.write_text(yaml.safe_dump(data))
    for variable in (VARIABLE, f"{VARIABLE}_TOKENS"):
        monkeypatch.setenv(variable, "")  # so that it is taken away again
        monkeypatch.delenv(variable)
    recipe = load_recipe(recipe_file)
    announce(recipe)
    assert os.environ[f"{VARIABLE}_TOKENS"] == "text"  # another's model: it is told nothing of its tokens

    turns = [(f"Reverse {i * 7919}.", "8-7=1, 6-2=4, " * (i % 6) + f"so {i}.") for i in range(40)]
    reference = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids, wanted = [], []
    for prompt, response in turns:
        tokens, _ = template.conversation(
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        )
        ids.append(tokens)
        with torch.no_grad():
            wanted.append(float(reference(input_ids=torch.tensor([ids[-1]])).logits[0, 0]))
    judges_ = Judges(recipe)
    judges_.start({"unused": SimpleNamespace(done=True)})  # type: ignore[dict-item]
    try:
        judges_.wait_ready()
        found = {}
        for tokens in ("sampled", "text"):
            spec = {
                "use": "reward_model",
                "args": {"base_url": f"env:{VARIABLE}", "model": "rm", "tokens": tokens},
            }
            samples = [
                Sample(response, prompt=prompt, info={"token_ids": own})
                for (prompt, response), own in zip(turns, ids, strict=True)
            ]
            with VerifierPool(workers=1) as pool:
                verdicts = pool.verify([(spec, sample) for sample in samples])
            assert [v.reason for v in verdicts if v.score is None] == []
            found[tokens] = [float(verdict.extracted or "nan") for verdict in verdicts]
        assert judges_.state_text() == ""
    finally:
        judges_.stop()
    assert max(wanted) - min(wanted) > 0.5
    for rewards in found.values():
        assert max(abs(a - b) for a, b in zip(rewards, wanted, strict=True)) < 1e-4
