"""Updates on one batch of judged responses: constants, advantages, then optimiser steps on the policy and the values.

P prompts of a step, G samples of a prompt, B responses of a micro-batch, T their tokens (prompt and response).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..errors import TuluLiteError
from ..objectives.kl import kl_estimate, kl_loss
from ..objectives.policy import (
    Surrogate,
    aggregation_weights,
    cispo_surrogate,
    clipped_surrogate,
    gspo_surrogate,
    mismatch_weights,
)
from ..recipe import RlvrStage
from ..records import RolloutGroup
from ..training.logprobs import token_logprobs, token_logprobs_and_entropy
from ..training.optim import NotFinite, accumulating, backward, finish_update
from ..training.packing import Packing, micro_batches_of
from ..training.policy_batch import Answered, collate, fixed_rows, keep_rows
from .credit import set_advantages
from .critic import Critic
from .figures import UpdateSums, update_figures
from .reference import Reference
from .rewards import reward, teaches

SKIPS_IN_A_ROW = 10  # updates left out for their gradients before the stage stops all the same


class Learner:
    """The policy, its optimiser, and what the objective needs besides: reference and value model.

    state: {"updates": optimiser steps of the policy so far, "critic_updates": of the values, "skips" and "critic_skips": of
    each those left out in a row}.
    """

    def __init__(
        self,
        stage: RlvrStage,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Any,
        rate: Callable[[int], float],
        pad_id: int,
        seed: int,
        packing: Packing = "bucket",
        shares: bool = False,  # whether the responses to a prompt have it in common in a packed row
    ) -> None:
        self.stage, self.accelerator, self.model = stage, accelerator, model
        self.optimizer, self.rate, self.pad_id, self.seed = optimizer, rate, pad_id, seed
        self.device, self.packing, self.shares = accelerator.device, packing, shares
        self.reference: Reference | None = None
        self.critic: Critic | None = None
        self.look: Callable[..., None] | None = None  # of a replay (doctor/replay_rlvr.py)
        self.state: dict[str, int] = {"updates": 0, "critic_updates": 0, "skips": 0, "critic_skips": 0}
        # Whether a response with advantage 0 has a gradient: by a KL term, an entropy bonus, or its values.
        self.all_teach = bool(
            (stage.kl_coefficient and stage.kl_in == "loss") or stage.entropy_coefficient or stage.critic
        )

    def learn(
        self, groups: Mapping[int, RolloutGroup], step: int, fresh: bool
    ) -> tuple[dict[str, float], list[Answered]]:
        """All optimiser steps on this process's groups (by place in the batch): (figures, the responses as learnt from).

        fresh: whether the current weights sampled all of it, so that sampler and trainer must agree. Every process calls
        it. Raises TuluLiteError when nothing has a score, when the two disagree, or a gradient is not finite.
        """
        items = self._answered(groups)
        self._check_scored(items, step)
        sums = UpdateSums()
        self._fix(items)
        figures = set_advantages(items, self.stage, self._total)
        for epoch in range(self.stage.epochs_per_batch):
            for part, share in enumerate(self._shares(items, step, epoch)):
                check = fresh and epoch == part == 0
                figures |= self._optimiser_step(share, sums, step, check)
        figures |= update_figures(sums, self.stage.updates)
        return figures | {"skipped_updates": float(sums.skipped)}, items

    # What is constant while a batch is learnt from

    def _answered(self, groups: Mapping[int, RolloutGroup]) -> list[Answered]:
        """The responses that have a score, in the order of the batch."""
        return [
            Answered(
                group.prompt.token_ids,
                rollout,
                place=place,
                sample=sample,
                source=group.prompt.source,
                reward=reward(rollout, self.stage),
                teaches=teaches(rollout, self.stage),
            )
            for place, group in sorted(groups.items())
            for sample, rollout in enumerate(group.rollouts)
            if rollout.score is not None
        ]

    def _check_scored(self, items: Sequence[Answered], step: int) -> None:
        if self._total([len(items)])[0] == 0:
            raise TuluLiteError(
                f"step {step}: no response of the batch has a score, so there is nothing to learn from",
                cure="see why the verifier fails",
            )

    @torch.no_grad()
    def _fix(self, items: Sequence[Answered]) -> None:
        """What of each token stays the same over all updates: log-probabilities of the reference and of the policy as it
        is now, values."""
        stage = self.stage
        wants_old = stage.old_logprobs == "trainer"
        if not (self.reference is not None or self.critic is not None or wants_old):
            return
        for batch in self._micro_batches(items):
            ids, attention, mask, _, _ = collate(batch, self.device, self.pad_id)
            scored = mask[:, 1:]
            if self.reference is not None:
                with self.reference(self.model) as frozen, self.accelerator.autocast():
                    keep_rows(batch, "reference", self._logprobs(frozen, ids, attention, scored))
            if wants_old:
                keep_rows(batch, "trainer", self._logprobs(self.model, ids, attention, scored))
            if self.critic is not None:
                keep_rows(batch, "value", self.critic.values(ids, attention))

    def _logprobs(self, model: nn.Module, ids: Tensor, attention: Tensor, mask: Tensor) -> Tensor:
        return token_logprobs(
            model,
            ids,
            attention,
            chunk_tokens=self.stage.logits_chunk_tokens,
            temperature=self.stage.sampling.temperature,
            mask=mask,
        )

    # Optimiser steps

    def _shares(self, items: Sequence[Answered], step: int, epoch: int) -> Iterator[list[Answered]]:
        """The items of each optimiser step of a pass: equal shares of the prompts, whatever process has them; after the
        first pass in a new seeded order."""
        count, updates = self.stage.prompts_per_step, self.stage.updates_per_step
        order = list(range(count))
        if epoch:
            random.Random(f"{self.seed}:{step}:pass-{epoch}").shuffle(order)
        for part in range(updates):
            yield [item for item in items if item.teaches and order[item.place] * updates // count == part]

    def _optimiser_step(
        self, share: Sequence[Answered], sums: UpdateSums, step: int, check: bool
    ) -> dict[str, float]:
        """One denominator for the whole step, over all processes and micro-batches."""
        own = [len(share), sum(len(item.rollout.token_ids) for item in share)]
        responses, tokens = self._total(own)
        if responses == 0:
            return {}
        trains_policy = self.critic is None or step > self.critic.settings.warmup_steps
        active = [item for item in share if self.all_teach or item.advantage]
        if self.look is not None and trains_policy:  # a replay looks at each response by itself
            self.look(step, active, responses, tokens)
        gap = torch.zeros(
            2, dtype=torch.float64, device=self.device
        )  # |log p_trainer - log p_sampler|, tokens
        batches = self._micro_batches(active)
        for number, batch in enumerate(batches, 1):
            last = number == len(batches)
            inputs = collate(batch, self.device, self.pad_id)
            found: dict[str, Tensor] = {"tokens": inputs[2][:, 1:].sum(-1)}
            if trains_policy:
                with accumulating(self.accelerator, self.model, last=last):
                    loss, policy_sums = self._policy_loss(batch, inputs, responses, tokens)
                    found |= policy_sums
                    backward(self.accelerator, self.model, loss)
                sums.gap_max.append(policy_sums.pop("gap_max"))
                found.pop("gap_max")
                gap += torch.stack([found["gap"].sum(), found["tokens"].sum()]).double() if batch else 0
            if self.critic is not None:
                with accumulating(self.accelerator, self.critic.model, last=last):
                    loss, value_sums = self._value_loss(batch, inputs, tokens)
                    found |= value_sums
                    backward(self.accelerator, self.critic.model, loss)
            sums.add([item.source for item in batch], **found)
        if check and trains_policy:
            self._check_gap(gap, step)
        return self._finish(trains_policy, sums, step)

    def _policy_loss(
        self, batch: Sequence[Answered], inputs: tuple[Tensor, ...], responses: float, tokens: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(the B responses' share of the step's loss, sums [B] over their tokens by name)."""
        stage = self.stage
        ids_BT, attention_BT, mask_BT, sampler_BT, advantage_B = inputs
        scored, sampler = mask_BT[:, 1:], sampler_BT[:, 1:]  # [B, T-1]: at the place of each log-probability
        new, entropy = token_logprobs_and_entropy(
            self.model,
            ids_BT,
            attention_BT,
            chunk_tokens=stage.logits_chunk_tokens,
            temperature=stage.sampling.temperature,
            mask=scored,
            trained=bool(stage.entropy_coefficient),
        )
        old = fixed_rows(batch, "trainer", scored) if stage.old_logprobs == "trainer" else sampler
        advantage = (
            fixed_rows(batch, "advantage", scored) if self.critic is not None else advantage_B[:, None]
        )
        terms = self._surrogate(new, old, advantage, scored)
        weights = aggregation_weights(
            scored, stage.aggregation, tokens, responses, constant=stage.sampling.max_tokens
        )
        token_loss = terms.loss
        sums: dict[str, Tensor] = {}
        if stage.mismatch is not None:
            how = stage.mismatch
            trust = mismatch_weights(old, sampler, scored, how.how, how.level, how.low, how.high)
            token_loss = token_loss * trust
            sums["mismatch_weight"] = (trust * scored).sum(-1)
        if self.reference is not None:
            reference = fixed_rows(batch, "reference", scored)
            if stage.kl_in == "loss":
                token_loss = token_loss + stage.kl_coefficient * kl_loss(new, reference, stage.kl_estimator)
            sums["kl"] = (kl_estimate(new.detach(), reference, "k3") * scored).sum(-1)
        if stage.entropy_coefficient:
            token_loss = token_loss - stage.entropy_coefficient * entropy
        gap = (new.detach() - sampler).abs() * scored
        sums |= {
            "loss": (token_loss * weights).sum(-1),
            "entropy": (entropy * scored).sum(-1),
            "clipped": (terms.clipped * scored).sum(-1),
            "ratio": (terms.ratio * scored).sum(-1),
            "gap": gap.sum(-1),
            "gap_max": gap.max(),
            "sampler_kl": (kl_estimate(sampler, new.detach(), "k3") * scored).sum(-1),
            "negative_logprob": -(new * scored).sum(-1),
        }
        return sums["loss"].sum(), {name: value.detach() for name, value in sums.items()}

    def _surrogate(self, new: Tensor, old: Tensor, advantage: Tensor, mask: Tensor) -> Surrogate:
        low, high = self.stage.clip
        if self.stage.loss == "gspo":
            return gspo_surrogate(new, old, advantage, mask, low, high)
        if self.stage.loss == "cispo":
            return cispo_surrogate(new, old, advantage, low, high)
        return clipped_surrogate(new, old, advantage, low, high, self.stage.dual_clip)

    def _value_loss(
        self, batch: Sequence[Answered], inputs: tuple[Tensor, ...], tokens: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.critic is not None
        scored = inputs[2][:, 1:]
        old, returns = fixed_rows(batch, "value", scored), fixed_rows(batch, "return", scored)
        _, terms = self.critic.losses(inputs[0], inputs[1], old, returns)
        rows = (terms.loss * scored).sum(-1) / tokens  # [B]
        sums = {"value_loss": rows.detach(), "value_clipped": (terms.clipped * scored).sum(-1)}
        return self.critic.settings.coefficient * rows.sum(), sums

    def _finish(self, trains_policy: bool, sums: UpdateSums, step: int) -> dict[str, float]:
        """The optimiser steps themselves."""
        figures: dict[str, float] = {}
        where = f"stage {self.stage.name}, step {step}"
        if self.critic is not None:
            self.state["critic_updates"] += 1
            number = self.state["critic_updates"]
            norm = self._careful(
                lambda: self.critic.update(number, f"{where} (value model)"),  # type: ignore[union-attr]
                sums,
                "critic_skips",
            )
            figures |= {"value_grad_norm": norm, "value_learning_rate": self.critic.rate(number)}
        if trains_policy:
            self.state["updates"] += 1
            rate = self.rate(self.state["updates"])
            norm = self._careful(
                lambda: finish_update(
                    self.accelerator, self.model, self.optimizer, rate, self.stage.max_grad_norm, where
                ),
                sums,
                "skips",
            )
            figures |= {"grad_norm": norm, "learning_rate": rate}
        return {name: value for name, value in figures.items() if math.isfinite(value)}

    def _careful(self, update: Callable[[], float], sums: UpdateSums, skips: str) -> float:
        """An update, or NaN where it is left out since its gradient is not finite and the recipe says to skip. skips: the
        model's own count in `state`, since the other model's updates may well be finite."""
        try:
            norm = update()
        except NotFinite as error:
            self.state[skips] = self.state.get(skips, 0) + 1  # a save of before counts both as one
            if self.stage.on_nan == "stop" or error.updated or self.state[skips] >= SKIPS_IN_A_ROW:
                raise
            sums.skipped += 1
            return math.nan
        self.state[skips] = 0
        return norm

    def _check_gap(self, gap: Tensor, step: int) -> None:
        """Before the first update of a batch that the current weights sampled, the trainer's policy is the sampler's."""
        total, tokens = self._total(gap.tolist())
        limit = self.stage.max_logprob_gap
        mean = total / max(tokens, 1.0)
        if limit is not None and not mean <= limit:
            raise TuluLiteError(
                f"step {step}: sampler and trainer disagree by {mean:.3g} in log-probability on average, more than "
                f"max_logprob_gap {limit:g}",
                why="the server does not sample from the model that is trained, so the gradient would be of another policy",
                cure="compare server.dtype with the trainer's type; raise max_logprob_gap only if the types must differ",
            )

    # Processes

    def _micro_batches(self, items: Sequence[Answered]) -> list[list[Answered]]:
        """As many on every process (empty ones at the end), and at least one: engines that gather weights in the forward
        pass would wait for each other for ever otherwise."""
        lengths, most = [item.tokens for item in items], self.stage.micro_batch_tokens
        begin = [(item.place, len(item.prompt_ids)) for item in items] if self.shares else None
        packed = micro_batches_of(self.packing, lengths, most, begin)
        batches = [[items[i] for i in indices] for indices in packed]
        counts = self.accelerator.gather(torch.tensor([len(batches)], device=self.device))
        return batches + [[] for _ in range(max(1, int(counts.max())) - len(batches))]

    def _total(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes."""
        own = torch.tensor(values, dtype=torch.float64).to(self.device)
        return self.accelerator.reduce(own, "sum").tolist()
