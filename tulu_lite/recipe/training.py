"""What every training stage has in common: optimiser, batch, LoRA, saving, launching."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Incidental, Number, Settings


class LoraSettings(Settings):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) instead of training every weight."""

    rank: int = Field(16, ge=1, le=1024)
    """Rank of the update B A of each adapted weight."""
    alpha: Number = Field(32.0, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: Number = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input while training. Leave at 0 in rlvr: sampler and trainer must agree."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear modules to adapt."""


class AccelerateSettings(Settings):
    """How training processes are started: `accelerate launch` with these arguments."""

    config_file: str | None = None
    """An accelerate YAML file (recipes/accelerate/*.yaml); relative paths are relative to the recipe file."""
    num_processes: int | None = Field(None, ge=1)
    """Training processes on this machine; by default what the config file says, or else one."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Compute type; weights that are trained stay float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where training runs. auto: the GPU where torch sees one, else the CPU."""
    threads: int = Field(2, ge=1)
    """CPU threads of each training process. On a CPU the last bits of a result depend on it."""
    extra_args: tuple[str, ...] = ()
    """Further arguments of `accelerate launch`, as written on its command line."""


class TrainingSettings(Settings):
    """Optimisation by AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), shared by sft, dpo and rlvr."""

    learning_rate: Number = Field(gt=0, lt=1)
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Shape after the warm-up: down to 0 linearly, down to 0 as a cosine, or none."""
    warmup_ratio: Number = Field(0.03, ge=0, lt=1)
    """Share of all optimiser steps in which the learning rate rises from 0 to its peak."""
    weight_decay: Number = Field(0.0, ge=0)
    """Decoupled weight decay, on matrices only."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moments."""
    max_grad_norm: Number = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    micro_batch_tokens: int = Incidental(8192, ge=1)
    """Tokens, padding included, of one forward pass on one process. Lower it when memory runs out: the result
    stays the same, to rounding."""
    logits_chunk_tokens: int = Incidental(1024, ge=1)
    """Tokens whose logits exist at once: the logits of a whole batch never do."""
    gradient_checkpointing: bool = Incidental(False)
    """Recompute activations in the backward pass: less memory, about a third more time."""
    lora: LoraSettings | None = None
    """Train low-rank adapters instead of all weights. The saved model has them merged in; they are kept beside it."""
    save_every_steps: int = Incidental(50, ge=1)
    """Optimiser steps between saves from which a killed run goes on."""
    accelerate: AccelerateSettings | None = None
    """Replaces the recipe's accelerate settings for this stage."""
