"""Responses of a pool of models to a stage's prompts, judged as they come and kept: what preferences and reject
stages do before they choose.

Each model samples in its turn on the one server. A group is written down once it is judged, so that a stage that was
killed asks for what is missing alone; the seeds of a group depend on the stage's seed and the prompt's place, and so
the whole is the same as if nothing had happened.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from verifiers import Status, Verdict

from ..datasets.chat import ChatTemplate, load_tokenizer
from ..datasets.prompts import load_prompts
from ..datasets.responses import Judged, KeptGroups
from ..errors import TuluLiteError
from ..judging import Judge
from ..pipeline.models import hub_or_local
from ..pipeline.sizes import context_length
from ..pipeline.steps import model_path
from ..recipe import BASE, PoolStage
from ..recipe.stages import is_stage_name, split_revision
from ..records import Prompt, Rollout, RolloutGroup
from ..rollout.client import Sampling
from .context import StepContext
from .sampling import Sampler


@dataclass(frozen=True, slots=True)
class PooledGroup:
    """All judged responses to one prompt. models, ranks: [n], of each the model, and what ranks it (None: nothing)."""

    part: int  # which of the stage's prompt_parts the prompt is of
    group: RolloutGroup
    models: tuple[str, ...]
    ranks: tuple[Verdict | None, ...]


@dataclass(frozen=True)
class Ranking:
    """A second verifier, which judges only the responses that passed the first."""

    verifier: str
    passes: Callable[[Rollout], bool]


def pooled_groups(
    ctx: StepContext, sampler: Sampler, judge: Judge, ranking: Ranking | None = None
) -> list[PooledGroup]:
    """The stage's prompts in order, each with the responses of its models in the pool's order.

    Raises TuluLiteError once it is certain that verifiers will have failed on more than the share allowed.
    """
    return _Pool(ctx, sampler, judge, ranking).groups()


def shares(pool: Sequence[str], prompt_ids: Sequence[str], samples: int, seed: int) -> list[list[int]]:
    """[models][prompts] samples of each model for each prompt; over the models they sum to `samples`.

    Each model has samples // models of a prompt. Of what is left the first has one, and a choice of the others that
    depends on the seed and the prompt.
    """
    every, left = divmod(samples, len(pool))
    counts = [[every] * len(prompt_ids) for _ in pool]
    for place, id in enumerate(prompt_ids):
        others = random.Random(f"{seed}:{id}:pool").sample(range(1, len(pool)), max(left - 1, 0))
        for model in [0, *others] if left else []:
            counts[model][place] += 1
    return counts


class _Pool:
    def __init__(self, ctx: StepContext, sampler: Sampler, judge: Judge, ranking: Ranking | None) -> None:
        self.ctx, self.sampler, self.judge, self.ranking = ctx, sampler, judge, ranking
        self.stage: PoolStage = ctx.stage
        self.prompts, self.parts = self._prompts(sampler)
        self.counts = shares(
            self.stage.pool, [prompt.id for prompt in self.prompts], self.stage.samples_per_prompt, ctx.seed
        )
        self.kept = KeptGroups(ctx.dir / "groups.jsonl")
        self.judged: dict[tuple[str, str], Judged] = {}
        self.asked = sum(count > 0 for counts in self.counts for count in counts)  # groups in all

    def groups(self) -> list[PooledGroup]:
        for key, judged in self.kept.read().items():
            self.judged[key] = judged
        self._judge_again()
        for model, counts in zip(self.stage.pool, self.counts, strict=True):
            missing = [
                place
                for place, prompt in enumerate(self.prompts)
                if counts[place] and (model, prompt.id) not in self.judged
            ]
            if missing:
                self._sample(model, counts, missing)
        return [self._pooled(place) for place in range(len(self.prompts))]

    def _pooled(self, place: int) -> PooledGroup:
        prompt = self.prompts[place]
        parts = [
            (model, self.judged[(model, prompt.id)])
            for model, counts in zip(self.stage.pool, self.counts, strict=True)
            if counts[place]
        ]
        rollouts = [(model, rollout) for model, part in parts for rollout in part.rollouts]
        ranks = [rank for _, part in parts for rank in part.ranks or [None] * len(part.rollouts)]
        return PooledGroup(
            self.parts[place],
            RolloutGroup(prompt, tuple(rollout for _, rollout in rollouts)),
            tuple(model for model, _ in rollouts),
            tuple(ranks),
        )

    def _sample(self, model: str, counts: Sequence[int], missing: Sequence[int]) -> None:
        """Sample and judge what is missing of one model."""
        folder, speaking = self._load(model)
        asked = self.prompts if speaking is self.sampler else self._prompts(speaking)[0]
        if [prompt.user for prompt in asked] != [prompt.user for prompt in self.prompts]:
            raise TuluLiteError(
                f"stage {self.stage.name}: of the prompts not the same are usable by {model} as by the others",
                why="filters count tokens, and its tokens are others",
                cure="leave max_tokens and min_tokens out of the filters, or the model out of the pool",
            )
        # prompts of an own template have ids of their own; the same prompt has the same place
        place_of = {prompt.id: place for place, prompt in enumerate(asked)}
        offset = self.stage.pool.index(model) * len(self.prompts)  # other seeds for each model
        speaking.load(folder)
        for n in sorted({counts[place] for place in missing}):
            places = [place for place in missing if counts[place] == n]
            arriving = speaking.arriving(
                [asked[place] for place in places],
                self._sampling(n),
                positions=[offset + place for place in places],
            )
            for groups in arriving:
                came = [(place_of[group.prompt.id], group) for group in groups]
                if speaking is not self.sampler:
                    came = [(place, self._in_our_tokens(group)) for place, group in came]
                self._judge(
                    model, [RolloutGroup(self.prompts[place], group.rollouts) for place, group in came]
                )

    def _judge(self, model: str, groups: Sequence[RolloutGroup]) -> None:
        """Judge groups, keep them, and stop where too many verdicts are errors."""
        judged = self.judge.judged(groups)
        made = [
            (group.prompt, Judged(group.rollouts, ranks))
            for group, ranks in zip(judged, self._ranks(judged), strict=True)
        ]
        self.kept.add(model, made)
        self.judged |= {(model, prompt.id): one for prompt, one in made}
        known = [verdict for one in self.judged.values() for verdict in one.verdicts]
        self.judge.check_errors(known, total=len(self.prompts) * self.stage.samples_per_prompt)
        self.ctx.progress(len(self.judged), self.asked, "groups")

    def _ranks(self, groups: Sequence[RolloutGroup]) -> Iterator[tuple[Verdict | None, ...]]:
        """What the ranking verifier says of each group's responses that passed, None of the others."""
        if self.ranking is None:
            yield from (() for _ in groups)
            return
        asked = [
            RolloutGroup(
                replace(group.prompt, verifier=self.ranking.verifier),
                tuple(rollout for rollout in group.rollouts if self.ranking.passes(rollout)),
            )
            for group in groups
        ]
        for group, ranked in zip(groups, self.judge.judged(asked), strict=True):
            verdicts = iter(rollout.verdict for rollout in ranked.rollouts)
            yield tuple(
                next(verdicts) if self.ranking.passes(rollout) else None for rollout in group.rollouts
            )

    def _judge_again(self) -> None:
        """Judge kept groups of which a verdict is an error: what broke may have been mended since."""
        for model in self.stage.pool:
            broken = [
                RolloutGroup(prompt, self.judged[(model, prompt.id)].rollouts)
                for prompt in self.prompts
                if (model, prompt.id) in self.judged
                and any(v.status is Status.ERROR for v in self.judged[(model, prompt.id)].verdicts)
            ]
            for group in broken:
                del self.judged[(model, group.prompt.id)]  # so that its old errors do not count
            if broken:
                self._judge(model, broken)

    # Models, prompts, tokens

    def _load(self, model: str) -> tuple[str, Sampler]:
        """The model's folder, and the sampler that speaks its language."""
        if is_stage_name(model):
            if model == BASE:
                return str(hub_or_local(self.ctx.recipe.model, self.ctx.recipe.revision)), self.sampler
            return model_path(self.ctx.steps, self.ctx.recipe, model), self.sampler
        folder = str(hub_or_local(*split_revision(model)))
        ours = self.sampler.template
        template = _own_template(folder, self.ctx.recipe.chat_template)
        if template.source == ours.source and template.tokenizer.get_vocab() == ours.tokenizer.get_vocab():
            return folder, self.sampler
        recipe = self.ctx.recipe.model_copy(update={"model": folder, "revision": None})
        return folder, self.sampler.speaking(template, context_length(recipe))

    def _prompts(self, speaking: Sampler) -> tuple[list[Prompt], list[int]]:
        """The stage's prompts in a model's tokens, each with an id of its own, and the part each is of."""
        prompts: list[Prompt] = []
        parts: list[int] = []
        for part, sources in enumerate(self.stage.prompt_parts):
            loaded = load_prompts(
                sources,
                speaking.template,
                seed=self.ctx.recipe.seed,
                max_prompt_tokens=speaking.context - self.stage.sampling.max_tokens,
                rules=self.stage.without_mix() if part else self.stage,
            )
            prompts += [replace(prompt, id=f"{prompt.id}/{part}") if part else prompt for prompt in loaded]
            parts += [part] * len(loaded)
        return prompts, parts

    def _sampling(self, n: int) -> Sampling:
        drawn = self.stage.sampling
        return Sampling(
            n=n,
            temperature=drawn.temperature,
            max_tokens=drawn.max_tokens,
            seed=self.ctx.seed,
            **drawn.bending(),
        )

    def _in_our_tokens(self, group: RolloutGroup) -> RolloutGroup:
        """The responses of a model of another vocabulary, their text in our template's tokens."""
        template = self.sampler.template
        return RolloutGroup(
            group.prompt,
            tuple(
                Rollout(
                    tuple(template.response(rollout.text, rollout.finished)),
                    (),
                    (),
                    rollout.finish_reason,
                    rollout.text,
                    encoded=True,
                )
                for rollout in group.rollouts
            ),
        )


def _own_template(folder: str, otherwise: str) -> ChatTemplate:
    """The model's own chat template, or where it has none (a base model) the recipe's."""
    tokenizer = load_tokenizer(folder)
    try:
        return ChatTemplate.load("model", tokenizer, folder)
    except TuluLiteError:
        if otherwise == "model":
            raise
        return ChatTemplate.load(otherwise, tokenizer, folder)
