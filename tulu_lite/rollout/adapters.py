"""LoRA adapters on the server: pushed in place of merged weights, several at once, loaded again after a restart.

An adapter is two small files that the server reads itself, as peft writes them. torch is imported only by who brings
tensors.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ServerError, TuluLiteError
from ..files import write_json
from .adapter_state import Adapter, check_adapter_name, forget_adapter, read_adapters, write_adapter
from .checkpoint import write_safetensors
from .client import RolloutClient
from .control import Control, NoAnswer, Refused
from .member import Member
from .process import folder_within
from .server import request_restart
from .state import ServerState

if TYPE_CHECKING:
    import torch

KEPT_VERSIONS = 2  # on disk: responses under way may still be of the one before


def can_serve(state: ServerState, rank: int) -> bool:
    """Whether a server takes adapters of this rank."""
    return state.max_loras > 0 and rank <= state.max_lora_rank


def push_adapter(
    client: RolloutClient,
    named_tensors: Iterable[tuple[str, torch.Tensor]],
    config: Mapping[str, Any],
    name: str,
    version: int,
) -> float:
    """Have every server behind `client` hold an adapter in a new version; returns the seconds it took.

    named_tensors: the adapter's tensors under the names that peft saves them by.
    config: peft's adapter_config.json (r, lora_alpha, target_modules).
    version: what each token sampled from now on by client.with_adapter(name) carries.
    Responses under way end on the version they began with. Raises TuluLiteError when a server takes no such adapter,
    ServerError when it cannot be made to hold it.
    """
    started = time.monotonic()
    check_adapter_name(name)
    rank = int(config["r"])
    tensors = [(key, tensor.detach().to("cpu").contiguous()) for key, tensor in named_tensors]
    if not tensors:
        raise TuluLiteError(f"the adapter {name!r} has no tensors")
    for member in client.living():
        state = member.wait_ready()
        _check_room(member, state, rank)
        # A path of its own for every push: the server keeps caches by it, and may read the last one's files meanwhile.
        folder = folder_within(Path(state.push_dir), _files_of(name) + f"{version}-")
        try:
            write_safetensors(folder / "adapter_model.safetensors", tensors)
            write_json(folder / "adapter_config.json", _plain(config))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # a full disk is no more full for it
            raise
        _load(member, name, version, folder)
        _remove_old(folder, name)
    return time.monotonic() - started


def drop_adapter(client: RolloutClient, name: str) -> None:
    """Have the servers forget an adapter; none of that name is no fault."""
    for member in client.members:
        if member.folder is None:
            continue
        held = read_adapters(member.folder).get(name)
        forget_adapter(member.folder, name)
        if held is not None:
            _unload(member.control(), held)
            for folder in Path(held.folder).parent.glob(_files_of(name) + "*"):
                shutil.rmtree(folder, ignore_errors=True)


def _load(member: Member, name: str, version: int, folder: Path) -> None:
    """Load and record; once more whenever the server restarts meanwhile, since it then may have missed the record."""
    assert member.folder is not None
    while True:
        state = member.wait_ready()
        before = read_adapters(member.folder).get(name)
        adapter = Adapter(name, version, str(folder), state.weight_version, state.model)
        try:
            member.control().load_adapter(adapter.served_name, adapter.folder)
        except (NoAnswer, Refused) as error:
            if isinstance(error, Refused) and not error.engine_died:
                shutil.rmtree(folder, ignore_errors=True)
                raise ServerError(
                    f"the rollout server does not take the adapter {adapter.served_name}: {error.what}"
                ) from error
            _await_new_life(member, state, f"loading the adapter {adapter.served_name} failed: {error.what}")
            continue
        write_adapter(member.folder, adapter)
        now = member.state()
        if now.state == "ready" and now.generation == state.generation:
            if before is not None and before.version != version:
                _unload(member.control(), before)
            return


def _await_new_life(member: Member, state: ServerState, reason: str) -> None:
    """Have a server that failed an order start anew, and wait until its owner has begun to."""
    assert member.folder is not None
    request_restart(member.folder, state.generation, reason)
    deadline = time.monotonic() + 30.0
    while member.state().state == "ready" and member.state().generation == state.generation:
        if time.monotonic() > deadline:
            raise ServerError(f"the rollout server was to start anew because {reason}, and does not")
        time.sleep(0.05)


def _files_of(name: str) -> str:
    """What the folders of an adapter's files are called, up to the version. No name has an @: "a" is not "a-1"."""
    return f"adapter-{name}@"


def _unload(control: Control, adapter: Adapter) -> None:
    try:
        control.unload_adapter(adapter.served_name)
    except (NoAnswer, Refused):
        return  # a server that restarted does not know it, and one that died will not


def _check_room(member: Member, state: ServerState, rank: int) -> None:
    if member.folder is None:
        raise TuluLiteError(
            f"an adapter cannot be pushed to a server known by its URL alone ({member.name})",
            "nobody would load it again when the server restarts",
            "give the client the server.json of a run",
        )
    if not can_serve(state, rank):
        raise TuluLiteError(
            f"the rollout server takes {state.max_loras} adapters of rank {state.max_lora_rank} at most, "
            f"and one of rank {rank} was pushed",
            cure="set server.max_loras and server.max_lora_rank",
        )


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """peft's configuration as JSON data; sets become sorted lists."""
    return json.loads(json.dumps(dict(config), default=lambda value: sorted(value)))


def _remove_old(newest: Path, name: str) -> None:
    """Remove all but the last versions' files."""
    ages = sorted(
        (path.stat().st_mtime_ns, path)
        for path in newest.parent.glob(_files_of(name) + "*")
        if path != newest
    )
    for _, path in ages[: len(ages) - (KEPT_VERSIONS - 1)]:
        shutil.rmtree(path, ignore_errors=True)
