"""Reinforcement learning with verifiable rewards: group-relative policy gradients or PPO, one process for one seed.

Each step: 1 take the next prompts, 2 sample a group of responses to each from the current weights (or, some steps ahead,
from earlier ones), 3 verify them, 4 make advantages, 5-7 update on the surrogate objective with a KL term to the
reference, 8 hand the new weights to the sampler, 9 log, validate, save. (Shao et al. 2024, arXiv:2402.03300; Schulman et
al. 2017, arXiv:1707.06347; Tülu 3, arXiv:2411.15124, section 6.) What a step is made of lies in tulu_lite/rl.
"""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from ..datasets.prompts import load_prompts
from ..errors import TuluLiteError
from ..judging import Judge, judging
from ..recipe import RlvrStage
from ..records import RolloutGroup
from ..rl.collect import Collected, Collector
from ..rl.critic import Critic
from ..rl.figures import sample_figures, staleness
from ..rl.guards import Watchdog
from ..rl.handover import Handover
from ..rl.learner import Learner
from ..rl.prompts import PromptStream
from ..rl.recorded import Recording, RolloutLog, rollout_rows
from ..rl.reference import Reference
from ..rl.rhythm import Feed
from ..rl.rollout_files import check_steps
from ..rl.saves import load_all, pending_batches, save_all
from ..rollout.client import Sampling
from ..training.accelerator import make_accelerator
from ..training.checkpoint import export_model
from ..training.model import compile_layers, load_model
from ..training.optim import make_optimizer
from ..training.policy_batch import Answered, Clock
from ..training.proof import choose_packing
from ..training.sharding import from_all
from .context import StepContext, step_context
from .preflight import preflight
from .rlvr_models import check_models, model_of
from .sampling import Sampler, Unserved, open_sampler


def main() -> None:
    with step_context(RlvrStage) as ctx:
        replayed = ctx.stage.replay is not None
        with (
            judging(ctx.recipe, ctx.stage.max_error_share) as judge,
            nullcontext(Unserved.of(ctx)) if replayed else open_sampler(ctx) as sampler,
        ):
            trainer = Trainer(ctx, sampler, judge)
            try:
                if trainer.recording is not None:
                    check_steps(trainer.recording.folder, trainer.steps)
                trainer.train()
            finally:
                trainer.close()


