"""Sweeps, seeds and longer runs as steps: their names, order and keys, and what hangs on the choice among them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tulu_lite.pipeline.expand import expand
from tulu_lite.pipeline.fingerprint import digest
from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.pipeline.plan import make_plan
from tulu_lite.pipeline.select import choice_result
from tulu_lite.pipeline.sizes import StepSizes
from tulu_lite.pipeline.steps import Step, model_path
from tulu_lite.recipe import load_recipe
from tulu_lite.records import Prompt

RL = {
    "kind": "rlvr", "seeds": [1, 2], "steps": 10, "sampling": {"max_tokens": 4}, "learning_rate": 1e-4,
}  # fmt: skip
Steps = dict[str, Step]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The OLMo 2 way: sft, then rlvr on a mix, on gsm8k, on math, each from the winner of the one before."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    for name in ("sft", "held", "mix", "gsm8k", "math", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name}) + "\n")
    rl = [
        {"name": name, "init": init, "data": f"{name}.jsonl", "validation": "held.jsonl", **RL}
        for name, init in (("mix", "sft"), ("gsm8k", "mix"), ("math", "gsm8k"))
    ]
    test = {
        "name": "test",
        "kind": "evaluate",
        "models": ["sft", "mix", "math"],
        "data": "test.jsonl",
        "max_tokens": 4,
    }
    sft = {"name": "sft", "kind": "sft", "data": "sft.jsonl", "learning_rate": 1e-3}
    recipe = {"name": "olmo", "model": "./model", "output": "./out", "stages": [sft, *rl, test]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


@pytest.fixture
def steps(project: Path) -> Callable[..., Steps]:
    def expanded(*overrides: str) -> Steps:
        recipe = load_recipe(project / "recipe.yaml", overrides)
        return {step.id: step for step in expand(recipe, Ledger(project / "out"))}

    return expanded


def finish(step: Step, value: float | None = None, **summary: Any) -> None:
    if value is not None:
        summary["validation"] = {"metric": "accuracy", "value": value, "better": "higher"}
    step.folder.mkdir(parents=True, exist_ok=True)
    step.result_file.write_text(json.dumps({"model": "model", "summary": summary}))


def choose(steps: Steps, id: str) -> None:
    result = choice_result(steps[id], [steps[name] for name in steps[id].inputs])
    steps[id].folder.mkdir(parents=True, exist_ok=True)
    steps[id].result_file.write_text(json.dumps(result))


def test_each_stage_of_the_chain_starts_from_the_winner_of_the_one_before(
    steps: Callable[..., Steps], project: Path
) -> None:
    before = steps()
    assert list(before) == [
        "sft", "test/sft", "mix/seed-1", "test/mix/seed-1", "mix/seed-2", "test/mix/seed-2", "mix",
        "gsm8k/seed-1", "gsm8k/seed-2", "gsm8k",
        "math/seed-1", "test/math/seed-1", "math/seed-2", "test/math/seed-2", "math",
    ]  # fmt: skip
    waits = {id: step.waits_for for id, step in before.items() if step.waits_for}
    gsm8k = ["gsm8k/seed-1", "gsm8k/seed-2", "gsm8k"]
    math = ["math/seed-1", "test/math/seed-1", "math/seed-2", "test/math/seed-2", "math"]
    assert waits == dict.fromkeys(gsm8k, "mix") | dict.fromkeys(math, "gsm8k")
    assert before["mix"].waits_for is None  # it waits for its runs, not for a choice
    for seed, value in ((1, 0.5), (2, 0.75)):
        finish(before[f"mix/seed-{seed}"], value)
    choose(before, "mix")
    after = steps()
    assert after["mix"].outcome["summary"]["chosen"] == "mix/seed-2"
    assert {id for id, step in after.items() if step.waits_for} == {
        "math/seed-1",
        "math/seed-2",
        "test/math/seed-1",
        "test/math/seed-2",
        "math",
    }
    run = after["gsm8k/seed-1"]
    assert run.identity["inputs"] == {"mix": after["mix/seed-2"].key}
    assert run.key != before["gsm8k/seed-1"].key
    recipe = load_recipe(project / "recipe.yaml")
    assert model_path(after, recipe, run.model) == str(after["mix/seed-2"].folder / "model")


def test_what_hangs_on_a_choice_is_done_again_only_when_the_choice_changes(
    steps: Callable[..., Steps],
) -> None:
    first = steps()
    for seed, value in ((1, 0.5), (2, 0.75)):
        finish(first[f"mix/seed-{seed}"], value)
    choose(first, "mix")
    first = steps()
    more = "stages.mix.seeds=[1, 2, 3]"
    undecided = steps(more)
    assert undecided["mix/seed-2"].done
    assert undecided["gsm8k/seed-1"].waits_for == "mix"
    assert undecided["gsm8k/seed-1"].key not in {step.key for step in first.values()}
    finish(undecided["mix/seed-3"], 0.6)
    choose(undecided, "mix")
    loses = steps(more)
    assert loses["gsm8k/seed-1"].key == first["gsm8k/seed-1"].key
    assert loses["mix"].key != first["mix"].key
    finish(undecided["mix/seed-3"], 0.9)
    choose(undecided, "mix")
    wins = steps(more)
    assert wins["gsm8k/seed-1"].key != first["gsm8k/seed-1"].key


def test_what_waits_for_a_choice_has_a_key_that_nothing_done_has(steps: Callable[..., Steps]) -> None:
    """Also where what it reads looks done: a result under that key would be taken for one of the choice's."""
    made = steps()
    waiting = made["gsm8k/seed-1"]
    assert waiting.identity["waits_for"] == "mix"
    assert (
        digest({key: value for key, value in waiting.identity.items() if key != "waits_for"}) != waiting.key
    )


