"""The process group and device of a training process, checked to be what was asked for."""

from __future__ import annotations

import os
import random
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import DistributedType
from torch.distributed import distributed_c10d

from ..errors import TuluLiteError
from ..recipe.training import AccelerateSettings

ENGINES = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_FSDP": "FSDP"}

# How long a process waits for the others in a collective. They wait there for whatever one of them does alone: a whole
# validation, a server that is restarted again and again, a lease of the server (1 h), rows that another run tokenizes
# (4 h). Each has a deadline of its own, which tells what went wrong; this one only says that somebody did not come, so
# it lies above them all. A process that died is noticed by the launcher, which ends the others.
COLLECTIVE_WAIT = timedelta(hours=12)


def make_accelerator(settings: AccelerateSettings, seed: int) -> Accelerator:
    """An Accelerator on the device asked for, with python, numpy and torch seeded.

    On a CPU it sets the number of threads and deterministic kernels; on a GPU, cuBLAS's reproducible workspace only,
    since deterministic attention there costs much and sampling is not reproducible to the bit anyway.
    Raises TuluLiteError where the device is missing, the number of processes is not the one asked for, or an engine
    that the launcher asked for (DeepSpeed, FSDP) is not active: accelerate drops both without a word on a CPU.
    """
    engines = [name for variable, name in ENGINES.items() if os.environ.get(variable, "").lower() == "true"]
    on_cpu = _on_cpu(settings)
    if on_cpu and engines:
        raise TuluLiteError(
            f"{engines[0]} was asked for, but training runs on the CPU",
            why="accelerate turns it off there without a word, so every process would train a whole model",
            cure="set accelerate.device to cuda on a machine with a GPU, or use a config file without it",
        )
    if not on_cpu:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    elif _on_one_machine() and Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # for tensors; the launcher's store listens on all
    precision = settings.mixed_precision
    _wait_long_in_further_groups()
    try:
        accelerator = Accelerator(
            cpu=on_cpu,
            # a config file's precision stands unless the recipe says otherwise
            mixed_precision=None if precision == "no" and settings.config_file is not None else precision,
            step_scheduler_with_optimizer=False,
            # buffers are the same everywhere; sending them in every forward pass would be waste
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
                InitProcessGroupKwargs(timeout=COLLECTIVE_WAIT),
            ],
        )
    except ValueError as error:
        raise TuluLiteError(
            f"accelerate cannot start: {error}", cure="change `accelerate` in the recipe or its config file"
        ) from error
    _check(accelerator, settings, engines)
    if on_cpu:
        torch.set_num_threads(settings.threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        # filling fresh memory costs time, and nothing here reads it before it is written
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    return accelerator


def _wait_long_in_further_groups() -> None:
    """Groups that engines make beside the first (DeepSpeed's own copy of it, a mesh's) do not inherit its timeout: they
    take torch's defaults (10 min with NCCL, 30 with gloo), which nothing else can set."""
    distributed_c10d.default_pg_timeout = COLLECTIVE_WAIT
    distributed_c10d.default_pg_nccl_timeout = COLLECTIVE_WAIT


def _on_one_machine() -> bool:
    return os.environ.get("LOCAL_WORLD_SIZE", "1") == os.environ.get("WORLD_SIZE", "1")


def _on_cpu(settings: AccelerateSettings) -> bool:
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise TuluLiteError(
            "accelerate.device is cuda, but torch sees no GPU",
            cure="set it to cpu or auto, or install a torch with CUDA and check nvidia-smi",
        )
    return settings.device == "cpu" or not torch.cuda.is_available()


def _check(accelerator: Accelerator, settings: AccelerateSettings, engines: list[str]) -> None:
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", launched))
    if accelerator.num_processes != launched:
        raise TuluLiteError(
            f"{launched} training processes were launched, but accelerate joined {accelerator.num_processes} of them",
            why="each would train a model of its own",
            cure="start them with torchrun, or with `accelerate launch` and a config file that fits the machine",
        )
    if settings.num_processes is not None and local != settings.num_processes:
        raise TuluLiteError(
            f"accelerate.num_processes is {settings.num_processes}, but {local} runs on this machine",
            why="`accelerate launch --cpu` starts one process whatever it is asked for"
            if accelerator.device.type == "cpu"
            else "",
            cure=f"set accelerate.num_processes to {local}, or start {settings.num_processes} of them: "
            f"`accelerate launch --multi_gpu --num_processes {settings.num_processes} ...`, on a CPU too",
        )
    active = {DistributedType.DEEPSPEED: "DeepSpeed", DistributedType.FSDP: "FSDP"}.get(
        accelerator.distributed_type
    )
    for engine in engines:
        if engine != active:
            raise TuluLiteError(
                f"{engine} was asked for, but accelerate runs {accelerator.distributed_type.value}",
                cure="give the config file the matching distributed_type, or take the other engine's settings out of it",
            )
    if active == "FSDP" and not accelerator.is_fsdp2:
        raise TuluLiteError(
            "FSDP version 1 is not supported", cure="set fsdp_version: 2 in the accelerate config file"
        )
