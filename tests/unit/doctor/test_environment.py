"""What `tulu-lite doctor` says of this machine."""

from __future__ import annotations

from pathlib import Path

from tulu_lite.doctor.environment import environment


def test_everything_can_be_looked_at(tmp_path: Path) -> None:
    checks = {check.name: check for check in environment(tmp_path)}
    assert not [check for check in checks.values() if "could not be looked at" in check.found]
    assert {"python", "torch", "memory", "ports", "sandbox"} <= set(checks)
    assert str(tmp_path) in checks["disk"].found
