"""Rejection sampling: which responses are kept, how they are mixed, and that an sft stage learns the very tokens."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tulu_lite.datasets.chat import ChatTemplate, load_tokenizer
from tulu_lite.datasets.conversations import load_conversations
from tulu_lite.datasets.responses import ResponseRow, read_responses, write_responses
from tulu_lite.errors import TuluLiteError
from tulu_lite.recipe import RejectStage, SftStage, load_recipe
from tulu_lite.records import Prompt, Rollout, RolloutGroup
from tulu_lite.stages.pooling import PooledGroup
from tulu_lite.stages.reject import Seen, choose, in_order, mixed, similarity, word_runs
from verifiers.base import error, scored

BASE = str(Path(__file__).parents[3] / "data" / "quickstart" / "base")


def stage(**fields: Any) -> RejectStage:
    values = {
        "name": "rejected",
        "kind": "reject",
        "init": "base",
        "data": "rows.jsonl",
        "sampling": {"max_tokens": 9},
    }
    return RejectStage(**(values | fields))


def pooled(
    *responses: tuple[str, float | None], ranks: Any = None, part: int = 0, **more: Any
) -> PooledGroup:
    rollouts = tuple(
        Rollout(
            tuple(range(5, 5 + len(text.split()))), (-0.5,) * len(text.split()), (7,) * len(text.split()),
            more.get("finish", "stop"), text, error("broke") if score is None else scored(score),
        )
        for text, score in responses
    )  # fmt: skip
    prompt = Prompt(
        id=more.get("id", "p"), text="<p>", token_ids=(1, 2), source="s", user=more.get("user", "what?")
    )
    given = tuple(None if rank is None else scored(rank) for rank in ranks or [None] * len(rollouts))
    return PooledGroup(part, RolloutGroup(prompt, rollouts), ("sft",) * len(rollouts), given)


def kept(one: PooledGroup, settings: RejectStage, seen: Seen | None = None) -> list[ResponseRow]:
    ctx: Any = SimpleNamespace(stage=settings, seed=1, step=SimpleNamespace(key="k"))
    return list(choose(ctx, one, seen or Seen(settings.near_duplicates), Counter()))


def test_below_the_threshold_unscored_and_cut_responses_are_rejected() -> None:
    group = pooled(("right", 1.0), ("half", 0.5), ("wrong", 0.0), ("broken", None))
    assert [row.response for row in kept(group, stage(keep_per_prompt=9))] == ["right"]
    half = kept(group, stage(min_score=0.5, keep_per_prompt=9, choose="best"))
    assert [row.response for row in half] == ["right", "half"]
    cut = pooled(("right", 1.0), finish="length")
    assert kept(cut, stage()) == []
    assert len(kept(cut, stage(keep_unfinished=True))) == 1


def test_best_of_n_takes_the_highest_score_whatever_it_is() -> None:
    group = pooled(("a", 0.1), ("b", 0.3), ("c", 0.2))
    assert [row.response for row in kept(group, stage(min_score=None, choose="best"))] == ["b"]


def test_a_ranking_verifier_decides_among_those_that_passed_and_its_errors_are_no_rank() -> None:
    group = pooled(("a", 1.0), ("b", 1.0), ("c", 0.0), ("d", 1.0), ranks=[0.2, 0.9, None, None])
    settings = stage(choose="best", rank_by="reward", keep_per_prompt=9)
    rows = kept(group, settings)
    assert [row.response for row in rows] == ["b", "a"]
    assert [row.provenance["rank"] for row in rows] == [0.9, 0.2]


def test_shortest_is_by_tokens() -> None:
    group = pooled(("one two three", 1.0), ("one", 1.0), ("one two", 1.0))
    assert [row.response for row in kept(group, stage(choose="shortest"))] == ["one"]


def test_random_depends_on_seed_and_prompt_alone() -> None:
    def first(seed: int) -> list[int]:
        groups = [pooled(("a", 1.0), ("b", 1.0), ("c", 1.0), id=f"p{i}") for i in range(40)]
        return [in_order(one, stage(), seed)[0] for one in groups]

    assert first(1) == first(1)
    assert first(1) != first(2)
    assert set(first(1)) == {0, 1, 2}


LONG = "the sum of two and three is five because three after two is five"


def test_same_and_nearly_same_responses_to_a_prompt_are_kept_once() -> None:
    near = LONG + " indeed"
    group = pooled((LONG, 1.0), (f"  {LONG}\n", 1.0), (near, 1.0), ("five is what two and three make", 1.0))
    all_four = kept(group, stage(keep_per_prompt=9))
    assert len(all_four) == 2
    exact = kept(group, stage(keep_per_prompt=9, near_duplicates=None))
    assert len(exact) == 3
    seen = Seen(0.8)
    kept(pooled((LONG, 1.0)), stage(), seen)
    assert kept(pooled((LONG, 1.0), id="q"), stage(), seen) == []  # the same problem in another data set
    assert len(kept(pooled((LONG, 1.0), id="q", user="another?"), stage(), seen)) == 1


def test_similarity_by_hand() -> None:
    assert word_runs("A b, c d e f!") == {("a", "b", "c", "d", "e"), ("b", "c", "d", "e", "f")}
    assert word_runs("Five!") == {("five",)}
    assert similarity(word_runs("a b c d e f"), word_runs("b c d e f g")) == 1 / 3
    assert similarity(word_runs(""), word_runs("")) == 1.0


@given(st.integers(0, 200), st.integers(0, 200), st.floats(0.05, 0.95))
def test_the_mix_is_as_large_as_it_can_be_and_of_the_share(chosen: int, general: int, share: float) -> None:
    rows = mixed([("c", i) for i in range(chosen)], [("g", i) for i in range(general)], share, 0)
    n_chosen, n_general = (sum(kind == side for kind, _ in rows) for side in "cg")
    assert len(set(rows)) == len(rows)
    assert rows == sorted(rows)  # of each side in its order
    if chosen and general and n_chosen and n_general:
        assert n_chosen == chosen or n_general == general
        assert abs(n_general - share / (1 - share) * n_chosen) <= max(0.5, share / (1 - share) / 2) + 1e-9


def test_three_to_one_by_hand() -> None:
    rows = mixed(list("ccccccccccc"), list("gg"), 0.25, 0)
    assert Counter(rows) == {"c": 6, "g": 2}
    rows = mixed(list("ccc"), list("ggggg"), 0.25, 0)
    assert Counter(rows) == {"c": 3, "g": 1}


def test_an_sft_stage_learns_the_very_tokens_that_were_sampled(tmp_path: Path) -> None:
    template = ChatTemplate.load("model", load_tokenizer(BASE), BASE)
    sampled = kept(pooled(("five it is", 1.0)), stage())
    turns = ({"role": "user", "content": "what is 1 plus 1?"}, {"role": "assistant", "content": "2"})
    through = ResponseRow("general", "talk", {"file": "talk.jsonl", "line": 3}, messages=turns)
    path = tmp_path / "rows.jsonl"
    write_responses(path, [*sampled, through])
    assert read_responses(path) == [*sampled, through]
    settings = SftStage(name="again", kind="sft", data={"stage": "rejected"}, learning_rate=1e-3)  # type: ignore[arg-type]
    examples, report = load_conversations(settings, template, seed=0, stage_rows=lambda name: path)
    assert examples[0].token_ids == (
        1,
        2,
        5,
        6,
        7,
    )  # the prompt's ids, then the response's: nothing tokenized again
    assert examples[0].loss_mask == (False, False, True, True, True)
    ids, mask = template.conversation([dict(turn) for turn in turns])
    assert (examples[1].token_ids, examples[1].loss_mask) == (tuple(ids), tuple(mask))
    assert [example.source for example in examples] == ["s", "talk"]
    assert report.kept == 2


def test_a_row_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"kind": "chosen", "source": "s", "provenance": {}, "prompt_ids": [1], "response_ids": [2.5]}
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(TuluLiteError, match=r"rows.jsonl:1.*whole numbers"):
        read_responses(path)
    path.write_text(
        json.dumps(
            {
                "kind": "chosen",
                "source": "s",
                "provenance": {},
                "prompt_ids": [],
                "response_ids": [],
                "messages": [],
            }
        )
    )
    with pytest.raises(TuluLiteError, match="either messages or"):
        read_responses(path)


def recipe(tmp_path: Path, **reject: Any) -> Any:
    stages = [
        {"name": "rejected", "kind": "reject", "data": "rows.jsonl", "sampling": {"max_tokens": 4}, **reject},
        {"name": "again", "kind": "sft", "data": {"stage": "rejected"}, "learning_rate": 1e-3},
    ]
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps({"name": "r", "model": "./m", "output": "./o", "stages": stages}))
    return load_recipe(file)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "names either `init`"),
        ({"init": "base", "models": ["base"]}, "leave one out"),
        ({"models": ["base", "base"]}, "twice"),
        ({"models": ["nowhere"]}, "there is no stage 'nowhere'"),
        ({"init": "base", "rank_by": "number"}, "set `choose: best`"),
        ({"init": "base", "min_score": None}, "nothing would choose"),
        ({"init": "base", "general_share": 1.0}, "general_share"),
    ],
)
def test_a_stage_that_makes_no_sense_is_refused_with_a_cure(tmp_path: Path, fields: Any, said: str) -> None:
    with pytest.raises(TuluLiteError) as caught:
        recipe(tmp_path, **fields)
    assert said in str(caught.value)


def test_folders_of_a_pool_and_verifier_files_are_relative_to_the_recipe(tmp_path: Path) -> None:
    loaded = recipe(
        tmp_path,
        models=["base", "./teacher", "owner/name@abc"],
        choose="best",
        rank_by="mine.py:judge",
        general="talk.jsonl",
    )
    first = loaded.stages[0]
    assert first.models == ("base", str(tmp_path / "teacher"), "owner/name@abc")
    assert first.rank_by == f"{tmp_path / 'mine.py'}:judge"
    assert first.general[0].path == str(tmp_path / "talk.jsonl")


def test_only_rows_that_a_stage_can_read_are_given_to_it(tmp_path: Path) -> None:
    stages = [
        {
            "name": "pairs",
            "kind": "preferences",
            "init": "base",
            "data": "rows.jsonl",
            "sampling": {"max_tokens": 4},
        },
        {"name": "again", "kind": "sft", "data": {"stage": "pairs"}, "learning_rate": 1e-3},
    ]
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps({"name": "r", "model": "./m", "output": "./o", "stages": stages}))
    with pytest.raises(TuluLiteError, match="rows that a stage of kind sft can read"):
        load_recipe(file)