def test_a_choice_that_names_what_is_no_candidate_is_not_made(steps: Callable[..., Steps]) -> None:
    made = steps()
    finish(made["mix"], chosen="mix/seed-9")
    assert steps()["gsm8k/seed-1"].waits_for == "mix"


SWEEP = "stages.sft.sweep={learning_rate: [1e-3, 3e-3], epochs: [1, 2]}"
HELD = "stages.sft.validation=held.jsonl"


def test_a_sweep_of_any_training_stage_is_runs_keyed_by_content(steps: Callable[..., Steps]) -> None:
    plain = steps(HELD)
    swept = steps(HELD, SWEEP)
    runs = [id for id, step in swept.items() if step.kind == "sft"]
    assert runs == [
        f"sft/epochs={epochs},learning_rate={rate}" for rate in ("0.001", "0.003") for epochs in (1, 2)
    ]
    assert swept["sft"].kind == "select"
    assert swept["sft"].inputs == tuple(runs)
    settings = [(swept[id].stage.learning_rate, swept[id].stage.epochs) for id in runs]  # type: ignore[union-attr]
    assert settings == [(1e-3, 1), (1e-3, 2), (3e-3, 1), (3e-3, 2)]
    assert len({swept[id].key for id in runs}) == 4
    assert swept[runs[0]].key == plain["sft"].key  # the same work, whatever it is called
    assert all("/" not in swept[id].folder.parent.name for id in runs)
    more = steps(HELD, "stages.sft.sweep={learning_rate: [5e-3, 1e-3, 3e-3], epochs: [2, 1]}")
    for id in runs:
        assert (more[id].key, more[id].folder) == (swept[id].key, swept[id].folder)
    listed = steps(
        HELD, "stages.sft.sweep=[{learning_rate: 1e-3, epochs: 2}, {learning_rate: 3e-3, epochs: 1}]"
    )
    assert [id for id, step in listed.items() if step.kind == "sft"] == [runs[1], runs[2]]
    assert listed[runs[1]].key == swept[runs[1]].key


