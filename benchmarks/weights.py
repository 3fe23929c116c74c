"""Weight updates on the real server of this machine: their speed beside plain copying, and 50 pushes an architecture.

python benchmarks/weights.py --sizes 5M 500M    seconds of a push, and of the same bytes copied through shared memory
python benchmarks/weights.py --architectures    50 pushes of changing weights each, against transformers
python benchmarks/weights.py --bfloat16         whether this CPU serves bfloat16, and float32 weights pushed to it

Results go to benchmarks/results/weights.json, by the name of the part, and weights.md is made from all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

# In the place of this folder, whose verifiers.py would be taken for the package.
sys.path[0] = str(Path(__file__).resolve().parent.parent / "tests" / "integration")
from architectures import CONFIGS, change, checkpoint_weights, disagreements, make_model  # noqa: E402

from tulu_lite.errors import TuluLiteError  # noqa: E402
from tulu_lite.recipe.server import ServerSettings  # noqa: E402
from tulu_lite.rollout.client import RolloutClient  # noqa: E402
from tulu_lite.rollout.server import RolloutServer  # noqa: E402
from tulu_lite.rollout.weights import push_weights  # noqa: E402

RESULTS = Path(__file__).parent / "results"
SIZES: dict[str, dict[str, int]] = {
    "5M": {
        "vocab_size": 1024,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
    },
    "500M": {
        "vocab_size": 32000,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 16,
        "num_attention_heads": 10,
    },
}
HEADS = {"num_key_value_heads": 2, "max_position_embeddings": 512}
PUSHES = 50


@contextmanager
def served(model_dir: Path, **changes: Any) -> Iterator[tuple[RolloutServer, RolloutClient]]:
    settings = ServerSettings(
        max_num_seqs=64,
        kv_cache_mb=512,
        max_restarts=0,
        ready_timeout_s=300,
        control_timeout_s=120,
        **changes,
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        RolloutServer(settings, model_dir, Path(folder), Path(folder) / "log.txt") as server,
    ):
        server.wait_ready()
        with RolloutClient(server.state_file) as client:
            yield server, client


def copied(tensors: list[torch.Tensor]) -> dict[str, float]:
    """Seconds to copy the tensors' bytes: into memory that is there; into new memory; and from one process's memory to
    another's as plainly as can be, into a new file in shared memory and out of it into memory that is there."""
    there = [torch.zeros_like(tensor) for tensor in tensors]
    path = Path("/dev/shm/plain-copy")

    def memory() -> None:
        for tensor, target in zip(tensors, there, strict=True):
            target.copy_(tensor)

    def fresh() -> None:
        for tensor in tensors:
            tensor.clone()

    def shared() -> None:
        path.unlink(missing_ok=True)
        with path.open("xb", buffering=0) as file:
            for tensor in tensors:
                left = memoryview(tensor.view(torch.uint8).reshape(-1).numpy())
                while len(left):
                    left = left[file.write(left) :]
        with path.open("rb", buffering=0) as file:
            for target in there:
                left = memoryview(target.view(torch.uint8).reshape(-1).numpy())
                while len(left):
                    left = left[file.readinto(left) :]

    try:
        return {kind.__name__: min(timed(kind) for _ in range(3)) for kind in (memory, fresh, shared)}
    finally:
        path.unlink(missing_ok=True)


