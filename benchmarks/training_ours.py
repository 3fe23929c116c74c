"""A child of benchmarks/training.py: one of our stages with a clock at each step, or a bare loop on ready tensors.

It writes the token ids it trained on, in the order it did, to tokens.jsonl beside the recipe: what the peer is given.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

WARM = 3  # steps before the clock starts


def main() -> None:
    mode, kind, recipe = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    with contextlib.redirect_stdout(sys.stderr):
        found = stage_run(kind, recipe) if mode == "stage" else bare_run(recipe, packed=mode == "bare-packed")
    print(json.dumps(found))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def stage_run(kind: str, recipe: Path) -> dict[str, Any]:
    """{seconds, items, tokens} of the steps after the warm ones; losses; peak memory, and what it was before step 1."""
    from tulu_lite.stages import context
    from tulu_lite.training.loop import Training

    stage = importlib.import_module(f"tulu_lite.stages.{kind}")
    times: list[float] = []
    processor: list[float] = []
    steps: list[dict[str, Any]] = []
    batches: list[list[Any]] = []
    before: list[float] = []
    update, log = Training.update, context.MetricsLog.log

    def timed_update(self: Training, step: int, batch: Any, *rest: Any) -> Any:
        if not before:
            before.append(peak_mb())
        batches.append(list(batch))
        return update(self, step, batch, *rest)

    def timed_log(self: Any, step: int, /, places: Any = None, **values: float) -> None:
        log(self, step, places, **values)
        times.append(time.perf_counter())
        processor.append(time.process_time())
        steps.append(values)

    Training.update, context.MetricsLog.log = timed_update, timed_log  # type: ignore[method-assign]
    reference = [0.0]
    if kind == "dpo":
        inner = stage.reference_of

        def timed_reference(*arguments: Any) -> Any:
            began = time.perf_counter()
            values = inner(*arguments)
            reference[0] += time.perf_counter() - began
            return values

        stage.reference_of = timed_reference
    sys.argv = [kind, "--recipe", str(recipe), "--stage", kind]
    stage.main()
    write_tokens(recipe.parent / "tokens.jsonl", batches)
    return {
        "seconds": times[-1] - times[WARM - 1],
        "processor_seconds": processor[-1] - processor[WARM - 1],
        "items": sum(len(batch) for batch in batches[WARM:]),
        "all_items": sum(len(batch) for batch in batches),
        "tokens": sum(step["tokens"] for step in steps[WARM:]),
        "losses": [step["loss"] for step in steps],
        "reference_seconds": reference[0],
        "before_mb": before[0],
        "peak_mb": peak_mb(),
    }


def write_tokens(file: Path, batches: list[list[Any]]) -> None:
    with file.open("w", encoding="utf-8") as out:
        for item in (item for batch in batches for item in batch):
            pair = getattr(item, "pair", None)
            row = (
                {"ids": list(item.token_ids), "mask": [int(bit) for bit in item.loss_mask]}
                if pair is None
                else {
                    name: list(getattr(pair, name)) for name in ("prompt_ids", "chosen_ids", "rejected_ids")
                }
            )
            out.write(json.dumps(row) + "\n")


def bare_run(recipe: Path, packed: bool) -> dict[str, Any]:
    """forward, backward and step on tensors that are there: transformers' model on rows padded to the longest of like
    lengths (packed: ours without padding), no clipping, no logging, no checks."""
    import torch

    from tulu_lite.recipe import load_recipe
    from tulu_lite.recipe.training import AccelerateSettings
    from tulu_lite.training.accelerator import make_accelerator
    from tulu_lite.training.logprobs import summed_logprobs
    from tulu_lite.training.model import load_model
    from tulu_lite.training.proof import choose_packing

    stage: Any = load_recipe(recipe).stages[0]
    threads = load_recipe(recipe).accelerate.threads
    make_accelerator(AccelerateSettings(device="cpu", threads=threads), seed=0)
    model = load_model(recipe.parent / "model", "cpu")
    choose_packing(model, "auto" if packed else "bucket", "no", "it")
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.learning_rate, weight_decay=0.0, fused=True)
    rows = [json.loads(line) for line in (recipe.parent / "tokens.jsonl").read_text().splitlines()]
    size = stage.batch_size
    batches = [tensors(rows[start : start + size]) for start in range(0, len(rows), size)]
    began = processor = 0.0
    for number, (ids, attention, mask) in enumerate(batches):
        if number == WARM:
            began, processor = time.perf_counter(), time.process_time()
        if packed:
            loss = (
                -summed_logprobs(model, ids, attention, chunk_tokens=1024, mask=mask[:, 1:])
                / mask[:, 1:].sum()
            )
        else:
            labels = ids.masked_fill(mask == 0, -100)
            loss = model.wrapped(input_ids=ids, attention_mask=attention, labels=labels, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {
        "seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - processor,
        "tokens": sum(int(attention.sum()) for _, attention, _ in batches[WARM:]),
    }


def tensors(rows: list[dict[str, Any]]) -> tuple[Any, Any, Any]:
    """Token ids, attention and loss mask [B, T], sorted by length and padded on the right."""
    import torch

    rows = sorted(rows, key=lambda row: len(row["ids"]))
    longest = len(rows[-1]["ids"])
    ids, attention, mask = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(3))
    for place, row in enumerate(rows):
        end = len(row["ids"])
        ids[place, :end], attention[place, :end] = torch.tensor(row["ids"]), 1
        mask[place, :end] = torch.tensor(row["mask"])
    return ids, attention, mask


if __name__ == "__main__":
    main()
