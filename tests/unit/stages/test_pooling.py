"""Responses of a pool of models: spread over it, judged as they come, kept when the process dies."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tulu_lite.datasets.chat import ChatTemplate, load_tokenizer
from tulu_lite.datasets.responses import KeptGroups
from tulu_lite.errors import TuluLiteError
from tulu_lite.judging import Judge
from tulu_lite.recipe import PreferencesStage
from tulu_lite.records import Prompt, Rollout, RolloutGroup
from tulu_lite.rollout.client import Sampling
from tulu_lite.stages import pooling
from tulu_lite.stages.pooling import PooledGroup, Ranking, pooled_groups, shares
from tulu_lite.stages.preferences import make_pairs
from verifiers import Sample, Verdict
from verifiers.base import error, scored

BASE = str(Path(__file__).parents[3] / "data" / "quickstart" / "base")
ROWS = [{"prompt": f"what is {i} plus 1?", "reference": str(i + 1), "verifier": "number"} for i in range(6)]


class Killed(BaseException):
    """What ends a process in the middle."""


class FakeSampler:
    """Responses that depend on the model, seed, prompt and position alone, in an order that does not."""

    context = 200

    def __init__(self, template: ChatTemplate, killed_after: int | None = None) -> None:
        self.template, self.left = template, killed_after
        self.asked: list[tuple[str, str, int]] = []  # model, prompt, n
        self.positions: list[int] = []
        self.model = ""

    def load(self, folder: str) -> None:
        self.model = Path(folder).name

    def speaking(self, template: ChatTemplate, context: int) -> FakeSampler:
        other = FakeSampler(template, self.left)
        other.asked = self.asked
        return other

    def arriving(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, positions: Sequence[int]
    ) -> Iterator[list[RolloutGroup]]:
        order = list(zip(prompts, positions, strict=True))
        random.shuffle(order)
        for prompt, position in order:
            if self.left == 0:
                raise Killed
            self.left = None if self.left is None else self.left - 1
            self.asked.append((self.model, prompt.user, sampling.n))
            self.positions.append(position)
            yield [
                RolloutGroup(
                    prompt, tuple(self._one(prompt, position, sampling, i) for i in range(sampling.n))
                )
            ]

    def _one(self, prompt: Prompt, position: int, sampling: Sampling, i: int) -> Rollout:
        drawn = hashlib.sha256(f"{self.model}:{sampling.seed}:{prompt.user}:{position}:{i}".encode())
        text = f"{self.model} says {drawn.digest()[0]}"
        ids = tuple(self.template.tokenizer(text, add_special_tokens=False)["input_ids"])
        return Rollout(ids, (-0.5,) * len(ids), (1,) * len(ids), "stop", text)


class FakePool:
    """Verdicts by a function of the sample; counts what it was asked."""

    def __init__(self, judge: Any) -> None:
        self.judge, self.asked = judge, Counter[str]()

    def verify(self, items: Sequence[tuple[Any, Sample]]) -> list[Verdict]:
        self.asked.update(str(spec) for spec, _ in items)
        return [self.judge(sample) for _, sample in items]


def by_number(sample: Sample) -> Verdict:
    return scored(int(sample.response.rsplit(" ", 1)[1]) / 255)


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate.load("model", load_tokenizer(BASE), BASE)


@pytest.fixture
def context(tmp_path: Path, template: ChatTemplate) -> Any:
    """make(models=..., samples=...) -> what a stage's process is given, in one folder."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def make(models: tuple[str, ...] = (), samples: int = 4) -> Any:
        pool = {"models": models} if models else {"init": "base"}
        stage = PreferencesStage(
            name="pairs", kind="preferences", data=str(rows), sampling={"max_tokens": 8},
            samples_per_prompt=samples, **pool,
        )  # type: ignore[arg-type]  # fmt: skip
        recipe = SimpleNamespace(
            model=BASE, revision=None, seed=0, chat_template="model", verifiers={}, judges={}
        )
        recipe.model_copy = lambda update: recipe
        return SimpleNamespace(
            dir=tmp_path, stage=stage, seed=3, recipe=recipe, steps={}, progress=lambda *_: None
        )

    return make


