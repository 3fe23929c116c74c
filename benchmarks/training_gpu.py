"""SFT on one GPU: a Llama-3.1-8B-shaped model with random weights, packed rows of 4096 tokens, bf16; tokens/s and MFU.

    python benchmarks/training_gpu.py                                # ours
    python benchmarks/training_gpu.py --peer-python PEER/bin/python  # TRL beside it (bf16, packing, flash attention)

The whole model trains where 16 bytes a weight fit (float32 weights, gradients and moments); `--layers` makes a smaller
one of the same shape, `--optimizer adamw_8bit` saves 6 bytes a weight on both sides. Both sides use gradient checkpointing when asked.
Nothing is read from the network: rows are random token ids of skewed lengths.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

SHAPE = {
    "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}  # fmt: skip
ROW, WARM = 4096, 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", help="the interpreter of an environment with TRL and CUDA")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rows", type=int, default=4, help="packed rows of 4096 tokens in a step")
    parser.add_argument("--optimizer", choices=["adamw", "adamw_8bit"], default="adamw")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--side", choices=["ours", "trl"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is not None:
        print(json.dumps(ours(options) if options.side == "ours" else trl(options)))
        return
    sides = {"ours": sys.executable} | ({"trl": options.peer_python} if options.peer_python else {})
    arguments = [
        argument for argument in sys.argv[1:] if argument not in ("--peer-python", options.peer_python)
    ]
    found = {}
    for name, python in sides.items():
        command = [python, "-P", __file__, *arguments, "--side", name]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=3600).stdout
        found[name] = json.loads(out.strip().splitlines()[-1])
        print(name, found[name], flush=True)
    if "trl" in found:
        ratio = found["ours"]["tokens_per_second"] / found["trl"]["tokens_per_second"]
        print(f"ours against TRL: {ratio:.2f} (goal: at least 1.3)")


def packed_rows(count: int, vocabulary: int) -> list[list[int]]:
    """Lengths that fill `count` rows of ROW tokens each, skewed: each row of 2 to 20 sequences."""
    draw = random.Random(0)
    rows = []
    for _ in range(count):
        cuts = sorted({0, ROW, *(draw.randrange(16, ROW) for _ in range(draw.randint(1, 19)))})
        rows.append([end - start for start, end in pairwise(cuts)])
    return [[length for length in row if length > 1] for row in rows]


def model_flops(model: Any, lengths: list[int]) -> float:
    weights = (
        sum(p.numel() for p in model.parameters() if p.dim() >= 2)
        - model.get_input_embeddings().weight.numel()
    )
    config = model.config
    attention = 6 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return float(6 * weights * sum(lengths) + attention * sum(length * length for length in lengths))


def random_model(layers: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    with torch.device("cuda"):
        return LlamaForCausalLM(LlamaConfig(**(SHAPE | {"num_hidden_layers": layers})))


def ours(options: argparse.Namespace) -> dict[str, float]:
    import torch
    from accelerate import Accelerator

    from tulu_lite.recipe.training import TrainingSettings
    from tulu_lite.training.figures import peak_flops
    from tulu_lite.training.logprobs import LogprobModel, summed_logprobs
    from tulu_lite.training.optim import backward, finish_update, make_optimizer
    from tulu_lite.training.proof import choose_liger, choose_packing

    accelerator = Accelerator(mixed_precision="bf16")
    model = LogprobModel(random_model(options.layers))
    print(choose_packing(model, "varlen", "bf16", "the model")[1], file=sys.stderr)
    model.liger = choose_liger("auto", accelerator.device)
    if options.gradient_checkpointing:
        model.wrapped.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    settings = TrainingSettings(learning_rate=1e-5, optimizer=options.optimizer)
    optimizer, rate = make_optimizer(model, settings, options.steps)
    flops_of = model.wrapped
    model, optimizer = accelerator.prepare(model, optimizer)
    rows = packed_rows(options.rows, SHAPE["vocab_size"])
    total = sum(sum(row) for row in rows)
    began = 0.0
    for step in range(1, options.steps + 1):
        if step == WARM + 1:
            torch.cuda.synchronize()
            began = time.perf_counter()
        for row in rows:
            ids = torch.randint(SHAPE["vocab_size"], (len(row), max(row)), device="cuda")
            attention = (
                torch.arange(max(row), device="cuda") < torch.tensor(row, device="cuda")[:, None]
            ).long()
            summed = summed_logprobs(model, ids, attention, chunk_tokens=1024, mask=attention[:, 1:])
            backward(accelerator, model, -summed / total)
        finish_update(accelerator, model, optimizer, rate(step), 1.0, "benchmark")
    torch.cuda.synchronize()
    return figures(
        options, flops_of, rows, time.perf_counter() - began, peak_flops(accelerator.device, "bf16")
    )


def figures(
    options: argparse.Namespace, model: Any, rows: list[list[int]], seconds: float, peak: float | None
) -> dict[str, float]:
    import torch

    steps = options.steps - WARM
    lengths = [length for row in rows for length in row]
    found = {
        "tokens_per_second": steps * sum(lengths) / seconds,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9,
    }
    if peak is not None:
        found["mfu"] = steps * model_flops(model, lengths) / seconds / peak
    return found


def trl(options: argparse.Namespace) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    rows = packed_rows(options.rows, SHAPE["vocab_size"])
    draw = random.Random(1)
    data = Dataset.from_list(
        [
            {"input_ids": [draw.randrange(SHAPE["vocab_size"]) for _ in range(length)]}
            for row in rows * options.steps
            for length in row
        ]
    )
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            times.append(time.perf_counter())

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<eos>": 0}, unk_token="<eos>")), eos_token="<eos>", pad_token="<eos>"
    )  # fmt: skip
    model = random_model(options.layers)
    model.set_attn_implementation("flash_attention_2")
    arguments = SFTConfig(
        output_dir=str(Path("trl-out").resolve()), bf16=True, packing=True, max_length=ROW, max_steps=options.steps,
        per_device_train_batch_size=1, gradient_accumulation_steps=options.rows, learning_rate=1e-5,
        optim="adamw_bnb_8bit" if options.optimizer == "adamw_8bit" else "adamw_torch_fused",
        gradient_checkpointing=options.gradient_checkpointing, save_strategy="no", report_to="none",
    )  # fmt: skip
    SFTTrainer(
        model=model, args=arguments, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()]
    ).train()
    return figures(options, model, rows, times[-1] - times[WARM - 1], None)


if __name__ == "__main__":
    main()
