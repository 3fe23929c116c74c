"""What every training stage has in common: optimiser, batch, LoRA, saving, launching."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .base import Incidental, Later, Number, Settings


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
    quantise: Literal["nf4"] | None = Later(None)
    """QLoRA (Dettmers et al. 2023, arXiv:2305.14314): the frozen weights are kept in 4 bits, by bitsandbytes. The exported
    model has the dequantised weights, with the adapters merged in."""


class AccelerateSettings(Settings):
    """How training processes are started: `accelerate launch` with these arguments."""

    config_file: str | None = None
    """An accelerate YAML file (recipes/accelerate/*.yaml); relative paths are relative to the recipe file."""
    num_processes: int | None = Field(None, ge=1)
    """Training processes on this machine; by default what the config file says, or else one. On a CPU one for each core,
    each with one thread, trains a small model faster than one process with a thread for each core."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Compute type; weights that are trained stay float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where training runs. auto: the GPU where torch sees one, else the CPU."""
    threads: int = Field(2, ge=1)
    """CPU threads of each training process. On a CPU the last bits of a result depend on it."""
    extra_args: tuple[str, ...] = ()
    """Further arguments of `accelerate launch`, as written on its command line."""


class TrainingSettings(Settings):
    """Optimisation by AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), shared by all stages that train."""

    learning_rate: Number = Field(gt=0, lt=1)
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant", "wsd"] = "linear"
    """Shape after the warm-up: down linearly, down as a cosine, constant, or constant and then down linearly in the last
    `decay_ratio` of the steps (warm-up, stable, decay: arXiv:2404.06395)."""
    min_rate_ratio: Number = Later(0.0, ge=0, le=1)
    """Where linear, cosine and wsd end, as a share of the peak."""
    decay_ratio: Number = Later(0.1, gt=0, le=1)
    """wsd: share of all optimiser steps in which the learning rate falls."""
    warmup_ratio: Number = Field(0.03, ge=0, lt=1)
    """Share of all optimiser steps in which the learning rate rises from 0 to its peak."""
    warmup_steps: int | None = Later(None, ge=0)
    """The same in optimiser steps, in place of warmup_ratio."""
    optimizer: Literal["adamw", "adamw_8bit"] = Later("adamw")
    """adamw: torch's, fused where the device has that. adamw_8bit: moments in 8 bits, by bitsandbytes (Dettmers et al.
    2022, arXiv:2110.02861)."""
    weight_decay: Number = Field(0.0, ge=0)
    """Decoupled weight decay, on matrices only."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moments."""
    max_grad_norm: Number = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    micro_batch_tokens: int = Incidental(8192, ge=1)
    """Tokens, padding included, of one forward pass on one process; a beginning that varlen packing computes once counts
    once. Lower it when memory runs out: the result stays the same, to rounding."""
    packing: Literal["auto", "bucket", "varlen", "block"] = Incidental("auto")
    """How sequences of several lengths share a forward pass; the result is the same, to rounding. bucket: like lengths
    together, padded to the longest. varlen: end to end without padding, each attending to itself alone. block: likewise,
    under one block-diagonal mask. auto: varlen where a proof on loading shows it exact, else bucket; the log says which."""
    logits_chunk_tokens: int = Incidental(1024, ge=1)
    """At most so many tokens' logits exist at once: the logits of a whole batch never do."""
    logits: Literal["auto", "tiled", "liger"] = Incidental("auto")
    """Who computes the sum of log-probabilities that sft needs: our tiles, or Liger's fused kernel (GPUs; part of the
    cuda extra). auto: liger where it is installed and the device is a GPU."""
    gradient_checkpointing: bool = Incidental(False)
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = Incidental(False)
    """torch.compile each layer of the model: slower to start, faster after, on GPUs above all."""
    lora: LoraSettings | None = None
    """Train low-rank adapters instead of all weights. The saved model has them merged in; they are kept beside it."""
    save_every_steps: int = Incidental(50, ge=1)
    """Optimiser steps between saves from which a killed run goes on."""
    keep_saves: int = Incidental(2, ge=1)
    """The newest saves that are kept (with `export: best`, the best one beside them)."""
    accelerate: AccelerateSettings | None = None
    """Replaces the recipe's accelerate settings for this stage."""

    @model_validator(mode="after")
    def _schedule_fits(self) -> TrainingSettings:
        if self.schedule == "wsd" and self.warmup_steps is None and self.warmup_ratio + self.decay_ratio > 1:
            raise ValueError(
                f"warmup_ratio {self.warmup_ratio:g} and decay_ratio {self.decay_ratio:g} are more than the whole run; lower one"
            )
        if self.schedule == "constant" and self.min_rate_ratio:
            raise ValueError(
                "min_rate_ratio has no meaning with schedule: constant; leave one of the two out"
            )
        return self
