"""How large a step is: prompts, completions and tokens; and with that, whether its data can be used at all."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..datasets.batching import token_batches
from ..datasets.chat import ChatTemplate, load_tokenizer
from ..datasets.conversations import load_conversations
from ..datasets.held_out import held_out_pairs
from ..datasets.pairs import load_pairs
from ..datasets.prompts import report_prompts
from ..datasets.sources import load_rows
from ..datasets.turns import conversation_turns
from ..errors import TuluLiteError
from ..judging import also_judged_by, row_check
from ..recipe import (
    DataSource,
    EvaluateStage,
    PairStage,
    PoolStage,
    PreferencesStage,
    Recipe,
    RejectStage,
    RlvrStage,
    SftStage,
)
from ..recipe.data import DataSettings
from ..recipe.stages import Stage
from ..records import Prompt
from ..rl.rollout_files import check_steps
from .fingerprint import token_cache
from .ledger import Ledger
from .models import model_config
from .steps import Step


@dataclass(frozen=True)
class Size:
    """What a step will consume. `at_most` where lengths are not known before sampling."""

    prompts: int
    completions: int
    tokens: int
    at_most: bool
    updates: int = 0  # optimiser steps
    notes: tuple[str, ...] = ()


def context_length(recipe: Recipe) -> int:
    """Tokens of the longest sequence: what the model's config says, or the server's max_model_len if that is less."""
    config = model_config(recipe)
    config = config.get("text_config", config)
    limits = [config.get("max_position_embeddings"), recipe.server.max_model_len]
    known = [limit for limit in limits if limit]
    if not known:
        raise TuluLiteError(
            f"the config of {recipe.model} names no max_position_embeddings, so the longest sequence is unknown",
            cure="set server.max_model_len",
        )
    return min(known)


class StepSizes:
    """Measures the steps of one recipe; the data of a stage is read once for all its seeds and models."""

    def __init__(self, recipe: Recipe, ledger: Ledger) -> None:
        self.recipe, self.ledger = recipe, ledger
        self._measured: dict[tuple[str, str], Size] = {}  # by stage and setting of its sweep
        self._begun: dict[
            str, int
        ] = {}  # by step: the steps of an rlvr run, which a longer one does not do again
        self._read: dict[str, tuple[int, int, int]] = {}  # what was read of an rlvr stage's prompts
        self._notes: list[str] = []  # of the data of the step that is measured
        self._cache = token_cache(recipe, ledger)

    def __call__(self, step: Step) -> Size:
        stage, setting = step.stage, step.setting if step.extends is None else f"{step.setting}+{step.id}"
        if isinstance(stage, RlvrStage):
            self._begun[step.id] = stage.steps
        if (stage.name, setting) in self._measured and step.kind != "select":
            return self._measured[stage.name, setting]
        known = self.ledger.cached_size(step.key)
        if known is not None and (step.done or not _needs_check(stage)):
            size = Size(**{**known, "notes": tuple(known["notes"])})
        else:
            self._notes = []
            size = self._measure(step)
            size = replace(size, notes=(*size.notes, *self._notes))
            self.ledger.cache_size(step.key, asdict(size))
        self._measured[stage.name, setting] = size
        return size

    @cached_property
    def template(self) -> ChatTemplate:
        tokenizer = load_tokenizer(self.recipe.model, self.recipe.revision)
        template = ChatTemplate.load(self.recipe.chat_template, tokenizer, self.recipe.model)
        template.check()
        return template

    @cached_property
    def context(self) -> int:
        return context_length(self.recipe)

    def _measure(self, step: Step) -> Size:
        stage = step.stage
        if isinstance(stage, SftStage):
            return self._sft(stage)
        if isinstance(stage, PairStage):
            return self._pairs(stage)
        if isinstance(stage, PoolStage):
            return self._pool(stage)
        if isinstance(stage, RlvrStage):
            before = next(
                one.steps
                for one in self.recipe.stages
                if isinstance(one, RlvrStage) and one.name == stage.name
            )
            return self._rlvr(stage, self._begun.get(step.extends, before) if step.extends else 0)
        if isinstance(stage, EvaluateStage):
            prompts = self._prompts(stage, "data", stage.data, stage.max_tokens)
            return self._sampled(prompts, 1 + stage.samples_per_prompt, stage.max_tokens)
        raise TypeError(stage.kind)

    def _pool(self, stage: PoolStage) -> Size:
        budget = stage.sampling.max_tokens
        parts = zip(("data", "general_prompts"), stage.prompt_parts, strict=False)
        prompts = [prompt for field, part in parts for prompt in self._prompts(stage, field, part, budget)]
        if isinstance(stage, RejectStage):
            for row in load_rows(stage.general, seed=self.recipe.seed):
                conversation_turns(row)  # or says what is wrong with it
        return self._sampled(prompts, stage.samples_per_prompt, budget)

    def _sft(self, stage: SftStage) -> Size:
        self._check_length(stage.name, stage.max_length)
        if any(source.stage for source in stage.data):
            return self._sft_from_stage(stage)
        examples, report = load_conversations(stage, self.template, seed=self.recipe.seed, cache=self._cache)
        tokens = report.tokens * stage.epochs
        completions = len(examples) * stage.epochs
        updates = -(-len(examples) // stage.batch_size) * stage.epochs
        if stage.batch_tokens is not None:
            lengths = [len(example.token_ids) for example in examples]
            updates = len(
                token_batches(lengths, stage.batch_tokens, stage.epochs, seed=0)
            )  # other seeds: about as many
        return Size(len(examples), completions, tokens, False, updates, tuple(report.notes()))

    def _sft_from_stage(self, stage: SftStage) -> Size:
        """The rows are not there yet: at most what the reject stages can make, with those of text."""
        own = tuple(source for source in stage.data if not source.stage)
        size = self._sft(stage.without_mix().model_copy(update={"data": own})) if own else None
        rows, tokens = (size.prompts, size.tokens // stage.epochs) if size else (0, 0)
        for source in stage.data:
            if source.stage:
                makes = next(other for other in self.recipe.stages if other.name == source.stage)
                assert isinstance(makes, RejectStage)
                sampled = self._measured.get((makes.name, ""))
                made = (sampled.prompts if sampled else 0) * makes.keep_per_prompt
                if makes.general:
                    made = round(made / (1 - makes.general_share))
                rows += made
                tokens += made * (sampled.tokens // max(sampled.completions, 1) if sampled else 0)
        return Size(
            rows,
            rows * stage.epochs,
            tokens * stage.epochs,
            True,
            -(-rows // stage.batch_size) * stage.epochs,
        )

    def _pairs(self, stage: PairStage) -> Size:
        self._check_length(stage.name, stage.max_length)
        from_stage = [source for source in stage.data if source.stage]
        if from_stage:
            return self._pairs_from_stage(stage, from_stage[0])
        pairs, report = load_pairs(
            stage, self.template, seed=self.recipe.seed, stage_rows=None, cache=self._cache
        )
        tokens = report.tokens * stage.epochs
        notes = report.notes()
        if not any(source.stage for source in stage.validation):
            held_out = held_out_pairs(
                stage, self.template, pairs, seed=self.recipe.seed, stage_rows=None, cache=self._cache
            )
            notes += [f"{len(held_out)} pairs are held out"] if held_out else []
        return Size(
            len(pairs),
            2 * len(pairs) * stage.epochs,
            tokens,
            False,
            -(-len(pairs) // stage.batch_size) * stage.epochs,
            tuple(notes),
        )

    def _pairs_from_stage(self, stage: PairStage, source: DataSource) -> Size:
        """The pairs are not there yet: at most what the preferences stage can make."""
        makes = next(other for other in self.recipe.stages if other.name == source.stage)
        assert isinstance(makes, PreferencesStage)
        sampled = self._measured.get((makes.name, ""))
        prompts = sampled.prompts if sampled else 0
        pairs = prompts * makes.pairs_per_prompt
        tokens_each = (sampled.tokens // max(sampled.completions, 1)) if sampled else 0
        return Size(
            prompts,
            2 * pairs * stage.epochs,
            2 * pairs * tokens_each * stage.epochs,
            True,
            -(-pairs // stage.batch_size) * stage.epochs,
        )

    def _rlvr(self, stage: RlvrStage, begun: int) -> Size:
        """begun: steps that the run which it goes on from has made."""
        prompts, longest, held_out = self._rlvr_prompts(stage)
        steps, every = stage.steps - begun, stage.validate_every_steps
        if stage.replay is not None:
            check_steps(Path(stage.replay), stage.steps)
            notes = (f"{steps} steps on the rollouts in {stage.replay}; nothing is sampled or validated",)
            return Size(prompts, 0, 0, True, steps * stage.updates, notes)
        validations = -(-stage.steps // every) - begun // every
        completions = steps * stage.prompts_per_step * stage.samples_per_prompt + validations * held_out
        notes = (
            f"{stage.prompts_per_step} prompts x {stage.samples_per_prompt} samples a step, {steps} steps; "
            f"{validations} validations of {held_out} prompts",
        )
        return Size(prompts, completions, completions * longest, True, steps * stage.updates, notes)

    def _rlvr_prompts(self, stage: RlvrStage) -> tuple[int, int, int]:
        """Prompts, tokens of the longest with its response, validation prompts; the data is read once for all settings
        that share it."""
        apart = stage.model_dump_json(include={"data", "validation", "sampling", *DataSettings.model_fields})
        if apart not in self._read:
            prompts = self._prompts(stage, "data", stage.data, stage.sampling.max_tokens)
            validation = self._prompts(stage, "validation", stage.validation, stage.sampling.max_tokens)
            both = {p.token_ids for p in prompts} & {p.token_ids for p in validation}
            if both:
                raise TuluLiteError(
                    f"stage {stage.name}: {len(both)} prompts are in its data and in its validation",
                    why="the best run is chosen by validation; prompts it trained on would choose the best memory",
                    cure="split the file by `share: [0, 0.9]` and `share: [0.9, 1]`, which goes by the prompt's hash",
                )
            longest = max(len(prompt.token_ids) for prompt in prompts) + stage.sampling.max_tokens
            self._read[apart] = (len(prompts), longest, len(validation))
        return self._read[apart]

    def _sampled(self, prompts: list[Prompt], samples: int, max_tokens: int) -> Size:
        tokens = sum(len(prompt.token_ids) + max_tokens for prompt in prompts) * samples
        return Size(len(prompts), len(prompts) * samples, tokens, True)

    def _prompts(
        self, stage: Stage, field: str, sources: tuple[DataSource, ...], max_tokens: int
    ) -> list[Prompt]:
        """The stage's prompts, with the references checked by their verifiers and the lengths against the context."""
        limit = self.context - max_tokens
        if limit < 1:
            raise TuluLiteError(
                f"stage {stage.name}: max_tokens {max_tokens} leaves no room for a prompt in the context of {self.context} tokens",
                cure="lower max_tokens, or raise server.max_model_len if it is what limits",
            )
        check = row_check(self.recipe, f"stage {stage.name}", *also_judged_by(stage))
        rules = (stage if field == "data" else stage.without_mix()).checking(check)
        prompts, report = report_prompts(
            sources, self.template, seed=self.recipe.seed, max_prompt_tokens=limit, rules=rules
        )
        self._notes += [note if field == "data" else f"{field}: {note}" for note in report.notes()]
        return prompts

    def _check_length(self, stage: str, max_length: int) -> None:
        if max_length > self.context:
            raise TuluLiteError(
                f"stage {stage}: max_length {max_length} is more than the model's context of {self.context} tokens",
                why="positions past the context are ones the model has never learnt",
                cure=f"set max_length to {self.context} or less",
            )


def _needs_check(stage: Any) -> bool:
    """Whether measuring also checks something that the cache cannot know (other versions of verifiers)."""
    return isinstance(stage, (PoolStage, RlvrStage, EvaluateStage))
