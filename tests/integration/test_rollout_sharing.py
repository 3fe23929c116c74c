"""Shared servers: adapters of several seeds in one batch, cancelled requests, turns by a lease, several copies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from transformers import LlamaForCausalLM

from tulu_lite.errors import TuluLiteError
from tulu_lite.pipeline.judges import Judges, announce
from tulu_lite.recipe.judges import JudgeSettings
from tulu_lite.records import Prompt, RolloutGroup
from tulu_lite.rollout.adapters import push_adapter
from tulu_lite.rollout.client import RolloutClient, Sampling
from tulu_lite.rollout.everywhere import push_everywhere
from tulu_lite.rollout.fleet import open_servers
from tulu_lite.rollout.server import RolloutServer

PROMPTS = [Prompt(f"p{i}", "", tuple(range(3 + i, 10 + 2 * i)), "test") for i in range(6)]
SAMPLED = Sampling(3, 1.0, 20, 11, for_training=True)
GREEDY = Sampling(1, 0.0, 12, 0)
ROOT = Path(__file__).resolve().parents[2]


def adapted(folder: Path, seed: int, rank: int = 8) -> Any:
    """The model of a folder with a random adapter on every linear layer."""
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(LlamaForCausalLM.from_pretrained(folder), config).eval()


def push(client: RolloutClient, model: Any, name: str, version: int) -> None:
    config = model.peft_config["default"].to_dict()
    push_adapter(client, get_peft_model_state_dict(model).items(), config, name, version)


@torch.no_grad()
def gap(model: Any, group: RolloutGroup) -> float:
    """The largest difference of log-probability between a group's responses and the model."""
    worst = 0.0
    for rollout in group.rollouts:
        ids = torch.tensor([group.prompt.token_ids + rollout.token_ids])
        log_p = model(input_ids=ids).logits[0, len(group.prompt.token_ids) - 1 : -1].log_softmax(-1)
        own = log_p.gather(1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
        worst = max(worst, float((own - torch.tensor(rollout.logprobs)).abs().max()))
    return worst


def versions(groups: list[RolloutGroup]) -> set[int]:
    return {version for group in groups for rollout in group.rollouts for version in rollout.weight_versions}


@pytest.fixture(scope="module")
def lora_server(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory, server_settings) -> Iterator[Any]:
    """A server with room for three adapters of rank 8."""
    folder = tmp_path_factory.mktemp("lora-server")
    settings = server_settings(max_loras=3, max_lora_rank=8)
    with RolloutServer(settings, tiny_dir, folder, folder / "log.txt") as server:
        server.wait_ready()
        yield server


@pytest.fixture
def lora_client(lora_server: RolloutServer) -> Iterator[RolloutClient]:
    lora_server.wait_ready()
    with RolloutClient(lora_server.state_file) as client:
        yield client


def both(client: RolloutClient, names: list[str], sampling: Sampling) -> dict[str, list[RolloutGroup]]:
    """Responses of several adapters (None: the model alone), all asked for at once."""
    tasks = {
        name: (client if name == "none" else client.with_adapter(name)).submit(PROMPTS, sampling)
        for name in names
    }
    return {name: task.result(120) for name, task in tasks.items()}


def test_adapters_of_several_seeds_share_a_batch_with_the_model_alone(lora_client, tiny_dir):
    models = {f"seed-{seed}": adapted(tiny_dir, seed) for seed in (1, 2, 3)}
    for version, (name, model) in enumerate(models.items(), 7):
        push(lora_client, model, name, version)
    answers = both(lora_client, [*models, "none"], SAMPLED)
    for version, (name, model) in enumerate(models.items(), 7):
        assert versions(answers[name]) == {version}
        assert max(gap(model, group) for group in answers[name]) < 1e-4
    base = LlamaForCausalLM.from_pretrained(tiny_dir).eval()  # every slot is taken: none may leak into it
    assert versions(answers["none"]) == {0}
    assert max(gap(base, group) for group in answers["none"]) < 1e-4
    alone = lora_client.with_adapter("seed-2").generate(PROMPTS, SAMPLED)
    assert alone == answers["seed-2"], "samples must not depend on what else is in the batch"


def test_adapter_equals_merged_weights_to_rounding(lora_client, tiny_dir):
    model = adapted(tiny_dir, 4)
    push(lora_client, model, "seed-1", 20)
    groups = lora_client.with_adapter("seed-1").generate(PROMPTS, SAMPLED)
    assert versions(groups) == {20}
    assert max(gap(model.merge_and_unload(), group) for group in groups) < 1e-4


def test_adapters_survive_the_servers_death_and_the_samples_are_the_same(lora_client, lora_server, tiny_dir):
    for seed in (1, 2):
        push(lora_client, adapted(tiny_dir, seed), f"seed-{seed}", 30 + seed)
    long = Sampling(4, 1.0, 300, 5, for_training=True)
    unbroken = both(lora_client, ["seed-1", "seed-2"], long)
    generation = lora_server.state.generation
    tasks = [lora_client.with_adapter(f"seed-{seed}").submit(PROMPTS, long) for seed in (1, 2)]
    time.sleep(0.3)
    assert not any(task.done() for task in tasks), "the fault must come while responses are under way"
    os.kill(lora_server.state.pid, signal.SIGKILL)
    assert [task.result(120) for task in tasks] == list(unbroken.values())
    assert lora_server.state.generation == generation + 1
    assert versions(unbroken["seed-2"]) == {32}


def test_new_versions_while_responses_of_the_old_one_are_under_way(lora_client, tiny_dir):
    """Each response is of one version from its first token to its last, and is what that version samples."""
    first = adapted(tiny_dir, 1)
    push(lora_client, first, "seed-1", 40)
    bound = lora_client.with_adapter("seed-1")
    long = Sampling(2, 1.0, 150, 5, for_training=True)
    task = bound.submit(PROMPTS, long)
    time.sleep(0.3)
    second = adapted(tiny_dir, 2)
    push(lora_client, second, "seed-1", 41)
    under_way = task.result(120)
    assert versions(under_way) == {40}
    assert max(gap(first, group) for group in under_way) < 1e-4
    after = bound.generate(PROMPTS, long)
    assert versions(after) == {41}
    assert max(gap(second, group) for group in after) < 1e-4


def test_a_version_pushed_again_with_other_weights_is_the_newer_one(lora_client, tiny_dir):
    """As after a run that went back to a checkpoint; prefixes cached under the former weights must not count."""
    bound = lora_client.with_adapter("seed-1")
    for seed in (1, 2):
        model = adapted(tiny_dir, seed)
        push(lora_client, model, "seed-1", 45)
        groups = bound.generate(PROMPTS, SAMPLED)
        assert versions(groups) == {45}
        assert max(gap(model, group) for group in groups) < 1e-4


def test_an_adapter_is_read_once_not_at_every_step(lora_client, lora_server, tiny_dir):
    push(lora_client, adapted(tiny_dir, 1), "seed-1", 46)
    (folder,) = Path(lora_server.state.push_dir).glob("adapter-seed-1@46-*")
    folder.rename(folder.with_name("away"))
    try:
        assert versions(lora_client.with_adapter("seed-1").generate(PROMPTS, SAMPLED)) == {46}
    finally:
        folder.with_name("away").rename(folder)


def test_what_cannot_be_an_adapter_is_told(lora_client, client, tiny_dir):
    with pytest.raises(TuluLiteError, match=r"of rank 8 at most, and one of rank 16"):
        push(lora_client, adapted(tiny_dir, 1, rank=16), "seed-1", 50)
    with pytest.raises(TuluLiteError, match=r"takes 0 adapters"):
        push(client, adapted(tiny_dir, 1), "seed-1", 50)
    with pytest.raises(TuluLiteError, match=r"holds no adapter 'nobody'"):
        lora_client.with_adapter("nobody").generate(PROMPTS[:1], GREEDY)


def running(client: RolloutClient) -> float:
    """Responses that the engine works on or that wait for it."""
    lines = client.control()._exchange("GET", "/metrics", None, 10.0).decode().splitlines()
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting{")
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(names))


def test_cancelled_requests_end_on_the_server_at_once(client):
    task = client.submit([PROMPTS[0]] * 16, Sampling(4, 1.0, 490, 3))
    deadline = time.monotonic() + 30
    while running(client) < 32:
        assert time.monotonic() < deadline
        assert not task.done()
        time.sleep(0.02)
    task.cancel()
    stopped = time.monotonic()
    while running(client) > 1:  # the canary may be one
        assert time.monotonic() - stopped < 10
        time.sleep(0.02)
    before = client.control().tokens_sampled(10.0)
    time.sleep(0.5)
    assert client.control().tokens_sampled(10.0) - before <= 4  # the canary's
    assert len(client.generate(PROMPTS, GREEDY)) == len(PROMPTS)


def test_closing_a_stream_ends_its_requests_too(client):
    stream = client.stream([PROMPTS[0]] * 24, Sampling(4, 1.0, 400, 3))
    assert next(stream).prompt == PROMPTS[0]
    stream.close()
    deadline = time.monotonic() + 10
    while running(client) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.02)


