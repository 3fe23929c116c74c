"""Rejection sampling and best-of-n: rows to fine-tune on (DeepSeek-R1, arXiv:2501.12948, section 2.3.3).

1. sample n responses to each prompt, from one model or from a pool
2. judge them; those below the threshold are rejected
3. of the others keep at most k a prompt: the best, the shortest or any, and none that is like one kept before
4. mix with general rows, three to one in R1
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from ..datasets.responses import ResponseRow, write_responses
from ..datasets.sources import load_rows
from ..datasets.turns import conversation_turns
from ..errors import TuluLiteError
from ..recipe import RejectStage
from ..records import Rollout
from .context import StepContext
from .pooling import PooledGroup, Ranking, pooled_groups
from .sampling import sampling_step

Item = TypeVar("Item")
RUN = 5  # words of a run, by which near duplicates are told


def main() -> None:
    with sampling_step(RejectStage) as (ctx, sampler, judge):
        stage: RejectStage = ctx.stage
        ranking = None if stage.rank_by is None else Ranking(stage.rank_by, lambda one: passes(one, stage))
        pooled = pooled_groups(ctx, sampler, judge, ranking)

        seen, dropped = Seen(stage.near_duplicates), Counter[str]()
        picked = [row for one in pooled for row in choose(ctx, one, seen, dropped)]
        chosen = [row for row in picked if row.kind == "chosen"]
        general = [row for row in picked if row.kind == "general"] + passed_through(ctx)
        _require(stage, pooled, chosen, general, dropped)
        rows = (
            mixed(chosen, general, stage.general_share, ctx.seed)
            if stage.general or stage.general_prompts
            else chosen
        )
        path = ctx.dir / "rows.jsonl"
        write_responses(path, rows)
        ctx.finish(rows=path, summary=_summary(stage, pooled, rows, dropped))


def passes(rollout: Rollout, stage: RejectStage) -> bool:
    """Whether a judged response is one to learn from at all: scored, high enough, and ended by itself."""
    if rollout.score is None or (not rollout.finished and not stage.keep_unfinished):
        return False
    return stage.min_score is None or rollout.score >= stage.min_score


def in_order(one: PooledGroup, stage: RejectStage, seed: int) -> list[int]:
    """The places of the responses that passed, the first to keep first. Depends on the prompt and the seed alone."""
    rollouts = one.group.rollouts
    places = [place for place, rollout in enumerate(rollouts) if passes(rollout, stage)]
    random.Random(f"{seed}:{one.group.prompt.id}:reject").shuffle(places)  # which decides ties
    if stage.choose == "shortest":
        places.sort(key=lambda place: len(rollouts[place].token_ids))
    elif stage.choose == "best" and stage.rank_by is not None:
        ranked = {place: rank.score for place in places if (rank := one.ranks[place]) is not None}
        places = [place for place in places if ranked.get(place) is not None]  # an error is never a rank
        places.sort(key=lambda place: -float(ranked[place] or 0.0))
    elif stage.choose == "best":
        places.sort(key=lambda place: -float(rollouts[place].score or 0.0))
    return places


def choose(ctx: StepContext, one: PooledGroup, seen: Seen, dropped: Counter[str]) -> Iterator[ResponseRow]:
    """The responses of a prompt that are kept, as rows. What is dropped is counted by reason."""
    stage: RejectStage = ctx.stage
    prompt, rollouts = one.group.prompt, one.group.rollouts
    order = in_order(one, stage, ctx.seed)
    dropped["rejected"] += len(rollouts) - len(order)
    kept = 0
    for place in order:
        if kept == stage.keep_per_prompt:
            dropped["more than keep_per_prompt"] += 1
            continue
        rollout = rollouts[place]
        like = seen.like(prompt.user, rollout.text)
        if like:
            dropped[like] += 1
            continue
        seen.add(prompt.user, rollout.text)
        kept += 1
        rank = one.ranks[place]
        yield ResponseRow(
            kind="general" if one.part else "chosen",
            source=prompt.source,
            provenance={
                "stage": stage.name,
                "step_key": ctx.step.key,
                "seed": ctx.seed,
                "model": one.models[place],
                "sample": place,
                "samples": len(rollouts),
                "passed": len(order),
                **({"weight_version": rollout.weight_versions[0]} if rollout.weight_versions else {}),
                **({"rank": rank.score} if rank is not None else {}),
            },
            prompt=prompt.user,
            response=rollout.text,
            prompt_ids=prompt.token_ids,
            response_ids=rollout.token_ids,
            verdict=None if rollout.verdict is None else rollout.verdict.to_json(),
        )


class Seen:
    """The responses kept so far by prompt, and whether another is the same or nearly so."""

    def __init__(self, near: float | None) -> None:
        self.near = near
        self._texts: dict[str, set[str]] = {}
        self._runs: dict[str, list[frozenset[tuple[str, ...]]]] = {}

    def like(self, prompt: str, response: str) -> str:
        """Why it is a duplicate, or nothing."""
        if _spaced(response) in self._texts.get(_spaced(prompt), ()):
            return "the same as one kept"
        if self.near is not None:
            runs = word_runs(response)
            if any(similarity(runs, other) >= self.near for other in self._runs.get(_spaced(prompt), ())):
                return "nearly the same as one kept"
        return ""

    def add(self, prompt: str, response: str) -> None:
        self._texts.setdefault(_spaced(prompt), set()).add(_spaced(response))
        self._runs.setdefault(_spaced(prompt), []).append(word_runs(response))


def _spaced(text: str) -> str:
    return " ".join(text.split())


def word_runs(text: str) -> frozenset[tuple[str, ...]]:
    """All runs of five words, in lower case and without punctuation; of fewer words the one run that there is."""
    words = re.findall(r"\w+", text.lower())
    return frozenset(tuple(words[i : i + RUN]) for i in range(max(len(words) - RUN + 1, 1)))


def similarity(one: frozenset[Any], other: frozenset[Any]) -> float:
    """Jaccard's: the share of what either has that both have."""
    return len(one & other) / len(one | other)


