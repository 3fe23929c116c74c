"""Reinforcement learning with verifiable rewards: a group-relative policy gradient, one process for one seed.

Each step: 1 take the next prompts, 2 sample a group of responses to each from the current weights, 3 verify them,
4 make advantages within groups, 5-7 update on the clipped surrogate with a KL term to the reference, 8 hand the new
weights to the sampler, 9 log, validate, save. (Shao et al. 2024, arXiv:2402.03300; Tülu 3, arXiv:2411.15124, section 6.)

Axes: P prompts of a step, G samples of a prompt, B responses of a micro-batch, T their tokens (prompt and response).
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from ..datasets.batching import pack_by_length
from ..datasets.prompts import load_prompts
from ..errors import TuluLiteError
from ..files import write_atomic
from ..judging import Judge, judging, response_row
from ..objectives.advantages import group_advantages
from ..objectives.kl import kl_estimate
from ..objectives.policy import aggregation_weights, clipped_surrogate
from ..recipe import RlvrStage
from ..records import Prompt, RolloutGroup
from ..rollout.client import Sampling
from ..statistics import proportion
from ..training.accelerator import make_accelerator
from ..training.checkpoint import export_model, load_latest, save_checkpoint
from ..training.logprobs import token_logprobs
from ..training.model import adapter_config, adapter_tensors, load_model, reference_of
from ..training.optim import accumulating, backward, finish_update, make_optimizer
from ..training.policy_batch import Answered, Clock, Sums, collate, reward, reward_figures
from ..training.whole import WholeWeights
from .context import StepContext, step_context
from .preflight import preflight
from .sampling import Sampler, open_sampler

KEPT_GROUPS = 8  # groups of each step that are written out, to be read


def main() -> None:
    with (
        step_context(RlvrStage) as ctx,
        judging(ctx.recipe, ctx.stage.max_error_share) as judge,
        open_sampler(ctx) as sampler,
    ):
        Trainer(ctx, sampler, judge).train()


class Trainer:
    """The state of one seed's run; `train` is the algorithm."""

    def __init__(self, ctx: StepContext, sampler: Sampler, judge: Judge) -> None:
        stage: RlvrStage = ctx.stage
        self.ctx, self.stage, self.sampler, self.judge = ctx, stage, sampler, judge
        self.accelerator = make_accelerator(stage.accelerate or ctx.recipe.accelerate, seed=ctx.seed)
        self.device = self.accelerator.device
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        longest = sampler.context - stage.sampling.max_tokens
        self.prompts = load_prompts(
            stage.data, sampler.template, seed=ctx.recipe.seed, max_prompt_tokens=longest
        )
        self.validation = load_prompts(
            stage.validation, sampler.template, seed=ctx.recipe.seed, max_prompt_tokens=longest
        )

        model = load_model(
            ctx.init_model, self.device, lora=stage.lora, gradient_checkpointing=stage.gradient_checkpointing
        )
        self.reference = reference_of(model, ctx.init_model, self.device) if stage.kl_coefficient else None
        updates = stage.steps * stage.updates_per_step
        optimizer, self.rate = make_optimizer(model, stage, updates)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.state: dict[str, Any] = {"step": 0, "updates": 0, "best": None, "validation": None}
        self.clock = Clock()
        self.fresh = False  # whether the sampler holds the current weights
        self.checked = False  # whether sampler and trainer were compared in this process
        self.adapts = stage.lora is not None and sampler.can_adapt(stage.lora)
        if (
            self.adapts
        ):  # the server keeps this seed's adapter beside its model, and beside other seeds' adapters
            self.sampler = sampler.with_adapter(ctx.step.id.replace("/", "-"))
            if self.accelerator.is_main_process:
                sampler.load(ctx.init_model)
            self.accelerator.wait_for_everyone()

    def train(self) -> None:
        stage, ctx = self.stage, self.ctx
        self._resume()
        for step in range(self.state["step"] + 1, stage.steps + 1):
            prompts = prompts_of_step(
                self.prompts, step, stage.prompts_per_step, ctx.seed
            )  # 1. the next prompts
            self._push()  # 8. of the step before: the sampler gets the weights
            groups = self._sample(prompts, step)  # 2. a group of responses each
            checked = self._preflight(groups)
            with self.clock("verify"):
                groups = self.judge(groups)  # 3. verdicts
            advantages = self._advantages(groups)  # 4. advantages
            self._make_room()
            figures = checked | self._update(groups, advantages, step)  # 5.-7. loss, backward, optimiser step
            self.state["step"] = step
            if step % stage.validate_every_steps == 0 or step == stage.steps:
                figures |= self._validate(step)
            self._log(step, groups, figures)  # 9. metrics, save
            if step % stage.save_every_steps == 0 or step == stage.steps:
                self._save(step)
        self._finish()

    # 2. Sampling

    def _push(self) -> None:
        """Hand the current weights to the sampler, unless it has them."""
        if self.fresh:
            return
        with self.clock("push"):
            self.sampler.wake(self.accelerator.is_main_process)
            if self.adapts:
                tensors = adapter_tensors(self.model)  # all processes gather, where weights are sharded
                if self.accelerator.is_main_process:
                    self.sampler.push_adapter(tensors, adapter_config(self.model))
            else:
                self.sampler.push(WholeWeights(self.model), self.accelerator.is_main_process)
            self.accelerator.wait_for_everyone()
        self.fresh = True

    def _sample(self, prompts: Sequence[Prompt], step: int) -> list[RolloutGroup]:
        """This process's share of the step's prompts, with their responses. The seeds depend on seed, step and place
        alone, so that a step that is done again gives the same responses."""
        drawn = self.stage.sampling
        sampling = Sampling(
            n=self.stage.samples_per_prompt,
            temperature=drawn.temperature,
            max_tokens=drawn.max_tokens,
            seed=random.Random(f"{self.ctx.seed}:{step}").getrandbits(31),
            for_training=True,
        )
        places = range(self.rank, len(prompts), self.world)
        with self.clock("sample"):
            return self.sampler.generate(
                [prompts[place] for place in places], sampling, positions=list(places)
            )

    def _preflight(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """On the first batch of this process, before anything is learnt from it: sampler and trainer are one policy."""
        if self.checked:
            return {}
        self.checked = True
        with self.clock("preflight"):
            return preflight(self.ctx, self.accelerator, self.model, self.sampler, groups)

    # 4. Advantages

    def _advantages(self, groups: Sequence[RolloutGroup]) -> torch.Tensor:
        """[P, G] advantages of this process's groups. A response without a score has none, and takes no part."""
        rewards = torch.tensor(
            [[reward(rollout, self.stage) for rollout in group.rollouts] for group in groups],
            dtype=torch.float64,
        )
        return group_advantages(rewards, self.stage.advantage).float()

    # 5.-7. Update

    def _make_room(self) -> None:
        """Where the server shares its GPUs with training: it sleeps until the next push."""
        if self.sampler.sleep_level:
            self.accelerator.wait_for_everyone()  # all have their samples
            self.sampler.sleep(self.accelerator.is_main_process)
            self.accelerator.wait_for_everyone()

    def _update(
        self, groups: Sequence[RolloutGroup], advantages: torch.Tensor, step: int
    ) -> dict[str, float]:
        """All optimiser steps on one batch of responses, each on an equal share of the prompts."""
        sums, updates = Sums(), self.stage.updates_per_step
        figures: dict[str, float] = {}
        answered = [
            [
                Answered(group.prompt.token_ids, rollout, float(value))
                for rollout, value in zip(group.rollouts, row, strict=True)
                if rollout.score is not None
            ]
            for group, row in zip(groups, advantages, strict=True)
        ]
        with self.clock("train"):
            for part in range(updates):
                share = [
                    item
                    for place, group in enumerate(answered)
                    if place * updates // len(answered) == part
                    for item in group
                ]
                figures |= self._optimiser_step(share, sums, step, first=part == 0)
        self.fresh = False
        return figures | self._means(sums)

    def _optimiser_step(
        self, share: Sequence[Answered], sums: Sums, step: int, first: bool
    ) -> dict[str, float]:
        """One denominator for the whole step, over all processes and micro-batches."""
        own = torch.tensor(
            [len(share), sum(len(item.rollout.token_ids) for item in share)], dtype=torch.float64
        )
        responses, tokens = (float(count) for count in self.accelerator.reduce(own.to(self.device), "sum"))
        if responses == 0:
            raise TuluLiteError(
                f"step {step}: no response of the batch has a score, so there is nothing to learn from",
                cure="see why the verifier fails",
            )
        batches = pack_by_length([item.tokens for item in share], self.stage.micro_batch_tokens)
        gap_total = 0.0
        even = self._even(batches)
        for number, indices in enumerate(even, 1):
            with accumulating(self.accelerator, self.model, last=number == len(even)):
                loss, gap = self._micro_batch([share[i] for i in indices], responses, tokens, sums)
                gap_total += gap
                backward(self.accelerator, self.model, loss)
        if first:
            self._check_gap(gap_total, tokens, step)
        self.state["updates"] += 1
        norm = finish_update(
            self.accelerator,
            self.model,
            self.optimizer,
            self.rate(self.state["updates"]),
            self.stage.max_grad_norm,
            f"step {step}",
        )
        return {"grad_norm": norm, "learning_rate": self.rate(self.state["updates"])}

    def _micro_batch(
        self, items: Sequence[Answered], responses: float, tokens: float, sums: Sums
    ) -> tuple[torch.Tensor, float]:
        """Loss of B responses (a share of the step's), and the sum of |log p_trainer - log p_sampler| over their tokens."""
        stage = self.stage
        ids_BT, attention_BT, mask_BT, old_BT, advantage_B = collate(items, self.device, self.sampler.pad_id)
        scored = mask_BT[:, 1:]
        new = token_logprobs(
            self.model,
            ids_BT,
            attention_BT,
            chunk_tokens=stage.logits_chunk_tokens,
            temperature=stage.sampling.temperature,
            mask=scored,
        )  # [B, T-1]
        old = old_BT[:, 1:]
        surrogate, clipped, ratio = clipped_surrogate(new, old, advantage_B[:, None], *stage.clip)
        weights = aggregation_weights(
            scored, stage.aggregation, tokens, responses
        )  # [B, T-1], sums to 1 over the step
        loss = (surrogate * weights).sum()
        if self.reference is not None:
            with torch.no_grad(), self.reference(self.model) as reference:
                fixed = token_logprobs(
                    reference,
                    ids_BT,
                    attention_BT,
                    chunk_tokens=stage.logits_chunk_tokens,
                    temperature=stage.sampling.temperature,
                    mask=scored,
                )
            divergence = kl_estimate(new, fixed, stage.kl_estimator)
            loss = loss + stage.kl_coefficient * (divergence * weights).sum()
            sums.add(kl=(kl_estimate(new, fixed, "k3").detach() * scored).sum())
        gap = ((new.detach() - old).abs() * scored).sum()
        sums.gap_max = max(sums.gap_max, float(((new.detach() - old).abs() * scored).max()))
        sums.add(
            loss=loss,
            clipped=(clipped * scored).sum(),
            ratio=(ratio.detach() * scored).sum(),
            gap=gap,
            sampler_kl=(kl_estimate(old, new.detach(), "k3") * scored).sum(),
            negative_logprob=-(new.detach() * scored).sum(),
            tokens=scored.sum(),
        )
        return loss, float(gap)

    def _even(self, batches: list[list[int]]) -> list[list[int]]:
        """Every process runs as many micro-batches (empty ones at the end): engines that gather weights in the
        forward pass would wait for each other for ever otherwise."""
        counts = self.accelerator.gather(torch.tensor([len(batches)], device=self.device))
        return batches + [[]] * (max(1, int(counts.max())) - len(batches))

    def _check_gap(self, total: float, tokens: float, step: int) -> None:
        """Before the first update of a batch the trainer's policy is the sampler's."""
        mean_gap = float(self.accelerator.reduce(torch.tensor(total, device=self.device), "sum")) / tokens
        if self.stage.max_logprob_gap is not None and not mean_gap <= self.stage.max_logprob_gap:
            raise TuluLiteError(
                f"step {step}: sampler and trainer disagree by {mean_gap:.3g} in log-probability on average, more than max_logprob_gap {self.stage.max_logprob_gap:g}",
                why="the server does not sample from the model that is trained, so the gradient would be of another policy",
                cure="compare server.dtype with the trainer's type; raise max_logprob_gap only if the types must differ",
            )

    # 9. Validation, metrics, saving

    def _validate(self, step: int) -> dict[str, float]:
        """Greedy accuracy on the validation prompts, with the weights after this step; all on the main process."""
        self._push()
        accuracy = 0.0
        with self.clock("validate"):
            if self.accelerator.is_main_process:
                sampling = Sampling(n=1, temperature=0.0, max_tokens=self.stage.sampling.max_tokens, seed=0)
                groups = self.judge(self.sampler.generate(self.validation, sampling))
                scores = [score for group in groups for score in group.scores if score is not None]
                accuracy = proportion(sum(score >= 1 for score in scores), len(scores)).value
            accuracy = float(broadcast_object_list([accuracy])[0])
        self.state["validation"] = accuracy
        best = self.state["best"]
        if self.stage.select == "best" and (best is None or accuracy > best["accuracy"]):
            self.state["best"] = {"step": step, "accuracy": accuracy}
            self._export(self.ctx.dir / "best")
        return {"validation_accuracy": accuracy}

    def _means(self, sums: Sums) -> dict[str, float]:
        """Per-token means over all processes."""
        names = ["tokens", "clipped", "ratio", "gap", "kl", "sampler_kl", "negative_logprob", "loss"]
        totals = self.accelerator.reduce(
            torch.tensor([sums.values[name] for name in names], dtype=torch.float64).to(self.device), "sum"
        ).tolist()
        total = dict(zip(names, totals, strict=True))
        tokens = max(total["tokens"], 1.0)
        return {
            "loss": total["loss"] / self.stage.updates_per_step,
            "kl": total["kl"] / tokens,
            "clip_share": total["clipped"] / tokens,
            "ratio": total["ratio"] / tokens,
            "logprob_gap_mean": total["gap"] / tokens,
            "logprob_gap_max": sums.gap_max,
            "sampler_kl": total["sampler_kl"] / tokens,
            "negative_logprob": total["negative_logprob"] / tokens,
        }

    def _log(self, step: int, groups: Sequence[RolloutGroup], figures: dict[str, float]) -> None:
        figures |= reward_figures(groups, self.stage) | self.clock.take()
        seconds = sum(value for name, value in figures.items() if name.endswith("_s"))
        figures["tokens_per_second"] = figures["response_tokens"] * figures["responses"] / max(seconds, 1e-9)
        self.ctx.metrics.log(step, **figures)
        if self.accelerator.is_main_process:
            rows = [
                response_row(group, rollout, "train")
                for group in groups[:KEPT_GROUPS]
                for rollout in group.rollouts
            ]
            write_atomic(
                self.ctx.dir / "rollouts" / f"step-{step:06d}.jsonl",
                "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
            )
        shown: dict[str, Any] = {
            "reward": figures["reward"],
            "length": figures["response_tokens"],
            "kl": figures["kl"],
        }
        if self.state["validation"] is not None:
            shown["validation"] = self.state["validation"]
        self.ctx.progress(step, self.stage.steps, **shown)

    def _resume(self) -> None:
        state = load_latest(self.ctx.checkpoints, model=self.model, optimizer=self.optimizer)
        if state is not None:
            self.state = state
        self.ctx.metrics.resume(self.state["step"])
        self.ctx.progress(self.state["step"], self.stage.steps)

    def _save(self, step: int) -> None:
        path = save_checkpoint(
            self.ctx.checkpoints, step, model=self.model, optimizer=self.optimizer, state=self.state
        )
        self.ctx.saved(step, path)

    def _export(self, folder: Path) -> None:
        card = self.ctx.model_card(
            {"validation accuracy": self.state["validation"], "step": self.state["step"]}
        )
        export_model(
            folder, self.model, init_model=self.ctx.init_model, template=self.sampler.template, card=card
        )

    def _finish(self) -> None:
        if self.accelerator.is_main_process:
            self.sampler.drop_adapter()
        best = self.state["best"]
        folder = self.ctx.dir / ("best" if best else "model")
        if not best:
            self._export(folder)
        accuracy = best["accuracy"] if best else self.state["validation"]
        summary = {
            "validation_accuracy": accuracy,
            "step": best["step"] if best else self.stage.steps,
            "validation_prompts": len(self.validation),
        }
        self.ctx.finish(model=folder, summary=summary)


def prompts_of_step(prompts: Sequence[Prompt], step: int, count: int, seed: int) -> list[Prompt]:
    """The step's prompts (step counts from 1): a stretch of the endless sequence of seeded permutations."""
    first = (step - 1) * count
    chosen: list[Prompt] = []
    while len(chosen) < count:
        epoch, place = divmod(first + len(chosen), len(prompts))
        order = list(range(len(prompts)))
        random.Random(f"{seed}:{epoch}").shuffle(order)
        chosen += [prompts[i] for i in order[place : place + count - len(chosen)]]
    return chosen


if __name__ == "__main__":
    main()
