"""One fault of each kind that benchmarks/faults.py knows and test_rollout_faults.py does not, with requests in flight."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KINDS = [
    "stop_api",
    "cut",
    "held",
    "truncated",
    "pusher",
    "port_taken",
    "push_pause",
    "push_update",
    "push_finish",
]


def test_one_fault_of_each_kind(tmp_path):
    """Each is found in time; every request is answered once, with the samples of an unbroken run; nothing is left."""
    output = tmp_path / "faults.json"
    done = subprocess.run(
        [sys.executable, "benchmarks/faults.py", "--kinds", ",".join(KINDS), "--count", "1", "--output", str(output)],
        capture_output=True, text=True, cwd=ROOT, timeout=500,
    )  # fmt: skip
    assert output.exists(), done.stderr[-3000:]
    rows = json.loads(output.read_text())
    assert [row["kind"] for row in rows] == KINDS, done.stderr[-3000:]
    for row in rows:
        assert row["requests"] >= 12
        assert not row["fault"], row
        assert (row["lost"], row["duplicated"], row["wrong"], row["errors"]) == (0, 0, 0, []), row
        assert (row["orphans"], row["leaks"]) == ([], []), row
        assert row["found_s"] is not None, row
        assert row["restarts"] == (0 if row["kind"] in ("cut", "held") else 1), row
