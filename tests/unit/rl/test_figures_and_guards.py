"""What is logged of a step, by source; and steps that teach nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tulu_lite.errors import TuluLiteError
from tulu_lite.records import RolloutGroup
from tulu_lite.rl.figures import UpdateSums, sample_figures, staleness, update_figures
from tulu_lite.rl.guards import Watchdog


def test_sample_figures_by_source(stage_of: Any, group_of: Any, rollout_of: Any, prompt_of: Any) -> None:
    long = RolloutGroup(
        prompt_of(2, "b"), (rollout_of(1.0, tokens=range(3, 10), finish="length"), rollout_of(None))
    )
    figures = sample_figures([group_of(0, 1, 0, source="a"), group_of(1, 1, 1, source="a"), long], stage_of(reward_scale=10))  # fmt: skip
    assert figures["reward"] == pytest.approx(10 * 4 / 5)
    assert figures["pass_rate"] == pytest.approx(4 / 5)
    assert figures["response_tokens"] == pytest.approx((3 * 5 + 7) / 6)
    assert figures["truncated_share"] == pytest.approx(1 / 6)
    assert figures["unscored_share"] == pytest.approx(1 / 6)
    assert figures["silent_groups_share"] == pytest.approx(2 / 3)
    assert (figures["pass_rate/a"], figures["pass_rate/b"]) == (0.75, 1.0)
    assert (figures["response_tokens/b"], figures["silent_groups_share/a"]) == (5.0, 0.5)
    alone = sample_figures([group_of(0, 1, 0)], stage_of())
    assert [name for name in alone if "/" in name] == ["pass_rate/s"]


def test_update_figures_are_means_over_tokens() -> None:
    sums = UpdateSums()
    sums.add(
        ["a", "b"],
        tokens=torch.tensor([3.0, 1.0]),
        kl=torch.tensor([0.3, 0.5]),
        loss=torch.tensor([1.0, 2.0]),
    )
    sums.add(
        ["a"],
        tokens=torch.tensor([4.0]),
        kl=torch.tensor([0.0]),
        ratio=torch.tensor([4.0]),
        gap=torch.tensor([1.0]),
    )
    sums.add([])
    sums.gap_max += [torch.tensor(0.25), torch.tensor(0.125)]
    figures = update_figures(sums, updates=2)
    assert figures["kl"] == pytest.approx(0.8 / 8)
    assert figures["kl/a"] == pytest.approx(0.3 / 7)
    assert figures["kl/b"] == pytest.approx(0.5)
    assert figures["loss"] == pytest.approx(1.5)
    assert figures["ratio"] == pytest.approx(0.5)
    assert figures["logprob_gap_max"] == 0.25
    assert "value_loss" not in figures
    assert update_figures(UpdateSums(), 1) == {}
    values = UpdateSums()
    values.add(["a"], tokens=torch.tensor([2.0]), value_loss=torch.tensor([1.0]))
    assert update_figures(values, 1) == {"value_loss": 1.0}  # while the policy waits for its values


def test_staleness(prompt_of: Any, rollout_of: Any) -> None:
    group = RolloutGroup(prompt_of(0), (rollout_of(1.0, version=4), rollout_of(1.0, tokens=(3,), version=2)))
    assert staleness([group], 4) == (pytest.approx(2 / 4), 2)
    assert staleness([group], 5) == (pytest.approx((3 + 3) / 4), 3)
    assert staleness([], 5) == (0, 0)


def figures_of(**values: float) -> dict[str, float]:
    return {"silent_groups_share": 0.0, "truncated_share": 0.0, "pass_rate": 0.5} | values


def test_a_verifier_that_always_says_1(stage_of: Any, group_of: Any) -> None:
    dog, groups = Watchdog(stage_of(no_signal_steps=2)), [group_of(0, 1, 1, 1)]
    silent = figures_of(silent_groups_share=1.0, pass_rate=1.0)
    assert dog.look(1, silent, groups) is None
    warning = dog.look(2, silent, groups)
    assert warning is not None
    assert "in 2 steps in a row no group" in warning
    assert "accepts everything" in warning
    assert "the most common verdict is" in warning
    assert dog.look(3, silent, groups) is None  # said again only when as many have passed
    assert dog.look(4, silent, groups) is not None
    assert dog.look(5, figures_of(), groups) is None
    assert dog.state == {"silent": 0, "endless": 0}
    stopping = Watchdog(stage_of(no_signal_steps=1, no_signal="stop"))
    with pytest.raises(TuluLiteError, match="rejects everything"):
        stopping.look(1, figures_of(silent_groups_share=1.0, pass_rate=0.0), groups)
    with pytest.raises(TuluLiteError, match="all right or all wrong"):
        stopping.look(2, figures_of(silent_groups_share=1.0), groups)


def test_prompts_that_never_end(stage_of: Any, group_of: Any) -> None:
    dog = Watchdog(stage_of(no_signal_steps=1, no_signal="stop"))
    with pytest.raises(TuluLiteError, match="no response ended within its budget of 8 tokens") as fault:
        dog.look(1, figures_of(truncated_share=1.0, silent_groups_share=1.0), [group_of(0, 0, 0)])
    assert "sampling.max_tokens" in fault.value.cure


def test_groups_that_are_each_all_right_or_all_wrong_teach_where_groups_are_compared(
    stage_of: Any, group_of: Any
) -> None:
    groups = [group_of(0, 1, 1), group_of(1, 0, 0)]
    figures = sample_figures(groups, stage_of(samples_per_prompt=2))
    assert (figures["silent_groups_share"], figures["reward_spread"]) == (1.0, 1.0)
    stopping: dict[str, Any] = {"samples_per_prompt": 2, "no_signal_steps": 1, "no_signal": "stop"}
    for fields in ({"advantage": "gae"}, {"advantage": "reinforce", "whiten_advantages": True}):
        dog = Watchdog(stage_of(**stopping, **fields))
        assert dog.look(1, figures, groups) is None
        with pytest.raises(TuluLiteError, match="no group"):
            dog.look(2, figures | {"reward_spread": 0.0}, groups)
    with pytest.raises(TuluLiteError, match="all right or all wrong"):
        Watchdog(stage_of(**stopping)).look(1, figures, groups)
