"""How much each response, or with a value model each of its tokens, was better than expected.

P prompts of a step, G samples of a prompt, B responses, T response tokens of the longest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..objectives.advantages import (
    generalised_advantages,
    group_advantages,
    moments,
    normalised,
    token_rewards,
)
from ..objectives.kl import kl_estimate
from ..objectives.value import explained_variance
from ..recipe import RlvrStage
from ..training.policy_batch import Answered

Total = Callable[[Sequence[float]], list[float]]  # sums over all processes


def set_advantages(items: Sequence[Answered], stage: RlvrStage, total: Total) -> dict[str, float]:
    """Give each response its `advantage`, and with a value model `fixed["advantage"]` and `fixed["return"]`.

    items: all responses of this process that have a score, whole groups of them; with a value model their `fixed` has
    "value", with a reference "reference". Returns figures. All processes call it.
    """
    figures = _by_groups(items, stage) if stage.critic is None else _by_values(items, stage, total)
    if stage.whitens:
        _whiten(items, total)
    return figures


def _by_groups(items: Sequence[Answered], stage: RlvrStage) -> dict[str, float]:
    places = sorted({item.place for item in items})
    row = {place: number for number, place in enumerate(places)}
    rewards_PG = torch.full((len(places), stage.samples_per_prompt), math.nan, dtype=torch.float64)
    penalties_PG = torch.zeros_like(rewards_PG)
    for item in items:
        rewards_PG[row[item.place], item.sample] = item.reward
        penalties_PG[row[item.place], item.sample] = _penalty(item, stage).double().sum()
    assert stage.advantage != "gae"
    advantages_PG = group_advantages(rewards_PG, stage.advantage, penalties_PG).float()
    for item in items:
        item.advantage = float(advantages_PG[row[item.place], item.sample])
    return {}


def _by_values(items: Sequence[Answered], stage: RlvrStage, total: Total) -> dict[str, float]:
    settings = stage.critic
    assert settings is not None
    values_BT = _padded([item.fixed["value"] for item in items])
    mask_BT = _padded([torch.ones(len(item.rollout.token_ids)) for item in items])
    penalties_BT = _padded([_penalty(item, stage) for item in items])
    rewards_BT = token_rewards(torch.tensor([item.reward for item in items]), mask_BT, penalties_BT)
    advantages_BT, returns_BT = generalised_advantages(
        rewards_BT, values_BT, mask_BT, settings.gamma, settings.gae_lambda
    )
    for row, item in enumerate(items):
        tokens = len(item.rollout.token_ids)
        item.fixed |= {"advantage": advantages_BT[row, :tokens], "return": returns_BT[row, :tokens]}
        item.advantage = float(advantages_BT[row, :tokens].mean())
    sums = torch.cat([moments(returns_BT, mask_BT), moments(returns_BT - values_BT, mask_BT)])
    of_all = torch.tensor(total(sums.tolist()), dtype=torch.float64)
    return {"value_explained_variance": float(explained_variance(of_all[:3], of_all[3:]))}


def _whiten(items: Sequence[Answered], total: Total) -> None:
    """Over all tokens that teach, of all processes."""
    sums = torch.zeros(3, dtype=torch.float64)
    for item in items:
        if item.teaches:
            values = item.fixed.get("advantage", torch.full((len(item.rollout.token_ids),), item.advantage))
            sums += moments(values, torch.ones_like(values))
    of_all = torch.tensor(total(sums.tolist()), dtype=torch.float64)
    for item in items:
        if "advantage" in item.fixed:
            item.fixed["advantage"] = normalised(item.fixed["advantage"], of_all)
        item.advantage = float(normalised(torch.tensor([item.advantage]), of_all))


def _penalty(item: Answered, stage: RlvrStage) -> Tensor:
    """[its response tokens]: beta times the KL estimate, where it is taken off the reward; else 0. The policy's
    log-probabilities are those it was sampled with, or the trainer's where these are at hand."""
    if "reference" not in item.fixed or stage.kl_in != "reward":
        return torch.zeros(len(item.rollout.token_ids))
    policy = item.fixed.get("trainer", torch.tensor(item.rollout.logprobs))
    return stage.kl_coefficient * kl_estimate(policy, item.fixed["reference"], stage.kl_estimator)


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """[B, T] of rows of different lengths, with zeros on the right; [0, 1] of none."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True) if rows else torch.zeros(0, 1)
