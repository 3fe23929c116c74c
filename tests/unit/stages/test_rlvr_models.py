"""A reference or value model that does not fit is refused before anything is sampled."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tulu_lite.errors import TuluLiteError
from tulu_lite.recipe import RlvrStage
from tulu_lite.stages.rlvr_models import check_models, model_of

CONFIG = {"architectures": ["LlamaForCausalLM"], "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2}


def folder(path: Path, **changes: Any) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG | changes))
    return str(path)


def context(policy: str, **fields: Any) -> Any:
    stage = RlvrStage.model_validate({
        "name": "rl", "kind": "rlvr", "init": "base", "data": "a.jsonl", "validation": "b.jsonl", "steps": 3,
        "learning_rate": 1e-4, "sampling": {"max_tokens": 8}, "kl_coefficient": 0.1,
    } | fields)  # fmt: skip
    return SimpleNamespace(stage=stage, init_model=policy, recipe=None, steps={})


TEMPLATE: Any = SimpleNamespace(tokenizer=None)


def test_models_that_fit(tmp_path: Path) -> None:
    policy, other = folder(tmp_path / "policy"), folder(tmp_path / "other", hidden_size=64)
    check_models(context(policy), TEMPLATE)
    check_models(context(policy, reference=other, advantage="gae", value={"init": other}), TEMPLATE)
    assert model_of(context(policy), other) == other


@pytest.mark.parametrize("field", ["reference", "value"])
def test_another_vocabulary(tmp_path: Path, field: str) -> None:
    policy, other = folder(tmp_path / "policy"), folder(tmp_path / "other", vocab_size=48)
    fields = {"reference": other} if field == "reference" else {"advantage": "gae", "value": {"init": other}}
    with pytest.raises(TuluLiteError, match="vocabulary of 48 tokens, and the policy one of 32"):
        check_models(context(policy, **fields), TEMPLATE)


def test_another_architecture_where_the_policy_is_to_be_put_into_it(tmp_path: Path) -> None:
    policy, other = folder(tmp_path / "policy"), folder(tmp_path / "other", hidden_size=64)
    with pytest.raises(TuluLiteError, match="another architecture than the policy: hidden_size differ"):
        check_models(context(policy, reference=other, reference_refresh_steps=2), TEMPLATE)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    policy = folder(tmp_path / "policy")
    with pytest.raises(TuluLiteError, match="is no model's folder"):
        check_models(context(policy, reference=str(tmp_path / "gone")), TEMPLATE)
