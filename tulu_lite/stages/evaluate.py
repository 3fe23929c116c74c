"""Evaluation: greedy accuracy, and sampled accuracy and pass@k, with 95 % intervals, by data source."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from ..datasets.prompts import load_prompts
from ..files import atomic_file
from ..judging import response_row
from ..recipe import EvaluateStage
from ..records import RolloutGroup
from ..rollout.client import Sampling
from ..statistics import mean, pass_at_k, proportion
from .context import StepContext
from .sampling import Sampler, sampling_step


def main() -> None:
    with sampling_step(EvaluateStage) as (ctx, sampler, judge):
        stage: EvaluateStage = ctx.stage
        prompts = load_prompts(
            stage.data,
            sampler.template,
            seed=ctx.recipe.seed,
            max_prompt_tokens=sampler.context - stage.max_tokens,
            rules=stage,
        )
        sampler.load(ctx.init_model)
        greedy = judge(
            _sample(
                ctx,
                sampler,
                prompts,
                Sampling(n=1, temperature=0.0, max_tokens=stage.max_tokens, seed=ctx.seed, **stage.bending()),
            )
        )
        sampled: list[RolloutGroup] = []
        if stage.samples_per_prompt:
            sampling = Sampling(
                n=stage.samples_per_prompt,
                temperature=stage.temperature,
                max_tokens=stage.max_tokens,
                seed=ctx.seed,
                **stage.bending(),
            )
            sampled = judge(_sample(ctx, sampler, prompts, sampling))
        rows = ctx.dir / "responses.jsonl"
        _write(rows, [("greedy", greedy), ("sampled", sampled)])
        ctx.finish(rows=rows, summary=summarise(greedy, sampled, stage.pass_at))


def _sample(
    ctx: StepContext, sampler: Sampler, prompts: Sequence[Any], sampling: Sampling
) -> list[RolloutGroup]:
    what = "greedy prompts" if sampling.temperature == 0 else "sampled prompts"
    return sampler.generate(
        prompts, sampling, on_progress=lambda done: ctx.progress(done, len(prompts), what)
    )


def summarise(
    greedy: Sequence[RolloutGroup], sampled: Sequence[RolloutGroup], pass_at: Sequence[int]
) -> dict[str, Any]:
    """The figures of one model: over all prompts, and by source."""
    by_source: dict[str, tuple[list[RolloutGroup], list[RolloutGroup]]] = defaultdict(lambda: ([], []))
    for which, groups in enumerate((greedy, sampled)):
        for group in groups:
            by_source[group.prompt.source][which].append(group)
    return {
        **_figures(greedy, sampled, pass_at),
        "by_source": {source: _figures(*groups, pass_at) for source, groups in sorted(by_source.items())},
    }


def _figures(
    greedy: Sequence[RolloutGroup], sampled: Sequence[RolloutGroup], pass_at: Sequence[int]
) -> dict[str, Any]:
    """Accuracy is the share of responses with full marks. Responses without a score are left out, and counted."""
    scores = [score for group in greedy for score in group.scores if score is not None]
    rollouts = [rollout for group in greedy for rollout in group.rollouts]
    figures: dict[str, Any] = {
        "accuracy": proportion(sum(score >= 1 for score in scores), len(scores)).to_json(),
        "mean_score": mean(scores).to_json(),
        "finished_share": sum(rollout.finished for rollout in rollouts) / max(len(rollouts), 1),
        "mean_tokens": sum(len(rollout.token_ids) for rollout in rollouts) / max(len(rollouts), 1),
        "unscored": len(rollouts) - len(scores),
    }
    if sampled:
        right = [[score >= 1 for score in group.scores if score is not None] for group in sampled]
        right = [marks for marks in right if marks]
        figures["sampled_accuracy"] = mean([sum(marks) / len(marks) for marks in right]).to_json()
        for k in pass_at:
            figures[f"pass@{k}"] = mean(
                [pass_at_k(sum(marks), len(marks), k) for marks in right if len(marks) >= k]
            ).to_json()
        figures["unscored"] += sum(score is None for group in sampled for score in group.scores)
    return figures


def _write(path: Any, kinds: Iterable[tuple[str, Sequence[RolloutGroup]]]) -> None:
    """One line a response, to read and to compare models prompt by prompt."""
    with atomic_file(path) as file:
        for kind, groups in kinds:
            for group in groups:
                for rollout in group.rollouts:
                    row = json.dumps(response_row(group, rollout, kind), ensure_ascii=False)
                    file.write((row + "\n").encode("utf-8", "surrogatepass"))


if __name__ == "__main__":
    main()
