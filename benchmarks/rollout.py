"""The rollout server's speed: against vLLM's own offline engine, to readiness, shared by adapters, shared in turns.

    python benchmarks/rollout.py [--model DIR] [--parts server,adapters]

Each ratio is of measurements taken in rotation in this run, on the same requests and settings, and is the middle of the
rounds' own ratios: a machine whose speed drifts meets both sides alike. Results go to benchmarks/results/rollout.json
and rollout.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tulu_lite.recipe.server import ServerSettings  # noqa: E402
from tulu_lite.records import Prompt  # noqa: E402
from tulu_lite.rollout.adapters import push_adapter  # noqa: E402
from tulu_lite.rollout.client import RolloutClient, Sampling, request_seed  # noqa: E402
from tulu_lite.rollout.everywhere import next_version, push_everywhere  # noqa: E402
from tulu_lite.rollout.lease import own_weights  # noqa: E402
from tulu_lite.rollout.server import RolloutServer  # noqa: E402

SETTINGS: dict[str, Any] = {"max_model_len": 256, "kv_cache_mb": 256, "max_num_seqs": 256}
CASES = {
    # name: prompts, responses of each, most tokens, whether a token that is sampled now and then ends a response
    "short": (32, 4, 48, False),
    "skewed": (32, 4, 160, True),
}
ROUNDS = 15
SHARED_ROUNDS = 5  # of adapters: each takes about ten seconds


def prompts_of(count: int, vocabulary: int) -> list[Prompt]:
    return [
        Prompt(
            f"p{i}", "", tuple(5 + (i * 31 + j * 7) % (vocabulary - 5) for j in range(16 + i % 16)), "bench"
        )
        for i in range(count)
    ]


def sampling_of(case: str, ending: int, seed: int = 1) -> Sampling:
    _, n, longest, skewed = CASES[case]
    return Sampling(n, 1.0, longest, seed, stop_token_ids=(ending,) if skewed else (), for_training=True)


def now_and_then(groups: list[Any]) -> int:
    """The token that is nearest to one in forty of those sampled: as an end token it gives lengths of a long tail."""
    seen = Counter(token for group in groups for rollout in group.rollouts for token in rollout.token_ids)
    total = sum(seen.values())
    return min(seen, key=lambda token: abs(seen[token] / total - 1 / 40))


OFFLINE = """
import json, os, sys, time
os.environ.update(TORCH_COMPILE_DISABLE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", OMP_NUM_THREADS="1",
                  VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1", HF_HUB_OFFLINE="1")
from vllm import LLM, SamplingParams
work = json.load(open(sys.argv[1]))
llm = LLM(model=work["model"], skip_tokenizer_init=True, dtype="float32", enforce_eager=True, block_size=32,
          max_model_len=256, max_num_seqs=256, kv_cache_memory_bytes=256 * 2**20, enable_chunked_prefill=False,
          max_num_batched_tokens=8192, logprobs_mode="processed_logprobs", distributed_executor_backend="uni",
          generation_config="vllm", scheduling_policy="priority", enable_prefix_caching=True)
for line in sys.stdin:
    case = work["cases"][line.strip()]
    requests = [{"prompt_token_ids": ids} for ids in case["prompts"]]
    parameters = [SamplingParams(n=case["n"], temperature=1.0, max_tokens=case["longest"], logprobs=0, detokenize=False,
                                 ignore_eos=True, stop_token_ids=case["stops"], seed=seed) for seed in case["seeds"]]
    llm.reset_prefix_cache()
    started = time.monotonic()
    answers = llm.generate(requests, parameters, use_tqdm=False)
    seconds = time.monotonic() - started
    tokens = sum(len(one.token_ids) for answer in answers for one in answer.outputs)
    first = list(answers[0].outputs[0].token_ids)
    print("TOLD", json.dumps({"rate": tokens / seconds, "tokens": tokens, "first": first}), flush=True)
"""


class Offline:
    """vLLM's own LLM.generate in a process of its own, which waits between the cases that it is asked for."""

    def __init__(self, model: Path, vocabulary: int, ending: int, folder: Path) -> None:
        cases = {}
        for name, (count, n, longest, _) in CASES.items():
            prompts, sampling = prompts_of(count, vocabulary), sampling_of(name, ending)
            cases[name] = {
                "prompts": [prompt.token_ids for prompt in prompts],
                "seeds": [request_seed(sampling.seed, prompt.id, i) for i, prompt in enumerate(prompts)],
                "n": n,
                "longest": longest,
                "stops": sampling.stop_token_ids,
            }
        work = folder / "work.json"
        work.write_text(json.dumps({"model": str(model), "cases": cases}))
        with (folder / "offline.log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", OFFLINE, str(work)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip

    def run(self, case: str) -> dict[str, Any]:
        """{rate: tokens/s, tokens, first}"""
        assert self.process.stdin and self.process.stdout
        print(case, file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("TOLD "):
                return json.loads(line.removeprefix("TOLD "))
        raise RuntimeError("vLLM's offline engine ended; see offline.log")

    def __enter__(self) -> Offline:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def count_tokens(groups: list[Any]) -> int:
    return sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)


def online(client: RolloutClient, case: str, vocabulary: int, ending: int) -> dict[str, Any]:
    """The same through the client."""
    prompts, sampling = prompts_of(CASES[case][0], vocabulary), sampling_of(case, ending)
    client.control().send("POST", "/reset_prefix_cache")
    started = time.monotonic()
    groups = client.generate(prompts, sampling)
    seconds = time.monotonic() - started
    tokens = count_tokens(groups)
    return {"rate": tokens / seconds, "tokens": tokens, "first": list(groups[0].rollouts[0].token_ids)}


def throughput(
    client: RolloutClient, model: Path, vocabulary: int, ending: int, folder: Path
) -> dict[str, Any]:
    """{case: the client's and the offline engine's tokens/s, and their ratio}, in rotation. The first round counts nowhere."""
    told = {}
    with Offline(model, vocabulary, ending, folder) as engine:
        for case in CASES:
            rounds = [(online(client, case, vocabulary, ending), engine.run(case)) for _ in range(ROUNDS + 1)]
            ours, theirs = ([one["rate"] for one in side[1:]] for side in zip(*rounds, strict=True))
            told[case] = {
                "client": statistics.median(ours),
                "offline": statistics.median(theirs),
                "ratio": middle_ratio(ours, theirs),
                "ratios": [one / other for one, other in zip(ours, theirs, strict=True)],
                "tokens": rounds[0][0]["tokens"],
                "same_tokens": all(
                    one["first"] == other["first"] and one["tokens"] == other["tokens"]
                    for one, other in rounds
                ),
            }
            print(case, told[case], flush=True)
    return told


def middle_ratio(some: list[float], others: list[float]) -> float:
    """The median of the rounds' own ratios."""
    return statistics.median(one / other for one, other in zip(some, others, strict=True))


def adapters(client: RolloutClient, model: Path, vocabulary: int) -> dict[str, dict[str, float]]:
    """Two seeds' adapters on one server, by responses each: tokens/s one after the other, and at the same time."""
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.utils import get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    for seed in (1, 2):
        torch.manual_seed(seed)
        config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), config)
        tensors = get_peft_model_state_dict(adapted)
        push_adapter(client, tensors.items(), adapted.peft_config["default"].to_dict(), f"seed-{seed}", 1)
    sizes = ((1, 1), (1, 2), (1, 4), (2, 4), (8, 4))  # prompts, responses of each
    told = {}
    for prompts, n in sizes:
        told[str(n * prompts)] = _shared(client, prompts_of(prompts, vocabulary), n)
        print(n * prompts, told[str(n * prompts)], flush=True)
    return told


