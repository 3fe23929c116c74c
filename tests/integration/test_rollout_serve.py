"""A server by hand: it says where it is, speaks OpenAI's API, tells how it does, wants its key, and ends on Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tulu_lite.records import Prompt
from tulu_lite.rollout.client import RolloutClient, Sampling
from tulu_lite.rollout.process import group_members
from tulu_lite.rollout.status import status_of_folder

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
name: by-hand
model: {root}/data/quickstart/base
output: {output}
chat_template: tulu
server: {{max_model_len: 160, kv_cache_mb: 64, max_num_seqs: 64, api_key_env: TULU_LITE_SERVE_KEY}}
stages:
  - {{name: eval, kind: evaluate, models: [base], data: {root}/data/quickstart/test.jsonl, max_tokens: 32}}
"""
KEY = "a-key-for-serving"


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "tulu_lite.cli", *words]


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[tuple[Path, subprocess.Popen, list[str]]]:
    """The recipe of a server started by `tulu-lite serve`, its process, and what it printed until it was ready."""
    folder = tmp_path_factory.mktemp("by-hand")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(root=ROOT, output=folder / "run"))
    before = os.environ.get("TULU_LITE_SERVE_KEY")
    os.environ["TULU_LITE_SERVE_KEY"] = KEY
    process = subprocess.Popen(
        command("serve", str(recipe)), stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ
    )
    timer = threading.Timer(300, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "OpenAI(" in line:
                break
        yield recipe, process, lines
    finally:
        timer.cancel()
        process.kill()
        process.wait(30)
        if before is None:
            del os.environ["TULU_LITE_SERVE_KEY"]


@pytest.fixture
def client(served) -> openai.OpenAI:
    url = status_of_folder(served[0].parent / "run" / "server", 0.0)["url"]
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=60)


def test_openai_client(client, served):
    assert [model.id for model in client.models.list()] == ["policy"]
    talk = [{"role": "user", "content": "What is 3 + 4?"}]
    whole = client.chat.completions.create(model="policy", messages=talk, max_tokens=12, temperature=0)
    text = whole.choices[0].message.content
    assert text
    assert whole.usage.completion_tokens <= 12
    parts = client.chat.completions.create(
        model="policy", messages=talk, max_tokens=12, temperature=0, stream=True
    )
    pieces = [part.choices[0].delta.content or "" for part in parts if part.choices]
    assert "".join(pieces) == text
    assert len([piece for piece in pieces if piece]) > 1, "it came at once, not as a stream"
    plain = client.completions.create(
        model="policy", prompt="Question: 3 + 4", max_tokens=6, temperature=0, logprobs=1
    )
    assert plain.choices[0].text
    assert len(plain.choices[0].logprobs.token_logprobs) == plain.usage.completion_tokens
    streamed = client.completions.create(
        model="policy", prompt="Question: 3 + 4", max_tokens=6, temperature=0, stream=True
    )
    assert "".join(part.choices[0].text for part in streamed) == plain.choices[0].text


def test_the_recipes_chat_template_is_used(client, served):
    """The prompt's tokens are those that training and our own client would use."""
    from tulu_lite.datasets.chat import ChatTemplate, load_tokenizer

    model = str(ROOT / "data" / "quickstart" / "base")
    template = ChatTemplate.load("tulu", load_tokenizer(model), model)
    talk = [{"role": "user", "content": "What is 3 + 4?"}]
    answer = client.chat.completions.create(model="policy", messages=talk, max_tokens=1)
    assert answer.usage.prompt_tokens == len(template.prompt(talk)[1])


def test_curl(client, served):
    asked = next(line for line in served[2] if "curl" in line and "chat" in line)
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["role"] == "assistant"


def test_every_route_wants_the_key(client, served):
    url = str(client.base_url).removesuffix("/v1/")
    for path in (
        "/health",
        "/metrics",
        "/v1/models",
        "/v1/chat/completions",
        "/pause",
        "/update_weights",
        "/none",
    ):
        for headers in (
            {},
            {"Authorization": "Bearer "},
            {"Authorization": f"Bearer {KEY}x"},
            {"Authorization": KEY},
        ):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(urllib.request.Request(url + path, headers=headers), timeout=10)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=client.base_url, api_key="another").models.list()


def test_status_then_ctrl_c(client, served):
    recipe, process, lines = served
    folder = recipe.parent / "run" / "server"
    assert any(line.startswith("ready, weights 0, http://127.0.0.1:") for line in lines)
    with RolloutClient(folder) as rollouts:
        groups = rollouts.generate([Prompt("a", "", (3, 4), "test")], Sampling(2, 1.0, 4, 0))
    assert [len(rollout.token_ids) for rollout in groups[0].rollouts] == [4, 4]
    done = subprocess.run(
        command("serve", "--status", "--json", str(recipe)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    now = json.loads(done.stdout)
    assert done.returncode == 0
    assert (now["state"], now["answers"], now["weight_version"], now["generation"]) == ("ready", True, 0, 1)
    assert (now["running"], now["waiting"], now["restarts"], now["adapters"]) == (0, 0, [], {})
    assert now["tokens_sampled"] >= 8 + 12
    assert now["uptime_s"] > 1
    assert now["url"] in now["ask"][0]
    assert KEY not in done.stdout
    text = subprocess.run(
        command("serve", "--status", str(folder)), capture_output=True, text=True, cwd=ROOT, timeout=120
    ).stdout
    assert "0 running, 0 waiting" in text
    assert now["url"] in text
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert process.stdout.read().splitlines()[-1] == "stopped: stopped by its owner"
    after = status_of_folder(folder)
    assert (after["state"], after["answers"]) == ("stopped", False)
    assert not group_members(now["pid"])
    assert not Path(now["push_dir"]).exists()
    assert status_of_folder(recipe.parent)["state"] == "none"
