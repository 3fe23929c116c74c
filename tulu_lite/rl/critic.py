"""PPO's value model: its values of a batch before the first update, and its own optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..objectives.value import ValueTerms, value_losses
from ..recipe import RlvrStage
from ..training.model import compile_layers
from ..training.optim import finish_update, make_optimizer
from ..training.packing import Packing
from ..training.proof import beside, choose_packing
from ..training.scalar import load_scalar_model


class Critic:
    """V(s_t), the expected reward from before response token t on, of a scalar model read one token earlier.

    folder: a reward model's, or a language model's, which gets a new head of zeros. prepare: what makes (model,
    optimizer) those of several processes; by default accelerate's. packing: the policy's, with whose micro-batches it learns.
    """

    def __init__(
        self,
        folder: str,
        stage: RlvrStage,
        accelerator: Accelerator,
        updates: int,
        prepare: Callable[[Any, Any], Any] | None = None,
        packing: Packing = "bucket",
    ) -> None:
        settings = stage.critic
        assert settings is not None
        self.settings, self.stage, self.accelerator = settings, stage, accelerator
        model = load_scalar_model(
            folder,
            accelerator.device,
            lora=stage.lora,
            gradient_checkpointing=stage.gradient_checkpointing,
        )
        choose_packing(model, beside(packing), str(accelerator.mixed_precision), folder)
        if stage.compile:
            compile_layers(model)
        own = stage.model_copy(update={"learning_rate": settings.learning_rate or stage.learning_rate})
        optimizer, self.rate = make_optimizer(model, own, updates)
        self.model, self.optimizer = (prepare or accelerator.prepare)(model, optimizer)

    def values(self, ids: Tensor, attention: Tensor) -> Tensor:
        """[B, T-1]: at the place of each token's log-probability, the value of the state before that token."""
        return self.model(ids, attention)[:, :-1]

    def losses(
        self, ids: Tensor, attention: Tensor, old: Tensor, returns: Tensor
    ) -> tuple[Tensor, ValueTerms]:
        """(values, token losses), all [B, T-1]; see objectives.value."""
        values = self.values(ids, attention)
        return values, value_losses(values, old, returns, self.settings.clip)

    def update(self, number: int, where: str) -> float:
        """One optimiser step, the number-th; returns the gradient's norm."""
        return finish_update(
            self.accelerator, self.model, self.optimizer, self.rate(number), self.stage.max_grad_norm, where
        )

    @property
    def device(self) -> torch.device:
        return self.accelerator.device
