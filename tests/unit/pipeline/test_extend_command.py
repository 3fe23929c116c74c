"""Which runs go on, and what is refused before anything is noted or spent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tulu_lite.cli import app
from tulu_lite.commands import running
from tulu_lite.commands.extend import extensions_of
from tulu_lite.errors import TuluLiteError
from tulu_lite.pipeline.expand import expand
from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.pipeline.lock import exclusive
from tulu_lite.pipeline.select import choice_result
from tulu_lite.pipeline.steps import Step
from tulu_lite.recipe import load_recipe

Steps = dict[str, Step]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    rl = {
        "name": "rl", "kind": "rlvr", "init": "base", "data": "rows.jsonl", "validation": "rows.jsonl", "seeds": [1, 2],
        "steps": 100, "sampling": {"max_tokens": 4}, "learning_rate": 1e-4,
    }  # fmt: skip
    recipe = {"name": "tiny", "model": "./model", "output": "./out", "stages": [rl]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


@pytest.fixture
def steps(project: Path) -> Callable[..., Steps]:
    def expanded(*overrides: str) -> Steps:
        recipe = load_recipe(project / "recipe.yaml", overrides)
        return {step.id: step for step in expand(recipe, Ledger(project / "out"))}

    return expanded


def finish(steps: Steps, values: dict[str, float], **more: Any) -> None:
    for id, value in values.items():
        step = steps[id]
        (step.folder / "checkpoints" / "step-000100").mkdir(parents=True, exist_ok=True)
        told = {"metric": "accuracy", "value": value, "better": "higher"}
        step.result_file.write_text(json.dumps({"model": "model", "summary": {"validation": told, **more}}))
    choice = steps["rl"]
    choice.folder.mkdir(parents=True, exist_ok=True)
    choice.result_file.write_text(json.dumps(choice_result(choice, [steps[name] for name in choice.inputs])))


def asked(steps: Steps, which: str, more: int = 200) -> list[tuple[str, int]]:
    return [(one.run, one.steps) for one in extensions_of(list(steps.values()), "rl", which, more)[0]]


def test_the_best_a_seed_a_run_or_all_go_on(steps: Callable[..., Steps]) -> None:
    finish(steps(), {"rl/seed-1": 0.5, "rl/seed-2": 0.7})
    made = steps()
    assert asked(made, "best") == [("seed-2", 200)]
    assert asked(made, "1") == [("seed-1", 200)]
    assert asked(made, "seed-1") == [("seed-1", 200)]
    assert asked(made, "all") == [("seed-1", 200), ("seed-2", 200)]


def test_what_went_on_goes_on_from_there(steps: Callable[..., Steps]) -> None:
    finish(steps(), {"rl/seed-1": 0.5, "rl/seed-2": 0.7})
    longer = "stages.rl.extend=[{run: seed-2, steps: 50}]"
    with pytest.raises(TuluLiteError, match=r"rl/seed-2\+50 is not done"):
        asked(steps(longer), "2")
    finish(steps(longer), {"rl/seed-2+50": 0.8})
    made = steps(longer)
    assert made["rl"].outcome["summary"]["chosen"] == "rl/seed-2+50"
    assert asked(made, "best") == [("seed-2", 250)]
    assert asked(made, "all", 10) == [("seed-1", 10), ("seed-2", 60)]


def test_seeds_of_a_sweep_are_those_of_the_setting_that_goes_on(steps: Callable[..., Steps]) -> None:
    sweep = "stages.rl.sweep={kl_coefficient: [0.01, 0.1]}"
    undecided = steps(sweep)
    with pytest.raises(TuluLiteError, match="seed 1 of rl is 2 runs") as caught:
        asked(undecided, "1")
    assert "kl_coefficient=0.01/seed-1 | kl_coefficient=0.1/seed-1" in caught.value.cure
    finish(
        undecided,
        {f"rl/kl_coefficient={kl}/seed-{seed}": float(kl) for kl in ("0.01", "0.1") for seed in (1, 2)},
    )
    made = steps(sweep)
    assert asked(made, "1") == [("kl_coefficient=0.1/seed-1", 200)]
    assert asked(made, "all") == [("kl_coefficient=0.1/seed-1", 200), ("kl_coefficient=0.1/seed-2", 200)]
    assert asked(made, "kl_coefficient=0.01/seed-2") == [("kl_coefficient=0.01/seed-2", 200)]


def test_what_cannot_go_on_is_refused(steps: Callable[..., Steps]) -> None:
    made = steps()
    with pytest.raises(TuluLiteError, match="not known yet"):
        asked(made, "best")
    with pytest.raises(TuluLiteError, match="rl/seed-1 is not done"):
        asked(made, "1")
    with pytest.raises(TuluLiteError, match="has no run '7'") as caught:
        asked(made, "7")
    assert "best, all, seed-1, seed-2" in caught.value.cure
    finish(made, {"rl/seed-1": 0.5, "rl/seed-2": 0.7}, stopped_early="far behind")
    with pytest.raises(TuluLiteError, match="stopped early: far behind"):
        asked(steps(), "1")
    finish(made, {"rl/seed-1": 0.5, "rl/seed-2": 0.7})
    (made["rl/seed-1"].folder / "checkpoints" / "step-000100").rmdir()
    with pytest.raises(TuluLiteError, match="rl/seed-1 left no save"):
        asked(steps(), "1")


def test_another_schedule_than_constant_is_spoken_of(steps: Callable[..., Steps]) -> None:
    linear = "stages.rl.schedule=linear"
    finish(steps(linear), {"rl/seed-1": 0.5, "rl/seed-2": 0.7})
    _, (note,) = extensions_of(list(steps(linear).values()), "rl", "all", 200)
    assert "linear" in note and "300 steps" in note
    finish(steps(), {"rl/seed-1": 0.5, "rl/seed-2": 0.7})
    assert extensions_of(list(steps().values()), "rl", "all", 200)[1] == []


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_it_is_noted_and_run_and_every_later_command_knows_it(
    project: Path, steps: Callable[..., Steps], monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(steps(), {"rl/seed-1": 0.5, "rl/seed-2": 0.7})
    ran: list[Any] = []
    monkeypatch.setattr(running, "run_and_show", lambda recipe, console: ran.append(recipe))
    done = invoke("extend", project / "recipe.yaml", "--stage", "rl", "--seed", "best", "--steps", "+200")
    assert done.exit_code == 0, done.output
    (recipe,) = ran
    assert [(one.run, one.steps) for one in recipe.stages[0].extend] == [("seed-2", 200)]
    assert "rl/seed-2 goes on to 200 steps beyond its own" in done.output
    made = steps()
    assert made["rl/seed-2+200"].stage.steps == 300  # type: ignore[union-attr]
    assert not made["rl"].done  # chosen anew, among three
    again = invoke("extend", project / "recipe.yaml", "--seed", "1", "--steps", "30", "--only-record")
    assert again.exit_code == 0
    assert len(ran) == 1
    assert yaml.safe_load((project / "out" / "extend.yaml").read_text()) == {
        "rl": [{"run": "seed-2", "steps": 200}, {"run": "seed-1", "steps": 30}]
    }


def test_nothing_is_noted_while_a_run_holds_the_folder_or_when_asked_badly(
    project: Path, steps: Callable[..., Steps]
) -> None:
    finish(steps(), {"rl/seed-1": 0.5, "rl/seed-2": 0.7})
    recipe = project / "recipe.yaml"
    with exclusive(project / "out" / ".lock", "a run"):
        refused = invoke("extend", recipe, "--steps", "+200")
    assert isinstance(refused.exception, TuluLiteError)
    for arguments, said in (
        (("--steps", "none"), "no number of steps"),
        (("--steps", "+0"), "no number of steps"),
        (("--steps", "+5", "--stage", "sft"), "no stage 'sft' whose runs can go on"),
        (("--steps", "+5", "--seed", "9"), "no run '9'"),
    ):
        refused = invoke("extend", recipe, *arguments)
        assert said in str(refused.exception)
    assert not (project / "out" / "extend.yaml").exists()


def test_batches_ahead_that_a_shorter_run_did_not_begin_are_spoken_of(steps: Callable[..., Steps]) -> None:
    ahead = "stages.rl.rhythm=one_behind"
    finish(steps(ahead), {"rl/seed-1": 0.5, "rl/seed-2": 0.7})
    _, (note,) = extensions_of(list(steps(ahead).values()), "rl", "all", 200)
    assert "one_behind" in note and "newer weights" in note