# Full weights in turns

TRAINER = """
import sys, time
from pathlib import Path
import torch
from transformers import LlamaForCausalLM
torch.set_num_threads(1)
sys.path.insert(0, {root!r})
from tulu_lite.records import Prompt
from tulu_lite.rollout.client import RolloutClient, Sampling
from tulu_lite.rollout.everywhere import next_version, push_everywhere
from tulu_lite.rollout.lease import own_weights

holder, turns = sys.argv[1], int(sys.argv[2])
model = LlamaForCausalLM.from_pretrained({model!r}).eval()
torch.manual_seed(sum(map(ord, holder)))
prompts = [Prompt(f"p{{i}}", "", tuple(range(3 + i, 10 + 2 * i)), "test") for i in range(4)]
with RolloutClient({server!r}) as client:
    def push():
        version = next_version(client)
        push_everywhere(client, model.named_parameters(), version)
        return version
    print("ready", flush=True)
    sys.stdin.readline()
    for mark in range(turns):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        held = lambda: next_version(client) - 1
        with own_weights(client.shared_folder, holder, mark, push, held, wait_s=120, term_s=120) as (turn, version):
            groups = client.generate(prompts, Sampling(1, 0.0, 10, 0))
        for group in groups:
            rollout = group.rollouts[0]
            assert set(rollout.weight_versions) == {{version}}, (rollout.weight_versions, version)
            with torch.no_grad():
                logits = model(torch.tensor([group.prompt.token_ids + rollout.token_ids])).logits[0]
            assert tuple(logits[len(group.prompt.token_ids) - 1 : -1].argmax(-1).tolist()) == rollout.token_ids
        print("turn", version, flush=True)
print("done", flush=True)
"""


