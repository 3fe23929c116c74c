"""A child of benchmarks/training.py under the peer's interpreter: TRL's SFT or DPO trainer on token ids that are there.

Imports nothing of ours. Prints one JSON line.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

WARM = 3


def main() -> None:
    options = json.loads(sys.argv[1])
    with contextlib.redirect_stdout(sys.stderr):
        import torch

        torch.set_num_threads(options["threads"])
        found = sft(options) if options["kind"] == "sft" else dpo(options)
    print(json.dumps(found))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rows_of(options: dict[str, Any]) -> list[dict[str, Any]]:
    lines = (Path(options["folder"]) / "tokens.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def common(options: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Settings that are the same for both trainers; those that are not TRL's defaults make it faster, or comparable."""
    return {
        "output_dir": f"{options['folder']}/trl",
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": options["batch_size"],
        "num_train_epochs": 1,
        "learning_rate": options["learning_rate"],
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "gradient_checkpointing": False,
        "logging_steps": 1 if options["golden"] else 1000,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "max_length": options["max_tokens"],
        "seed": 0,
        **more,
    }


def clock() -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        times: list[float] = []  # noqa: RUF012
        processor: list[float] = []  # noqa: RUF012
        losses: list[float] = []  # noqa: RUF012
        before_mb = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not self.times and not self.before_mb:
                self.before_mb = peak_mb()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())
            self.processor.append(time.process_time())

        def on_log(self, *_: Any, logs: Any = None, **__: Any) -> None:
            if logs and "loss" in logs:
                self.losses.append(float(logs["loss"]))

    return Clock()


def loaded(options: dict[str, Any]) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = f"{options['folder']}/model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tokenizer


def result(ticks: Any, counts: list[int], items: list[int]) -> dict[str, Any]:
    """counts, items: real tokens and items of each batch, in the order they were collated."""
    return {
        "seconds": ticks.times[-1] - ticks.times[WARM - 1],
        "processor_seconds": ticks.processor[-1] - ticks.processor[WARM - 1],
        "tokens": sum(counts[WARM : len(ticks.times)]),
        "items": sum(items[WARM : len(ticks.times)]),
        "all_items": sum(items[: len(ticks.times)]),
        "losses": ticks.losses,
        "before_mb": ticks.before_mb,
        "peak_mb": peak_mb(),
    }


def sft(options: dict[str, Any]) -> dict[str, Any]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = rows_of(options)
    data = Dataset.from_list([{"input_ids": row["ids"], "completion_mask": row["mask"]} for row in rows])
    modes: dict[str, dict[str, Any]] = {
        "padded": {"train_sampling_strategy": "sequential"},
        "grouped": {"train_sampling_strategy": "group_by_length"},
        "padding_free": {"train_sampling_strategy": "sequential", "padding_free": True, "max_length": None},
        # the rows of a batch, packed: as many tokens a step as the others have on average
        "packed": {"packing": True, "packing_strategy": "bfd"},
    }
    more = modes[options["mode"]]
    if options["mode"] == "packed":
        mean = sum(len(row["ids"]) for row in rows) / len(rows)
        more = more | {
            "per_device_train_batch_size": max(1, round(mean * options["batch_size"] / options["max_tokens"]))
        }
    model, tokenizer = loaded(options)
    ticks = clock()
    if options["mode"] == "grouped":  # the collator takes the lengths from input_ids alone
        more = more | {"length_column_name": "length"}
        data = data.add_column("length", [len(row["ids"]) for row in rows])
    arguments = SFTConfig(**common(options, completion_only_loss=True, **more))
    trainer = SFTTrainer(
        model=model, args=arguments, train_dataset=data, processing_class=tokenizer, callbacks=[ticks]
    )
    counts, items = [], []
    collate = trainer.data_collator

    def counted(examples: list[Any]) -> Any:
        counts.append(sum(len(example["input_ids"]) for example in examples))
        items.append(len(examples))
        return collate(examples)

    trainer.data_collator = counted
    trainer.train()
    return result(ticks, counts, items)


def dpo(options: dict[str, Any]) -> dict[str, Any]:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = rows_of(options)
    data = Dataset.from_list(rows)
    data = data.add_column("length", [sum(map(len, row.values())) for row in rows])
    seconds = [0.0]

    class Ready(DPOTrainer):
        """Given token ids, so that both sides train on the same; and a clock around the reference."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, *arguments: Any, **more: Any) -> Any:
            began = time.perf_counter()
            found = super()._precompute_ref_logps(*arguments, **more)
            seconds[0] += time.perf_counter() - began
            return found

    model, tokenizer = loaded(options)
    ticks = clock()
    sampling = {"padded": "sequential", "grouped": "group_by_length"}[options["mode"]]
    arguments = DPOConfig(
        **common(
            options,
            beta=0.1,
            precompute_ref_log_probs=True,
            train_sampling_strategy=sampling,
            length_column_name="length",
        )
    )
    trainer = Ready(
        model=model, args=arguments, train_dataset=data, processing_class=tokenizer, callbacks=[ticks]
    )
    counts, items = [], []
    collate = trainer.data_collator

    def counted(examples: list[Any]) -> Any:
        counts.append(
            sum(2 * len(e["prompt_ids"]) + len(e["chosen_ids"]) + len(e["rejected_ids"]) for e in examples)
        )
        items.append(len(examples))
        return collate(examples)

    trainer.data_collator = counted
    trainer.train()
    return result(ticks, counts, items) | {"reference_seconds": seconds[0]}


if __name__ == "__main__":
    main()
