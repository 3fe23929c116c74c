"""Rollouts on disk: what is read back is what was trained on; bounds, parts, and files that are none."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tulu_lite.errors import TuluLiteError
from tulu_lite.records import Prompt, Rollout, RolloutGroup
from tulu_lite.rl.recorded import Recording, RolloutLog, groups_of, read_rollouts, rollout_rows
from tulu_lite.rl.rollout_files import check_steps, parts_of
from verifiers.base import Verdict, error


def group(number: int, text: str = "sagt „ja“") -> RolloutGroup:
    prompt = Prompt(f"p{number}", "", (1, 2, number), "src", "math", {"number": "3"}, "what?")
    verdict = Verdict(0.5, "partial", "half", scale=2.0)  # type: ignore[arg-type]
    rollouts = (
        Rollout((5, 6, 7), (-0.1, -1.2345678901234567, -3e-9), (4, 4, 5), "length", text, verdict),
        Rollout((8,), (-2.0,), (5,), "stop", "\ud800 lone", error("broke")),
    )
    return RolloutGroup(prompt, rollouts)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    groups = {0: group(0), 3: group(3)}
    log = RolloutLog(tmp_path, keep_mb=10)
    log.put(7, rollout_rows(groups, {(0, 0): 10.0, (0, 1): float("nan")}, {(0, 0): [0.5, 0.25, 0.0]}))
    log.close()
    path = tmp_path / "step-000007.jsonl"
    assert read_rollouts(path) == [groups[0], groups[3]]
    first = json.loads(path.read_text("utf-8", "surrogatepass").splitlines()[0])
    assert (first["reward"], first["advantage"], first["place"], first["sample"]) == (
        10.0,
        [0.5, 0.25, 0.0],
        0,
        0,
    )
    assert first["weight_versions"] == [[4, 2], [5, 1]]
    assert "„ja“" in path.read_text("utf-8", "surrogatepass")


@given(st.text(st.characters(), max_size=20))
@example("\u2028 \u2029 \x85 \x0b \x0c \x1c \x1e \r\n \ud800")
def test_any_response_comes_back(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = RolloutLog(Path(folder), keep_mb=10)
        log.put(1, rollout_rows({0: group(0, text)}))
        log.close()
        assert read_rollouts(Path(folder) / "step-000001.jsonl") == [group(0, text)]


def test_large_ones_are_packed_and_replace_what_an_earlier_try_left(tmp_path: Path) -> None:
    log = RolloutLog(tmp_path, keep_mb=10)
    log.put(1, rollout_rows({0: group(0)}))
    log.flush()
    assert (tmp_path / "step-000001.jsonl").exists()
    large = {place: group(place, "x" * 300_000) for place in range(4)}
    log.put(1, rollout_rows(large))
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001.jsonl.gz"]
    assert read_rollouts(tmp_path / "step-000001.jsonl.gz") == list(large.values())


def test_the_oldest_go_when_the_folder_is_full(tmp_path: Path) -> None:
    log = RolloutLog(tmp_path, keep_mb=1)
    for step in range(1, 6):
        log.put(step, rollout_rows({0: group(0, os.urandom(150_000).hex())}))  # hardly packed
    log.close()
    kept = parts_of(tmp_path)
    assert max(kept) == 5
    assert 1 not in kept
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1 << 20


def test_processes_write_parts_that_are_read_as_one(tmp_path: Path) -> None:
    for rank, places in enumerate([(0, 2), (1, 3)]):
        log = RolloutLog(tmp_path, 10, rank)
        log.put(1, rollout_rows({place: group(place) for place in places}))
        log.close()
    assert {path.name for path in tmp_path.iterdir()} == {"step-000001.jsonl", "step-000001.part-1.jsonl"}
    assert read_rollouts(tmp_path / "step-000001.jsonl") == [group(place) for place in range(4)]
    recording = Recording(tmp_path)
    check_steps(tmp_path, 1)
    assert recording.batch(1, 1, 2).groups == {1: group(1), 3: group(3)}
    assert recording.batch(1, 0, 1).whole
    with pytest.raises(TuluLiteError, match="no rollouts of step 2"):
        check_steps(tmp_path, 2)


def test_files_that_hold_none(tmp_path: Path) -> None:
    with pytest.raises(TuluLiteError, match="holds no rollouts"):
        check_steps(tmp_path, 1)
    (tmp_path / "a.jsonl").write_text("{")
    with pytest.raises(TuluLiteError, match="cannot be read|can be read"):
        read_rollouts(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text('{"place": 0, "sample": 0, "prompt_id": "x"}\n')
    with pytest.raises(TuluLiteError, match="not whole rollouts"):
        read_rollouts(tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(TuluLiteError):
        read_rollouts(tmp_path / "c.jsonl.gz")


def test_rows_survive_json() -> None:
    rows: Any = json.loads(json.dumps(rollout_rows({2: group(2)})))
    assert groups_of(rows) == {2: group(2)}