class Trainer:
    """The state of one seed's run; `train` is the algorithm."""

    def __init__(self, ctx: StepContext, sampler: Sampler | Unserved, judge: Judge) -> None:
        stage: RlvrStage = ctx.stage
        self.ctx, self.stage, self.judge = ctx, stage, judge
        self.accelerator = make_accelerator(stage.accelerate or ctx.recipe.accelerate, seed=ctx.seed)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.is_main = self.accelerator.is_main_process
        check_models(ctx, sampler.template)
        self.steps = ctx.total_steps
        longest = sampler.context - stage.sampling.max_tokens
        how: Any = {"seed": ctx.recipe.seed, "max_prompt_tokens": longest}
        prompts = load_prompts(stage.data, sampler.template, **how, rules=stage)
        self.validation = load_prompts(stage.validation, sampler.template, **how, rules=stage.without_mix())
        self.stream = PromptStream(prompts, ctx.seed, stage.curriculum)
        self.learner = self._make_learner(sampler.pad_id)
        self.clock = Clock()
        self.sampler, self.weights = self._make_way(sampler)
        asked: Any = self.sampler  # of an Unserved nothing is ever asked
        collector = Collector(asked, judge, stage, ctx.seed, self.stream, self.weights.step_of)
        self.feed = Feed(collector, stage.ahead)
        self.recording = None if stage.replay is None else Recording(Path(stage.replay))
        self.watchdog = Watchdog(stage)
        self.log = RolloutLog(ctx.dir / "rollouts", stage.keep_rollouts_mb, self.rank)
        # stopped: why the run ends before its last step
        self.state: dict[str, Any] = {
            "step": 0,
            "best": None,
            "validation": None,
            "first_tokens": None,
            "stopped": "",
        }
        self.saved_best = ""  # the folder of the best model that the newest save names
        self.checked = False  # whether sampler and trainer were compared in this process
        self.began = 0.0  # when the last step was logged

    def train(self) -> None:
        stage = self.stage
        self._resume()
        self.began = time.perf_counter()
        for step in range(self.state["step"] + 1, self.steps + 1):
            if self.state["stopped"]:
                break
            if stage.rhythm == "one_behind":
                self._wait_for_samples()  # what was begun ends on the weights it began with
            batch = self._batch(step)  # 1.-3. prompts, responses, verdicts; 8. of the step before
            figures = self._look_at(batch, step)
            self._make_room()
            with self.clock("train"):  # 4.-7. advantages, loss, backward, optimiser steps
                # what was recorded need not be of the policy that is trained
                fresh = figures["staleness_max"] == 0 and self.recording is None
                learnt, items = self._learn(batch, step, fresh)
            figures |= learnt
            self.state["step"] = step
            if self.learner.reference is not None:
                self.learner.reference.refresh(self.learner.model, step)
            if self._validates(step):
                figures |= self._validate(step)
            self._keep_samples(step, batch, items)  # 9. samples, metrics, save
            self._log(step, batch, figures)
            if step % stage.save_every_steps == 0 or step == self.steps or self.state["stopped"]:
                self._save(step)
        self._finish()

    # 1.-3. and 8.: a batch of judged responses

    def _batch(self, step: int) -> Collected:
        """The step's batch. Ahead of training the batches of the next steps are begun too, in the background."""
        if self.recording is not None:
            return self.recording.batch(step, self.rank, self.world)
        turn = ExitStack()
        last = min(step + self.stage.ahead, self.steps)
        begun = [self._ordered(later) for later in range(step, last + 1) if not self.feed.started(later)]
        if not all(self._of_all([one.whole for one in begun])):
            turn.enter_context(self.weights.turn(step - 1))  # 8. the sampler holds the current weights
        # one turn is enough for all that begin now: ahead of training it ends with the last of them
        self.feed.start(begun, turn if self.stage.ahead else None)
        batch = self.feed.take(step)
        if not self.stage.ahead:
            turn.close()
        self.stream.record(self._of_all(batch.tried))
        return batch

    def _ordered(self, step: int) -> Collected:
        """The prompts of a step's batch, or what a save holds of it; of them this process's share."""
        if step in self.feed.restored:
            return self.feed.restored.pop(step)
        prompts = self.stream.take(self.stage.prompts_per_step)
        own = {place: prompts[place] for place in range(self.rank, len(prompts), self.world)}
        return Collected(step, own, taken={prompt.id for prompt in prompts})

    def _wait_for_samples(self) -> None:
        self.feed.settle()
        self.clock.add("wait", self.feed.take_waited())

    def _look_at(self, batch: Collected, step: int) -> dict[str, float]:
        """How old the samples are, and on the first fresh batch of this process, before anything is learnt from it,
        whether sampler and trainer are one policy."""
        waited = self.feed.take_waited()
        if self.stage.ahead:
            self.clock.add("wait", waited)
        else:
            self.clock.add("sample", batch.sample_s)
            self.clock.add("verify", batch.verify_s)
        mean, largest = staleness(batch.groups.values(), step - 1)
        figures = {"staleness_mean": mean, "staleness_max": float(largest)}
        if not self.checked and largest == 0 and isinstance(self.sampler, Sampler):
            self.checked = True
            with self.clock("preflight"):
                groups = [group for _, group in sorted(batch.groups.items())]
                figures |= preflight(self.ctx, self.accelerator, self.learner.model, self.sampler, groups)
        return figures

    def _make_room(self) -> None:
        """Where the server shares its GPUs with training: it sleeps until the next push."""
        if isinstance(self.sampler, Sampler) and self.sampler.sleep_level:
            self.accelerator.wait_for_everyone()  # all have their samples
            self.sampler.sleep(self.is_main)
            self.weights.held = None
            self.accelerator.wait_for_everyone()

    def _learn(self, batch: Collected, step: int, fresh: bool) -> tuple[dict[str, float], list[Answered]]:
        """The learner's part; the samples of a step that fails are kept, so that `tulu-lite replay` can look at them."""
        try:
            return self.learner.learn(batch.groups, step, fresh)
        except TuluLiteError:
            self._keep_samples(step, batch, [])
            self.log.flush()
            raise

    # 9. Validation, samples, metrics, saves

    def _validates(self, step: int) -> bool:
        due = step % self.stage.validate_every_steps == 0 or step == self.steps
        return due and self.recording is None

    def _validate(self, step: int) -> dict[str, float]:
        """Greedy accuracy on the validation prompts, with the weights after this step; all on the main process."""
        if self.stage.rhythm == "one_behind":
            self._wait_for_samples()
        said: list[Any] = [0.0, None, ""]
        with self.weights.turn(step), self.clock("validate"):
            if self.is_main:
                assert isinstance(self.sampler, Sampler)
                sampling = Sampling(n=1, temperature=0.0, max_tokens=self.stage.sampling.max_tokens, seed=0)
                groups = self.judge(self.sampler.generate(self.validation, sampling))
                passed = {group.prompt.id: _passed(group) for group in groups}
                kept = self.ctx.validated(step, "accuracy", passed)
                said = [kept["value"], kept, self.ctx.hopeless(step, kept["value"])]
            accuracy, kept, self.state["stopped"] = broadcast_object_list(said)
        self.state["validation"] = kept
        best = self.state["best"]
        if self.stage.select == "best" and (best is None or accuracy > best["validation"]["value"]):
            # a folder of its own: until the next save a killed run goes on with the one before
            self.state["best"] = {"step": step, "validation": kept, "folder": f"best-{step:06d}"}
            self._export(self.ctx.dir / self.state["best"]["folder"])
            self._drop_former_best()
        return {"validation_accuracy": accuracy}

    def _keep_samples(self, step: int, batch: Collected, items: list[Answered]) -> None:
        with self.clock("save"):
            rewards = {(item.place, item.sample): item.reward for item in items}
            advantages = {
                (item.place, item.sample): item.fixed["advantage"].tolist()
                if "advantage" in item.fixed
                else item.advantage
                for item in items
            }
            if self.stage.keep_rollouts_mb:
                self.log.put(step, rollout_rows(batch.groups, rewards, advantages))

    def _log(self, step: int, batch: Collected, figures: dict[str, float]) -> None:
        figures |= sample_figures(batch.groups.values(), self.stage)
        refilled, overlapped = (sum(values) for values in zip(*self._of_all([(batch.refilled, batch.overlapped_s)]), strict=True))  # fmt: skip
        if self.state["first_tokens"] is None:
            self.state["first_tokens"] = max(figures["response_tokens"], 1.0)
        figures["length_growth"] = figures["response_tokens"] / self.state["first_tokens"]
        figures |= {"refilled_groups": refilled, "verify_overlapped": overlapped / self.world}
        if self.stage.curriculum is not None:
            figures["curriculum_outside_share"] = self.stream.outside_share()
        if self.stage.ahead:
            figures |= {"background_sample": batch.sample_s, "background_verify": batch.verify_s}
        times = self.clock.take()
        seconds, self.began = time.perf_counter() - self.began, time.perf_counter()  # a save before is in it
        figures |= times | {"other_s": max(0.0, seconds - sum(times.values())), "step_s": seconds}
        figures["tokens_per_second"] = figures["response_tokens"] * figures["responses"] / max(seconds, 1e-9)
        warning = self.watchdog.look(step, figures, batch.groups.values())
        if warning is not None and self.is_main:
            print(f"warning: {warning}", flush=True)
        self.ctx.metrics.log(step, lambda: [group.prompt.id for group in batch.groups.values()], **figures)
        shown: dict[str, Any] = {"reward": figures["reward"], "length": figures["response_tokens"]}
        shown |= {"kl": figures["kl"]} if "kl" in figures else {}
        if self.state["validation"] is not None:
            shown["validation"] = self.state["validation"]["value"]
        self.ctx.progress(step, self.steps, **shown)

    def _save(self, step: int) -> None:
        """Everything that decides what comes next; of batches that were begun what is whole."""
        if self.stage.rhythm == "one_behind":
            self._wait_for_samples()
        with self.clock("save"):
            self.log.flush()
            reference = self.learner.reference
            saved = self.state | {
                "learner": self.learner.state,
                "stream": self.stream.state,
                "watchdog": self.watchdog.state,
                "reference": 0 if reference is None else reference.refreshed,
            }
            keep = self.stage.keep_saves
            self.ctx.saved(step, save_all(self.ctx.dir, step, self.learner, saved, self.feed.pending(), keep))
            self.saved_best = self._best_folder()
            self._drop_former_best()

    def _best_folder(self) -> str:
        """The name of the best model's folder; "" where there is none."""
        best = self.state["best"]
        return best["folder"] if best else ""

    def _drop_former_best(self) -> None:
        """Of the best models all but the newest and the one that the newest save names."""
        for folder in self.ctx.dir.glob("best-*") if self.is_main else ():
            if folder.name not in (self._best_folder(), self.saved_best):
                shutil.rmtree(folder, ignore_errors=True)

    def _resume(self) -> None:
        """From this run's own last save, or from the end of the run that it goes on from."""
        found = load_all(self.ctx.dir, self.learner)
        if found is None and self.ctx.start_from is not None:
            found = load_all(self.ctx.start_from.parent.parent, self.learner)
            if found is not None:
                found[0]["best"] = None  # that one's best is a candidate of its own
        if found is not None:
            state, rows = found
            self.learner.state = state.pop("learner")
            self.stream.state = state.pop("stream")
            self.watchdog.state = state.pop("watchdog")
            state.pop("reference")
            self.state |= state
            self.saved_best = self._best_folder()
            for batch in pending_batches(rows, self.stream.by_id, self.rank, self.world):
                self.feed.restored[batch.step] = batch
        self.ctx.metrics.resume(self.state["step"])
        self.ctx.progress(self.state["step"], self.steps)

    def _export(self, folder: Path) -> None:
        kept = self.state["validation"]
        card = self.ctx.model_card(
            {"validation accuracy": None if kept is None else kept["value"], "step": self.state["step"]}
        )
        export_model(
            folder, self.learner.model, init_model=self.ctx.init_model, template=self.sampler.template, card=card
        )  # fmt: skip

    def _finish(self) -> None:
        self.log.flush()
        if self.is_main and isinstance(self.sampler, Sampler):
            self.sampler.drop_adapter()
        best = self.state["best"]
        folder = self.ctx.dir / (self._best_folder() or "model")
        if not best:
            self._export(folder)
        kept = best["validation"] if best else self.state["validation"]
        summary: dict[str, Any] = {
            "validation_accuracy": None if kept is None else kept["value"],
            "step": best["step"] if best else self.state["step"],
            "validation_prompts": len(self.validation),
        }
        if kept is not None:
            summary["validation"] = kept
        if self.state["stopped"]:
            summary["stopped_early"] = self.state["stopped"]
        self.ctx.finish(model=folder, summary=summary)

    def close(self) -> None:
        """End what is under way in the background."""
        self.feed.close()
        self.log.close()

    # Made once

    def _make_learner(self, pad_id: int) -> Learner:
        stage, ctx = self.stage, self.ctx
        device = self.accelerator.device
        model: Any = load_model(
            ctx.init_model, device, lora=stage.lora, gradient_checkpointing=stage.gradient_checkpointing
        )
        precision = str(self.accelerator.mixed_precision)
        packing, note = choose_packing(model, stage.packing, precision, ctx.init_model)
        shares = model.shares
        if self.is_main:
            print(note, flush=True)
        reference = None
        if stage.kl_coefficient:
            own = None if stage.reference is None else model_of(ctx, stage.reference)
            reference = Reference(model, stage, ctx.init_model, own, device, precision)
        if stage.compile:
            compile_layers(model)
        updates = self.steps * stage.updates
        alone = stage.critic.warmup_steps * stage.updates if stage.critic is not None else 0
        optimizer, rate = make_optimizer(model, stage, updates - alone)  # the policy's own
        model, optimizer = self.accelerator.prepare(model, optimizer)
        learner = Learner(stage, self.accelerator, model, optimizer, rate, pad_id, ctx.seed, packing, shares)
        learner.reference = reference
        if stage.critic is not None:
            start = ctx.init_model if stage.critic.init == "policy" else model_of(ctx, stage.critic.init)
            learner.critic = Critic(start, stage, self.accelerator, updates, packing=packing)
        return learner

    def _make_way(self, sampler: Sampler | Unserved) -> tuple[Sampler | Unserved, Handover]:
        """The sampler as this run uses it, and the way of its weights there."""
        stage, ctx = self.stage, self.ctx
        adapts = False
        if isinstance(sampler, Sampler):
            adapts = stage.lora is not None and sampler.can_adapt(stage.lora)
            if (
                adapts
            ):  # the server keeps this run's adapter beside its model, and beside other runs' adapters
                if self.is_main:
                    sampler.load_once(ctx.init_model)
                sampler = sampler.with_adapter(ctx.adapter_name)
                self.accelerator.wait_for_everyone()
            self._check_rhythm(sampler, adapts)
        # ahead of training an adapter's samples come in the background: no training waits for them
        runs = 1 if adapts and stage.ahead else ctx.runs_on_server
        holder = f"{ctx.step.id}:{ctx.step.key[:12]}"
        weights = Handover(sampler, self.accelerator, self.learner.model, adapts, holder, runs)
        weights.clock = self.clock
        return sampler, weights

    def _check_rhythm(self, sampler: Sampler, adapts: bool) -> None:
        """Raise TuluLiteError where a server cannot be sampled from while training goes on."""
        if not self.stage.ahead:
            return
        rhythm = self.stage.rhythm
        if sampler.sleep_level:
            raise TuluLiteError(
                f"rhythm {rhythm} samples while it trains, and with server.colocate the server sleeps meanwhile",
                cure="use rhythm: on_policy, or give the server GPUs of its own (server.devices)",
            )
        if self.ctx.runs_on_server > 1 and not adapts and (rhythm == "async" or self.world > 1):
            raise TuluLiteError(
                f"rhythm {rhythm} cannot take turns on a server with other runs that train all weights",
                why="its samples would go on while the server holds the weights of another run",
                cure="use rhythm: on_policy, train LoRA adapters, or set at_once to 1",
            )

    def _of_all(self, values: list[Any]) -> list[Any]:
        """The values of all processes."""
        return [value for part in from_all(values) for value in part]


def _passed(group: RolloutGroup) -> float | None:
    """Whether a greedy response got full marks, as a number; None without a score."""
    score = group.scores[0]
    return None if score is None else float(score >= 1)


if __name__ == "__main__":
    main()