def timed(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def speed(size: str, pushes: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES[size], **HEADS, tie_word_embeddings=False)).float().eval()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with served(Path(folder)) as (_, client):
            seconds = []
            for version in range(1, pushes + 1):
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.mul_(1.0 + 1e-4 * version)
                report = push_weights(client, list(model.named_parameters()), version)
                seconds.append(report.seconds)
                print(f"{size}: push {version} {report.seconds:.3f} s, {report.checked} checked", flush=True)
            assert not report.unchecked
    tensors = [parameter.detach() for parameter in model.parameters()]
    plain = copied(tensors)
    rest = sorted(seconds[2:])  # the first two make files; from the third on they are written over
    middle = rest[len(rest) // 2]
    return {
        "parameters": parameters,
        "bytes": sum(tensor.nbytes for tensor in tensors),
        "push_seconds": seconds,
        "push_median": middle,
        "plain_copy_seconds": plain,
        "ratio_through_shared_memory": middle / plain["shared"],
        "ratio_memory_to_memory": middle / plain["memory"],
    }


def architectures() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            model = make_model(name, Path(folder))
            with served(Path(folder)) as (server, client):
                wrong, worst, compared = [], 0.0, 0
                for version in range(1, PUSHES + 1):
                    model = change(model, version, size=0.02)
                    report = push_weights(client, checkpoint_weights(model), version)
                    if version % 5 == 0:
                        differ, apart = disagreements(client, model, version)
                        wrong, worst, compared = wrong + differ, max(worst, apart), compared + 1
                found[name] = {
                    "pushes": PUSHES,
                    "times_compared": compared,
                    "greedy_differences": wrong,
                    "largest_logprob_difference": worst,
                    "parameters_and_buffers_checked": report.checked,
                    "unchecked": report.unchecked,
                    "server_starts": server.state.generation,
                }
        print(name, found[name], flush=True)
    return found


def bfloat16() -> dict[str, Any]:
    """Whether a bfloat16 server lives here, and takes float32 weights: cast once by the sender."""
    with tempfile.TemporaryDirectory() as folder:
        model = make_model("llama", Path(folder))
        try:
            with served(Path(folder), dtype="bfloat16") as (server, client):
                other = change(model, 1)
                report = push_weights(client, list(other.named_parameters()), 1)
                rounded = change(other, 2, size=0.0).bfloat16().eval()
                wrong, apart = disagreements(client, rounded, 1)
                if server.state.generation > 1:
                    raise TuluLiteError("the server died of the requests")
        except TuluLiteError as error:
            return {"served": False, "why": "\n".join(error.lines())[:1500]}
    return {
        "served": True,
        "checked": report.checked,
        "unchecked": report.unchecked,
        "largest_logprob_difference": apart,
        "greedy_differences_beyond_1e-4": len(wrong),
    }


def note(part: str, found: Any) -> None:
    file = RESULTS / "weights.json"
    data = json.loads(file.read_text()) if file.exists() else {}
    data["machine"] = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    data[part] = found
    file.write_text(json.dumps(data, indent=1) + "\n")
    (RESULTS / "weights.md").write_text(as_text(data))


def as_text(data: dict[str, Any]) -> str:
    lines = ["# Weight updates", "", "", ""]
    machine = data["machine"]
    lines[2] = f"Measured on {machine['cores']} cores without a GPU, torch {machine['torch']}."
    if "speed" in data:
        lines += [
            "| parameters | push | copied through shared memory | ratio | copied memory to memory | ratio |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for size, one in data["speed"].items():
            plain = one["plain_copy_seconds"]
            lines.append(
                f"| {size} ({one['bytes'] / 1e6:.0f} MB) | {one['push_median']:.3f} s | {plain['shared']:.3f} s | "
                f"{one['ratio_through_shared_memory']:.2f} | {plain['memory']:.3f} s | "
                f"{one['ratio_memory_to_memory']:.1f} |"
            )
        lines.append("")
    if "architectures" in data:
        lines += [
            "| architecture | pushes | greedy differences | largest logprob difference | compared on the server | not |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for name, one in data["architectures"].items():
            lines.append(
                f"| {name} | {one['pushes']} | {len(one['greedy_differences'])} | "
                f"{one['largest_logprob_difference']:.1e} | {one['parameters_and_buffers_checked']} | "
                f"{len(one['unchecked'])} |"
            )
        lines.append("")
    if "bfloat16" in data:
        lines += [f"bfloat16 here: {json.dumps(data['bfloat16'])}", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="*", choices=list(SIZES), default=[])
    parser.add_argument("--pushes", type=int, default=7)
    parser.add_argument("--architectures", action="store_true")
    parser.add_argument("--bfloat16", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.sizes:
        note("speed", {size: speed(size, asked.pushes) for size in asked.sizes})
    if asked.architectures:
        note("architectures", architectures())
    if asked.bfloat16:
        note("bfloat16", bfloat16())
    print((RESULTS / "weights.md").read_text())


if __name__ == "__main__":
    main()
