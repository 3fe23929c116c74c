"""Keys change exactly when a result would; the plan says what is done, what runs, and why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tulu_lite.errors import TuluLiteError
from tulu_lite.pipeline.expand import expand
from tulu_lite.pipeline.fingerprint import verifier_files
from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.pipeline.plan import make_plan
from tulu_lite.pipeline.steps import Step
from tulu_lite.recipe import load_recipe

ROWS = [
    {"prompt": f"what is {i}?", "completion": str(i), "reference": str(i), "verifier": "number"}
    for i in range(8)
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "mine.py").write_text("def judge(response, reference):\n    return True\n")
    recipe = {
        "name": "tiny",
        "model": "./model",
        "output": "./out",
        "verifiers": {"mine": "mine.py:judge"},
        "stages": [
            {"name": "sft", "kind": "sft", "data": "rows.jsonl", "learning_rate": 1e-3},
            {"name": "pairs", "kind": "preferences", "init": "sft", "data": "rows.jsonl", "sampling": {"max_tokens": 4}},
            {"name": "dpo", "kind": "dpo", "init": "sft", "data": {"stage": "pairs"}, "learning_rate": 1e-4},
            {
                "name": "rl", "kind": "rlvr", "init": "dpo", "data": {"path": "rows.jsonl", "share": [0, 0.5]},
                "validation": {"path": "rows.jsonl", "share": [0.5, 1]},
                "seeds": [1, 2], "steps": 2, "sampling": {"max_tokens": 4}, "learning_rate": 1e-4,
            },
            {"name": "test", "kind": "evaluate", "models": ["base", "sft", "rl"], "data": "rows.jsonl", "max_tokens": 4},
        ],
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def steps(project: Path, *overrides: str) -> dict[str, Step]:
    recipe = load_recipe(project / "recipe.yaml", overrides)
    return {step.id: step for step in expand(recipe, Ledger(Path(recipe.output)))}


def changed(project: Path, *overrides: str) -> set[str]:
    before, after = steps(project), steps(project, *overrides)
    return {id for id in before if before[id].key != after[id].key}


ALL = {
    "test/base",
    "sft",
    "test/sft",
    "pairs",
    "dpo",
    "rl/seed-1",
    "test/rl/seed-1",
    "rl/seed-2",
    "test/rl/seed-2",
    "rl",
}


def test_order_puts_each_evaluation_right_after_its_model(project: Path) -> None:
    order = [
        "test/base",
        "sft",
        "test/sft",
        "pairs",
        "dpo",
        "rl/seed-1",
        "test/rl/seed-1",
        "rl/seed-2",
        "test/rl/seed-2",
        "rl",
    ]
    assert list(steps(project)) == order


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stages.sft.epochs=2", ALL - {"test/base"}),
        ("stages.dpo.beta=1", {"dpo", "rl/seed-1", "rl/seed-2", "rl", "test/rl/seed-1", "test/rl/seed-2"}),
        ("stages.rl.steps=3", {"rl/seed-1", "rl/seed-2", "rl", "test/rl/seed-1", "test/rl/seed-2"}),
        ("stages.test.max_tokens=5", {"test/base", "test/sft", "test/rl/seed-1", "test/rl/seed-2"}),
        ("stages.sft.micro_batch_tokens=100", set()),
        ("server.port=8123", set()),
        ("accelerate.num_processes=2", set()),
        ("name=other", set()),
        ("seed=5", ALL - {"rl"} | {"rl"}),
        ("chat_template=tulu", ALL),
    ],
)
def test_a_change_reaches_all_that_hangs_on_it_and_nothing_else(
    project: Path, override: str, expected: set[str]
) -> None:
    assert changed(project, override) == expected


def test_another_seed_leaves_the_runs_of_the_others(project: Path) -> None:
    before, after = steps(project), steps(project, "stages.rl.seeds=[1, 2, 3]")
    assert after["rl/seed-2"].key == before["rl/seed-2"].key
    assert after["rl"].key != before["rl"].key
    assert "rl/seed-3" in after


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("rows.jsonl", ALL),
        ("model/model.safetensors", ALL),
        ("mine.py", ALL - {"sft"}),
        ("model/README.md", set()),
    ],
)
def test_content_of_files_counts(project: Path, file: str, expected: set[str]) -> None:
    before = steps(project)
    path = project / file
    path.write_bytes((path.read_bytes() if path.exists() else b"") + b"\n ")
    after = steps(project)
    if file == "mine.py":  # what hangs on a judged step hangs on the verifier too, but not the sft before
        expected -= {"test/base"} if before["test/base"].key == after["test/base"].key else set()
    assert {id for id in before if before[id].key != after[id].key} == expected


def test_files_of_verifiers_are_found_wherever_a_spec_names_them() -> None:
    spec = {"gate": ["math", "a.py", {"use": "b.py:judge", "args": {"x": "c.py"}}]}
    assert verifier_files(spec) == [Path("a.py"), Path("b.py")]


def test_a_copied_file_is_the_same_content(project: Path) -> None:
    before = steps(project)
    shutil.copy(project / "rows.jsonl", project / "copy.jsonl")
    (project / "rows.jsonl").unlink()
    (project / "copy.jsonl").rename(project / "rows.jsonl")
    assert {id: step.key for id, step in steps(project).items()} == {
        id: step.key for id, step in before.items()
    }


def finish(step: Step, **result: Any) -> None:
    step.folder.mkdir(parents=True, exist_ok=True)
    step.result_file.write_text(json.dumps({"model": "model", "summary": {}, **result}))


def plan(project: Path, *overrides: str) -> dict[str, tuple[str, str]]:
    recipe = load_recipe(project / "recipe.yaml", overrides)
    return {planned.step.id: (planned.state, planned.reason) for planned in make_plan(recipe, sizes=False)}


def test_the_plan_says_what_is_done_and_why_the_rest_runs(project: Path) -> None:
    made = steps(project)
    ledger = Ledger(project / "out")
    for id in ("test/base", "sft"):
        finish(made[id])
        step = made[id]
        ledger.start_step(step, [])
    (made["pairs"].folder).mkdir(parents=True)
    (made["dpo"].folder / "checkpoints" / "step-000004").mkdir(parents=True)
    now = plan(project)
    assert now["sft"] == ("done", "result is there")
    assert now["test/sft"] == ("run", "new")
    assert now["pairs"] == ("resume", "was begun; starts over, nothing was saved")
    assert now["dpo"] == ("resume", "was begun; goes on from step-000004")
    assert now["rl/seed-1"] == ("run", "new")
    changed_rate = plan(project, "stages.sft.learning_rate=0.002")
    assert changed_rate["sft"] == ("run", "changed: learning_rate 0.001 -> 0.002")
    (project / "rows.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    assert plan(project)["sft"] == ("run", "changed: the content of data.0")


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda p: (p / "model" / "model.safetensors").unlink(), "holds no *.safetensors"),
        (lambda p: (p / "model" / "config.json").unlink(), "holds no config.json"),
        (lambda p: shutil.rmtree(p / "model"), "does not exist"),
        (lambda p: (p / "rows.jsonl").unlink(), "there is no file"),
        (lambda p: (p / "mine.py").unlink(), "there is no file"),
    ],
)
def test_missing_inputs_are_named(project: Path, break_it: Any, said: str) -> None:
    break_it(project)
    with pytest.raises(TuluLiteError) as caught:
        steps(project)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "choosing",
    [
        "stages.rl.data={path: rows.jsonl, limit: 4}",
        "stages.rl.validation={path: rows.jsonl, limit: 4}",
        "stages.rl.data=[{path: rows.jsonl, weight: 1}, {path: rows.jsonl, weight: 2, source: b}]",
    ],
)
def test_the_seed_that_chooses_rows_is_part_of_each_run(project: Path, choosing: str) -> None:
    """Runs have seeds of their own, but which rows there are hangs on the recipe's."""

    def keys(*overrides: str) -> list[str]:
        made = steps(project, "stages.rl.init=base", *overrides)
        return [made[f"rl/seed-{seed}"].key for seed in (1, 2)]

    assert keys("seed=1") == keys("seed=1")
    assert keys() == keys("seed=7")  # all rows are used
    three = [keys(choosing, f"seed={seed}") for seed in (0, 1, 7)]
    assert all(len({made[run] for made in three}) == 3 for run in (0, 1))


