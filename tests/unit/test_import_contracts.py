"""The rules between rooms (pyproject.toml, [tool.importlinter]) hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_import_contracts() -> None:
    linted = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert linted.returncode == 0, linted.stdout
