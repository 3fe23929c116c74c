"""Files are whole or not there; one run at a time; the ledger keeps history across processes."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tulu_lite.errors import TuluLiteError
from tulu_lite.files import atomic_file, explain_os_error, json_lines, read_json, write_atomic, write_json
from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.pipeline.lock import exclusive
from tulu_lite.pipeline.signs import killed, this_process
from tulu_lite.pipeline.steps import Step
from tulu_lite.rollout.process import boot_id


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_said_with_its_cure() -> None:
    error = explain_os_error(OSError(errno.ENOSPC, "No space left on device"), Path("/x/y"))
    assert isinstance(error, TuluLiteError)
    assert "disk is full" in error.what
    assert "/x/y" in error.what
    assert error.cure


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(TuluLiteError, match="is a file, not a folder"):
        write_atomic(tmp_path / "out" / "x", "y")


HOLD = "import sys, time; from pathlib import Path; from tulu_lite.pipeline.lock import exclusive\nwith exclusive(Path(sys.argv[1]), 'it'):\n    print('held', flush=True); time.sleep(60)"


def test_the_second_holder_is_refused_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(TuluLiteError, match=f"in use by another process: process {holder.pid}"),
            exclusive(lock, "the folder"),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
    with exclusive(lock, "the folder"):
        pass


def test_the_ledger_keeps_steps_lineage_checkpoints_and_metrics(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    run = ledger.start_run("r", "recipe", "0")
    stage: Any = None  # the ledger has no use for it
    step = Step("sft", "sft", stage, 0, "base", (), {"a": 1}, "k1", Path("f"))
    ledger.start_step(step, [("base", "model")])
    ledger.start_step(step, [("base", "model")])
    ledger.add_checkpoint("k1", 10, "f/checkpoints/step-000010")
    ledger.set_metrics("k1", [(1, "loss", 2.0), (2, "loss", 1.0)])
    ledger.set_metrics("k1", [(1, "loss", 2.5)])
    ledger.end_step("k1", "done", summary={"x": 1})
    ledger.end_run(run, "done")
    again = Ledger(tmp_path)
    found = again.step("k1")
    assert found is not None
    assert (found["status"], found["attempts"], found["run"]) == ("done", 2, run)
    assert again.lineage("k1") == [{"input": "base", "role": "model"}]
    assert again.checkpoints("k1")[0]["step"] == 10
    assert again.metrics("k1", "loss") == [(1, 2.5)]
    assert again.last_identity("sft", other_than="k2") == {"a": 1}
    assert again.last_identity("sft", other_than="k1") is None
    assert again.runs()[0]["status"] == "done"


def test_a_run_that_was_killed_is_told_when_the_next_one_starts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.start_run("r", "", "0")
    ledger.start_run("r", "", "0")
    assert [run["status"] for run in ledger.runs()] == ["killed", "running"]


RUN = "import sys, time; from pathlib import Path; from tulu_lite.pipeline.ledger import Ledger\nfrom tulu_lite.pipeline.steps import Step\nledger = Ledger(Path(sys.argv[1])); ledger.start_run('r', '', '0')\nledger.start_step(Step('rl', 'rlvr', None, 0, 'base', (), {}, 'k', Path(sys.argv[1]) / 'rl'), [])\nprint('runs', flush=True); time.sleep(60)"


def test_a_run_is_told_as_killed_once_its_process_is_gone_and_until_when_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "rl"
    folder.mkdir()
    process = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    ledger = Ledger(tmp_path)
    try:
        assert process.stdout is not None and process.stdout.readline() == "runs\n"
        assert (ledger.runs()[0]["status"], ledger.steps()[0]["status"]) == ("running", "running")
    finally:
        process.kill()
        process.wait()
    wrote = ledger.runs()[0]["started"] + 600
    (folder / "metrics.jsonl").write_text("")
    os.utime(folder / "metrics.jsonl", (wrote, wrote))
    monkeypatch.setattr(time, "time", lambda: wrote + 3600)  # an hour later
    for _ in range(2):
        run, step = ledger.runs()[0], ledger.steps()[0]
        assert (run["status"], run["ended"]) == (step["status"], step["ended"]) == ("killed", wrote)
        ledger.start_run("r", "", "0")


def test_a_run_whose_process_cannot_be_seen_from_here_may_run(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.start_run("r", "", "0")
    noted = {**this_process(), "status": "running", "pid": os.getpid()}
    assert not killed(noted)
    assert killed(noted | {"process_started": 1})  # its pid was used again
    assert not killed(noted | {"space": "another boot pid:[1]", "host": "elsewhere", "pid": 1 << 30})
    assert not killed(noted | {"space": f"{boot_id()} pid:[1]", "pid": 1 << 30})  # a container beside
    assert killed(noted | {"space": "another boot pid:[1]"})  # this machine was started anew
    assert not killed(noted | {"space": None, "pid": 1 << 30})  # of an older version
    with sqlite3.connect(ledger.path) as db:
        db.execute("DELETE FROM processes")
    assert ledger.runs()[0]["status"] == "running"


def test_a_damaged_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(TuluLiteError, match=r"ledger\.sqlite"):
        Ledger(tmp_path).runs()


WRITE = "import sys; from pathlib import Path; from tulu_lite.pipeline.ledger import Ledger\nledger = Ledger(Path(sys.argv[1]))\nfor i in range(20): ledger.add_checkpoint(sys.argv[2], i, f'{i}')"


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    Ledger(tmp_path).start_run("r", "", "0")
    writers = [subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path), str(i)]) for i in range(3)]
    deadline = time.monotonic() + 60
    assert [writer.wait(max(1, deadline - time.monotonic())) for writer in writers] == [0, 0, 0]
    assert all(len(Ledger(tmp_path).checkpoints(str(i))) == 20 for i in range(3))


@given(st.lists(st.text(st.characters(), max_size=30), max_size=5))
@example(["\u2028 \u2029 \x85 \x0b \x0c \x1c \x1e \r\n", "\ud800 alone"])
def test_any_text_in_json_lines_comes_back(texts: list[str]) -> None:
    written = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    assert json_lines(written.encode("utf-8", "surrogatepass")) == [{"text": text} for text in texts]
