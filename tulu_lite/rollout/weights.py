"""Weight updates: from the trainer's tensors, or from a checkpoint's files, to the server, with proof of arrival.

The weights travel as safetensors files in shared memory that the server reads itself: the same path on every device,
and a server that has to start again finds them there. torch is imported only where tensors are given.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ServerError, TuluLiteError
from .checkpoint import Shapes, checkpoint_files, checkpoint_shapes, config_differences, write_safetensors
from .client import RolloutClient
from .control import NoAnswer, Refused
from .digest import combined_digest, tensor_digest
from .server import request_restart
from .state import Push, ServerState, read_state, send_request, update_under_way, write_push

if TYPE_CHECKING:
    import torch

BUCKET_BYTES = 1 << 30  # tensors of one file; what is gathered at once beside the file itself


@dataclass(frozen=True)
class PushReport:
    """What the server said it took."""

    version: int
    tensors: int
    digest: str
    checked: int  # layers whose held weights were compared with what was sent
    unchecked: tuple[
        str, ...
    ]  # layers where that is not possible (a model split over GPUs, quantised layers)
    seconds: float


class NeedsRestart(ServerError):
    """The checkpoint's model has another shape than the server's: only a restart (`serve_model`) can serve it."""


def push_weights(
    client: RolloutClient, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int
) -> PushReport:
    """Give the server new weights and make sure that it holds them.

    named_tensors: every weight of the model under its checkpoint name, on any device, e.g. model.named_parameters()
        (tied copies may be left out or given). An iterator that gathers shards one by one is consumed one by one.
    version: a number that every token sampled from now on carries.
    One process of the trainer calls this (where gathering is a collective, the others iterate beside it).
    Raises TuluLiteError when names or shapes are not the served model's: the server is as before. Raises ServerError
    when the update fails on its way: the server is then started anew with the weights it had before.
    """
    started = time.monotonic()
    state = client.wait_ready()
    folder = _folder(client)
    target = Path(tempfile.mkdtemp(prefix=f"push-{version}-", dir=_push_dir(state)))
    try:
        files, digests, shapes = _write(named_tensors, target)
        _check_names(shapes, checkpoint_shapes(Path(state.model)), Path(state.model))
        report = _update(client, folder, Push(version, files, combined_digest(digests), state.model))
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    _remove_others(target)
    return PushReport(
        version,
        len(digests),
        report["digest"],
        report["checked"],
        tuple(report["unchecked"]),
        time.monotonic() - started,
    )


def load_checkpoint(client: RolloutClient, model_dir: Path, version: int) -> PushReport:
    """Have the server load a folder's safetensors (in any float type, sharded or not); it reads the files itself.

    The folder must stay as it is until the next update: a server that restarts loads it again.
    Raises NeedsRestart when config.json says another model than the one served; TuluLiteError, ServerError as
    push_weights.
    """
    started = time.monotonic()
    state = client.wait_ready()
    folder = _folder(client)
    model_dir = Path(model_dir).resolve()
    if differences := config_differences(Path(state.model), model_dir):
        raise NeedsRestart(
            f"{model_dir} is not the model that the rollout server runs: {', '.join(differences)} differ",
            f"the server was started on {state.model}",
            "have it serve the other model: weights.serve_model(client, model_dir, version)",
        )
    files = tuple(str(file) for file in checkpoint_files(model_dir))
    _check_names(checkpoint_shapes(model_dir), checkpoint_shapes(Path(state.model)), Path(state.model))
    report = _update(client, folder, Push(version, files, None, state.model))
    _remove_others(None, _push_dir(state))
    return PushReport(
        version,
        report["tensors"],
        report["digest"],
        report["checked"],
        tuple(report["unchecked"]),
        time.monotonic() - started,
    )


def serve_model(
    client: RolloutClient, model_dir: Path, version: int, deadline_s: float | None = None
) -> None:
    """Have the server serve a model, whatever it serves now: by loading where the shape allows, else by a restart.

    Blocks until it does. Raises TuluLiteError, ServerError.
    """
    try:
        load_checkpoint(client, model_dir, version)
        return
    except NeedsRestart:
        pass
    state = client.wait_ready()
    model = str(Path(model_dir).resolve())
    checkpoint_files(Path(model))  # a folder without weights must not cost the running server
    send_request(_folder(client), {"action": "serve", "model": model, "version": version})
    deadline = time.monotonic() + (2 * state.ready_timeout_s if deadline_s is None else deadline_s)
    while time.monotonic() < deadline:
        now = client.state()
        if now.state in ("failed", "stopped"):
            raise ServerError(f"the rollout server is {now.state} instead of serving {model}", now.reason)
        if now.state == "ready" and now.generation > state.generation and now.model == model:
            return
        time.sleep(0.1)
    raise ServerError(f"the rollout server did not serve {model} in time", client.state().reason)


def _update(client: RolloutClient, folder: Path, push: Push) -> dict[str, Any]:
    """The update itself; once more on a new server when the server died of itself on the way.

    On any fault the server is marked for restart; last_push.json then still names the weights before.
    """
    try:
        return _update_once(client, folder, push)
    except ServerError as error:
        cause = error.__cause__
        gone = isinstance(cause, NoAnswer) and not cause.timed_out
        if not gone and not (isinstance(cause, Refused) and cause.engine_died):
            raise
    return _update_once(client, folder, push)


def _update_once(client: RolloutClient, folder: Path, push: Push) -> dict[str, Any]:
    settled = client.wait_ready()
    lasts = 8 * settled.control_timeout_s  # each step has its own deadline within
    with update_under_way(folder, wait_s=lasts, lasts_s=lasts):
        state = client.wait_ready()  # another update may have gone before
        try:
            report = client.control().load(push.files, push.digest, push.version, state.weight_update)
        except BaseException as error:
            request_restart(folder, state.generation, f"weight update {push.version} failed: {error}")
            _await_restart(client, state.generation)
            if isinstance(error, ServerError):
                raise ServerError(
                    f"weight update {push.version} failed: {error.what}",
                    error.why,
                    "the server starts anew with its former weights; log.txt beside server.json says more",
                ) from error
            raise
        write_push(folder, push)
    _survive_restart(client, state, push)
    return report


def _survive_restart(client: RolloutClient, before: ServerState, push: Push) -> None:
    """Should the server have died after the update, wait until the new one holds these weights.

    The owner says `restarting` before it reads last_push.json: a state that has not changed since that file was
    written is proof that nothing was lost.
    """
    now = client.state()
    if now.state == "ready" and now.generation == before.generation:
        return
    deadline = time.monotonic() + before.ready_timeout_s + before.control_timeout_s
    while time.monotonic() < deadline:
        client.wait_ready()
        told = read_state(client.file)
        if told is not None and told.state == "ready" and told.weight_version == push.version:
            return
        time.sleep(0.05)
    raise ServerError(
        f"the rollout server restarted during weight update {push.version} and does not hold it"
    )


def _await_restart(client: RolloutClient, generation: int) -> None:
    """Let the owner see the request for a restart, so that nobody samples from the engine as it is now."""
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        now = client.state()
        if now.state != "ready" or now.generation != generation:
            return
        time.sleep(0.05)


def _write(
    named_tensors: Iterable[tuple[str, torch.Tensor]], target: Path
) -> tuple[tuple[str, ...], dict[str, str], Shapes]:
    """Write tensors to files of about BUCKET_BYTES; returns the files, {name: digest} and {name: shape}."""
    files: list[str] = []
    digests: dict[str, str] = {}
    shapes: Shapes = {}
    bucket: list[tuple[str, torch.Tensor]] = []
    size = 0

    def flush() -> None:
        nonlocal size
        if bucket:
            path = target / f"{len(files):05d}.safetensors"
            write_safetensors(path, bucket)
            files.append(str(path))
        bucket.clear()
        size = 0

    for name, given in named_tensors:
        if name in digests:
            raise TuluLiteError(f"the weight {name!r} was given twice", cure="give each weight once")
        whole = given.full_tensor() if hasattr(given, "full_tensor") else given  # a DTensor of FSDP2
        tensor = whole.detach().to("cpu").contiguous()
        digests[name] = tensor_digest(tensor)
        shapes[name] = tuple(tensor.shape)
        bucket.append((name, tensor))
        size += tensor.nbytes
        if size >= BUCKET_BYTES:
            flush()
    flush()
    return tuple(files), digests, shapes


def _check_names(given: Shapes, served: Shapes, model: Path) -> None:
    """Raise TuluLiteError unless `given` has every weight of the served model, in its shape, and no other."""
    tied = {"lm_head.weight"} if _tied(model) else set()
    missing = sorted(served.keys() - given.keys() - tied)
    extra = sorted(given.keys() - served.keys() - tied)
    wrong = sorted(name for name in given.keys() & served.keys() if given[name] != served[name])
    cure = "push every weight of the model under the name it has in the checkpoint, for example model.named_parameters()"
    if missing:
        raise TuluLiteError(
            f"weights are missing: {_some(missing)}", f"the rollout server runs {model}", cure
        )
    if extra:
        raise TuluLiteError(
            f"weights that the served model does not have: {_some(extra)}", f"it is {model}", cure
        )
    if wrong:
        shapes = ", ".join(f"{name} {list(given[name])} (served: {list(served[name])})" for name in wrong[:3])
        raise TuluLiteError(
            f"weights of another shape than the served model's: {shapes}", f"it is {model}", cure
        )


def _tied(model: Path) -> bool:
    from .checkpoint import read_config

    return bool(read_config(model).get("tie_word_embeddings"))


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _folder(client: RolloutClient) -> Path:
    if client.folder is None:
        raise TuluLiteError(
            "weights cannot be pushed to a server known by its URL alone",
            "a failed update must restart the server, and nobody supervises this one",
            "give the client the server.json of a run",
        )
    return client.folder


def _push_dir(state: ServerState) -> Path:
    """Where pushed weights go. Raises ServerError when the server took the folder with it."""
    folder = Path(state.push_dir)
    if not folder.is_dir():
        raise ServerError(
            f"the rollout server's folder for weights, {folder}, is gone", "was the server stopped?"
        )
    return folder


def _remove_others(keep: Path | None, parent: Path | None = None) -> None:
    """Remove the files of earlier pushes."""
    for folder in (keep.parent if keep is not None else parent or Path()).glob("push-*"):
        if folder != keep:
            shutil.rmtree(folder, ignore_errors=True)
