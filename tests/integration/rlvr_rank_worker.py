"""One of two processes of test_rlvr_ranks.py: three steps of PPO and of GRPO on its half of the batch, under one engine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from ranks import leave
from safetensors.torch import save_file

from tulu_lite.recipe import RlvrStage
from tulu_lite.recipe.training import AccelerateSettings
from tulu_lite.records import Prompt, Rollout, RolloutGroup
from tulu_lite.rl.critic import Critic
from tulu_lite.rl.learner import Learner
from tulu_lite.rl.reference import Reference
from tulu_lite.training.accelerator import make_accelerator
from tulu_lite.training.model import load_model, merged_weights
from tulu_lite.training.optim import make_optimizer
from verifiers.base import scored

STAGE = {
    "name": "rl", "kind": "rlvr", "init": "base", "data": "a.jsonl", "validation": "b.jsonl", "steps": 3, "learning_rate": 1e-2,
    "sampling": {"max_tokens": 8}, "prompts_per_step": 4, "samples_per_prompt": 3, "warmup_ratio": 0, "micro_batch_tokens": 30,
    "updates_per_step": 2, "kl_coefficient": 0.1, "whiten_advantages": True, "old_logprobs": "trainer",
}  # fmt: skip
OBJECTIVES = {"ppo": {"advantage": "gae", "reference_refresh_steps": 1}, "grpo": {"aggregation": "sequence"}}


def groups(rank: int, world: int) -> dict[int, RolloutGroup]:
    """This process's places of four; responses of very different lengths, so that micro-batches are uneven."""
    generator = torch.Generator().manual_seed(7)
    found = {}
    for place in range(4):
        prompt = Prompt(f"p{place}", "", (1, 5 + place), "even" if place % 2 == 0 else "odd")
        rollouts = []
        for number in range(3):
            ids = tuple(torch.randint(3, 40, (1 + 5 * (place % 2) + number,), generator=generator).tolist())
            verdict = scored(float((place + number) % 2))
            rollouts.append(Rollout(ids, (-3.0,) * len(ids), (0,) * len(ids), "stop", "", verdict))
        if place % world == rank:
            found[place] = RolloutGroup(prompt, tuple(rollouts))
    return found


def prepared(engine: str, accelerator: Any, stage: RlvrStage) -> Any:
    def ddp(model: Any, optimizer: Any) -> Any:
        return accelerator.prepare(model, optimizer)

    def fsdp2(model: Any, optimizer: Any) -> Any:
        from torch.distributed.fsdp import fully_shard

        for layer in model.base.model.layers:
            fully_shard(layer)
        fully_shard(model)
        return model, make_optimizer(model, stage, 6)[0]  # of the shards

    def zero(model: Any, optimizer: Any) -> Any:
        import deepspeed

        deepspeed.ops.__compatible_ops__.clear()  # compile nothing: gloo does what its kernels would do

        config = {
            "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0,
            "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": {"stage": int(engine[4])},
        }  # fmt: skip
        engine_, optimizer, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        return engine_, optimizer

    return {"ddp": ddp, "fsdp2": fsdp2}.get(engine, zero)


def run(accelerator: Any, folder: str, out: Path, engine: str, objective: str) -> None:
    stage = RlvrStage.model_validate(STAGE | OBJECTIVES[objective])
    prepare = prepared(engine, accelerator, stage)
    model: Any = load_model(folder, accelerator.device)
    reference = Reference(model, stage, folder, None, accelerator.device)
    optimizer, rate = make_optimizer(model, stage, 6)
    model, optimizer = prepare(model, optimizer)
    learner = Learner(stage, accelerator, model, optimizer, rate, 0, 1)
    learner.reference = reference
    if stage.critic is not None:
        learner.critic = Critic(folder, stage, accelerator, 6, prepare)
    own = groups(accelerator.process_index, accelerator.num_processes)
    told = []
    for step in (1, 2, 3):
        figures, _ = learner.learn(own, step, fresh=False)
        told.append({name: figures[name] for name in sorted(figures)})
        reference.refresh(learner.model, step)
    weights = {name: tensor.clone() for name, tensor in merged_weights(learner.model)}
    if learner.critic is not None:
        weights |= {f"value.{name}": tensor.clone() for name, tensor in merged_weights(learner.critic.model)}
    if accelerator.is_main_process:
        save_file(weights, out / f"{engine}-{objective}.safetensors")
        (out / f"{engine}-{objective}.json").write_text(json.dumps(told))


def main() -> None:
    folder, out, engines = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    accelerator = make_accelerator(AccelerateSettings(device="cpu", threads=1), seed=0)
    for engine in engines:
        for objective in OBJECTIVES:
            run(accelerator, folder, out, engine, objective)
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    main()
    leave()
