"""The `reward_model` verifier: what it asks, what it makes of the answer, and that no fault is ever a score."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from verifiers import Sample, SpecError, Status, Verdict, build

Reply = Callable[[str, dict[str, Any]], Any]


class Server:
    """`reply(path, body)` decides each answer: data, or (status, bytes)."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.reply: Reply = lambda path, body: reward(0.0)
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append((self.path, body))
                answer = server.reply(self.path, body)
                status, raw = answer if isinstance(answer, tuple) else (200, json.dumps(answer).encode())
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def reward(value: float) -> dict[str, Any]:
    return {"data": [{"probs": [value], "num_classes": 1}], "usage": {"prompt_tokens": 3}}


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def judge(server: Server, sample: Sample, **args: Any) -> Verdict:
    spec = {"use": "reward_model", "args": {"base_url": server.url, "model": "rm", "timeout_s": 2.0, **args}}
    return build(spec).verify(sample)


SAMPLED = Sample("four", prompt="2 + 2", info={"token_ids": [1, 5, 9, 2]})


def test_sampled_tokens_are_scored_as_they_are(server: Server) -> None:
    server.reply = lambda path, body: reward(1.25)
    verdict = judge(server, SAMPLED, tokens="sampled", shift=0.25, scale=2.0)
    assert server.asked == [("/classify", {"model": "rm", "input": [[1, 5, 9, 2]], "use_activation": False})]
    assert verdict.score == pytest.approx(1 / (1 + math.exp(-0.5)))
    assert (verdict.status, verdict.extracted, verdict.reason) == (Status.PARTIAL, "1.25", "reward 1.25")


def test_text_is_scored_up_to_its_end_token(server: Server) -> None:
    tokens = {"tokens": [7, 8, 2, 6], "token_strs": ["<|user|>", "four", "</s>", "Ċ"]}
    server.reply = lambda path, body: tokens if path == "/tokenize" else reward(-800.0)
    verdict = judge(server, Sample("<think>no</think>four", prompt="2 + 2"))
    assert [path for path, _ in server.asked] == ["/tokenize", "/classify"]
    assert server.asked[0][1]["messages"] == [
        {"role": "user", "content": "2 + 2"},
        {"role": "assistant", "content": "<think>no</think>four"},  # all of it: so it was trained
    ]
    assert server.asked[1][1]["input"] == [[7, 8, 2]]
    assert verdict.score is not None and 0 <= verdict.score < 1e-300


def test_how_it_asks_is_what_the_recipe_announces(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TULU_LITE_JUDGE_RM", server.url)
    monkeypatch.setenv("TULU_LITE_JUDGE_RM_TOKENS", "sampled")
    assert judge(server, SAMPLED, base_url="env:TULU_LITE_JUDGE_RM").score == 0.5
    assert [path for path, _ in server.asked] == ["/classify"]
    lacking = judge(server, Sample("four", prompt="2 + 2"), base_url="env:TULU_LITE_JUDGE_RM")
    assert (lacking.score, lacking.status) == (None, Status.ERROR)
    assert "has no `token_ids`" in lacking.reason


@pytest.mark.parametrize(
    "answer",
    [
        (500, b"broken"),
        (404, b"no such model"),
        (200, b"not json"),
        (200, b'{"data": [{"probs": [NaN]}]}'),
        (200, b'{"data": [{"probs": [true]}]}'),
        (200, b'{"data": [{"probs": [0.1, 0.9]}]}'),
        (200, b'{"data": []}'),
        (200, b"[]"),
    ],
    ids=lambda answer: answer[1].decode(),
)
def test_no_fault_is_ever_a_score(server: Server, answer: Any) -> None:
    server.reply = lambda path, body: answer
    verdict = judge(server, SAMPLED, tokens="sampled", timeout_s=1.0)
    assert (verdict.score, verdict.status) == (None, Status.ERROR)
    assert verdict.reason.startswith("the reward model gave no reward: ")


def test_nobody_listens() -> None:
    spec = {
        "use": "reward_model",
        "args": {"base_url": "http://127.0.0.1:9/v1", "model": "rm", "timeout_s": 1},
    }
    verdict = build(spec).verify(Sample("four", prompt="2 + 2"))
    assert (verdict.score, verdict.status) == (None, Status.ERROR)


def test_a_response_that_was_cut_off_is_not_asked_about(server: Server) -> None:
    verdict = judge(server, Sample("fo", prompt="2 + 2", finished=False))
    assert (verdict.score, verdict.reason, server.asked) == (0.0, "truncated", [])


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"scale": -1.0}, {"model": ""}, {"shift": math.inf}])
def test_wrong_settings(server: Server, wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="reward_model"):
        judge(server, SAMPLED, **wrong)