@pytest.fixture
def stages_are_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "model_path", lambda steps, recipe, name: f"/steps/{name}")


def run(ctx: Any, sampler: FakeSampler, verdict: Any = by_number, **more: Any) -> list[PooledGroup]:
    judge = Judge(ctx.recipe, FakePool(verdict), ctx.stage.max_error_share)  # type: ignore[arg-type]
    return pooled_groups(ctx, sampler, judge, **more)  # type: ignore[arg-type]


POOLS = st.integers(1, 6)


@given(POOLS, st.integers(1, 9), st.integers(1, 8), st.integers(0, 3))
def test_samples_are_spread_evenly_and_the_first_model_is_never_short(
    models: int, samples: int, prompts: int, seed: int
) -> None:
    pool, ids = [f"m{i}" for i in range(models)], [f"p{i}" for i in range(prompts)]
    counts = shares(pool, ids, samples, seed)
    assert counts == shares(pool, ids, samples, seed)
    for place in range(prompts):
        of_prompt = [counts[model][place] for model in range(models)]
        assert sum(of_prompt) == samples
        assert max(of_prompt) - min(of_prompt) <= 1
        assert of_prompt[0] == max(of_prompt)


def test_the_rest_of_the_pool_takes_turns_by_prompt() -> None:
    counts = shares(["own", "a", "b", "c", "d"], [f"p{i}" for i in range(200)], 3, 0)
    assert counts[0] == [1] * 200
    assert all(60 < sum(model) < 140 for model in counts[1:])  # 2 of 4 for each: 100 on average


@pytest.mark.usefixtures("stages_are_folders")
def test_each_model_samples_its_share_and_every_response_says_whose_it_is(
    context: Any, template: ChatTemplate
) -> None:
    ctx, sampler = context(models=("sft", "base"), samples=3), FakeSampler(template)
    groups = run(ctx, sampler)
    assert [group.group.prompt.user for group in groups] == [row["prompt"] for row in ROWS]
    assert {group.models for group in groups} == {("sft", "sft", "base")}
    for group in groups:
        assert [rollout.text.split()[0] for rollout in group.group.rollouts] == list(group.models)
        assert all(rollout.verdict is not None for rollout in group.group.rollouts)
    assert [model for model, _, _ in sampler.asked] == ["sft"] * 6 + ["base"] * 6  # in turn: two loads in all
    assert len(set(sampler.positions)) == 12  # no two models sample with the same seeds
    pairs = make_pairs(groups[0].group, ctx.stage, 0, {}, groups[0].models)
    assert pairs[0].chosen.text.startswith(pairs[0].provenance["chosen_model"])
    assert pairs[0].rejected.text.startswith(pairs[0].provenance["rejected_model"])


@pytest.mark.usefixtures("stages_are_folders")
@pytest.mark.parametrize("after", [0, 1, 5, 7, 11])
def test_a_killed_stage_asks_only_for_what_is_missing_and_ends_the_same(
    context: Any, template: ChatTemplate, after: int
) -> None:
    ctx = context(models=("sft", "base"), samples=3)
    with pytest.raises(Killed):
        run(ctx, FakeSampler(template, killed_after=after))
    with (ctx.dir / "groups.jsonl").open("ab") as file:
        file.write(b'{"model": "sft", "prompt_id": "torn')  # the kill came in the middle of a line
    second = FakeSampler(template)
    groups = run(ctx, second)
    assert len(second.asked) == 12 - after
    third = FakeSampler(template)
    assert run(ctx, third) == groups
    assert third.asked == []
    (ctx.dir / "groups.jsonl").unlink()
    assert run(ctx, FakeSampler(template)) == groups