def test_evaluations_of_a_sweep_are_of_the_setting_that_goes_on(steps: Callable[..., Steps]) -> None:
    sweep = "stages.mix.sweep={kl_coefficient: [0.05, 0.01]}"
    before = steps(sweep)
    mine = [id for id in before if id.startswith("test/mix")]
    assert mine == ["test/mix/(chosen)/seed-1", "test/mix/(chosen)/seed-2"]
    assert list(before).index(mine[0]) == list(before).index("mix") + 1
    assert all(before[id].waits_for == "mix" for id in mine)
    for id, value in (("0.05/seed-1", 0.9), ("0.05/seed-2", 0.1), ("0.01/seed-1", 0.6), ("0.01/seed-2", 0.7)):
        finish(before[f"mix/kl_coefficient={id}"], value)
    choose(before, "mix")
    assert (
        before["mix"].outcome["summary"]["chosen"] == "mix/kl_coefficient=0.01/seed-2"
    )  # 0.65 on average, not 0.5
    after = steps(sweep)
    assert [id for id in after if id.startswith("test/mix")] == [
        "test/mix/kl_coefficient=0.01/seed-1",
        "test/mix/kl_coefficient=0.01/seed-2",
    ]
    assert [id for id in steps(sweep, "stages.test.runs=chosen") if id.startswith("test/mix")] == [
        "test/mix/kl_coefficient=0.01/seed-2"
    ]
    assert len([id for id in steps(sweep, "stages.test.runs=all") if id.startswith("test/mix")]) == 4
    one = after["test/mix/kl_coefficient=0.01/seed-2"]
    assert (
        one.key == steps(sweep, "stages.test.runs=all")[one.id].key
    )  # which are evaluated changes none of them


def test_only_the_chosen_seed_is_evaluated_when_the_recipe_says_so(steps: Callable[..., Steps]) -> None:
    made = steps("stages.test.runs=chosen")
    assert [id for id in made if id.startswith("test/mix")] == ["test/mix/(chosen)"]
    for seed, value in ((1, 0.5), (2, 0.75)):
        finish(made[f"mix/seed-{seed}"], value)
    choose(made, "mix")
    assert [id for id in steps("stages.test.runs=chosen") if id.startswith("test/mix")] == ["test/mix/seed-2"]


def test_runs_that_train_at_once_are_evaluated_after_all_of_them(steps: Callable[..., Steps]) -> None:
    made = steps("stages.mix.at_once=2")
    assert list(made)[2:7] == ["mix/seed-1", "mix/seed-2", "test/mix/seed-1", "test/mix/seed-2", "mix"]
    assert {id: step.key for id, step in made.items()} == {id: step.key for id, step in steps().items()}


def extended(steps: Callable[..., Steps], *lines: str) -> Steps:
    return steps(f"stages.mix.extend=[{', '.join(lines)}]")


def test_a_longer_run_goes_on_from_the_one_before_and_is_a_candidate(steps: Callable[..., Steps]) -> None:
    made = extended(steps, "{run: seed-2, steps: 16}", "{run: seed-2, steps: 9}")
    runs = [id for id, step in made.items() if step.stage.name == "mix" and step.trains]
    assert runs == ["mix/seed-1", "mix/seed-2", "mix/seed-2+9", "mix/seed-2+16"]
    assert made["mix"].inputs == tuple(runs)
    first, second = made["mix/seed-2+9"], made["mix/seed-2+16"]
    assert (first.extends, second.extends) == ("mix/seed-2", "mix/seed-2+9")
    assert (first.stage.steps, second.stage.steps) == (19, 26)  # type: ignore[union-attr]
    assert first.identity["inputs"] == {"sft": made["sft"].key, "mix/seed-2": made["mix/seed-2"].key}
    assert (first.seed, first.model) == (2, "sft")  # still the reference and the initial weights
    assert made["mix/seed-2"].key == steps()["mix/seed-2"].key
    assert "test/mix/seed-2+16" in made
    roles = dict(first.origins(made))
    assert roles == {made["sft"].key: "model", made["mix/seed-2"].key: "start"}
    every = extended(steps, "{run: all, steps: 5}")
    assert [id for id in every if "+5" in id and id.startswith("mix")] == ["mix/seed-1+5", "mix/seed-2+5"]


