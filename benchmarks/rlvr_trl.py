"""The peer of benchmarks/rlvr.py: TRL's GRPO, in an environment of its own that has `trl` and torch for the CPU.

Started by benchmarks/rlvr.py. Reads jobs from standard input, a JSON object a line, and answers each with a line on
standard output that begins with ANSWER. One process does all jobs, so that nothing is imported in what is timed.

Several of these processes, told their places in a group by the environment as a launcher does, do each job together.

A job: {model, prompts, rows, group, max_tokens, steps, learning_rate, seed, micro, threads, continuous, compile},
where micro and threads are of each process
Its answer: {seconds: of each step, tokens: mean response tokens of each step, ended: share of responses that ended}, or
{error: what TRL raised}.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402
from datasets import Dataset  # noqa: E402
from rlvr_reward import digit_share  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

ANSWER = "ANSWER "


class Ends(TrainerCallback):
    """When training began, and when each step ended: a step's seconds are from the end of the one before."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.at.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.at.append(time.perf_counter())


def settings(job: dict[str, Any], folder: str) -> trl.GRPOConfig:
    """TRL's settings for what our side does: on-policy GRPO, no KL term, loss by token over the whole step, float32."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    responses = job["rows"] * job["group"] // processes
    together = {"ddp_backend": "gloo", "ddp_find_unused_parameters": False} if processes > 1 else {}
    return trl.GRPOConfig(
        **together,
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        model_init_kwargs={"dtype": "float32"},
        per_device_train_batch_size=job["micro"],
        gradient_accumulation_steps=responses // job["micro"],
        gradient_checkpointing=False,  # the default recomputes: slower, and there is memory enough
        num_generations=job["group"],
        max_completion_length=job["max_tokens"],
        max_steps=job["steps"],
        learning_rate=job["learning_rate"],
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        temperature=1.0,
        beta=0.0,
        loss_type="dapo",
        use_transformers_continuous_batching=job["continuous"],
        torch_compile=job["compile"],
        seed=job["seed"],
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def run(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    torch.compiler.reset()  # what earlier jobs compiled counts towards a limit, beyond which nothing is compiled
    rows = [json.loads(line) for line in Path(job["prompts"]).read_text().splitlines()]
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows])
    lengths: list[list[int]] = []

    def reward(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.append([len(ids) for ids in completion_ids])
        return [digit_share(one[0]["content"]) for one in completions]

    ends = Ends()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.GRPOTrainer(
            model=job["model"],
            reward_funcs=reward,
            args=settings(job, folder),
            train_dataset=data,
            callbacks=[ends],
        )
        trainer.train()
    return {
        "seconds": [later - earlier for earlier, later in zip(ends.at, ends.at[1:], strict=False)],
        "tokens": [sum(each) / len(each) for each in lengths],
        "ended": [sum(n < job["max_tokens"] for n in each) / len(each) for each in lengths],
    }


def main() -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr  # what TRL prints is no answer
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    print(ANSWER + json.dumps(versions), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer = run(json.loads(line))
        except (
            Exception
        ) as error:  # whatever TRL raises: the settings do not work here, and that is the answer
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(ANSWER + json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
