"""\"Write your own verifier in five minutes\", done exactly as the README says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from verifiers import Sample, build

README = Path(__file__).parents[3] / "README.md"
SECTION = (
    README.read_text(encoding="utf-8")
    .split("## Write your own verifier in five minutes")[1]
    .split("\n## ")[0]
)


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```([a-z]*)\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
    return [text for marked, text in found if marked == language]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that a reader has made, and `python` on the path."""
    (tmp_path / "my_verifier.py").write_text(blocks("python")[0])
    (tmp_path / "rows.jsonl").write_text(blocks("json")[0])
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    return tmp_path


def commands() -> list[tuple[str, str]]:
    """[(command, what it prints)] of the blocks with a prompt."""
    found = []
    for block in blocks(""):
        joined = block.replace("\\\n", " ")
        found += re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", joined, re.MULTILINE)
    return found


def sh(command: str, folder: Path) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-c", command], cwd=folder, capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_commands_print_what_is_written(folder: Path) -> None:
    assert len(commands()) == 3
    for command, printed in commands():
        said = sh(command, folder)
        for line in printed.splitlines():
            assert line == "..." or line in said.splitlines(), f"{command}\n{said}"
    scores = [json.loads(line)["score"] for line in (folder / "scores.jsonl").read_text().splitlines()]
    assert scores == [1.0, 1.0, 0.0]
    gated = [json.loads(line)["score"] for line in (folder / "long.jsonl").read_text().splitlines()]
    assert gated == [1.0, 0.0, 0.0]  # "Rome, of course!" has a comma


def test_the_specs_of_the_table_can_be_built(folder: Path) -> None:
    named = re.findall(r"^\| `(\{.*?\})` \|", SECTION, re.MULTILINE)
    yaml = pytest.importorskip("yaml")
    assert len(named) >= 5
    for text in named:
        spec = yaml.safe_load(text.replace("SPEC", "math"))
        build(spec, folder)


def test_every_built_in_that_the_readme_names_is_there() -> None:
    table = SECTION.split("| built in | judges |")[1]
    for row in table.splitlines():
        for name in re.findall(r"`([a-z_0-9]+)`", row.partition(" | ")[0]):
            from verifiers import names

            assert name in names()


def test_it_judges_as_the_text_says(folder: Path) -> None:
    built = build("my_verifier.py", folder)
    assert built.verify(Sample("<think>Rome?</think>It is Paris.", "Paris")).score == 1.0
    assert built.verify(Sample("It is Paris.", "Paris", finished=False)).score == 0.0
    assert built.verify(Sample("It is Paris.")).score is None
