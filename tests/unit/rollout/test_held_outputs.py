"""An engine's outputs that wait: the API server ends up with the same tokens, versions and counts, in the same order."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tulu_lite.rollout.held_outputs import _OTHERS, LONGEST_S, Held, can_wait, joined_logprobs, seldom
from tulu_lite.rollout.lean import FLAG


class Logprobs(NamedTuple):
    """vLLM's LogprobsLists."""

    logprob_token_ids: Any
    logprobs: Any
    sampled_token_ranks: Any
    cu_num_generated_tokens: Any = None


@dataclass
class Step:
    """vLLM's EngineCoreOutputs."""

    outputs: list[Any] = field(default_factory=list)
    weight_version: str | None = None
    scheduler_stats: Any = None
    utility_output: Any = None
    finished_requests: Any = None
    wave_complete: Any = None
    start_wave: Any = None


def output(name: str, token: int, finish: str | None = None, **more: Any) -> Any:
    """vLLM's EngineCoreOutput of one token, whose log-probability is the token's negative."""
    logprobs = Logprobs(np.array([[token, 7]]), np.array([[-float(token), -9.0]]), np.array([token % 3]))
    values = dict.fromkeys(_OTHERS) | {
        "request_id": name, "new_token_ids": [token], "new_logprobs": logprobs, "finish_reason": finish,
        "num_nans_in_logits": 0, "prefill_stats": None, "events": None,
    }  # fmt: skip
    return SimpleNamespace(**values | more)


def request(flag: bool = True, kind: str = "FINAL_ONLY", stop: tuple[str, ...] = ()) -> Any:
    extra = {FLAG: True} if flag else None
    parameters = SimpleNamespace(extra_args=extra, output_kind=SimpleNamespace(name=kind), stop=list(stop))
    return SimpleNamespace(sampling_params=parameters)


@dataclass
class Api:
    """What the API server puts together of what it is sent, and in how many messages of tokens."""

    tokens: dict[str, list[int]] = field(default_factory=dict)
    logprobs: dict[str, list[float]] = field(default_factory=dict)
    versions: dict[str, list[str | None]] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    messages: int = 0

    def take(self, sent: tuple[int, Any]) -> None:
        _, step = sent
        self.messages += bool(step.outputs)
        for one in step.outputs:
            assert one.request_id not in self.ended
            self.tokens.setdefault(one.request_id, []).extend(one.new_token_ids)
            assert one.new_logprobs.logprobs.shape == (len(one.new_token_ids), 2)
            assert one.new_logprobs.sampled_token_ranks.tolist() == [n % 3 for n in one.new_token_ids]
            self.logprobs.setdefault(one.request_id, []).extend(one.new_logprobs.logprobs[:, 0].tolist())
            versions = self.versions.setdefault(one.request_id, [])
            versions += [step.weight_version] * len(one.new_token_ids)
            if one.finish_reason:
                self.ended[one.request_id] = one.finish_reason


def step_of(
    held: Held, api: Api, outputs: list[Any], requests: dict[str, Any], version: str, now: float
) -> None:
    """As vLLM does a step: those that end are forgotten before; what is left in the step is sent after."""
    step = Step(outputs, version)
    of_clients = {0: step}
    alive = {
        name: one
        for name, one in requests.items()
        if name not in {o.request_id for o in outputs if o.finish_reason}
    }
    held.pass_on(of_clients, alive, version, now)
    for sent in of_clients.items():
        api.take(sent)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    flags=st.lists(st.booleans(), min_size=6, max_size=6), pace=st.sampled_from([0.0, 0.3, 2.0]),
)  # fmt: skip
def test_the_api_server_ends_up_with_the_same(
    seed: int, lengths: list[int], flags: list[bool], pace: float
) -> None:
    random_ = random.Random(seed)
    requests = {f"r{i}": request(flag=flags[i]) for i in range(len(lengths))}
    plan = {f"r{i}": [random_.randrange(100) for _ in range(n)] for i, n in enumerate(lengths)}
    api, versions, now, version = Api(), {}, 100.0, 0
    held = Held(api.take)
    done = dict.fromkeys(plan, 0)
    while any(done[name] < len(plan[name]) for name in plan):
        if random_.random() < 0.2:
            version += 1
        running = [name for name in plan if done[name] < len(plan[name]) and random_.random() < 0.8]
        outputs = []
        for name in running:
            last = done[name] + 1 == len(plan[name])
            outputs.append(output(name, plan[name][done[name]], "stop" if last else None))
            versions.setdefault(name, []).append(str(version))
            done[name] += 1
        step_of(held, api, outputs, requests, str(version), now)
        now += pace
    assert api.tokens == plan and api.versions == versions
    assert api.logprobs == {name: [-float(token) for token in tokens] for name, tokens in plan.items()}
    assert set(api.ended) == set(plan)
    assert not held._kept


def test_a_response_is_one_message_when_it_ends_within_a_second() -> None:
    api = Api()
    held = Held(api.take)
    for number in range(10):
        last = "length" if number == 9 else None
        step_of(held, api, [output("r", number, last)], {"r": request()}, "1", 5.0 + number * 0.05)
    assert api.messages == 1 and api.tokens["r"] == list(range(10)) and api.ended == {"r": "length"}


