"""Each warning on made-up histories: raised where it should be, and not on a healthy run."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from tulu_lite.recipe.watching import WarningSettings
from tulu_lite.watching.series import History
from tulu_lite.watching.warnings import LOOKED_AT, RULES, warnings_of

SETTINGS = WarningSettings()
Row = dict[str, float]


def healthy(step: int, drawn: random.Random) -> Row:
    """A run that learns in 100 steps: reward up, length up with it, entropy down to a third, a little KL."""
    share = step / 100
    row = {
        "step": step,
        "reward": 0.2 + 0.6 * share + drawn.gauss(0, 0.02),
        "pass_rate/a": 0.2 + 0.6 * share + drawn.gauss(0, 0.02),
        "response_tokens": 100 * (1 + 4 * share) + drawn.gauss(0, 3),
        "truncated_share": 0.05,
        "silent_groups_share": 0.3,
        "entropy": math.exp(-share) + drawn.gauss(0, 0.01),
        "kl": 0.05 * share,
        "grad_norm_growth": 1.0 + drawn.gauss(0, 0.1),
    }
    if step % 10 == 0:
        row["validation_accuracy"] = 0.2 + 0.6 * share + drawn.gauss(0, 0.01)
    return row


def names(
    change: Callable[[Row], None] | None = None, steps: int = 100, settings: WarningSettings = SETTINGS
) -> list[str]:
    drawn = random.Random(0)
    rows = [healthy(step, drawn) for step in range(1, steps + 1)]
    for row in rows:
        if change is not None:
            change(row)
    return [warned.name for warned in warnings_of(History.of(rows), settings)]


def test_a_healthy_run_has_no_warning_at_any_time() -> None:
    for steps in range(0, 101, 5):
        assert names(steps=steps) == []


def test_length_runs_away_where_the_reward_does_not_rise() -> None:
    def change(row: Row) -> None:
        row["response_tokens"] = 100.0 if row["step"] <= 90 else 180.0
        row["reward"] = 0.5

    assert names(change) == ["length_runaway"]
    assert names(change, settings=WarningSettings(length_growth=2.0)) == []
    assert names(change, settings=WarningSettings(length_growth=None)) == []


def test_length_may_grow_with_the_reward() -> None:
    def change(row: Row) -> None:
        row["response_tokens"] = 100.0 if row["step"] <= 90 else 180.0
        row["reward"] = 0.2 if row["step"] <= 90 else 0.5

    assert names(change) == []


def test_truncation() -> None:
    assert names(lambda row: row.update(truncated_share=0.51)) == ["truncation"]
    assert names(lambda row: row.update(truncated_share=0.5)) == []
    assert names(lambda row: row.update(truncated_share=1.0), steps=9) == []  # it has to last 10 steps


def test_groups_without_signal() -> None:
    assert names(lambda row: row.update(silent_groups_share=0.9)) == ["no_signal"]


@pytest.mark.parametrize("metric", ["entropy", "negative_logprob"])
def test_entropy_collapses(metric: str) -> None:
    def change(row: Row) -> None:
        row.pop("entropy")
        row[metric] = math.exp(-row["step"] / 20)

    assert names(change) == ["entropy_collapse"]
    assert names(change, steps=40) == []  # exp(-1.7), then, of exp(-0.3)


def test_kl_runs_away_by_size_and_by_growth() -> None:
    assert names(lambda row: row.update(kl=0.6)) == ["kl_runaway"]
    assert names(lambda row: row.update(kl=0.02 if row["step"] <= 90 else 0.11)) == ["kl_runaway"]
    assert names(lambda row: row.update(kl=0.001 if row["step"] <= 90 else 0.09)) == []  # small still


def hacked(row: Row, fall: float = 0.1, rise: float = 0.2) -> None:
    """From step 50 on a source rises while validation falls."""
    late = row["step"] > 50
    row["reward"] = row["pass_rate/a"] = 0.5 + (rise if late else 0)
    row["pass_rate/b"] = 0.5
    if "validation_accuracy" in row:
        row["validation_accuracy"] = 0.6 - (fall if late else 0) - (0.1 if row["step"] < 50 else 0)


def test_reward_hacking_names_the_source_that_rises() -> None:
    assert names(hacked) == ["reward_hacking"]
    drawn = random.Random(0)
    rows = [healthy(step, drawn) for step in range(1, 101)]
    for row in rows:
        hacked(row)
    (warned,) = warnings_of(History.of(rows), SETTINGS)
    assert "pass_rate/a rose by 0.2" in warned.what and "pass_rate/b" not in warned.what
    assert "since step 50" in warned.what and "from 0.6 to 0.5" in warned.what


def test_reward_hacking_needs_two_falls_and_a_rise() -> None:
    assert names(hacked, steps=60) == []  # one validation below is noise
    assert names(hacked, steps=70) == ["reward_hacking"]
    assert names(lambda row: hacked(row, fall=0.02)) == []
    assert names(lambda row: hacked(row, rise=0.01)) == []


def test_a_reward_of_another_scale_is_judged_by_its_size() -> None:
    def change(row: Row) -> None:
        hacked(row)
        row["pass_rate/a"] = 0.5
        row["reward"] = 10.0 if row["step"] <= 50 else 10.4  # 4 % of its size

    assert names(change) == []


def test_the_gradient_norm_grows() -> None:
    assert names(lambda row: row.update(grad_norm_growth=4.5)) == ["gradient_growth"]


def test_overfit_is_three_validations_in_a_row() -> None:
    def history(losses: list[float]) -> History:
        return History.of({"step": 10 * i, "validation_loss": loss} for i, loss in enumerate(losses, 1))

    assert [w.name for w in warnings_of(history([3, 2, 2.1, 2.2, 2.05]), SETTINGS)] == ["overfit"]
    assert warnings_of(history([3, 2, 2.1, 1.9, 2.05]), SETTINGS) == []
    assert warnings_of(history([2, 2.1, 2.2]), SETTINGS) == []


def test_every_rule_can_be_switched_off() -> None:
    off = WarningSettings(
        spike_mads=None, grad_norm_growth=None, length_growth=None, truncated_share=None, silent_groups_share=None,
        entropy_left=None, kl=None, hacking_fall=None, overfit_validations=None,
    )  # fmt: skip

    def change(row: Row) -> None:
        hacked(row)
        row.update(
            response_tokens=1.1 ** row["step"], truncated_share=1.0, silent_groups_share=1.0, kl=9.0, grad_norm_growth=99.0,
            entropy=1 / row["step"] ** 3, validation_loss=row["step"],
        )  # fmt: skip

    assert len(names(change)) == len(RULES)
    assert names(change, settings=off) == []


def test_what_the_rules_look_at_is_what_a_watch_keeps() -> None:
    """A metric that a rule reads but a watch does not keep would never warn in a run."""
    drawn = random.Random(0)
    rows = [healthy(step, drawn) for step in range(1, 101)]
    kept = History()
    for row in rows:
        hacked(row)
        row.update(
            truncated_share=1.0,
            silent_groups_share=1.0,
            kl=9.0,
            grad_norm_growth=99.0,
            validation_loss=row["step"],
        )
        kept.add(row, LOOKED_AT)
    assert warnings_of(kept, SETTINGS) == warnings_of(History.of(rows), SETTINGS)
