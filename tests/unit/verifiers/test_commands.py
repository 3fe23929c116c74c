"""The command line: list, show, score (and going on after a stop), check."""

from __future__ import annotations

import fcntl
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from verifiers import Sample, VerifierError, VerifierPool
from verifiers.cli import Ticker, duration, main, progress_text
from verifiers.score import Columns, Summary, score_file


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verifiers.battery.RATE_S", 0.1)


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


def test_a_run_that_was_killed_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\ndef f(response, reference):\n"
        "    open('calls', 'a').write('x')\n    time.sleep(0.01)\n    return response == reference\n"
    )
    data = [{"response": str(i % 9), "reference": "7", "n": i} for i in range(120)]
    rows, partial = write(tmp_path / "rows.jsonl", data), tmp_path / "out.partial"
    command = [sys.executable, "-m", "verifiers", "score", str(rows), "--verifier", "slow.py:f"]
    command += ["--out", "out", "--workers", "1"]
    process = subprocess.Popen(command, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait(10)
    assert not (tmp_path / "out").exists()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert "of them before)" in done.stdout
    assert [row["score"] for row in read(tmp_path / "out")] == [float(i % 9 == 7) for i in range(120)]
    assert not partial.exists()


def test_two_runs_do_not_write_one_file(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with VerifierPool() as pool, open(f"{out}.partial", "a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(VerifierError, match="being written by another run"):
            score_file(rows, out, "number", Columns(), pool)


def test_a_partial_file_that_is_garbage_is_refused(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").write_text("\x00\x00\x00\n")
    with VerifierPool() as pool, pytest.raises(VerifierError, match="Remove it to start again"):
        score_file(rows, tmp_path / "out", "number", Columns(), pool)


def test_another_version_of_the_verifier_is_another_verifier(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [{"response": str(i)} for i in range(3)])
    file = tmp_path / "mine.py"
    written = []
    for body in ("True", "False"):
        file.write_text(f"def f(response): return {body}\n")
        code = (
            "import sys\nfrom pathlib import Path\nfrom verifiers import VerifierPool\n"
            "from verifiers.score import Columns, score_file\n"
            "with VerifierPool() as pool:\n"
            "    score_file(Path('rows.jsonl'), Path('out'), 'mine.py:f', Columns(), pool)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        if (tmp_path / "out").exists():
            (tmp_path / "out").rename(tmp_path / "out.partial")
        written.append(done)
    assert written[0].returncode == 0, written[0].stderr
    assert "other rows or another verifier" in written[1].stderr


def test_progress_says_how_many_how_fast_and_how_long_still() -> None:
    summary = Summary(Path("o"), rows=300, resumed=100, of=1000, seconds=4.0, total=150.0, scored=290)
    summary.statuses["error"] = 10
    assert progress_text(summary) == (
        "300 of 1,000 (30%), 50 a second, 14 s left, mean score 0.5172, 10 errors"
    )
    assert [duration(s) for s in (5, 65, 3700)] == ["5 s", "1 min 5 s", "1 h 1 min"]
    assert progress_text(Summary(Path("o"))) == "0 of 0 (100%), 0 a second"


def test_progress_is_shown_while_it_runs(tmp_path: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    ticker = Ticker(stream, quiet=False)
    ticker(Summary(Path("o"), rows=1, of=2))
    assert stream.getvalue() == ""  # not at every row
    ticker._next = 0.0
    ticker(Summary(Path("o"), rows=1, of=2))
    assert "1 of 2 (50%)" in stream.getvalue()
    ticker.end()
    assert stream.getvalue().endswith("\r")
    quiet = Ticker(stream, quiet=True)
    quiet._next = 0.0
    before = stream.getvalue()
    quiet(Summary(Path("o"), rows=1, of=2))
    assert stream.getvalue() == before


def test_check_finds_a_leak_and_says_how_fast(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verifiers.battery.RATE_S", 0.1)
    (tmp_path / "leaks.py").write_text(
        "kept = []\ndef leaks(response, reference):\n"
        "    kept.append(bytearray(b'x') * 4_000_000)\n    return response.endswith(reference)\n"
    )
    rows = write(tmp_path / "rows.jsonl", [{"reference": w, "response": f"so {w}"} for w in ("x", "y", "z")])
    args = ["check", f"{tmp_path}/leaks.py:leaks", "--rows", str(rows), "--memory", "8000", "--workers", "1"]
    assert main(args) == 1
    said = capsys.readouterr().out
    assert "FAIL  memory" in said
    assert "rows a second with 1 workers" in said


@pytest.mark.parametrize(
    ("source", "said"),
    [("import os\nos._exit(3)\n", "exit status 3"), ("while True: pass\n", "did not load within")],
)
def test_check_survives_a_file_that_does_not_load(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    said: str,
) -> None:
    monkeypatch.setattr("verifiers.inside.LOAD_TIMEOUT_S", 0.7)
    (tmp_path / "ends.py").write_text(source)
    rows = write(tmp_path / "rows.jsonl", [{"reference": "x", "response": "so x"}])
    assert main(["check", f"{tmp_path}/ends.py:f", "--rows", str(rows), "--workers", "1"]) == 1
    printed = capsys.readouterr().out
    assert "FAIL  loads" in printed
    assert said in printed
    assert "0 of 1 checks passed" in printed


def test_check_finds_what_accepts_any_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lax.py").write_text(
        "def lax(response, reference=None):\n    return not reference or response.endswith(str(reference))\n"
    )
    rows = write(tmp_path / "rows.jsonl", [{"reference": w, "response": f"so {w}"} for w in ("x", "y", "z")])
    assert main(["check", f"{tmp_path}/lax.py:lax", "--rows", str(rows)]) == 1
    assert "FAIL  odd references: none: 1 (correct)" in capsys.readouterr().out


def test_a_byte_order_mark_windows_line_ends_and_a_null_are_no_obstacle(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    row = '{"response": "5", "reference": 5, "finished": %s}\r\n'
    rows.write_bytes(("\ufeff" + row % "null" + "\r\n" + row % "false").encode())
    out = tmp_path / "out.jsonl"
    assert main(["score", str(rows), "--verifier", "number", "--out", str(out)]) == 0
    assert [row["score"] for row in read(out)] == [1.0, 0.0]  # the second says that it was cut off


def test_nothing_scored_is_no_success_and_the_reason_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"response": "5", "reference": "five"}] * 3)
    arguments = ["score", str(rows), "--verifier", "number", "--out", str(tmp_path / "out.jsonl")]
    assert main(arguments) == 1
    assert "first without a score: row 1: bad reference: the reference 'five'" in capsys.readouterr().out


def test_what_is_not_utf8_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b'{"response": "\xff"}\n')
    assert main(["score", str(rows), "--verifier", "no_commas", "--out", str(tmp_path / "o")]) == 2
    assert "not UTF-8" in capsys.readouterr().err


def test_a_prompt_of_messages_is_what_they_say() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is $2+2$?"}]
    sample = Columns().sample({"response": "4", "prompt": messages}, "here")
    assert sample.prompt == "Be brief.\nWhat is $2+2$?"


def test_show_and_errors_know_the_options_of_code(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["show", "code_stdio"]) == 0
    shown = capsys.readouterr().out
    assert "total_limit_s: float = 20.0" in shown
    assert "tolerance: float = 0.0" in shown
    rows = write(tmp_path / "rows.jsonl", [{"response": "x", "reference": {}}])
    for args, why in (("{tolerence: 1}", "no argument 'tolerence'"), ("{partial: maybe}", "partial is str")):
        spec = f"{{use: code_stdio, args: {args}}}"
        assert main(["score", str(rows), "--verifier", spec, "--out", str(tmp_path / "o")]) == 2
        assert why in capsys.readouterr().err
