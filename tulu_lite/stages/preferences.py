"""Preference pairs (Tülu 3, arXiv:2411.15124, section 5.2, with verifiers as the judges).

1. sample several responses to each prompt, from the current policy or from a pool of models with it among them
2. judge them
3. chosen: the best; rejected: a random lower one (or the lowest); prompts whose responses tie make no pair
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from ..datasets.pairs import write_pairs
from ..errors import TuluLiteError
from ..recipe import PreferencesStage
from ..records import PreferencePair, Rollout, RolloutGroup
from .pooling import PooledGroup, pooled_groups
from .sampling import sampling_step


def main() -> None:
    with sampling_step(PreferencesStage) as (ctx, sampler, judge):
        stage: PreferencesStage = ctx.stage
        pooled = pooled_groups(ctx, sampler, judge)

        made_from = {"stage": stage.name, "step_key": ctx.step.key, "seed": ctx.seed}
        pairs = [
            pair for one in pooled for pair in make_pairs(one.group, stage, ctx.seed, made_from, one.models)
        ]
        groups = [one.group for one in pooled]
        if not pairs:
            raise TuluLiteError(
                f"stage {stage.name}: none of {len(groups)} prompts gave two responses of different score, so there is no pair",
                why=f"the mean score is {_summary(groups, pairs)['mean_score']:.2f}: all right, all wrong, or all alike",
                cure="raise samples_per_prompt or the temperature, lower min_margin, or choose easier or harder prompts",
            )
        path = ctx.dir / "pairs.jsonl"
        write_pairs(path, pairs)
        ctx.finish(rows=path, summary=_summary(groups, pairs) | _by_model(pooled, pairs))


def make_pairs(
    group: RolloutGroup,
    stage: PreferencesStage,
    seed: int,
    made_from: dict[str, Any],
    models: Sequence[str] = (),
) -> list[PreferencePair]:
    """At most `pairs_per_prompt` pairs of one prompt's judged responses, no text twice on the same side.

    models: [n] which model sampled each response, for the provenance. Responses without a score take no part. The
    choice depends on the prompt and the seed alone.
    """
    choice = random.Random(f"{seed}:{group.prompt.id}")
    scored = [
        (rollout.score, index, rollout)
        for index, rollout in enumerate(group.rollouts)
        if rollout.score is not None
    ]
    scored.sort(key=lambda item: (-item[0], item[1]))
    pairs: list[PreferencePair] = []
    chosen_texts: set[str] = set()
    rejected_texts: set[str] = set()
    for score, index, chosen in scored:
        if len(pairs) == stage.pairs_per_prompt:
            break
        if chosen.text in chosen_texts:
            continue
        lower = [
            item
            for item in scored
            if score - item[0] > max(stage.min_margin - 1e-9, 0.0) and item[2].text not in rejected_texts
        ]
        if not lower:
            continue
        if stage.rejected == "lowest":
            least = min(item[0] for item in lower)
            lower = [item for item in lower if item[0] == least]
        _, rejected_index, rejected = choice.choice(lower)
        chosen_texts.add(chosen.text)
        rejected_texts.add(rejected.text)
        provenance: dict[str, Any] = {
            **made_from,
            "chosen_sample": index,
            "rejected_sample": rejected_index,
            **_versions(chosen),
        }
        if models:
            provenance |= {"chosen_model": models[index], "rejected_model": models[rejected_index]}
        pairs.append(PreferencePair(group.prompt, chosen, rejected, provenance))
    return pairs


def _versions(rollout: Rollout) -> dict[str, int]:
    return {"weight_version": rollout.weight_versions[0]} if rollout.weight_versions else {}


def _summary(groups: Sequence[RolloutGroup], pairs: Sequence[PreferencePair]) -> dict[str, Any]:
    scores = [score for group in groups for score in group.scores]
    known = [score for score in scores if score is not None]
    return {
        "prompts": len(groups),
        "responses": len(scores),
        "unscored": len(scores) - len(known),
        "mean_score": sum(known) / max(len(known), 1),
        "pairs": len(pairs),
        "prompts_without_pair": len({group.prompt.id for group in groups})
        - len({pair.prompt.id for pair in pairs}),
    }


def _by_model(pooled: Sequence[PooledGroup], pairs: Sequence[PreferencePair]) -> dict[str, Any]:
    """Of a pool: each model's mean score, and how often its responses were chosen and rejected."""
    scores: dict[str, list[float]] = {}
    for one in pooled:
        for model, score in zip(one.models, one.group.scores, strict=True):
            scores.setdefault(model, []).extend([] if score is None else [score])
    if len(scores) < 2:
        return {}
    return {
        "by_model": {
            model: {
                "mean_score": sum(known) / max(len(known), 1),
                "chosen": sum(pair.provenance["chosen_model"] == model for pair in pairs),
                "rejected": sum(pair.provenance["rejected_model"] == model for pair in pairs),
            }
            for model, known in scores.items()
        }
    }


if __name__ == "__main__":
    main()