def test_what_a_broken_verifier_left_is_judged_again_and_not_sampled_again(
    context: Any, template: ChatTemplate
) -> None:
    ctx = context()
    with pytest.raises(TuluLiteError, match="verifiers failed on"):
        run(ctx, FakeSampler(template), lambda sample: error("no judge there"))
    kept = KeptGroups(ctx.dir / "groups.jsonl").read()
    assert len(kept) == 1  # 24 responses, 10 % may fail: the first 4 errors are too many
    sampler = FakeSampler(template)
    groups = run(ctx, sampler)
    assert len(sampler.asked) == 5
    assert all(rollout.score is not None for group in groups for rollout in group.group.rollouts)


def test_a_few_errors_do_not_stop_the_stage_whenever_they_come(context: Any, template: ChatTemplate) -> None:
    ctx, failures = context(), iter([True, True])  # 2 of 24, both among the first 4

    def sometimes(sample: Sample) -> Verdict:
        return error("hiccup") if next(failures, False) else by_number(sample)

    groups = run(ctx, FakeSampler(template), sometimes)
    assert sum(score is None for group in groups for score in group.group.scores) == 2


def test_a_second_verifier_ranks_only_what_passed_the_first(context: Any, template: ChatTemplate) -> None:
    ctx = context()
    pool = FakePool(by_number)
    judge = Judge(ctx.recipe, pool, 0.1)  # type: ignore[arg-type]
    ranking = Ranking("reward", lambda rollout: (rollout.score or 0) > 0.5)
    groups = pooled_groups(ctx, FakeSampler(template), judge, ranking)  # type: ignore[arg-type]
    passed = sum((score or 0) > 0.5 for group in groups for score in group.group.scores)
    assert 0 < passed < 24
    assert pool.asked == {"number": 24, "reward": passed}
    for group in groups:
        for rollout, rank in zip(group.group.rollouts, group.ranks, strict=True):
            assert (rank is not None) == ((rollout.score or 0) > 0.5)
    again = pooled_groups(ctx, FakeSampler(template), judge, ranking)  # type: ignore[arg-type]
    assert again == groups  # the ranks are kept with the groups


def test_a_model_of_another_vocabulary_is_asked_in_its_own_and_answers_in_ours(
    context: Any, template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own template makes its prompts; its text becomes our tokens, our end token last, and no logprobs."""
    theirs = ChatTemplate("model", "ASK {{ messages[-1]['content'] }}", template.tokenizer, BASE)
    monkeypatch.setattr(pooling, "hub_or_local", lambda model, revision: Path("/models") / Path(model).name)
    monkeypatch.setattr(pooling, "_own_template", lambda folder, otherwise: theirs)
    monkeypatch.setattr(pooling, "context_length", lambda recipe: 99)
    ctx = context(models=("base", "owner/teacher@main"), samples=2)
    seen: list[str] = []
    arriving = FakeSampler.arriving

    def spied(self: FakeSampler, prompts: Sequence[Prompt], *args: Any, **more: Any) -> Any:
        seen.extend(prompt.text for prompt in prompts if self.model == "teacher")
        return arriving(self, prompts, *args, **more)

    monkeypatch.setattr(FakeSampler, "arriving", spied)
    groups = run(ctx, FakeSampler(template))
    assert seen == [f"ASK {row['prompt']}" for row in ROWS]
    for group in groups:
        assert group.models == ("base", "owner/teacher@main")
        own, other = group.group.rollouts
        assert own.logprobs and not own.encoded
        text = tuple(template.tokenizer(other.text, add_special_tokens=False)["input_ids"])
        assert (other.token_ids, other.logprobs, other.encoded) == (
            (*text, template.end_token_ids[0]),
            (),
            True,
        )
        assert template.decode(other.token_ids) == other.text
    cut = Rollout((5,), (-1.0,), (1,), "length", "cut off")
    assert template.response("cut off", cut.finished)[-1] not in template.end_token_ids


def test_a_rollout_without_logprobs_is_one_that_was_not_sampled() -> None:
    with pytest.raises(ValueError, match="not whole"):
        Rollout((5, 6), (), (), "stop")
    assert Rollout((5, 6), (), (), "stop", encoded=True).token_ids == (5, 6)
    with pytest.raises(ValueError, match="not whole"):
        replace(Rollout((5,), (-1.0,), (1,), "stop"), encoded=True, token_ids=(1, 2))
