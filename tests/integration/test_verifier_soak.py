"""A short soak: mixed verifications with faults, and afterwards nothing is lost, wrong or left.

In processes of their own: here, servers that other tests share open connections whenever they like.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

SOAK = """
import json, sys
sys.path.insert(0, sys.argv[1])
import soak
outcome = soak.soak(1200, seed=3, fault_share=0.01, kill_every_s=6.0, code=True, round_items=400)
names = ("problems", "items", "wrong", "scored", "expected_errors", "killed", "slowest_s")
print("outcome", json.dumps({name: getattr(outcome, name) for name in names}))
"""

LEFT = """
import subprocess, sys, tempfile
sys.path.insert(0, sys.argv[1])
import soak
before = soak.Traces.now()
sleeper = subprocess.Popen(["sleep", "60"])
with open(sys.argv[2], "w"), tempfile.NamedTemporaryFile(prefix="soak-"):
    print([problem.split()[0] for problem in soak._left(before, patience_s=0.0)])
sleeper.kill()
sleeper.wait()
print(soak._left(before))
"""


def run(source: str, temporary: Path, *arguments: str) -> list[str]:
    """The lines that Python says, with a temporary folder where nobody else makes files."""
    temporary.mkdir(mode=0o755)
    told = subprocess.run(
        [sys.executable, "-c", source, str(BENCHMARKS), *arguments],
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert told.returncode == 0, told.stderr
    return told.stdout.splitlines()


def test_mixed_verifications_with_faults_leave_nothing(tmp_path: Path) -> None:
    *_, last = run(SOAK, tmp_path / "temporary")
    outcome = json.loads(last.removeprefix("outcome "))
    assert outcome["problems"] == []
    assert outcome["items"] == 1200
    assert outcome["wrong"] == 0
    assert outcome["expected_errors"] >= 5
    assert outcome["scored"] >= 1200 - outcome["expected_errors"] - outcome["killed"]
    assert outcome["slowest_s"] <= 15


def test_the_soak_sees_what_is_left(tmp_path: Path) -> None:
    """A process, a descriptor and a file that were left behind are found."""
    told = run(LEFT, tmp_path / "temporary", str(tmp_path / "x"))
    assert told == ["['processes', 'descriptors', 'files']", "[]"]
