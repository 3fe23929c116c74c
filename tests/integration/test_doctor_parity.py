"""The doctor with the real server: it finds agreement where there is, and names each fault made on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tulu_lite.doctor.causes import Case, diagnose
from tulu_lite.doctor.figures import LIMITS_32, gap_of
from tulu_lite.doctor.parity import held_files
from tulu_lite.doctor.trainer import in_type, places, said, server_logprobs, trainer_logprobs, with_rope
from tulu_lite.records import Prompt
from tulu_lite.rollout.client import Sampling
from tulu_lite.rollout.weights import push_weights
from tulu_lite.training.model import load_model, merged_weights

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = [Prompt(f"q{i}", "", (1, *range(5, 15 + i)), "test") for i in range(8)]
SAMPLED = Sampling(2, 1.0, 150, 31)


@pytest.fixture(scope="module")
def trainer(tiny_dir):
    return load_model(tiny_dir, "cpu").eval()


@pytest.fixture
def sampled(client, trainer):
    """What the server samples from the trainer's weights, and the version it says."""
    version = client.state().weight_version + 1
    push_weights(client, merged_weights(trainer), version)
    return said(client.generate(PROMPTS, SAMPLED)), version, held_files(client.folder, client.state())


def case(model, sampled, **changes) -> Case:
    responses, version, files = sampled
    known = {"temperature": 1.0, "bos_id": 1, "version": version, "server_files": files}
    return Case(model, responses, **(known | changes))


def test_agreement_in_float32(trainer, sampled):
    responses = sampled[0]
    gap = gap_of(server_logprobs(responses), trainer_logprobs(trainer, responses, 1.0), places(responses))
    assert gap.tokens == 16 * 150
    assert gap.max < 1e-4
    assert diagnose(case(trainer, sampled), LIMITS_32).cause is None


def test_each_fault_is_named(trainer, sampled, client, tiny_dir):
    found = diagnose(case(trainer, sampled, temperature=0.8), LIMITS_32)
    assert found.cause is not None
    assert (found.cause.cause, found.cause.supposed) == ("temperature", "1 instead of 0.8")
    other = load_model(tiny_dir, "cpu").eval()  # its config is right, its positions are not
    with with_rope(other, 500_000.0):
        found = diagnose(case(other, sampled), LIMITS_32)
    assert found.cause is not None
    assert found.cause.cause == "rope theta"
    with in_type(trainer, torch.bfloat16) as rounded:
        found = diagnose(case(rounded, sampled, trainer_dtype="bfloat16", server_files=()), LIMITS_32)
    assert found.cause is not None
    assert (found.cause.cause, found.cause.supposed) == ("dtype", "float32")


def test_another_weight_on_the_server_is_named(trainer, client):
    version = client.state().weight_version + 1
    name = "model.layers.0.self_attn.k_proj.weight"
    changed = {key: value * 1.3 if key == name else value for key, value in merged_weights(trainer)}
    push_weights(client, changed.items(), version)
    sampled = said(client.generate(PROMPTS, SAMPLED)), version, held_files(client.folder, client.state())
    found = diagnose(case(trainer, sampled), LIMITS_32)
    assert found.cause is not None
    assert found.cause.cause == "weights"
    assert name in found.cause.says
    stale = diagnose(case(trainer, sampled, version=version + 1), LIMITS_32)
    assert stale.cause is not None
    assert stale.cause.cause == "stale weights"


RECIPE = """
name: parity
model: {root}/data/quickstart/base
output: {output}
chat_template: tulu
server: {{max_model_len: 160, kv_cache_mb: 64, max_num_seqs: 64}}
stages:
  - {{name: eval, kind: evaluate, models: [base], data: {root}/data/quickstart/test.jsonl, max_tokens: 32}}
"""


def test_from_the_command_line(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(root=ROOT, output=tmp_path / "run"))
    done = subprocess.run(
        [sys.executable, "-m", "tulu_lite.cli", "doctor", "parity", str(recipe), "--prompts", "8", "--json"],
        capture_output=True, text=True, cwd=ROOT, timeout=400, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["ok"]
    assert told["verdict"].startswith("sampler and trainer agree (float32 server, float32 trainer")
    by_type = {(row["server_dtype"], row["trainer_dtype"]): row["gap"] for row in told["compared"]}
    assert by_type["float32", "float32"]["max"] < 1e-4
    assert by_type["float32", "bfloat16"]["mean"] > 10 * by_type["float32", "float32"]["mean"]
    assert json.loads((tmp_path / "run" / "doctor" / "parity.json").read_text()) == told
    assert (tmp_path / "run" / "doctor" / "parity.png").stat().st_size > 10_000
    assert not list((tmp_path / "run").glob("server*"))
