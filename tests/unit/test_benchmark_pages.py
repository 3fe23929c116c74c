"""Pages of benchmarks' results: made of the figures beside them, and saying what each figure is."""

from __future__ import annotations

import importlib
import json
import statistics
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS = BENCHMARKS / "results"


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # last: benchmarks/verifiers.py would stand before the package
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCHMARKS)])
    return importlib.import_module("rlvr_report")


@pytest.fixture
def found() -> dict[str, Any]:
    return json.loads((RESULTS / "rlvr.json").read_text(encoding="utf-8"))


def test_the_page_kept_is_that_of_the_figures_kept(report: ModuleType, found: dict[str, Any]) -> None:
    assert (RESULTS / "rlvr.md").read_text(encoding="utf-8") == report.page(found)


def test_a_ratio_is_told_as_the_middle_of_the_rounds(report: ModuleType, found: dict[str, Any]) -> None:
    table = report.table(found)
    assert " = " not in table  # the medians' own ratio is another
    seeds = [
        round["at_once"] / max(round["in_turn_by_threads"].values()) for round in found["seeds"]["rounds"]
    ]
    for ratios in (found["peer"]["even"]["ratios"], found["peer"]["skewed"]["ratios"], seeds):
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        assert f"middle of the rounds' ratios {statistics.median(ratios):.2f} ({each})" in table
