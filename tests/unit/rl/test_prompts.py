"""The order of prompts: seeded epochs, places, curricula; the same after a resume."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from tulu_lite.recipe.stages.rlvr_parts import CurriculumSettings
from tulu_lite.records import Prompt
from tulu_lite.rl.prompts import PromptStream


def prompts(count: int) -> list[Prompt]:
    return [Prompt(id=str(i), text=str(i), token_ids=(i,), source="s") for i in range(count)]


def ids(chosen: list[Prompt]) -> list[int]:
    return [int(prompt.id) for prompt in chosen]


@settings(max_examples=40)
@given(st.integers(1, 13), st.integers(1, 9), st.integers(0, 5))
def test_each_epoch_is_a_permutation_of_all_prompts(n: int, count: int, seed: int) -> None:
    stream = PromptStream(prompts(n), seed)
    sequence = [i for _ in range(-(-3 * n // count)) for i in ids(stream.take(count))]
    for epoch in range(3):
        assert sorted(sequence[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_the_order_is_a_function_of_seed_and_place_alone() -> None:
    stream = PromptStream(prompts(40), 1)
    steps = [ids(stream.take(6)) for _ in range(9)]
    resumed = PromptStream(prompts(40), 1)
    resumed.state = {"place": 48, "rates": {}}
    assert ids(resumed.take(6)) == steps[8]
    assert ids(PromptStream(prompts(40), 2).take(6)) != steps[0]
    assert steps[0] + steps[1] != steps[6] + steps[7]  # epochs are shuffled anew


CURRICULUM = CurriculumSettings.model_validate({"low": 0.1, "high": 0.9, "keep": 0.25, "window": 2})


def test_what_is_too_easy_or_too_hard_is_drawn_less() -> None:
    stream = PromptStream(prompts(100), 0, CURRICULUM)
    easy = [(str(i), 1.0, 4) for i in range(50)]
    stream.record(easy)
    drawn = ids(stream.take(600))
    share = sum(i < 50 for i in drawn) / len(drawn)
    assert 0.14 < share < 0.26  # 0.25 of each pass: 0.2 of all
    assert stream.outside_share() == 1.0
    stream.record([(str(i), 0.0, 4) for i in range(50)])  # the mean of the window is 0.5 now
    assert stream.rate("3") == 0.5
    stream.record([(str(i), 0.0, 4) for i in range(50)])  # and the first group is forgotten
    assert stream.rate("3") == 0.0
    stream.record([("99", 1.0, 0)])  # none of its responses had a score
    assert stream.rate("99") is None


def test_nothing_but_easy_prompts_does_not_hang() -> None:
    stream = PromptStream(prompts(5), 0, CURRICULUM.model_copy(update={"keep": 0.0}))
    stream.record([(str(i), 1.0, 4) for i in range(5)])
    assert len(stream.take(7)) == 7


def test_a_curriculum_goes_on_from_its_state() -> None:
    stream = PromptStream(prompts(30), 3, CURRICULUM)
    stream.record([(str(i), float(i % 2), 4) for i in range(30)])
    stream.take(11)
    resumed = PromptStream(prompts(30), 3, CURRICULUM)
    resumed.state = json.loads(json.dumps(stream.state))
    assert ids(resumed.take(20)) == ids(stream.take(20))


def test_refill_does_not_take_what_is_there() -> None:
    stream = PromptStream(prompts(4), 0)
    for step in range(20):
        assert ids(stream.others(step, {"0", "1", "2"}, 8)) == [3]
    assert sorted(ids(stream.others(1, {"0", "1", "2", "3"}, 8))) == [0, 1, 2, 3]  # there are no others
    many = PromptStream(prompts(1000), 0)
    taken = {str(i) for i in range(0, 1000, 2)}
    chosen = ids(many.others(1, taken, 100))
    assert len(set(chosen)) == len(chosen) == 100
    assert all(i % 2 for i in chosen)
    assert chosen == ids(PromptStream(prompts(1000), 0).others(1, taken, 100))
    assert chosen != ids(many.others(2, taken, 100))
