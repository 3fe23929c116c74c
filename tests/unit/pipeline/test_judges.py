"""Where judges are, and that another judge makes another result."""

from __future__ import annotations

import os

import pytest
import yaml

from tulu_lite.pipeline.expand import expand
from tulu_lite.pipeline.judges import announce
from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.recipe import load_recipe
from tulu_lite.recipe.judges import judge_variable
from tulu_lite.recipe.load import RecipeError

VARIABLE = "TULU_LITE_JUDGE_MY_GRADER_2"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "")  # so that it is taken away again
    monkeypatch.delenv(VARIABLE)

    def load(**judges):
        (tmp_path / "a.jsonl").write_text('{"prompt": "1 + 1", "reference": "2"}\n')
        stage = {"name": "test", "kind": "evaluate", "models": ["base"], "data": "a.jsonl", "max_tokens": 4}
        file = tmp_path / "recipe.yaml"
        data = {"name": "r", "model": "org/m", "output": "out", "stages": [stage]}
        file.write_text(yaml.safe_dump(data | ({"judges": judges} if judges else {})))
        return load_recipe(file)

    return load


def test_a_judge_has_an_address_before_it_is_started_and_keeps_it(recipe):
    loaded = recipe(**{"my-grader-2": {"model": "org/judge"}})
    assert judge_variable("my-grader-2") == VARIABLE
    announce(loaded)
    first = os.environ[VARIABLE]
    assert first.startswith("http://127.0.0.1:")
    assert first.endswith("/v1")
    announce(loaded)
    assert os.environ[VARIABLE] == first


def test_a_fixed_port_is_the_one_announced(recipe):
    announce(recipe(**{"my-grader-2": {"model": "org/judge", "server": {"port": 8123}}}))
    assert os.environ[VARIABLE] == "http://127.0.0.1:8123/v1"


def test_another_judge_is_another_step_and_how_it_is_served_is_not(recipe, tmp_path):
    def key(**judges) -> str:
        loaded = recipe(**judges)
        return next(step.key for step in expand(loaded, Ledger(tmp_path / "out")))

    keys = [
        key(),
        key(grader={"model": "org/judge"}),
        key(grader={"model": "org/other"}),
        key(grader={"model": "org/judge", "server": {"max_num_seqs": 8}}),
    ]
    assert len(set(keys)) == 3
    assert keys[1] == keys[3]


def test_names_and_paths(recipe, tmp_path):
    (tmp_path / "judge").mkdir()
    loaded = recipe(grader={"model": "./judge"})
    assert loaded.judges["grader"].model == str(tmp_path / "judge")
    with pytest.raises(RecipeError, match="judges"):
        recipe(**{"no spaces": {"model": "org/judge"}})
