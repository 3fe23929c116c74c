"""From a verdict to a reward, and from rewards to whether a group teaches anything. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..objectives.signal import differ
from ..recipe import RlvrStage
from ..recipe.stages.rlvr_parts import OverlongSettings
from ..records import Rollout, RolloutGroup


def reward(rollout: Rollout, stage: RlvrStage) -> float:
    """The reward of a judged response; NaN when it has no score.

    reward_scale times the verdict's reward; of a response that was cut off `unfinished_reward`, where that is set (Tülu
    3, arXiv:2411.15124, sec. 6: 10 and -10); less what its length costs (`overlong`).
    """
    if rollout.verdict is None or rollout.verdict.reward is None:
        return math.nan
    if not rollout.finished and stage.unfinished_reward is not None:
        value = stage.unfinished_reward
    else:
        value = rollout.verdict.reward * stage.reward_scale
    if stage.overlong is None:
        return value
    return value - length_cost(len(rollout.token_ids), stage.sampling.max_tokens, stage.overlong)


def length_cost(tokens: int, budget: int, settings: OverlongSettings) -> float:
    """0 up to budget - buffer, then rising to `penalty` at the budget (DAPO, arXiv:2503.14476, eq. 13)."""
    if settings.buffer_tokens is None:
        return 0.0
    over = tokens - (budget - settings.buffer_tokens)
    return settings.penalty * min(1.0, max(0.0, over / settings.buffer_tokens))


def teaches(rollout: Rollout, stage: RlvrStage) -> bool:
    """Whether a response takes part in the loss: it has a score, and is not masked for its length."""
    masked = stage.overlong is not None and stage.overlong.mask and not rollout.finished
    return rollout.score is not None and not masked


def is_silent(group: RolloutGroup, stage: RlvrStage) -> bool:
    """Whether a group has no signal: rewards that do not differ, or, of a lone response, none."""
    if stage.samples_per_prompt == 1:  # it is compared with a value, not with others
        return not _known(group.rollouts, stage)
    known = _known(group.rollouts, stage)
    return not differ(min(known, default=math.inf), max(known, default=-math.inf))


def passed(group: RolloutGroup) -> tuple[float, int]:
    """(share of full marks, responses) among a group's responses that have a score."""
    scores = [score for score in group.scores if score is not None]
    return (sum(score >= 1 for score in scores) / len(scores) if scores else 0.0, len(scores))


def _known(rollouts: Sequence[Rollout], stage: RlvrStage) -> list[float]:
    return [value for value in (reward(rollout, stage) for rollout in rollouts) if not math.isnan(value)]
