"""Metrics in W&B's own files, offline, as its client writes them: each step once, also over a resume."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SINK = """
import sys
from pathlib import Path
from tulu_lite.watching.sinks import Logged, Sinks

saved, last, before = map(int, sys.argv[2:])
rows = [{"step": step, "loss": 1.0 / step} for step in range(1, saved + 1)]
sinks = Sinks(["wandb"], Logged("rl/seed-2", "0123456789abcdef" * 4, Path(sys.argv[1]), "run", {"kind": "rlvr"}))
sinks.resume(rows, before)
for step in range(saved + 1, last + 1):
    sinks.log(step, {"loss": 1.0 / step})
sinks.close()
"""


def records(file: Path) -> list[bytes]:
    """The records of a log in LevelDB's format: a header of 7 bytes, then blocks of 32 KiB of (crc, length, type, data)
    chunks, of which types 2, 3 and 4 are the first, middle and last part of a record."""
    data, found, part, place = file.read_bytes(), [], b"", 7
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            found.append(part)
            part = b""
    return found


def test_wandb_offline_has_each_step_once(tmp_path: Path) -> None:
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment |= {"HOME": str(tmp_path), "WANDB_MODE": "offline"}
    for saved, last, before in ((0, 5, 0), (3, 7, 5)):  # killed after 5, goes on from the save of 3
        subprocess.run(
            [sys.executable, "-c", SINK, str(tmp_path / "step"), str(saved), str(last), str(before)],
            env=environment, timeout=120, check=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
    steps = []
    for file in sorted((tmp_path / "step" / "wandb").glob("offline-run-*/run-0123456789abcdef.wandb")):
        for data in records(file):
            record = pb.Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                steps.append((record.history.step.num, _loss(record)))
    assert steps == [(step, pytest.approx(1.0 / step)) for step in range(1, 8)]


def _loss(record: object) -> float:
    items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}  # type: ignore[attr-defined]
    return float(items["loss"])