def _shared(client: RolloutClient, prompts: list[Prompt], n: int) -> dict[str, float]:
    sampling = Sampling(n, 1.0, 128, 1, for_training=True)
    bound = [client.with_adapter(f"seed-{seed}") for seed in (1, 2)]

    ways = {
        "in_turn": lambda: [one.generate(prompts, sampling) for one in bound],
        "together": lambda: _at_once(bound, prompts, sampling),
        "model_in_turn": lambda: [client.generate(prompts, sampling) for _ in bound],
        "model_together": lambda: _at_once([client, client], prompts, sampling),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(SHARED_ROUNDS + 1):  # in rotation, so that what else the machine does meets all alike
        for name, way in ways.items():
            started = time.monotonic()
            tokens = sum(count_tokens(groups) for groups in way())
            rates[name].append(tokens / (time.monotonic() - started))
    middle = {name: statistics.median(found[1:]) for name, found in rates.items()}
    return {
        **middle,
        "ratio": middle_ratio(rates["together"][1:], rates["in_turn"][1:]),
        "model_ratio": middle_ratio(rates["model_together"][1:], rates["model_in_turn"][1:]),
    }


def _at_once(clients: list[RolloutClient], prompts: list[Prompt], sampling: Sampling) -> list[Any]:
    return [task.result() for task in [one.submit(prompts, sampling) for one in clients]]


def _training(server: str, model: str, holder: str, steps: int, vocabulary: int, told: Any) -> None:
    """One seed of full weights: sample in its turn, then train; tells when each began and ended."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    trained = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    prompts, sampling = prompts_of(16, vocabulary), Sampling(4, 1.0, 96, 1, for_training=True)
    spans = []
    with RolloutClient(server) as client:

        def push() -> int:
            version = next_version(client)
            push_everywhere(client, trained.named_parameters(), version)
            return version

        for mark in range(steps):
            folder = client.shared_folder
            with own_weights(
                folder, holder, mark, push, lambda: next_version(client) - 1, wait_s=600, term_s=600
            ):
                began = time.monotonic()
                groups = client.generate(prompts, sampling)
                spans.append(("server", began, time.monotonic()))
            began = time.monotonic()
            for group in groups:
                ids = torch.tensor([group.prompt.token_ids + rollout.token_ids for rollout in group.rollouts])
                trained(input_ids=ids, labels=ids).loss.backward()
            trained.zero_grad()
            spans.append(("trainer", began, time.monotonic()))
    told.put((holder, spans))


def turns(server: RolloutServer, model: Path, vocabulary: int, steps: int = 4) -> dict[str, float]:
    """Two seeds of full weights in turns: what share of the time the server samples, and each trainer trains."""
    context = multiprocessing.get_context("spawn")
    told: Any = context.Queue()
    processes = [
        context.Process(
            target=_training, args=(str(server.folder), str(model), name, steps, vocabulary, told)
        )
        for name in ("seed-1", "seed-2")
    ]
    for process in processes:
        process.start()
    spans = dict(told.get(timeout=900) for _ in processes)
    for process in processes:
        process.join()
    # From when both have begun until the first is done: what comes before and after is not shared.
    begin = max(each[0][1] for each in spans.values())
    end = min(each[-1][2] for each in spans.values())

    def busy(kind: str) -> float:
        return sum(
            max(0.0, min(stop, end) - max(start, begin))
            for each in spans.values()
            for what, start, stop in each
            if what == kind
        ) / (end - begin)

    return {"seconds": end - begin, "server_busy": busy("server"), "trainers_busy": busy("trainer") / 2}


def table(result: dict[str, Any]) -> str:
    rows = ["| what | figure |", "| --- | --- |"]
    for name, case in result["throughput"].items():
        rows.append(
            f"| {name}: client over HTTP / vLLM's own LLM.generate | {case['client']:.0f} / {case['offline']:.0f} "
            f"tokens/s = {case['ratio']:.2f} |"
        )
    turn = result["turns"]
    rows += [
        f"| from start to ready | {result['ready_s']:.1f} s (with adapters {result['ready_with_adapters_s']:.1f} s; "
        f"the first start of this run, which may read its files from the disk: {result['first_ready_s']:.1f} s) |",
        *(
            f"| two adapters at once / one after the other, {responses} responses each | "
            f"{lora['together']:.0f} / {lora['in_turn']:.0f} tokens/s = {lora['ratio']:.2f} "
            f"(the same requests to the model alone: {lora['model_together']:.0f} / {lora['model_in_turn']:.0f} = "
            f"{lora['model_ratio']:.2f}) |"
            for responses, lora in result["adapters"].items()
        ),
        f"| full weights in turns: server busy, each trainer busy | {turn['server_busy']:.0%}, {turn['trainers_busy']:.0%} |",
    ]
    return "\n".join(rows)


def alone(folder: Path, model: Path, vocabulary: int) -> dict[str, Any]:
    """A server without adapters: until it is ready, beside the offline engine, in turns."""
    result: dict[str, Any] = {}
    # The first reads vLLM's code from the disk, unless it has been read before.
    started = time.monotonic()
    with RolloutServer(ServerSettings(**SETTINGS), model, folder / "0", folder / "0.log") as server:
        server.wait_ready()
        result["first_ready_s"] = time.monotonic() - started
    started = time.monotonic()
    with RolloutServer(ServerSettings(**SETTINGS), model, folder / "a", folder / "a.log") as server:
        server.wait_ready()
        result["ready_s"] = time.monotonic() - started
        with RolloutClient(server.state_file) as client:
            some = client.generate(prompts_of(16, vocabulary), sampling_of("short", 0))
            result["throughput"] = throughput(client, model, vocabulary, now_and_then(some), folder)
        result["turns"] = turns(server, model, vocabulary)
        print(f"in turns: {result['turns']}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "data" / "quickstart" / "base")
    parser.add_argument("--parts", default="server,adapters", help="by comma; what the others found is kept")
    given = parser.parse_args()
    model, parts = given.model.resolve(), given.parts.split(",")
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    out = ROOT / "benchmarks" / "results"
    result: dict[str, Any] = (
        json.loads((out / "rollout.json").read_text()) if parts != ["server", "adapters"] else {}
    )
    result |= {"model": model.name, "cpus": os.cpu_count(), "load_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "server" in parts:
            result |= alone(folder, model, vocabulary)
        if "adapters" in parts:
            settings = ServerSettings(**SETTINGS, max_loras=3, max_lora_rank=8)
            started = time.monotonic()
            with RolloutServer(settings, model, folder / "b", folder / "b.log") as server:
                server.wait_ready()
                result["ready_with_adapters_s"] = time.monotonic() - started
                with RolloutClient(server.state_file) as client:
                    result["adapters"] = adapters(client, model, vocabulary)
    result["load_after"] = os.getloadavg()[0]
    (out / "rollout.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "rollout.md").write_text(
        f"# The rollout server's speed\n\nModel `{result['model']}`, {result['cpus']} CPU cores, one engine with one "
        f"thread, float32. Middle of {ROUNDS} rounds in rotation, of adapters {SHARED_ROUNDS}. Load of the machine before and after: {result['load_before']:.1f}, "
        f"{result['load_after']:.1f}; above the number of cores, absolute figures and readiness are of a busy machine.\n\n{table(result)}\n"
    )
    print(table(result))


if __name__ == "__main__":
    main()
