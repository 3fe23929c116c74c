"""A judge call end to end: our own rollout server answers it, held to the JSON schema while it decodes.

The model is a random one that can spell and has learned nothing: what it thinks of a response is nonsense, and
whether it is readable nonsense is what is tested. (The quickstart's base cannot be asked: the question alone has
more characters than its 256 positions, and its alphabet has no braces.)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tulu_lite.rollout.server import RolloutServer
from verifiers import Sample, Status, VerifierPool, build

KEY = "TULU_LITE_JUDGE_TEST_KEY"
TEMPLATE = "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}\n{% endfor %}<|assistant|>\n"


def spelling_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, after <pad>, <bos> and <eos>."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<bos>", "<eos>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        chat_template=TEMPLATE,
    )


@pytest.fixture(scope="module")
def judge_server(
    make_llama: Any, server_settings: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of a server whose model spells."""
    folder = tmp_path_factory.mktemp("judge")
    model = folder / "model"
    make_llama(model, vocab_size=259, max_position_embeddings=8192)
    spelling_tokenizer().save_pretrained(model)
    os.environ[KEY] = "a-key-for-tests"
    settings = server_settings(api_key_env=KEY, kv_cache_mb=128)
    server = RolloutServer(settings, model, folder, folder / "log.txt")
    server.start()
    try:
        server.wait_ready()
        yield server.state.url
    finally:
        server.stop()


def test_a_judgement_by_our_own_server(judge_server: str) -> None:
    args = {
        "base_url": f"{judge_server}/v1",
        "model": "policy",
        "api_key_env": KEY,
        "cache": "",
        "temperature": 1.0,  # greedy, it would write one letter for ever
        "max_tokens": 2000,
        "aspect": "honesty",
        "extra_body": {"seed": 5},
    }
    spec = {"use": "judge_aspect", "args": args}
    with VerifierPool(workers=1) as pool:
        verdicts = pool.verify(
            [(spec, Sample(f"Four, I think. {i}", prompt="What is 2+2?")) for i in range(4)]
        )
        own = pool.report()["own"]["judge_aspect"]
    assert [verdict.status for verdict in verdicts if verdict.status is Status.ERROR] == [], verdicts
    assert {verdict.score for verdict in verdicts} <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert all(verdict.reason.startswith("honesty ") for verdict in verdicts)
    assert own["calls"] >= 4
    assert own["tokens_in"] > 4 * 1000
    assert own["tokens_out"] > 4 * 30
    built = build({"use": "judge_aspect", "args": {**args, "structured": False, "max_tokens": 64}})
    free = built.verify(Sample("Four.", prompt="What is 2+2?"))  # the same model, not held to the schema
    assert (free.score, free.status) == (None, Status.ERROR)
    assert free.reason.startswith("the judge cannot be read")


def test_the_server_refuses_who_has_no_key(judge_server: str) -> None:
    args = {"base_url": f"{judge_server}/v1", "model": "policy", "cache": ""}
    verdict = build({"use": "judge_reference", "args": args}).verify(Sample("4", "4"))
    assert (verdict.score, verdict.status) == (None, Status.ERROR)
    assert "HTTP 401" in verdict.reason