def test_recorded_rollouts_count_by_their_content(project: Path) -> None:
    folder = project / "rollouts"
    folder.mkdir()
    (folder / "step-000001.jsonl").write_text("{}")
    replayed = ("stages.rl.replay=./rollouts", "stages.rl.seeds=[1]")
    before = steps(project, *replayed)["rl/seed-1"].key
    assert steps(project, *replayed)["rl/seed-1"].key == before
    (folder / "step-000001.jsonl").write_text("{ }")
    changed = steps(project, *replayed)["rl/seed-1"].key
    (folder / "step-000002.jsonl.gz").write_bytes(b"")
    assert len({before, changed, steps(project, *replayed)["rl/seed-1"].key}) == 3


@pytest.mark.parametrize("changed", ["d1", "d2"])
def test_two_verifier_files_of_one_name_both_count(project: Path, changed: str) -> None:
    for folder in ("d1", "d2"):
        (project / folder).mkdir()
        (project / folder / "check.py").write_text(f"# {folder}\ndef f(response): return 1\n")
    both = "verifiers.mine={all_of: [{use: 'd1/check.py:f', name: x}, {use: 'd2/check.py:f', name: y}]}"
    before = steps(project, both)["rl/seed-1"].key
    assert steps(project, both)["rl/seed-1"].key == before
    (project / changed / "check.py").write_text("def f(response): return 0\n")
    assert steps(project, both)["rl/seed-1"].key != before


def test_what_is_trained_on_recorded_rollouts_needs_no_server(project: Path) -> None:
    assert steps(project)["rl/seed-1"].samples
    replayed = steps(project, "stages.rl.replay=./rollouts", "stages.rl.seeds=[1]")
    assert not replayed["rl/seed-1"].samples
