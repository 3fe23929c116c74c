"""What is drawn, the smoothing and the bands by hand, and that pictures come out for odd histories too."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.image import imread

from tulu_lite.watching import plots
from tulu_lite.watching.panels import shown_panels
from tulu_lite.watching.plots import Curve, plot_stage
from tulu_lite.watching.report import watched, watched_markdown, watched_table, write_curves

matplotlib.use("Agg")


def titles(kind: str, names: list[str]) -> dict[str, list[str]]:
    return {panel.title: metrics for panel, metrics in shown_panels(kind, names)}


def test_the_panels_of_what_was_logged() -> None:
    found = titles(
        "rlvr",
        [
            "step",
            "reward",
            "pass_rate",
            "pass_rate/a",
            "pass_rate/b",
            "negative_logprob",
            "sample_s",
            "train_s",
            "step_s",
        ],
    )
    assert found == {
        "Reward": ["reward"], "Pass rate by source": ["pass_rate/a", "pass_rate/b"], "Entropy": ["negative_logprob"],
        "Time of a step": ["sample_s", "train_s"],
    }  # fmt: skip
    assert titles("rlvr", ["pass_rate", "pass_rate/a", "entropy", "negative_logprob"]) == {
        "Pass rate by source": ["pass_rate"], "Entropy": ["entropy"],
    }  # fmt: skip
    assert titles("evaluate", ["loss"]) == {}


def test_a_running_median_by_hand() -> None:
    few = np.arange(60.0)
    assert plots._smooth(few) is few
    values = np.zeros(80)
    values[40] = 9.0  # a single spike is not in a median of three
    assert plots._smooth(values).tolist() == [0.0] * 80
    line = np.arange(200.0)
    assert plots._smooth(line)[2:-2] == pytest.approx(line[2:-2])


def drawn(panel_title: str, kind: str, runs: list[Curve]) -> Any:
    """The axis of one panel."""
    names = {name for run in runs for row in run.rows for name in row}
    panel, metrics = next(found for found in shown_panels(kind, names) if found[0].title == panel_title)
    figure, axis = pyplot.subplots()
    plots._draw(axis, panel, metrics, runs)
    figure.canvas.draw()
    pyplot.close(figure)
    return axis


def rows(values: list[float], name: str = "reward") -> list[dict[str, float]]:
    return [{"step": step, name: value} for step, value in enumerate(values, 1)]


def test_seeds_are_lines_with_their_mean_and_a_band() -> None:
    axis = drawn(
        "Reward", "rlvr", [Curve("seed 1", "", rows([0, 1, 2])), Curve("seed 2", "", rows([2, 3, 6]))]
    )
    lines = [line.get_ydata().tolist() for line in axis.lines]
    assert lines == [[0, 1, 2], [2, 3, 6], [1, 2, 4]]
    (band,) = axis.collections
    low_high = {(round(x), round(y)) for x, y in band.get_paths()[0].vertices}
    assert {(1, 0), (1, 2), (3, 2), (3, 6)} <= low_high


def test_runs_of_other_length_share_a_mean_where_both_are() -> None:
    axis = drawn("Reward", "rlvr", [Curve("1", "", rows([0, 1, 2])), Curve("2", "", rows([2, 3]))])
    assert axis.lines[-1].get_xdata().tolist() == [1, 2]


def test_settings_of_a_sweep_are_told_apart() -> None:
    runs = [Curve(f"{g}/{s}", g, rows([s, s])) for g in ("lr=1", "lr=2") for s in (1, 2)]
    axis = drawn("Reward", "rlvr", runs)
    assert [line.get_ydata().tolist() for line in axis.lines] == [[1.5, 1.5]] * 2
    assert (
        len({line.get_color() for line in axis.lines})
        == len({line.get_linestyle() for line in axis.lines})
        == 2
    )


def test_shares_are_in_percent_and_growth_has_an_axis() -> None:
    axis = drawn("Truncated responses", "rlvr", [Curve("", "", rows([0.25, 0.5], "truncated_share"))])
    assert axis.lines[0].get_ydata().tolist() == [25, 50] and "%" in axis.get_ylabel()
    axis = drawn("Response length", "rlvr", [Curve("", "", rows([100, 300], "response_tokens"))])
    (right,) = axis.child_axes
    assert right.get_ylabel() == "× first steps"
    assert right.get_ylim()[1] == pytest.approx(axis.get_ylim()[1] / 100)


def test_a_gradient_norm_with_spikes_is_logarithmic_and_marks_them() -> None:
    curve = Curve("", "", rows([1, 1, 1, 90, 1, 1], "grad_norm"), (4,))
    axis = drawn("Gradient norm", "sft", [curve])
    assert axis.get_yscale() == "log"
    marks = [line for line in axis.lines if line.get_marker() == "v"]
    assert marks[0].get_xdata().tolist() == [4] and marks[0].get_ydata().tolist() == [90]
    assert (
        drawn("Gradient norm", "sft", [Curve("", "", rows([1, 2, 3], "grad_norm"))]).get_yscale() == "linear"
    )


def test_times_are_stacked_largest_first() -> None:
    history = [{"step": s, "sample_s": 3.0, "train_s": 1.0, "push_s": 0.5, "step_s": 4.5} for s in (1, 2)]
    axis = drawn("Time of a step", "rlvr", [Curve("", "", history)])
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["sample", "train", "push"]
    assert max(
        path.vertices[:, 1].max() for c in axis.collections for path in c.get_paths()
    ) == pytest.approx(4.5)


@pytest.mark.parametrize("kind", ["sft", "dpo", "reward", "rlvr"])
def test_a_picture_of_odd_histories(tmp_path: Path, kind: str) -> None:
    """One step, values that are no numbers, zeros, metrics that come and go."""
    runs = [
        Curve(
            "seed 1",
            "",
            [{"step": 1, "loss": math.nan, "grad_norm": 0.0, "reward": None, "kl": 0, "accuracy": True}],
        ),
        Curve(
            "seed 2",
            "",
            [
                {"step": 1, "loss": math.inf},
                {"step": 2, "grad_norm": 1.0, "response_tokens": 0.0, "logprob_gap_mean": 0.0},
            ],
        ),
        Curve("seed 3", "", [{"step": 7, "sample_s": 1.0, "validation_accuracy": 0.5}]),
    ]
    assert plot_stage("odd", kind, runs, tmp_path / "a.png")
    assert imread(tmp_path / "a.png").shape[2] == 4
    assert not plot_stage("nothing", kind, [Curve("", "", [{"step": 1}])], tmp_path / "b.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def step(folder: Path, id: str, kind: str = "sft") -> Any:
    return SimpleNamespace(
        id=id,
        kind=kind,
        stage=SimpleNamespace(name=id.partition("/")[0]),
        folder=folder / id.replace("/", "."),
    )


def test_a_report_of_curves_spikes_and_warnings(tmp_path: Path) -> None:
    steps = [
        step(tmp_path, "sft"),
        step(tmp_path, "rl/seed-1", "rlvr"),
        step(tmp_path, "rl/seed-2", "rlvr"),
        step(tmp_path, "dpo", "dpo"),
    ]
    for one in steps[:3]:
        one.folder.mkdir()
        text = "".join(
            json.dumps({"step": s, "loss": 1.0 / s, "reward": 0.1 * s, "grad_norm": 1.0}) + "\n"
            for s in range(1, 5)
        )
        (one.folder / "metrics.jsonl").write_text(text)
    spike = {"step": 3, "metric": "loss", "deviation": 9.0, "what": "step 3: loss 5 is far | \x1b[2J"}
    (steps[0].folder / "spikes.jsonl").write_text((json.dumps(spike) + "\n") * 3)
    warned = {"step": 2, "name": "kl_runaway", "what": "far from home", "cure": "go back"}
    (steps[2].folder / "warnings.jsonl").write_text(json.dumps(warned) + "\n")

    files = write_curves("run", tmp_path, steps)
    assert {name: path.relative_to(tmp_path).as_posix() for name, path in files.items()} == {
        "sft": "curves/sft.png", "rl": "curves/rl.png",
    }  # fmt: skip
    assert [(id, count) for id, count, _ in watched(steps)] == [("sft", 3), ("rl/seed-2", 0)]
    text = watched_markdown(steps, files, tmp_path)
    assert "| rl/seed-2 | 0 | step 2, kl runaway: far from home |" in text
    assert "far \\| \\x1b[2J" in text and "\x1b" not in text
    assert "![rl](curves/rl.png)" in text
    table = watched_table(steps)
    assert table is not None and table.row_count == 2
    assert watched_table(steps[3:]) is None and watched_markdown(steps[3:], {}, tmp_path) == ""
