"""One of two processes of test_training_ranks.py: three updates, a save, a resume and an export, on its half of the batch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from ranks import leave
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent))
from ranks import deepspeed_as_it_is

from tulu_lite.recipe.training import AccelerateSettings, LoraSettings, TrainingSettings
from tulu_lite.training import logprobs
from tulu_lite.training.accelerator import make_accelerator
from tulu_lite.training.checkpoint import export_model, load_latest, save_checkpoint
from tulu_lite.training.logprobs import summed_logprobs
from tulu_lite.training.model import load_model, merged_weights
from tulu_lite.training.optim import accumulating, backward, finish_update, make_optimizer
from tulu_lite.training.proof import choose_packing


class Template:
    source, end_token_ids = "{{ messages[0]['content'] }}", (2,)

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer


def micro_batches(rank: int, world: int) -> list[list[int]]:
    """Eight rows over the processes; with two, the second has one micro-batch fewer and runs an empty one."""
    if world == 1:
        return [list(range(8))]
    return [[0, 1], [2, 3, 4]] if rank == 0 else [[5, 6, 7], []]


def zero_engine(model: Any, optimizer: Any, stage: int) -> tuple[Any, Any]:
    import deepspeed

    deepspeed_as_it_is()
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": stage},
    }
    engine, optimizer, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine, optimizer


def run(accelerator: Any, folder: str, out: Path, engine: str, tokenizer: Any) -> None:
    lora = LoraSettings(rank=2) if engine == "ddp-lora" else None
    settings = TrainingSettings(learning_rate=1e-2, lora=lora)
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 40, (8, 12), generator=generator)
    lengths = torch.tensor([12, 5, 9, 12, 7, 3, 11, 12])[:, None]
    attention = (torch.arange(12) < lengths).long()
    mask = torch.randint(0, 2, (8, 11), generator=generator) * attention[:, 1:]

    def fresh() -> tuple[Any, Any, Any]:
        model = load_model(folder, accelerator.device, lora=lora)
        choose_packing(model, "varlen", "no", "it")
        torch.manual_seed(3)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(std=0.1)
        if engine == "fsdp2":
            from torch.distributed.fsdp import fully_shard

            for layer in model.base.model.layers:
                fully_shard(layer)
            fully_shard(model)
            return model, *make_optimizer(model, settings, 4)
        optimizer, rate = make_optimizer(model, settings, 4)
        if engine.startswith("zero"):
            return *zero_engine(model, optimizer, int(engine[4])), rate
        return *accelerator.prepare(model, optimizer), rate

    def steps(model: Any, optimizer: Any, rate: Any, first: int, last: int) -> list[tuple[float, float]]:
        """The loss and gradient norm of each step."""
        found = []
        for step in range(first, last + 1):
            parts = micro_batches(accelerator.process_index, accelerator.num_processes)
            total = torch.zeros((), dtype=torch.float64)
            for number, rows in enumerate(parts, 1):
                own, keep = (rows, mask[rows]) if rows else ([0], mask[:1] * 0)
                with accumulating(accelerator, model, last=number == len(parts) or engine == "fsdp2"):
                    summed = summed_logprobs(model, ids[own], attention[own], chunk_tokens=9, mask=keep)
                    total += summed.detach().double() / -float(mask.sum())
                    backward(accelerator, model, -summed / float(mask.sum()))
            norm = finish_update(accelerator, model, optimizer, rate(step), 1.0, "test")
            found.append((float(accelerator.reduce(total, "sum")), norm))
        return found

    model, optimizer, rate = fresh()
    told = steps(model, optimizer, rate, 1, 2)
    saves = out / f"{engine}-saves"
    save_checkpoint(saves, 2, model=model, optimizer=optimizer, state={"step": 2})
    told += steps(model, optimizer, rate, 3, 4)
    resumed, optimizer, rate = fresh()
    assert load_latest(saves, model=resumed, optimizer=optimizer) == {"step": 2}
    assert steps(resumed, optimizer, rate, 3, 4) == told[2:], "the resumed run is another"
    weights = {name: tensor.clone() for name, tensor in merged_weights(resumed)}
    export_model(out / engine, resumed, init_model=folder, template=Template(tokenizer), card="")
    if accelerator.is_main_process:
        save_file(weights, out / f"{engine}.safetensors")
        (out / f"{engine}.json").write_text(json.dumps(told))


def main() -> None:
    logprobs.LEAST_CHUNK_ELEMENTS = 0  # tiles, and a head called as a module, also of this few logits
    folder, out, engines = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(out / "tokenizer.json"), eos_token="<eos>")
    accelerator = make_accelerator(AccelerateSettings(device="cpu", threads=1), seed=0)
    for engine in engines:
        run(accelerator, folder, out, engine, tokenizer)
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    main()
    leave()
