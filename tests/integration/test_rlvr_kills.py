"""An rlvr stage killed at twenty random moments, its server and its verifiers' workers killed below it: the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tulu_lite.pipeline.expand import expand
from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.pipeline.protocol import SERVER_VARIABLE
from tulu_lite.recipe import load_recipe
from tulu_lite.rollout.client import RolloutClient
from tulu_lite.rollout.server import RolloutServer
from tulu_lite.rollout.weights import serve_model

sys.path.insert(0, str(Path(__file__).parent))
from killing import bits, killed_at_random

WORDS = ["<pad>", "<bos>", "<eos>", "<|user|>", "<|assistant|>", *(f"w{number}" for number in range(123))]
VERIFIER = '''
def even(response: str) -> float:
    """Half of all responses of a random model."""
    return float(len(response) % 2 == 0)
'''
# Everything that a save has to hold: value model, refreshed reference, a batch begun before, measured pass rates.
STAGE: dict[str, Any] = {
    "name": "rlvr", "kind": "rlvr", "init": "base", "seeds": [3], "data": "rows.jsonl", "validation": "held.jsonl", "steps": 5,
    "prompts_per_step": 4, "samples_per_prompt": 4, "sampling": {"max_tokens": 12}, "learning_rate": 1e-2, "warmup_ratio": 0,
    "save_every_steps": 1, "validate_every_steps": 3, "advantage": "gae", "rhythm": "one_behind", "kl_coefficient": 0.05,
    "reference_refresh_steps": 2, "updates_per_step": 2, "curriculum": {"low": 0.1, "high": 0.9, "keep": 0.5},
    "refill": {"max_rounds": 1}, "max_logprob_gap": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, make_llama: Any) -> Path:
    """A folder with a model of the shared server's shape, prompts, a verifier and a recipe."""
    root = tmp_path_factory.mktemp("rlvr")
    make_llama(root / "model", seed=5, pad_token_id=0)
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(root / "model")
    (root / "judge.py").write_text(VERIFIER)
    for name, first, count in (("rows", 0, 24), ("held", 50, 6)):
        rows = [{"prompt": f"w{first + i} w3 w{7 * i % 40}", "reference": None, "verifier": "judge.py:even"} for i in range(count)]  # fmt: skip
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "name": "tiny", "model": "./model", "output": "./out", "chat_template": "tulu", "verifier_workers": 1,
        "verifiers": {"judge.py:even": "./judge.py:even"}, "accelerate": {"device": "cpu", "threads": 1}, "stages": [STAGE],
    }  # fmt: skip
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return root


@pytest.fixture
def served(
    world: Path, rollout_server: RolloutServer, monkeypatch: pytest.MonkeyPatch, tiny_dir: Path
) -> Iterator[RolloutServer]:
    """The shared server, to be sampled from by stages; afterwards it has its own model again."""
    rollout_server.wait_ready()
    monkeypatch.setenv(SERVER_VARIABLE, str(rollout_server.state_file))
    yield rollout_server
    rollout_server.wait_ready()
    with RolloutClient(rollout_server.state_file) as client:
        serve_model(client, tiny_dir, client.state().weight_version + 1)


def folder_of(world: Path, *overrides: str) -> Path:
    recipe = load_recipe(world / "recipe.yaml", overrides)
    return next(step.folder for step in expand(recipe, Ledger(Path(recipe.output))) if step.kind == "rlvr")


def arguments(world: Path, *overrides: str) -> list[str]:
    told = [word for override in overrides for word in ("--set", override)]
    return ["--recipe", str(world / "recipe.yaml"), "--stage", "rlvr", *told]


def test_killed_twenty_times_it_gives_the_same_bits(world: Path, served: RolloutServer) -> None:
    folder = folder_of(world)
    outcome = killed_at_random("tulu_lite.stages.rlvr", arguments(world), folder, kills=20, seed=11)
    assert outcome.differences == []
    assert outcome.kills == 20
    assert outcome.resumed >= 3, "the kills came too early to tell anything"


def test_a_run_ahead_of_training_goes_on_wherever_it_is_killed(world: Path, served: RolloutServer) -> None:
    """With responses in flight: what a save lacks of a begun batch is sampled anew, from the weights of the save, and so
    not to the same bits. That no try fails by itself is asserted in killed_at_random."""
    # training is quick and sampling slow, so that saves find batches half there
    how = ("output=./async", "stages.rlvr.rhythm=async", "stages.rlvr.max_staleness=2", "stages.rlvr.sampling.max_tokens=40", "stages.rlvr.samples_per_prompt=16", "stages.rlvr.advantage=grpo", "stages.rlvr.kl_coefficient=0", "stages.rlvr.reference_refresh_steps=null", "stages.rlvr.updates_per_step=1", "stages.rlvr.curriculum=null")  # fmt: skip
    folder = folder_of(world, *how)
    outcome = killed_at_random("tulu_lite.stages.rlvr", arguments(world, *how), folder, kills=6, seed=5)
    assert outcome.kills == 6
    assert outcome.resumed >= 2, "the kills came too early to tell anything"


def workers_of(parent: int) -> list[int]:
    """The verifier workers below a process."""
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            above = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            line = Path(f"/proc/{pid}/cmdline").read_text()
        except (OSError, ValueError):
            continue
        if above == parent and "verifiers" in line:
            found.append(pid)
    return found


def test_the_server_and_the_verifiers_may_die_too(world: Path, served: RolloutServer) -> None:
    """One run left alone, one below which both are killed, and one that is trained on what the first recorded."""
    seen = []
    for kills in (False, True):
        override = f"output=./alone-{kills}"
        folder = folder_of(world, override)
        process = subprocess.Popen(
            [sys.executable, "-m", "tulu_lite.stages.rlvr", *arguments(world, override)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )  # fmt: skip
        killed: set[int] = set()
        server_killed = False
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            for pid in workers_of(process.pid) if kills and len(killed) < 3 else ():
                if pid not in killed and any(folder.glob(f"checkpoints/step-00000{1 + len(killed)}")):
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
            if kills and not server_killed and any(folder.glob("checkpoints/step-000002")):
                os.killpg(served.state.pid, signal.SIGKILL)
                server_killed = True
            time.sleep(0.01)
        output = process.communicate()[0]
        assert process.returncode == 0, output[-3000:]
        assert not kills or (killed and server_killed)
        seen.append(bits(folder))
    assert seen[0] == seen[1]
    replayed = (f"stages.rlvr.replay={folder_of(world, 'output=./alone-False') / 'rollouts'}", "stages.rlvr.rhythm=on_policy", "stages.rlvr.refill=null", "stages.rlvr.curriculum=null")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tulu_lite.stages.rlvr", *arguments(world, *replayed)], capture_output=True, text=True, timeout=200,
        env={name: value for name, value in os.environ.items() if name != SERVER_VARIABLE},
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    again = bits(folder_of(world, *replayed))
    assert again["model/model.safetensors"] == seen[0]["model/model.safetensors"]
