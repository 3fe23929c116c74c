"""The command line: what is right exits 0; what a user can mend exits 2 with one clear message and no traceback."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tulu_lite import cli
from tulu_lite.datasets.chat import ChatTemplate, load_tokenizer
from tulu_lite.datasets.prompts import load_prompts
from tulu_lite.pipeline.expand import expand
from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.pipeline.lock import exclusive
from tulu_lite.recipe import dump_recipe, load_recipe
from tulu_lite.stages.context import StepContext

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
BASE = ROOT / "data" / "quickstart" / "base"
Tulu = Callable[..., tuple[int, str, str]]


class EditorYaml(yaml.SafeLoader):
    """YAML 1.2, as editors read it: 5e-4 is a number."""


EditorYaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def as_editor(file: Path) -> Any:
    return yaml.load(file.read_text(), Loader=EditorYaml)


@pytest.fixture
def tulu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tulu:
    """Call the command in this process; returns its exit code, what it printed, and its errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tulu-lite", *(str(argument) for argument in arguments)])
        monkeypatch.setattr(cli.console, "_width", 160)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        code = ended.value.code
        return (0 if code is None else int(code)), printed.out, printed.err

    return call


ROWS = [
    {"prompt": f"Add {i} and 1.", "completion": str(i + 1), "reference": str(i + 1), "verifier": "number"}
    for i in range(8)
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small recipe that plans well; tests spoil one thing in it."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "test.jsonl").write_text(json.dumps({**ROWS[0], "prompt": "Add 90 and 1."}) + "\n")
    stages = [
        {"name": "sft", "kind": "sft", "data": "rows.jsonl", "max_length": 160, "learning_rate": 1e-3},
        {
            "name": "pairs",
            "kind": "preferences",
            "init": "sft",
            "data": "rows.jsonl",
            "sampling": {"max_tokens": 8},
        },
        {
            "name": "dpo",
            "kind": "dpo",
            "init": "sft",
            "data": {"stage": "pairs"},
            "max_length": 160,
            "learning_rate": 1e-4,
        },
        {
            "name": "test",
            "kind": "evaluate",
            "models": ["base", "dpo"],
            "data": "test.jsonl",
            "max_tokens": 8,
        },
    ]
    recipe = {
        "name": "small",
        "model": str(BASE),
        "output": "./out",
        "server": {"max_model_len": 160},
        "stages": stages,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return tmp_path


def edit(project: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = project / "recipe.yaml"
    data = yaml.safe_load(file.read_text())
    change(data)
    file.write_text(yaml.safe_dump(data, sort_keys=False))


def test_help_names_the_commands_and_the_installed_command_is_this_one() -> None:
    command = shutil.which("tulu-lite", path=str(Path(sys.executable).parent)) or "tulu-lite"
    done = subprocess.run([command, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name in ("run", "plan", "report", "runs", "schema", "serve"):
        assert name in done.stdout


def test_the_quickstart_is_planned_whole_with_sizes(tulu: Tulu, tmp_path: Path) -> None:
    code, out, err = tulu("plan", QUICKSTART, f"output={tmp_path}/out")
    assert (code, err) == (0, "")
    for seed in (1, 2, 3):
        assert f"rlvr/seed-{seed}" in out
        assert f"test/rlvr/seed-{seed}" in out
    for step in ("sft", "preferences", "dpo", "test/base", "test/sft", "test/dpo", "choose the run"):
        assert step in out
    assert "18 steps" in out
    assert "0 of 13 steps are done" in out.replace("\n", " ")
    assert not (tmp_path / "out" / "steps").exists()  # a plan spends nothing


@pytest.mark.parametrize("command", ["report", "runs"])
def test_report_and_runs_before_anything_ran(tulu: Tulu, project: Path, command: str) -> None:
    code, out, err = tulu(command, project / "recipe.yaml")
    assert (code, out) == (2, "")
    assert (
        "small has not been run yet" in err and f"cure: run it (tulu-lite run {project}/recipe.yaml)" in err
    )
    assert not (project / "out").exists()
    assert tulu("plan", project / "recipe.yaml")[0] == 0  # makes a ledger, and runs nothing
    assert "has not been run yet" in tulu(command, project / "recipe.yaml")[2]


@pytest.mark.parametrize("command", ["report", "runs"])
def test_report_and_runs_take_an_output_folder(tulu: Tulu, project: Path, command: str) -> None:
    recipe = load_recipe(project / "recipe.yaml")
    (project / "out" / "steps").mkdir(parents=True)
    (project / "out" / "recipe.yaml").write_text(dump_recipe(recipe))
    code, _, err = tulu(command, project / "out")
    assert (code, err) == (0, "")


def test_schema_accepts_the_shipped_recipes_and_refuses_a_wrong_one(tulu: Tulu, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    code, out, _ = tulu("schema")
    assert code == 0
    assert tulu("schema", "-o", file)[0] == 0
    schema = json.loads(out)
    assert json.loads(file.read_text()) == schema
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for recipe in sorted((ROOT / "recipes").rglob("*.yaml")):
        if recipe.parent.name != "accelerate":
            validator.validate(as_editor(recipe))
    wrong = as_editor(QUICKSTART)
    wrong["stages"][0]["learning_rte"] = 1
    assert not validator.is_valid(wrong)
    wrong = as_editor(QUICKSTART)
    wrong["stages"][0]["kind"] = "sfft"
    assert not validator.is_valid(wrong)


def spoil_row(project: Path, line: int, **fields: Any) -> None:
    rows = [dict(row) for row in ROWS]
    for name, value in fields.items():
        rows[line - 1].pop(name) if value is None else rows[line - 1].update({name: value})
    (project / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def no_end_token(project: Path) -> None:
    (project / "chat.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    edit(project, lambda recipe: recipe.update(chat_template="./chat.jinja"))


def no_model(project: Path) -> None:
    (project / "model").mkdir()
    (project / "model" / "notes.txt").write_text("none here")
    edit(project, lambda recipe: recipe.update(model="./model"))


def below_a_file(project: Path) -> None:
    edit(project, lambda recipe: recipe.update(output="./rows.jsonl/out"))


FAULTS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "unknown field": (lambda p: edit(p, lambda r: r["stages"][0].update(learning_rte=1)), ["stages.0 (sft).learning_rte", "did you mean learning_rate"]),
    "wrong value": (lambda p: edit(p, lambda r: r["stages"][0].update(epochs=0)), ["stages.0 (sft).epochs"]),
    "no recipe": (lambda p: (p / "recipe.yaml").unlink(), ["there is no recipe"]),
    "broken yaml": (lambda p: (p / "recipe.yaml").write_text("name: x\nmodel: [a\n"), ["recipe.yaml:", "not valid YAML"]),
    "a later stage": (lambda p: edit(p, lambda r: r["stages"][1].update(init="dpo")), ["stages.1 (pairs).init", "'dpo'", "later"]),
    "no such stage": (lambda p: edit(p, lambda r: r["stages"][1].update(init="sfft")), ["stages.1 (pairs).init", "'sfft'"]),
    "missing data file": (lambda p: (p / "rows.jsonl").unlink(), ["there is no file", "rows.jsonl"]),
    "empty data file": (lambda p: (p / "rows.jsonl").write_text(""), ["rows.jsonl has no rows"]),
    "broken line": (lambda p: (p / "rows.jsonl").write_text(json.dumps(ROWS[0]) + '\n{"prompt": \n'), ["rows.jsonl:2", "not valid JSON"]),
    "row without completion": (lambda p: spoil_row(p, 3, completion=None), ["rows.jsonl:3", "completion"]),
    "row without reference": (lambda p: spoil_row(p, 5, reference=None), ["rows.jsonl:5", "reference"]),
    "row without verifier": (lambda p: spoil_row(p, 6, verifier=None), ["rows.jsonl:6", "verifier"]),
    "unknown verifier": (lambda p: spoil_row(p, 2, verifier="numbr"), ["rows.jsonl:2", "numbr", "bad_rows: drop"]),
    "unusable reference": (lambda p: spoil_row(p, 2, reference="none"), ["rows.jsonl:2", "number", "none", "bad_rows: drop"]),
    "prompt past the context": (lambda p: spoil_row(p, 4, prompt="Add 1 and 1. " * 60), ["rows.jsonl:4", "tokens"]),
    "no model": (no_model, ["is no model", "config.json"]),
    "no model folder": (lambda p: edit(p, lambda r: r.update(model="./nowhere")), ["nowhere", "does not exist"]),
    "template without an end token": (no_end_token, ["chat.jinja", "end"]),
    "max_length past the context": (lambda p: edit(p, lambda r: r["stages"][0].update(max_length=4096)), ["stage sft", "4096", "160"]),
    "no room for a prompt": (lambda p: edit(p, lambda r: r["stages"][3].update(max_tokens=160)), ["stage test", "max_tokens 160"]),
    "output below a file": (below_a_file, ["cannot write", "rows.jsonl"]),
    "output that cannot be made": (lambda p: edit(p, lambda r: r.update(output="/proc/none/out")), ["cannot", "/proc/none"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_exits_2_with_one_clear_message(tulu: Tulu, project: Path, fault: str) -> None:
    spoil, said = FAULTS[fault]
    spoil(project)
    before = {path for path in project.rglob("*") if "out" not in path.relative_to(project).parts}
    for command in ("plan", "run"):
        code, _, err = tulu(command, project / "recipe.yaml")
        assert code == 2, err
        assert "Traceback" not in err
        for words in said:
            assert words in err
        assert "cure" in err or "\n  - " in err or ":" in err.splitlines()[0]
    assert {path for path in project.rglob("*") if "out" not in path.relative_to(project).parts} == before
    assert not (project / "out" / "steps").exists()  # nothing was begun


@pytest.mark.parametrize("spoilt", [{"reference": "none"}, {"verifier": "numbr"}])
def test_a_row_that_its_verifier_cannot_use_is_left_out_by_plan_and_stage_alike(
    tulu: Tulu, project: Path, spoilt: dict[str, str]
) -> None:
    spoil_row(project, 2, **spoilt)
    edit(project, lambda recipe: recipe["stages"][1].update(bad_rows="drop"))
    code, out, err = tulu("plan", project / "recipe.yaml")
    assert (code, err) == (0, "")
    assert re.search(r"pairs: 1 of 8 rows dropped: a .* cannot .*rows\.jsonl:2\)", out.replace("\n", " "))
    code, out, _ = tulu("data", "report", project / "recipe.yaml", "--stage", "pairs", "--json")
    assert code == 0 and sum(json.loads(out)["dropped"].values()) == 1

    recipe = load_recipe(project / "recipe.yaml")
    ledger = Ledger(project / "out")
    steps = {step.id: step for step in expand(recipe, ledger)}
    stage = StepContext(recipe, steps["pairs"].stage, steps["pairs"], steps, ledger, is_main=True).stage
    template = ChatTemplate.load(recipe.chat_template, load_tokenizer(recipe.model), recipe.model)
    made = load_prompts(stage.data, template, seed=0, max_prompt_tokens=None, rules=stage)
    assert [prompt.reference for prompt in made] == [str(i + 1) for i in range(8) if i != 1]


def test_a_verifier_that_the_recipe_names_is_no_rows_fault(tulu: Tulu, project: Path) -> None:
    edit(project, lambda recipe: recipe["stages"][1].update(bad_rows="drop", data={"path": "rows.jsonl", "verifier": "numbr"}))  # fmt: skip
    code, _, err = tulu("plan", project / "recipe.yaml")
    assert code == 2 and "stage pairs: the verifier 'numbr' cannot be used" in err


def test_every_problem_of_a_recipe_is_named_at_once(tulu: Tulu, project: Path) -> None:
    edit(
        project, lambda recipe: (recipe["stages"][0].update(epochs=0), recipe["stages"][3].pop("max_tokens"))
    )
    _, _, err = tulu("plan", project / "recipe.yaml")
    assert "2 problems" in err
    assert "epochs" in err
    assert "max_tokens" in err


def test_a_wrong_override_is_named(tulu: Tulu, project: Path) -> None:
    assert "stages.sftt" in (result := tulu("plan", project / "recipe.yaml", "stages.sftt.epochs=2"))[2]
    assert result[0] == 2
    assert tulu("plan", project / "recipe.yaml", "epochs")[0] == 2


def test_a_port_in_use_is_said_before_any_step(tulu: Tulu, project: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = tulu("run", project / "recipe.yaml", f"server.port={port}")
    assert code == 2
    assert str(port) in err
    assert "Traceback" not in err
    assert not list((project / "out").glob("steps/*/*/result.json"))


def test_a_second_run_on_the_same_output_is_refused_and_says_who_holds_it(tulu: Tulu, project: Path) -> None:
    with exclusive(project / "out" / ".lock", "a test"):
        code, _, err = tulu("run", project / "recipe.yaml")
    assert code == 2
    assert "in use by another process" in err
    assert "process " in err
    assert "set another `output`" in err
    assert sorted(path.name for path in (project / "out").iterdir()) == [".lock"]  # nothing was touched