def passed_through(ctx: StepContext) -> list[ResponseRow]:
    """The general rows that stand as they are."""
    return [
        ResponseRow(
            kind="general",
            source=row.source,
            provenance={"stage": ctx.stage.name, "file": row.file, "line": row.line},
            messages=tuple(conversation_turns(row)),
        )
        for row in load_rows(ctx.stage.general, seed=ctx.recipe.seed)
    ]


def mixed(chosen: Sequence[Item], general: Sequence[Item], share: float, seed: int) -> list[Item]:
    """As many rows as there can be of which `share` are general (to a row): a seeded choice of what is too much."""
    n_chosen = min(len(chosen), round(len(general) * (1 - share) / share))
    n_general = min(len(general), round(len(chosen) * share / (1 - share)))
    return _some(chosen, n_chosen, f"{seed}:chosen") + _some(general, n_general, f"{seed}:general")


def _some(rows: Sequence[Item], n: int, seed: str) -> list[Item]:
    return [rows[place] for place in sorted(random.Random(seed).sample(range(len(rows)), n))]


def _require(
    stage: RejectStage,
    pooled: Sequence[PooledGroup],
    chosen: Sequence[ResponseRow],
    general: Sequence[ResponseRow],
    dropped: Counter[str],
) -> None:
    """Raises TuluLiteError when a side has no row: nothing would be learnt, or nothing be mixed."""
    if not chosen:
        scores = [score for one in pooled for score in one.group.scores if score is not None]
        finished = sum(rollout.finished for one in pooled for rollout in one.group.rollouts)
        total = sum(len(one.group.rollouts) for one in pooled)
        raise TuluLiteError(
            f"stage {stage.name}: no response to {len(pooled)} prompts passed, so there is nothing to learn from",
            why=f"the mean score is {sum(scores) / max(len(scores), 1):.2f}, the least that passes is {stage.min_score}; "
            f"{finished} of {total} responses ended by themselves",
            cure="raise samples_per_prompt or sampling.max_tokens, lower min_score, or choose easier prompts",
        )
    if (stage.general or stage.general_prompts) and not general:
        raise TuluLiteError(
            f"stage {stage.name}: no general row is left to mix in",
            why="; ".join(f"{count} {reason}" for reason, count in dropped.items()),
            cure="lower min_score, or give general rows that stand as they are (`general`)",
        )


def _summary(
    stage: RejectStage, pooled: Sequence[PooledGroup], rows: Sequence[ResponseRow], dropped: Counter[str]
) -> dict[str, Any]:
    rollouts = [rollout for one in pooled for rollout in one.group.rollouts]
    scores = [rollout.score for rollout in rollouts if rollout.score is not None]
    return {
        "prompts": len(pooled),
        "responses": len(rollouts),
        "passed": sum(passes(rollout, stage) for rollout in rollouts),
        "rows": len(rows),
        "general": sum(row.kind == "general" for row in rows),
        "unscored": len(rollouts) - len(scores),
        "mean_score": sum(scores) / max(len(scores), 1),
        "dropped": dict(dropped),
        "by_source": dict(Counter(row.source for row in rows)),
        "by_model": dict(Counter(row.provenance["model"] for row in rows if "model" in row.provenance)),
    }


if __name__ == "__main__":
    main()
