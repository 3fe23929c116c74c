"""A step's watch: what it adds to the rows, keeps beside them, and says; and that a resumed one says the same."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tulu_lite.recipe.watching import WarningSettings
from tulu_lite.stages.metrics import MetricsLog
from tulu_lite.watching.sinks import Logged, Sinks
from tulu_lite.watching.watch import Watch, counted, read_lines

SETTINGS = WarningSettings(spike_window=20, trend_steps=3)


def log_of(folder: Path) -> MetricsLog:
    sinks = Sinks((), Logged("sft", "k" * 64, folder, "run", {}))
    return MetricsLog(folder / "metrics.jsonl", True, Watch(folder, SETTINGS, sinks))


def values(step: int) -> dict[str, float]:
    drawn = random.Random(step)
    loss = 50.0 if step in (25, 40) else 2 + drawn.gauss(0, 0.1)
    return {"loss": loss, "grad_norm": 1 + drawn.random(), "truncated_share": 0.9 if 30 <= step < 35 else 0.0}


def run(log: MetricsLog, first: int, last: int) -> None:
    for step in range(first, last + 1):
        log.log(step, lambda step=step: [f"rows.jsonl:{step}", f"rows.jsonl:{step + 1}"], **values(step))


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


def test_rows_spikes_and_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = log_of(tmp_path)
    run(log, 1, 45)
    rows = {row["step"]: row for row in log.rows()}
    assert [step for step, row in rows.items() if "loss_spike" in row] == [25, 40]
    assert [step for step, row in rows.items() if "warnings" in row] == [
        31,
        32,
        33,
        34,
        35,
    ]  # the median of 3
    spikes = read_lines(tmp_path / "spikes.jsonl")
    assert [(row["step"], row["metric"], row["batch"]) for row in spikes] == [
        (25, "loss", ["rows.jsonl:25", "rows.jsonl:26"]),
        (40, "loss", ["rows.jsonl:40", "rows.jsonl:41"]),
    ]
    assert [(row["step"], row["name"]) for row in read_lines(tmp_path / "warnings.jsonl")] == [
        (31, "truncation")
    ]
    out = capsys.readouterr().out
    assert out.count("spike: step 25: loss 50 is") == 1 and "batch: rows.jsonl:25, rows.jsonl:26" in out
    assert out.count("warning, truncation: 90% of the responses") == 1
    assert counted(tmp_path) == "2 spikes, warned of truncation"
    assert log.watch is not None and len(log.watch.notes) == 3


@pytest.mark.parametrize("saved", [0, 10, 24, 25, 33, 41])
def test_a_resumed_run_keeps_and_says_the_same(tmp_path: Path, saved: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    run(log_of(whole), 1, 45)
    run(log_of(broken), 1, 43)
    for file in broken.iterdir():  # the kill tears the last lines
        file.write_text(file.read_text() + '{"step": 44, "lo')
    log = log_of(broken)
    log.resume(saved)
    run(log, saved + 1, 45)
    assert files(broken) == files(whole)


def test_the_places_of_a_batch_are_asked_for_when_it_is_a_spike_alone(tmp_path: Path) -> None:
    asked: list[int] = []
    log = log_of(tmp_path)
    for step in range(1, 30):
        log.log(step, lambda step=step: asked.append(step) or [], **values(step))
    assert asked == [25]


def test_a_long_batch_is_shortened_where_people_read_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = log_of(tmp_path)
    for step in range(1, 26):
        log.log(step, lambda: [f"f:{i}" for i in range(100)], **values(step))
    assert "f:7 and 92 more (spikes.jsonl)" in capsys.readouterr().out
    assert len(read_lines(tmp_path / "spikes.jsonl")[0]["batch"]) == 100


def test_a_nan_is_kept_so_that_it_can_be_read(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    log.log(1, lambda: ["f:1"], loss=float("nan"), grad_norm=1.0)
    assert read_lines(tmp_path / "spikes.jsonl")[0]["what"] == "step 1: loss is nan"
    assert log.rows()[0]["loss_spike"] == 1e9


def test_nothing_seen_is_nothing_said(tmp_path: Path) -> None:
    assert counted(tmp_path) == ""
    (tmp_path / "spikes.jsonl").write_text('3\n[]\n{"step": "x"}\n' + json.dumps({"step": 1}) + "\n")
    assert counted(tmp_path) == "1 spike"


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    log: Any = MetricsLog(tmp_path / "metrics.jsonl", False, None)
    log.resume(3)
    log.log(4, None, loss=1.0)
    log.close()
    assert list(tmp_path.iterdir()) == []