def test_what_is_sampled_is_told_once_a_second() -> None:
    api = Api()
    held = Held(api.take)
    for number in range(41):
        step_of(held, api, [output("r", number)], {"r": request()}, "1", number * LONGEST_S / 10)
    assert api.messages == 3 and len(api.tokens["r"]) == 33
    assert held._since == pytest.approx(3.3 * LONGEST_S)


def test_another_version_is_told_apart_and_first() -> None:
    api = Api()
    held = Held(api.take)
    for number, version in enumerate(["1", "1", "2", "2"]):
        step_of(
            held, api, [output("r", number, "stop" if number == 3 else None)], {"r": request()}, version, 0.0
        )
    assert api.versions["r"] == ["1", "1", "2", "2"] and api.messages == 2


def test_the_first_outputs_figures_are_kept() -> None:
    sent: list[Any] = []
    held = Held(sent.append)
    first, last = (
        output("r", 1, prefill_stats="stats", events=["queued"]),
        output("r", 2, "stop", events=["done"]),
    )
    held.pass_on({0: Step([first])}, {"r": request()}, "1", 0.0)
    step = Step([last])
    held.pass_on({0: step}, {}, "1", 0.0)
    [whole] = step.outputs
    assert whole.prefill_stats == "stats" and whole.events == ["queued", "done"] and not sent


@pytest.mark.parametrize("name", _OTHERS)
def test_an_output_that_tells_more_does_not_wait(name: str) -> None:
    api = Api()
    held = Held(api.take)
    step_of(held, api, [output("r", 1)], {"r": request()}, "1", 0.0)
    step_of(held, api, [output("r", 2, **{name: "more"})], {"r": request()}, "1", 0.0)
    assert api.tokens == {"r": [1, 2]} and api.messages == 1


def test_an_output_with_logits_that_are_not_numbers_does_not_wait() -> None:
    api = Api()
    step_of(Held(api.take), api, [output("r", 1, num_nans_in_logits=2)], {"r": request()}, "1", 0.0)
    assert api.tokens == {"r": [1]}


@pytest.mark.parametrize(
    "name", ["scheduler_stats", "utility_output", "finished_requests", "wave_complete", "start_wave"]
)
def test_what_goes_with_a_step_goes_at_once(name: str) -> None:
    steps = {0: Step([output("r", 1)], **{name: "more"})}
    Held(lambda _: pytest.fail("nothing is to be sent")).pass_on(steps, {"r": request()}, "1", 0.0)
    assert steps[0].outputs == [] and getattr(steps[0], name) == "more"


def test_a_step_that_says_nothing_is_not_sent() -> None:
    steps = {0: Step([output("r", 1)]), 1: Step([output("s", 1)])}
    Held(lambda _: None).pass_on(steps, {"r": request(), "s": request(flag=False)}, "1", 0.0)
    assert list(steps) == [1]


def test_a_scheduler_counts_once_a_second_while_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    now, made = [50.0], []
    monkeypatch.setattr("tulu_lite.rollout.held_outputs.time.monotonic", lambda: now[0])
    scheduler = SimpleNamespace(running=["r"])
    make = seldom(lambda self, *rest, **named: made.append((now[0], rest, named)) or "stats")
    told = []
    for _ in range(25):
        told.append(make(scheduler, None, perf_stats=None))
        now[0] += LONGEST_S / 10
    assert [place for place, one in enumerate(told) if one] == [0, 10, 20]
    assert make(scheduler, "drafts") == "stats" and make(scheduler, None, perf_stats="flops") == "stats"
    assert make(scheduler, None) is None
    scheduler.running = []  # the last word: nothing runs any more
    assert make(scheduler, None) == "stats"


def test_each_client_is_sent_its_own() -> None:
    sent: list[Any] = []
    held = Held(sent.append)
    requests = {"a": request(), "b": request()}
    held.pass_on({0: Step([output("a", 1)]), 3: Step([output("b", 2)])}, requests, "1", 0.0)
    held.pass_on({0: Step([output("a", 5)])}, requests, "1", 9.0)
    assert [(client, [o.request_id for o in step.outputs], step.weight_version) for client, step in sent] == [
        (0, ["a"], "1"),
        (3, ["b"], "1"),
    ]


def test_a_response_that_was_given_up_is_forgotten() -> None:
    """It ends outside a step; what was kept of it is sent once more, which the API server ignores."""
    sent: list[Any] = []
    held = Held(sent.append)
    held.pass_on({0: Step([output("gone", 1)])}, {"gone": request()}, "1", 0.0)
    held.pass_on({0: Step([output("r", 1, "stop")])}, {}, "1", 2.0)
    assert [o.request_id for _, step in sent for o in step.outputs] == ["gone"] and not held._kept


@pytest.mark.parametrize(
    ("asked", "waits"),
    [
        (request(), True),
        (request(flag=False), False),
        (request(kind="DELTA"), False),
        (request(kind="CUMULATIVE"), False),
        (request(stop=("\n",)), False),
        (SimpleNamespace(sampling_params=None), False),  # a reward model's
        (None, False),
    ],
)
def test_who_can_wait(asked: Any, waits: bool) -> None:
    assert can_wait(asked) is waits


def test_logprobs_of_nothing_are_nothing() -> None:
    assert joined_logprobs([]) is None
