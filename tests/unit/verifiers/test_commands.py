"""The command line: list, show, score (and going on after a stop), check."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from verifiers import Sample, VerifierError, VerifierPool
from verifiers.cli import main
from verifiers.score import Columns, score_file


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(
        tmp_path / "rows.jsonl", [{"response": f"It is {i}.", "reference": i % 3} for i in range(30)]
    )


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert "gsm8k " in listed
    assert "think_answer " in listed
    assert main(["show", "contains"]) == 0
    shown = capsys.readouterr().out
    assert "word: str  (required)" in shown
    assert "at_least: int | None = None" in shown
    assert main(["show", "contians"]) == 2
    assert "Did you mean 'contains'" in capsys.readouterr().err


def test_score_writes_a_verdict_a_row(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "out.jsonl"
    assert main(["score", str(rows), "--verifier", "number", "--out", str(out)]) == 0
    assert [row["score"] for row in read(out)] == [float(i < 3) for i in range(30)]
    assert "30 rows in" in (said := capsys.readouterr().out)
    assert "mean score 0.1000 of 30 scored; 3 correct, 27 incorrect" in said
    assert main(["score", str(rows), "--verifier", "number", "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "spec", ['{"use": "contains", "args": {"word": "It"}}', "{use: contains, args: {word: It}}"]
)
def test_specs_on_the_command_line(rows: Path, tmp_path: Path, spec: str) -> None:
    assert main(["score", str(rows), "--verifier", spec, "--out", str(tmp_path / "o")]) == 0
    assert {row["score"] for row in read(tmp_path / "o")} == {1.0}


def test_mistakes_are_said_with_their_place(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "o")]
    assert main(["score", str(rows), "--verifier", "no_such", *out]) == 2
    assert main(["score", str(rows), "--verifier", "number", "--response", "text", *out]) == 2
    said = capsys.readouterr().err
    assert "no verifier is called 'no_such'" in said
    assert "line 1: the column 'text' is missing" in said
    rows.write_text('{"response": "x"}\n{broken\n')
    assert main(["score", str(rows), "--verifier", "number", *out]) == 2
    assert "line 2: not JSON" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verifiers.score.CHUNK", 10)
    (tmp_path / "counted.py").write_text(
        "from pathlib import Path\n"
        "def f(response, reference):\n"
        f"    with open({str(tmp_path / 'calls')!r}, 'a') as file: file.write(response + '\\n')\n"
        "    return response == reference\n"
    )
    rows = write(tmp_path / "rows.jsonl", [{"response": str(i), "reference": "7"} for i in range(35)])
    spec, out = f"{tmp_path}/counted.py:f", tmp_path / "out.jsonl"

    class Stopped(Exception):
        pass

    class Stopping(VerifierPool):
        rounds = 0

        def verify(self, items, on_result=None):  # type: ignore[no-untyped-def]
            self.rounds += 1
            if self.rounds == 3:
                raise Stopped
            return super().verify(items, on_result)

    with Stopping() as pool, pytest.raises(Stopped):
        score_file(rows, out, spec, Columns(), pool)
    partial = tmp_path / "out.jsonl.partial"
    assert len(read(partial)) == 20
    assert not out.exists()
    with partial.open("a") as file:
        file.write('{"key": "cut o')  # what a crash in the middle of a line leaves
    with VerifierPool() as pool:
        summary = score_file(rows, out, spec, Columns(), pool)
    assert (summary.rows, summary.resumed) == (35, 20)
    assert [row["score"] for row in read(out)] == [float(i == 7) for i in range(35)]
    assert sorted(map(int, (tmp_path / "calls").read_text().split())) == list(range(35))  # each once
    assert not partial.exists()


def test_a_partial_file_of_another_verifier_is_refused(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").write_text(json.dumps({"key": "0" * 16}) + "\n")
    with VerifierPool() as pool, pytest.raises(VerifierError, match="other rows or another verifier"):
        score_file(rows, tmp_path / "out", "number", Columns(), pool)


GOOD = '''
from verifiers import verifier
@verifier("good_one")
def good(response: str, reference: str) -> bool:
    """The last word is the reference."""
    return response.split()[-1:] == [reference]
'''
FAULTY = {
    "crashes on nothing": ("return response.split()[-1] == reference", "empty"),
    "accepts all": ("return True", "other rows' answers"),
    "is random": ("import os; return int.from_bytes(os.urandom(2), 'big') / 65536", "deterministic"),
    "misses the gold": ("return False", "gold answers"),
    "hangs": ("import re; return bool(re.match(r'(a+)+$', response)) or response.endswith(reference)", "nested quantifiers' food"),
    "no score": ("return None", "gold answers"),
}  # fmt: skip


def test_check_passes_a_good_verifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "good.py").write_text(GOOD)
    rows = write(tmp_path / "rows.jsonl", [{"reference": w, "response": f"so {w}"} for w in ("a", "b", "c")]
                 + [{"reference": "a", "response": "b", "score": 0}])  # fmt: skip
    assert main(["check", str(tmp_path / "good.py"), "--rows", str(rows)]) == 0, capsys.readouterr().out
    assert "FAIL" not in capsys.readouterr().out


@pytest.mark.parametrize("fault", FAULTY)
def test_check_finds_the_fault(tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    body, finding = FAULTY[fault]
    (tmp_path / "bad.py").write_text(f"def bad(response, reference):\n    {body}\n")
    rows = write(tmp_path / "rows.jsonl", [{"reference": w, "response": f"so {w}"} for w in ("x", "y", "z")])
    assert main(["check", f"{tmp_path}/bad.py:bad", "--rows", str(rows), "--timeout", "1"]) == 1
    assert f"FAIL  {finding}" in capsys.readouterr().out


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "verifiers", "list"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("boxed ")


def test_a_row_becomes_a_sample() -> None:
    row = {"text": "r", "answer": 5, "prompt": None, "finished": False, "id": 9}
    assert Columns("text", "answer").sample(row, "row") == Sample("r", 5, "", False, {"id": 9})
