"""Judges against a stand-in endpoint: what is asked, what is taken from replies, and every kind of outage."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from verifiers import BadReference, Sample, SpecError, Status, Verdict, VerifierError, VerifierPool, build
from verifiers.judges import compare, endpoint, quoting
from verifiers.judges.endpoint import retry_after
from verifiers.judges.memory import Memory


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of the user's, and no long waits."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(endpoint, "BACKOFF_S", 0.001)
    quoting._secret.cache_clear()


def said(**judgement: Any) -> str:
    return json.dumps({"mark": "MARK", "analysis": "because", **judgement})


def judged(use: str, args: dict[str, Any], *samples: Sample) -> list[Verdict]:
    with VerifierPool(workers=1) as pool:
        return pool.verify([({"use": use, "args": args}, sample) for sample in samples])


def user_text(body: dict[str, Any]) -> str:
    return str(body["messages"][1]["content"])


# ---------------------------------------------------------------- the four judges


def test_each_aspect_is_asked_for_and_their_mean_is_the_score(fake_judge: Any) -> None:
    marks = {"How much does": 5, "How well does": 4, "how sure": 3, "statements true": 1}

    def answer(body: dict[str, Any], _: int) -> str:
        return said(score=next(mark for words, mark in marks.items() if words in user_text(body)))

    fake_judge.answer = answer
    verdict = judged("judge_aspect", fake_judge.args(), Sample("4", prompt="2+2?"))[0]
    assert verdict.score == pytest.approx((1 + 0.75 + 0.5 + 0) / 4)
    assert "helpfulness 5/5: because" in verdict.reason
    assert len(fake_judge.requests) == 4
    one = judged("judge_aspect", fake_judge.args(aspect="honesty"), Sample("4"))[0]
    assert one.score == 0.5
    assert len(fake_judge.requests) == 5


def test_a_request_says_what_it_must(fake_judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    fake_judge.answer = lambda body, _: said(verdict="correct")
    args = fake_judge.args(api_key_env="JUDGE_KEY", max_tokens=99, extra_body={"seed": 3})
    sample = Sample("<think>no</think>Four.", 4, "What is 2+2?")
    verdict = judged("judge_reference", args, sample)[0]
    assert (verdict.score, verdict.reason, verdict.version) == (1.0, "because", "1")
    (request,) = fake_judge.requests
    assert request["path"] == "/v1/chat/completions"
    assert (request["model"], request["temperature"], request["max_tokens"], request["seed"]) == (
        "fake",
        0.0,
        99,
        3,
    )
    assert request["response_format"]["json_schema"]["schema"]["required"] == ["mark", "analysis", "verdict"]
    assert fake_judge.headers[0]["Authorization"] == "Bearer sk-secret"
    text = user_text(request)
    assert [text.count(part) for part in ('"What is 2+2?"', '"4"', '"Four."')] == [1, 1, 1]
    assert "no<" not in text
    assert text.count("Does the response arrive at the reference answer?") == 2  # before and after
    assert text.rindex("Does the response arrive") > text.index('"Four."')


def test_reference_rubric_and_policy(fake_judge: Any) -> None:
    fake_judge.answer = lambda body, _: said(verdict="incorrect")
    assert judged("judge_reference", fake_judge.args(), Sample("5", "4"))[0].score == 0.0
    fake_judge.answer = lambda body, _: said(score=4)
    rubric = fake_judge.args(rubric="Short and kind.")
    assert judged("judge_rubric", rubric, Sample("Hi."))[0].score == 0.75
    assert '"Short and kind."' in user_text(fake_judge.requests[-1])
    assert judged("judge_rubric", fake_judge.args(), Sample("Hi.", "Rubric of the row"))[0].score == 0.75
    assert '"Rubric of the row"' in user_text(fake_judge.requests[-1])
    fake_judge.answer = lambda body, _: said(verdict="complies")
    policy = fake_judge.args(rubric="Never give legal advice.", answer="complies")
    assert judged("judge_rubric", policy, Sample("Ask a lawyer."))[0].score == 1.0


def test_weighted_criteria(fake_judge: Any) -> None:
    criteria = [{"criterion": "names Paris", "weight": 3}, "is polite", {"criterion": "lies", "weight": -2}]
    fake_judge.answer = lambda body, _: said(criterion_1=True, criterion_2=False, criterion_3=False)
    verdict = judged("judge_rubric", fake_judge.args(rubric=criteria), Sample("Paris"))[0]
    assert (verdict.score, verdict.status) == (0.75, Status.PARTIAL)
    assert verdict.reason.startswith("1 met, 2 not met, 3 not met")
    fake_judge.answer = lambda body, _: said(criterion_1=False, criterion_2=True, criterion_3=True)
    assert (
        judged("judge_rubric", fake_judge.args(rubric=criteria), Sample("Rome"))[0].score == 0.0
    )  # not below
    assert judged("judge_rubric", fake_judge.args(), Sample("Rome", criteria))[0].score == 0.0


def prefers(word: str) -> Callable[[dict[str, Any], int], str]:
    """The response with the word in it is better, wherever it stands."""

    def answer(body: dict[str, Any], _: int) -> str:
        first, second = user_text(body).split("<<<FIRST RESPONSE")[1].split("<<<SECOND RESPONSE")
        return said(
            better="tie" if (word in first) == (word in second) else "first" if word in first else "second"
        )

    return answer


def test_pairs_are_judged_in_both_orders(fake_judge: Any) -> None:
    fake_judge.answer = prefers("good")
    args = fake_judge.args()
    samples = [Sample("good", "bad"), Sample("bad", "good"), Sample("bad", "worse"), Sample("same", " same ")]
    assert [v.score for v in judged("judge_pairwise", args, *samples)] == [1.0, 0.0, 0.5, 0.5]
    assert len(fake_judge.requests) == 6
    fake_judge.answer = lambda body, _: said(better="first")  # loves whatever stands first
    assert judged("judge_pairwise", args, Sample("good", "bad"))[0].score == 0.5
    column = fake_judge.args(against="other")
    fake_judge.answer = prefers("good")
    assert (
        judged("judge_pairwise", column, Sample("good", info={"other": "<think>good</think>bad"}))[0].score
        == 1.0
    )
    assert judged("judge_pairwise", column, Sample("good"))[0].status is Status.ERROR


def test_pairs_from_python(fake_judge: Any) -> None:
    fake_judge.answer = prefers("good")
    found = compare("q", "bad", "good", **fake_judge.args())
    assert (found.better, found.orders) == ("second", ("second", "second"))
    fake_judge.answer = lambda body, _: "no"
    with pytest.raises(VerifierError, match="cannot be read"):
        compare("q", "bad", "good", **fake_judge.args())
    with pytest.raises(SpecError, match="bas_url"):
        compare("q", "a", "b", bas_url="x", model="y")
    with pytest.raises(BadReference, match="never closed"):
        compare("q", "<think>a", "b", **fake_judge.args())


def test_an_empty_response_costs_nothing(fake_judge: Any) -> None:
    for use, reference in (
        ("judge_aspect", None),
        ("judge_reference", "4"),
        ("judge_rubric", "r"),
        ("judge_pairwise", "x"),
    ):
        assert judged(use, fake_judge.args(), Sample(" \n", reference))[0].score == 0.0
    assert fake_judge.requests == []


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_url": "http://example.com/v1"}, "not encrypted"),
        ({"base_url": "http://10.0.0.7:8000/v1"}, "not encrypted"),
        ({"base_url": "ftp://127.0.0.1/v1"}, "no URL of an endpoint"),
        ({"base_url": "127.0.0.1:8000"}, "no URL of an endpoint"),
        ({"base_url": "http://127.0.0.1:99999/v1"}, "no URL"),
        ({"base_url": "https://me:pass@example.com/v1"}, "user name or password"),
        ({"base_url": "env:NO_SUCH_URL"}, "NO_SUCH_URL"),
        ({"api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY has no API key"),
        ({"model": ""}, "model is empty"),
        ({"temperature": 3}, "temperature"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"extra_body": {"messages": []}}, "extra_body cannot have messages"),
        ({"modell": "x"}, "no argument 'modell'"),
        ({"aspect": "beauty"}, "not one of"),
        ({"cache": "/dev/null/x"}, "cache"),
    ],
)
def test_wrong_settings_are_found_when_it_is_built(change: dict[str, Any], message: str) -> None:
    args = {"base_url": "http://127.0.0.1:1/v1", "model": "m", "cache": "", **change}
    with pytest.raises(VerifierError, match=message):
        build({"use": "judge_aspect", "args": args})


def test_consent_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_URL", "https://example.com/v1/")
    for url, more in (
        ("http://10.0.0.7/v1", {"allow_http": True}),
        ("env:JUDGE_URL", {}),
        ("http://[::1]:5/v1", {}),
    ):
        build({"use": "judge_aspect", "args": {"base_url": url, "model": "m", "cache": "", **more}})


@pytest.mark.parametrize("rubric", ["", 5, [], [""], [{"text": "x"}], [{"criterion": "x", "weight": 0}],
                                    [{"criterion": "x", "weight": -1}], ["x"] * 41])  # fmt: skip
def test_rubrics_are_checked_when_built_and_when_rows_are_loaded(rubric: Any) -> None:
    args = {"base_url": "http://127.0.0.1:1/v1", "model": "m", "cache": ""}
    with pytest.raises(SpecError, match="judge_rubric"):
        build({"use": "judge_rubric", "args": {**args, "rubric": rubric}})
    with pytest.raises(BadReference):
        build({"use": "judge_rubric", "args": args}).check_reference(rubric)


# ---------------------------------------------------------------- outages

UNREADABLE = {
    "prose": "I think it deserves 5 out of 5.",
    "nothing": "",
    "null": {"choices": [{"message": {"content": None}, "finish_reason": "stop"}]},
    "cut off": {"choices": [{"message": {"content": '{"mark":"MARK","analysis":"a","score":5}'}, "finish_reason": "length"}]},
    "filtered": {"choices": [{"message": {"content": '{"mark":"MARK","analysis":"a","score":5}'}, "finish_reason": "content_filter"}]},
    "no mark": '{"analysis": "a", "score": 5}',
    "another mark": '{"mark": "0123456789abcdef", "analysis": "a", "score": 5}',
    "an array": '[{"mark": "MARK", "analysis": "a", "score": 5}]',
    "a missing key": '{"mark": "MARK", "score": 5}',
    "a key too many": '{"mark": "MARK", "analysis": "a", "score": 5, "final": 5}',
    "text": '{"mark": "MARK", "analysis": "a", "score": "5"}',
    "a float": '{"mark": "MARK", "analysis": "a", "score": 5.0}',
    "true": '{"mark": "MARK", "analysis": "a", "score": true}',
    "out of range": '{"mark": "MARK", "analysis": "a", "score": 6}',
    "negative": '{"mark": "MARK", "analysis": "a", "score": -1}',
    "NaN": '{"mark": "MARK", "analysis": "a", "score": NaN}',
    "infinity": '{"mark": "MARK", "analysis": "a", "score": 1e999}',
    "twice": '{"mark": "MARK", "analysis": "a", "score": 1, "score": 5}',
    "two objects": '{"mark": "MARK", "analysis": "a", "score": 1}{"mark": "MARK", "analysis": "a", "score": 5}',
    "words behind": '{"mark": "MARK", "analysis": "a", "score": 5} Score: 5',
    "words before": 'Score: {"mark": "MARK", "analysis": "a", "score": 5}',
    "a deep one": "[" * 10_000,
    "a long one": '{"mark": "MARK", "analysis": "' + "a" * 30_000 + '", "score": 5}',
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_reply_that_cannot_be_read_is_no_score(fake_judge: Any, name: str) -> None:
    fake_judge.answer = lambda body, _: UNREADABLE[name]
    verdict = build({"use": "judge_aspect", "args": fake_judge.args(aspect="honesty")}).verify(Sample("x"))
    assert (verdict.score, verdict.status) == (None, Status.ERROR)
    assert verdict.reason.startswith("the judge cannot be read: ")


READABLE = {
    "plain": '{"mark": "MARK", "analysis": "a", "score": 2}',
    "fenced": '```json\n{"mark": "MARK", "analysis": "a", "score": 2}\n```',
    "after thinking": '<think>{"score": 5}, no</think>\n{"mark": "MARK", "analysis": "a", "score": 2}',
    "raw control characters": '{"mark": "MARK", "analysis": "a\x1d\t", "score": 2}',
    "in another order": '{"score": 2, "mark": "MARK", "analysis": "a"}',
}


@pytest.mark.parametrize("name", READABLE)
def test_replies_that_can_be_read(fake_judge: Any, name: str) -> None:
    fake_judge.answer = lambda body, _: READABLE[name]
    verdict = build({"use": "judge_aspect", "args": fake_judge.args(aspect="honesty")}).verify(Sample("x"))
    assert verdict.score == 0.25


def one(args: dict[str, Any], **settings: Any) -> Verdict:
    return build({"use": "judge_reference", "args": {**args, **settings}}).verify(Sample("x", "y"))


FAULTS = {
    "closed": (None, "ServerDisconnected"),
    "500": ((500, {}, b"oh no"), "HTTP 500: oh no"),
    "429": ((429, {}, b"slow down"), "HTTP 429"),
    "no completion": ((200, {}, b'{"choices": []}'), "no chat completion"),
    "no json": ((200, {}, b"<html>"), "no chat completion"),
    "half": ((200, {"Content-Length": "500"}, b'{"choices"'), "attempts"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_passing_outages_are_retried_and_lasting_ones_are_errors(
    fake_judge: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply, reason = FAULTS[name]
    close = {"Connection": "close"}
    fault = (reply[0], {**reply[1], **close}, reply[2]) if isinstance(reply, tuple) else reply
    fake_judge.answer = lambda body, number: fault if number <= 3 else said(verdict="correct")
    settings = {"request_timeout_s": 0.5} if name == "half" else {}
    assert one(fake_judge.args(), **settings).score == 1.0
    assert len(fake_judge.requests) == 4
    monkeypatch.setattr(endpoint, "MAX_ATTEMPTS", 2)
    fake_judge.answer = lambda body, _: fault
    lasting = one(fake_judge.args(), **settings)
    assert (lasting.score, lasting.status) == (None, Status.ERROR)
    assert lasting.reason.startswith("the judge gave no answer: ")
    assert reason in lasting.reason


def test_what_no_retry_can_mend_is_not_retried(fake_judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    fake_judge.answer = lambda body, _: (401, {}, b"bad key sk-secret\n\nbegone")
    verdict = one(fake_judge.args(api_key_env="JUDGE_KEY"))
    assert verdict.reason == "the judge gave no answer: HTTP 401: bad key ... begone"
    fake_judge.answer = lambda body, _: (302, {"Location": "http://127.0.0.1:1/"}, b"")
    assert "HTTP 302" in one(fake_judge.args()).reason
    fake_judge.answer = lambda body, _: (200, {}, b" " * ((1 << 20) + 10))
    assert "larger than" in one(fake_judge.args()).reason
    assert len(fake_judge.requests) == 3


def test_an_endpoint_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "MAX_ATTEMPTS", 2)
    verdict = one({"base_url": "http://127.0.0.1:9/v1", "model": "m", "cache": ""})
    assert (verdict.score, verdict.status) == (None, Status.ERROR)
    assert "(2 attempts)" in verdict.reason


def test_slow_answers_meet_the_deadline(fake_judge: Any) -> None:
    fake_judge.answer = lambda body, _: 3.0
    spec = {"use": "judge_reference", "args": fake_judge.args(timeout_s=1.0, request_timeout_s=0.4)}
    with VerifierPool(workers=1) as pool:
        verdict, other = pool.verify([(spec, Sample("x", "y")), ("number", Sample("1", 1))])
    assert verdict.seconds < 2.9  # by its own clock: workers that start on a crowded machine do not count
    assert (verdict.score, other.score) == (None, 1.0)
    assert "gave no answer" in verdict.reason or "timed out" in verdict.reason


def test_retry_after_is_honoured_by_all_and_never_waited_for_in_vain(fake_judge: Any) -> None:
    times: list[float] = []

    def answer(body: dict[str, Any], number: int) -> Any:
        times.append(time.monotonic())
        return (429, {"Retry-After": "0.6"}, b"") if number == 1 else said(verdict="correct")

    fake_judge.answer = answer
    assert one(fake_judge.args()).score == 1.0
    assert times[1] - times[0] >= 0.59
    fake_judge.answer = lambda body, _: (503, {"Retry-After": "3600"}, b"")
    start = time.monotonic()
    assert "asks to wait 3600 s" in one(fake_judge.args()).reason
    assert time.monotonic() - start < 60
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    for nothing in (None, "", "soon", "nan", "-5"):
        assert retry_after(nothing) == 0.0
    assert retry_after("inf") == 1e6


def test_a_server_without_schemas_is_asked_without(fake_judge: Any) -> None:
    def answer(body: dict[str, Any], _: int) -> Any:
        return (
            (400, {}, b"unknown field response_format")
            if "response_format" in body
            else said(verdict="correct")
        )

    fake_judge.answer = answer
    samples = [Sample(str(i), "y") for i in range(5)]
    verdicts = judged("judge_reference", fake_judge.args(concurrency=1), *samples)
    assert [v.score for v in verdicts] == [1.0] * 5
    assert len(fake_judge.requests) == 6


# ---------------------------------------------------------------- pace, cost, cache


def test_limits_of_rate(fake_judge: Any) -> None:
    times: list[float] = []

    def answer(body: dict[str, Any], _: int) -> str:
        times.append(time.monotonic())
        time.sleep(0.05)
        return said(verdict="correct")

    fake_judge.answer = answer
    samples = [Sample(str(i), "y") for i in range(9)]
    verdicts = judged("judge_reference", fake_judge.args(requests_per_minute=1200), *samples)
    assert [v.score for v in verdicts] == [1.0] * 9
    assert max(times) - min(times) >= 0.38  # eight gaps of 50 ms
    fake_judge.most_at_once = 0
    judged("judge_reference", fake_judge.args(requests_at_once=2), *samples)
    assert 1 <= fake_judge.most_at_once <= 2
    slow = build({"use": "judge_aspect", "args": fake_judge.args(requests_per_minute=60, timeout_s=120)})
    assert slow.layout.concurrency == 7  # no verdict's clock may run out while its requests queue


def test_cost_and_latency_are_in_the_figures(fake_judge: Any) -> None:
    fake_judge.answer = lambda body, number: (500, {}, b"") if number == 1 else said(verdict="correct")
    args = fake_judge.args(price_in=2.0, price_out=10.0, concurrency=1)
    with VerifierPool(workers=1) as pool:
        pool.verify([({"use": "judge_reference", "args": args}, Sample(str(i), "y")) for i in range(3)])
        own = pool.report()["own"]["judge_reference"]
    assert (own["calls"], own["retries"], own["tokens_in"], own["tokens_out"]) == (3, 1, 300, 30)
    assert own["cost"] == pytest.approx(300 * 2e-6 + 30 * 10e-6)
    assert 0 < own["p50_s"] <= own["p95_s"] < 5


def test_replies_are_kept_on_disk_and_outages_are_not(fake_judge: Any, tmp_path: Path) -> None:
    fake_judge.answer = lambda body, number: (401, {}, b"") if number == 1 else said(verdict="correct")
    args = fake_judge.args(cache=str(tmp_path / "kept.sqlite"))
    assert [one(args).score for _ in range(3)] == [None, 1.0, 1.0]
    assert len(fake_judge.requests) == 2
    quoting._secret.cache_clear()  # another machine, another key: the marks differ, the question does not
    (tmp_path / "cache" / "tulu-lite" / "judge-key").unlink()
    assert one(args).score == 1.0
    assert len(fake_judge.requests) == 2
    for change in ({"model": "other"}, {"max_tokens": 77}, {"extra_body": {"seed": 1}}):
        assert one({**args, **change}).score == 1.0
    assert len(fake_judge.requests) == 5
    assert one({**args, "temperature": 0.5}).score == one({**args, "temperature": 0.5}).score == 1.0
    assert len(fake_judge.requests) == 7
    with sqlite3.connect(tmp_path / "kept.sqlite") as connection:
        connection.execute("UPDATE replies SET reply = 'Score: 5'")
    assert one(args).score == 1.0
    assert len(fake_judge.requests) == 8


def test_the_cache_serves_many_threads_and_processes(tmp_path: Path) -> None:
    file = tmp_path / "shared.sqlite"
    code = (
        "import sys\nfrom pathlib import Path\nfrom verifiers.judges.memory import Memory\n"
        "memory = Memory(Path(sys.argv[1]))\n"
        "for i in range(60): memory.put(f'{i}', 'x', 'm'); assert memory.get(f'{i}') == 'x'\n"
        "assert memory.faults == 0\n"
    )
    import subprocess

    others = [subprocess.Popen([sys.executable, "-c", code, str(file)]) for _ in range(2)]
    memory = Memory(file)
    threads = [
        threading.Thread(target=lambda: [memory.put(f"{i}", "x", "m") for i in range(60)]) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [process.wait(60) for process in others] == [0, 0]
    assert [memory.get(f"{i}") for i in range(60)] == ["x"] * 60
    file.write_bytes(b"garbage" * 100)
    assert Memory(tmp_path / "new.sqlite").get("1") is None
    with pytest.raises(SpecError, match="cannot be used"):
        Memory(file)


def test_a_cache_that_breaks_while_judging_costs_no_verdict(fake_judge: Any, tmp_path: Path) -> None:
    file = tmp_path / "kept.sqlite"
    fake_judge.answer = lambda body, _: said(verdict="correct")
    built = build({"use": "judge_reference", "args": fake_judge.args(cache=str(file))})
    assert built.verify(Sample("x", "y")).score == 1.0
    file.write_bytes(b"garbage" * 1000)
    assert built.verify(Sample("x", "y")).score == 1.0
    assert built.instance.stats()["cache_faults"] >= 1  # type: ignore[attr-defined]


def test_judges_in_compositions_beside_verifiers_that_cost_nothing(fake_judge: Any) -> None:
    fake_judge.answer = lambda body, _: said(score=3)
    judge = {"use": "judge_aspect", "args": fake_judge.args(aspect="helpfulness")}
    spec = {
        "gate": ["no_commas", {"weighted": [{"use": "number", "weight": 1}, {"spec": judge, "weight": 1}]}]
    }
    with VerifierPool(workers=1) as pool:
        good, bad = pool.verify([(spec, Sample("so 4", 4)), (spec, Sample("so, 4", 4))])
    assert good.score == 0.75
    assert (bad.score, len(fake_judge.requests)) == (0.0, 1)  # the gate was shut before the judge was paid


def test_many_at_once_in_one_loop(fake_judge: Any) -> None:
    fake_judge.answer = lambda body, _: time.sleep(0.2) or said(verdict="correct")  # type: ignore[func-returns-value]
    samples = [Sample(str(i), "y") for i in range(32)]
    verdicts = judged("judge_reference", fake_judge.args(concurrency=16), *samples)
    assert [v.score for v in verdicts] == [1.0] * 32
    assert fake_judge.most_at_once > 4


def test_the_key_for_marks_is_made_once_and_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = quoting._secret()
    quoting._secret.cache_clear()
    assert quoting._secret() == first
    file = tmp_path / "cache" / "tulu-lite" / "judge-key"
    assert file.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    quoting._secret.cache_clear()
    assert len(quoting._secret()) == 32  # no place to keep one: of this process
    quoting._secret.cache_clear()
    assert os.listdir(file.parent) == ["judge-key"]


def test_inside_a_running_loop(fake_judge: Any) -> None:
    fake_judge.answer = lambda body, _: said(verdict="correct")
    built = build({"use": "judge_reference", "args": fake_judge.args()})

    async def caller() -> float | None:
        return built.verify(Sample("x", "y")).score

    assert asyncio.run(caller()) == 1.0