def test_the_best_goes_on_once_it_is_known(steps: Callable[..., Steps]) -> None:
    best = "{run: best, steps: 10}"
    before = extended(steps, best)
    assert before["mix/(best)+10"].waits_for == "mix/best"
    assert before["mix"].waits_for == "mix/best"
    assert list(before).index("mix/best") < list(before).index("mix/(best)+10") < list(before).index("mix")
    for seed, value in ((1, 0.5), (2, 0.75)):
        finish(before[f"mix/seed-{seed}"], value)
    choose(before, "mix/best")
    after = extended(steps, best)
    assert after["mix"].inputs == ("mix/seed-1", "mix/seed-2", "mix/seed-2+10")
    named = extended(steps, "{run: seed-2, steps: 10}")
    assert after["mix/seed-2+10"].key == named["mix/seed-2+10"].key
    assert after["mix"].key == named["mix"].key


def test_a_later_stage_stays_where_the_longer_run_loses(steps: Callable[..., Steps]) -> None:
    made = steps()
    for seed, value in ((1, 0.5), (2, 0.75)):
        finish(made[f"mix/seed-{seed}"], value)
    choose(made, "mix")
    before = steps()
    longer = extended(steps, "{run: seed-2, steps: 10}")
    finish(longer["mix/seed-2+10"], 0.7)
    choose(longer, "mix")
    assert extended(steps, "{run: seed-2, steps: 10}")["gsm8k/seed-1"].key == before["gsm8k/seed-1"].key
    finish(longer["mix/seed-2+10"], 0.8)
    choose(longer, "mix")
    after = extended(steps, "{run: seed-2, steps: 10}")
    assert after["gsm8k/seed-1"].key != before["gsm8k/seed-1"].key
    assert after["gsm8k/seed-1"].identity["inputs"] == {"mix": longer["mix/seed-2+10"].key}


def test_the_plan_says_what_waits_for_a_choice(project: Path) -> None:
    planned = {one.step.id: one for one in make_plan(load_recipe(project / "recipe.yaml"), sizes=False)}
    assert planned["gsm8k/seed-1"].state == "run"
    assert planned["gsm8k/seed-1"].reason == "once mix is chosen"


def test_sizes_are_of_each_setting_and_of_what_a_longer_run_has_left(
    steps: Callable[..., Steps], monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    overrides = [
        "stages.mix.sweep={samples_per_prompt: [4, 8]}", "stages.mix.prompts_per_step=2", "stages.mix.seeds=[1]",
        "stages.mix.extend=[{run: samples_per_prompt=4/seed-1, steps: 5}, {run: best, steps: 20}]",
    ]  # fmt: skip
    read: list[str] = []
    prompt = Prompt("p", "p", (1, 2, 3), "s")

    def six(self: StepSizes, stage: object, field: str, *_: object) -> list[Prompt]:
        read.append(field)
        return [replace(prompt, token_ids=(len(field),))] * 6

    monkeypatch.setattr(StepSizes, "_prompts", six)
    recipe = load_recipe(project / "recipe.yaml", overrides)
    measure = StepSizes(recipe, Ledger(project / "out"))
    made = {
        id: step for id, step in steps(*overrides).items() if step.stage.name == "mix" and step.kind == "rlvr"
    }
    sizes = {id: measure(step) for id, step in made.items()}
    # 10 steps of 2 prompts, and one validation of 6
    assert sizes["mix/samples_per_prompt=4/seed-1"].completions == 10 * 2 * 4 + 6
    assert sizes["mix/samples_per_prompt=8/seed-1"].completions == 10 * 2 * 8 + 6
    assert (
        sizes["mix/samples_per_prompt=4/seed-1+5"].completions == 5 * 2 * 4 + 6
    )  # validated at its end, step 15
    assert (
        sizes["mix/(best)+20"].completions == 20 * 2 * 4 + 2 * 6
    )  # at 20 and 30; the first setting stands in
    assert sizes["mix/(best)+20"].updates == 20
    assert read == ["data", "validation"]  # once for all of them


def test_a_run_that_was_stopped_early_does_not_go_on_with_all(steps: Callable[..., Steps]) -> None:
    made = extended(steps, "{run: all, steps: 5}")
    finish(made["mix/seed-1"], 0.1, stopped_early="far behind")
    after = extended(steps, "{run: all, steps: 5}")
    assert after["mix"].inputs == ("mix/seed-1", "mix/seed-2", "mix/seed-2+5")