def start_trainer(client: RolloutClient, model: Path, holder: str, turns: int) -> subprocess.Popen[str]:
    code = TRAINER.format(root=str(ROOT), model=str(model), server=str(client.shared_folder))
    return subprocess.Popen(
        [sys.executable, "-c", code, holder, str(turns)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # fmt: skip


def test_two_trainings_take_turns_and_each_samples_from_its_own_weights(client, tiny_dir):
    trainers = [start_trainer(client, tiny_dir, name, turns=4) for name in ("a", "b")]
    try:
        for trainer in trainers:
            assert trainer.stdout.readline() == "ready\n"
        for trainer in trainers:
            trainer.stdin.write("go\n")
            trainer.stdin.flush()
        told = [trainer.communicate(timeout=120)[0].split() for trainer in trainers]
    finally:
        for trainer in trainers:
            trainer.kill()
    assert [trainer.returncode for trainer in trainers] == [0, 0]
    assert [words[-1] for words in told] == ["done", "done"]
    took = [[int(word) for word in words if word.isdigit()] for words in told]
    assert [len(each) for each in took] == [4, 4]
    assert len(set(took[0] + took[1])) == 8, "every turn pushed its own weights"
    assert took[0][0] < took[1][-1], "they alternated"
    assert took[1][0] < took[0][-1]


def test_a_training_that_is_killed_in_its_turn_does_not_hold_up_the_other(client, tiny_dir):
    doomed = start_trainer(client, tiny_dir, "doomed", turns=1000)
    assert doomed.stdout.readline() == "ready\n"
    doomed.stdin.write("go\n")
    doomed.stdin.flush()
    assert doomed.stdout.readline().startswith("turn")
    doomed.kill()
    doomed.wait()
    other = start_trainer(client, tiny_dir, "other", turns=2)
    told, _ = other.communicate("go\n", timeout=120)
    assert told.split()[-1] == "done"
    assert other.returncode == 0


# Several copies


@pytest.fixture(scope="module")
def fleet(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory, server_settings) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("fleet")
    settings = server_settings(replicas=2, max_loras=2, max_lora_rank=8)
    with open_servers(settings, tiny_dir, folder, folder / "log.txt") as fleet:
        fleet.wait_ready()
        yield fleet
    assert fleet.state.state == "stopped"
    assert not any(Path(server.state.push_dir).exists() for server in fleet.servers)


def test_copies_hold_every_push_also_those_that_one_of_them_was_down_for(fleet, tiny_dir):
    """One dies while responses are under way; the other answers them; the next pushes reach both."""
    model = LlamaForCausalLM.from_pretrained(tiny_dir).eval()
    long = Sampling(2, 1.0, 200, 5)
    many = [Prompt(f"m{i}", "", tuple(range(3 + i, 12 + i)), "test") for i in range(24)]
    with RolloutClient(fleet.state_file) as client:
        push_everywhere(client, ((n, p * 1.01) for n, p in model.named_parameters()), 7)
        unbroken = client.generate(many, long)
        assert versions(unbroken) == {7}
        shares = [member.control().tokens_sampled(10.0) for member in client.members]
        assert min(shares) > 0.25 * sum(shares), shares
        task = client.submit(many, long)
        time.sleep(0.3)
        assert not task.done()
        os.kill(fleet.servers[0].state.pid, signal.SIGKILL)
        assert task.result(120) == unbroken
        deadline = time.monotonic() + 20
        while fleet.servers[0].state.state == "ready" and fleet.servers[0].state.generation == 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.02)
        push_everywhere(client, model.named_parameters(), 8)  # waits for the one that is down
        assert fleet.servers[0].state.generation == 2
        adapter = adapted(tiny_dir, 1)
        push(client, adapter, "seed-1", 3)
        for member in client.members:
            groups = client.only(member).generate(PROMPTS, GREEDY)
            assert versions(groups) == {8}
            assert max(gap(model, group) for group in groups) < 1e-4
            bound = client.only(member).with_adapter("seed-1").generate(PROMPTS, GREEDY)
            assert versions(bound) == {3}


def test_servers_of_somebody_else_are_found_by_their_addresses(fleet, tiny_dir, tmp_path, server_settings):
    """The copies' own addresses stand for servers on another machine: weights and adapters reach them by files."""
    urls = tuple(server.url for server in fleet.servers)
    model = LlamaForCausalLM.from_pretrained(tiny_dir).eval()
    settings = server_settings(
        urls=urls, shared_folder=str(tmp_path / "shared"), max_loras=2, max_lora_rank=8
    )
    with open_servers(settings, tiny_dir, tmp_path / "run", tmp_path / "log.txt") as others:
        others.wait_ready()
        with RolloutClient(others.state_file) as client:
            push_everywhere(client, ((n, p * 1.03) for n, p in model.named_parameters()), 2)
            adapter = adapted(tiny_dir, 2)
            push(client, adapter, "far", 5)
            groups = client.generate(PROMPTS, SAMPLED)
            assert versions(groups) == {2}
            assert versions(client.with_adapter("far").generate(PROMPTS, SAMPLED)) == {5}
    assert not list((tmp_path / "shared").glob("*/*"))
    assert all(server.state.state == "ready" for server in fleet.servers)


# Judges beside the policy


def test_a_judge_is_served_where_it_was_announced_also_after_its_death(tmp_path, monkeypatch):
    monkeypatch.setenv("TULU_LITE_JUDGE_GRADER", "")
    monkeypatch.delenv("TULU_LITE_JUDGE_GRADER")
    server = {"kv_cache_mb": 64, "canary_interval_s": 0.5, "max_num_seqs": 16}
    judge = JudgeSettings(model=str(ROOT / "data" / "quickstart" / "base"), server=server)
    recipe = SimpleNamespace(judges={"grader": judge}, output=str(tmp_path), judge_stages=dict)
    announce(recipe)
    url = os.environ["TULU_LITE_JUDGE_GRADER"]
    judges = Judges(recipe)
    judges.start({})
    try:
        judges.wait_ready()
        served = judges.servers["grader"]
        for life in (1, 2):
            assert served.state.generation == life
            with urllib.request.urlopen(f"{url}/models", timeout=10) as answer:
                assert [card["id"] for card in json.load(answer)["data"]] == ["grader"]
            if life == 1:
                os.kill(served.state.pid, signal.SIGKILL)
                deadline = time.monotonic() + 90
                while served.state.generation == 1 or served.state.state != "ready":
                    assert time.monotonic() < deadline, judges.state_text()
                    time.sleep(0.05)
    finally:
        judges.stop()
    assert served.state.state == "stopped"
