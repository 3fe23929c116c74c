"""Where a run's metrics go besides the disk, and what in them is said to be wrong."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import Number, Settings

Sink = Literal["tensorboard", "wandb"]
Most = Annotated[Number, Field(ge=0)] | None


class WarningSettings(Settings):
    """When a metric is said to be wrong. A warning stops nothing and changes no result: it is shown while the stage
    runs, counted in its metrics, and kept in its folder (docs/watching.md). null switches one off."""

    spike_window: int = Field(100, ge=8)
    """Steps before a step by whose median its loss and gradient norm are judged; nothing is judged before a fifth of
    them (at least 8) is there."""
    spike_mads: Most = 6.0
    """A spike is further above the median than this many robust standard deviations: 1.4826 times the median absolute
    deviation, and at least a twentieth of the median. The gradient norm is judged by its logarithm."""
    grad_norm_growth: Most = 4.0
    """The median gradient norm of the latest quarter of the window may be this many times the whole window's."""
    trend_steps: int = Field(10, ge=2)
    """Steps whose median is compared with that of as many steps before; also how many steps a state has to last."""
    length_growth: Most = 1.5
    """rlvr: the response length may grow to this many times in trend_steps unless the reward rises with it."""
    truncated_share: Most = 0.5
    """rlvr: share of responses that reach their budget."""
    silent_groups_share: Most = 0.8
    """rlvr: share of groups whose responses are all rewarded alike, from which nothing is learnt."""
    entropy_left: Most = 0.1
    """rlvr: the policy's entropy may fall to this share of what it was in the first trend_steps."""
    kl: Most = 0.5
    """rlvr: KL divergence from the reference, in nats a token."""
    kl_growth: Most = 5.0
    """rlvr: the KL divergence, once above a fifth of `kl`, may grow to this many times in trend_steps."""
    hacking_fall: Most = 0.03
    """rlvr: reward hacking is suspected when two validations in a row are this far below the best one ..."""
    hacking_rise: Number = Field(0.05, gt=0)
    """... while a source's pass rate, or the reward by this share of its size, has risen this far since then."""
    overfit_validations: int | None = Field(3, ge=1)
    """sft, dpo, reward: as many validations in a row may be worse than the one before them."""
