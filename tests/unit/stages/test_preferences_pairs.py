"""Pairs from judged responses: the best against a lower one, and nothing that teaches without a difference."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tulu_lite.recipe import PreferencesStage
from tulu_lite.records import PreferencePair, Prompt, Rollout, RolloutGroup
from tulu_lite.stages.preferences import make_pairs
from verifiers import Verdict
from verifiers.base import error, scored

PROMPT = Prompt(id="p", text="<p>", token_ids=(1, 2), source="s", verifier="number", reference="3", user="p")


def stage(**fields: Any) -> PreferencesStage:
    return PreferencesStage(
        name="pairs", kind="preferences", init="base", data="rows.jsonl", sampling={"max_tokens": 4}, **fields
    )  # type: ignore[arg-type]


def rollout(text: str, score: float | None, version: int = 7) -> Rollout:
    verdict: Verdict = error("broke") if score is None else scored(score)
    return Rollout((5,), (-0.5,), (version,), "stop", text, verdict)


def group(*responses: tuple[str, float | None], id: str = "p") -> RolloutGroup:
    prompt = Prompt(id=id, text="<p>", token_ids=(1, 2), source="s")
    return RolloutGroup(prompt, tuple(rollout(text, score) for text, score in responses))


def texts(pairs: list[PreferencePair]) -> list[tuple[str, str]]:
    return [(pair.chosen.text, pair.rejected.text) for pair in pairs]


def test_the_best_is_chosen_and_a_lower_one_rejected_with_where_both_came_from() -> None:
    (pair,) = make_pairs(group(("low", 0.0), ("best", 1.0), ("none", None)), stage(), 3, {"stage": "pairs"})
    assert (pair.chosen.text, pair.rejected.text) == ("best", "low")
    assert dict(pair.provenance) == {
        "stage": "pairs",
        "chosen_sample": 1,
        "rejected_sample": 0,
        "weight_version": 7,
    }
    assert pair.chosen.token_ids == (5,)


def test_ties_and_unscored_responses_make_no_pair() -> None:
    assert make_pairs(group(("a", 1.0), ("b", 1.0), ("c", None)), stage(), 0, {}) == []
    assert make_pairs(group(("a", 0.0), ("b", 0.0)), stage(), 0, {}) == []
    assert make_pairs(group(("a", None), ("b", None)), stage(), 0, {}) == []


def test_the_margin_is_the_least_difference() -> None:
    near = group(("a", 1.0), ("b", 0.75))
    assert make_pairs(near, stage(min_margin=0.5), 0, {}) == []
    assert texts(make_pairs(near, stage(min_margin=0.25), 0, {})) == [("a", "b")]
    tenths = group(("a", 0.8), ("b", 0.7))  # 0.8 - 0.7 < 0.1 in binary
    assert texts(make_pairs(tenths, stage(min_margin=0.1), 0, {})) == [("a", "b")]


def test_lowest_takes_one_of_the_lowest_and_random_lower_any() -> None:
    def drawn(rejected: str) -> set[str]:
        groups = [group(("a", 1.0), ("b", 0.5), ("c", 0.0), ("d", 0.0), id=f"p{i}") for i in range(60)]
        return {texts(make_pairs(one, stage(rejected=rejected), 0, {}))[0][1] for one in groups}

    assert drawn("lowest") == {"c", "d"}
    assert drawn("random_lower") == {"b", "c", "d"}


def test_seed_and_prompt_decide_the_choice() -> None:
    def choices(seed: int) -> list[tuple[str, str]]:
        return [
            pair
            for i in range(30)
            for pair in texts(
                make_pairs(group(("a", 1.0), ("b", 0.5), ("c", 0.0), id=f"p{i}"), stage(), seed, {})
            )
        ]

    assert choices(1) == choices(1)
    assert choices(1) != choices(2)
    assert len(set(choices(1))) > 1  # prompts do not all draw alike


RESPONSES = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from([None, 0.0, 0.3, 0.5, 1.0])), min_size=2, max_size=8
)


@settings(max_examples=200)
@given(
    RESPONSES,
    st.integers(1, 5),
    st.sampled_from(["random_lower", "lowest"]),
    st.sampled_from([0.0, 0.2, 0.5]),
    st.integers(0, 9),
)
def test_every_pair_keeps_the_rules(
    responses: list[tuple[str, float | None]], most: int, rejected: str, margin: float, seed: int
) -> None:
    settings = stage(pairs_per_prompt=most, rejected=rejected, min_margin=margin)
    one = group(*responses)
    pairs = make_pairs(one, settings, seed, {})
    assert make_pairs(one, settings, seed, {}) == pairs
    assert len(pairs) <= most
    for side in (0, 1):
        used = [pair[side] for pair in texts(pairs)]
        assert len(used) == len(set(used))
    for pair in pairs:
        assert pair.chosen.score is not None
        assert pair.rejected.score is not None
        difference = pair.chosen.score - pair.rejected.score
        assert difference > 0
        assert difference >= margin - 1e-9
        assert one.rollouts[pair.provenance["chosen_sample"]] is pair.chosen
        assert one.rollouts[pair.provenance["rejected_sample"]] is pair.rejected
    scores = [score for _, score in responses if score is not None]
    possible = bool(scores) and max(scores) - min(scores) > max(margin - 1e-9, 0)
    assert bool(pairs) == possible
    if pairs:
        assert pairs[0].chosen.score == max(scores)
        if rejected == "lowest":
            assert pairs[0].rejected.score == min(scores)
