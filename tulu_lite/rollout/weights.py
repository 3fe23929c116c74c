"""Weight updates: from the trainer's tensors, or from a checkpoint's files, to the server, with proof of arrival.

The weights travel as safetensors files that the server reads itself, in shared memory where it has room; between GPUs
they can go by NCCL or CUDA IPC (`routes/`). Either way files remain, from which a server that has to start again loads
them. torch is imported only where tensors are given.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ServerError, TuluLiteError
from .checkpoint import Shapes, checkpoint_files, checkpoint_shapes, config_differences, read_config
from .client import RolloutClient
from .control import Control, NoAnswer, Refused
from .digest import combined_digest
from .proof import Reference, prove_by_agreement
from .pushed import discard, make_folders, push_folder, spare_folder, tidy
from .routes.feed import Feed
from .routes.files import Cast, Written, write_files
from .server import request_restart
from .state import (
    Push,
    ServerState,
    read_state,
    send_request,
    update_under_way,
    write_push,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PushReport:
    """What the server said it took, and how that was proven."""

    version: int
    tensors: int
    digest: str
    checked: int  # parameters and buffers whose held values were compared with what was sent
    unchecked: tuple[str, ...]  # those where that is not possible (a model split over GPUs, quantised layers)
    seconds: float
    agreed: int = 0  # tokens that server and trainer chose alike, asked for where something was unchecked
    route: str = "files"


class NeedsRestart(ServerError):
    """The checkpoint's model has another shape than the server's: only a restart (`serve_model`) can serve it."""


def push_weights(
    client: RolloutClient,
    named_tensors: Iterable[tuple[str, torch.Tensor]],
    version: int,
    reference: Reference | None = None,
    on_written: Callable[[Push], None] | None = None,
) -> PushReport:
    """Give the server new weights and make sure that it holds them.

    named_tensors: every weight of the model under its checkpoint name, on any device, e.g. model.named_parameters()
        (tied copies may be left out or given). An iterator that gathers shards one by one is consumed one by one.
        Where names and shapes can be told beforehand (a list, a dict's items(), training.whole.WholeWeights), the
        server loads while later tensors are gathered and written.
    version: a number that every token sampled from now on carries.
    reference: the trainer's log-probabilities, for servers whose weights cannot be compared; by default
        named_tensors.reference, if it has one.
    on_written: called once, when all files are there and before the server has loaded them all.
    One process of the trainer calls this (where gathering is a collective, the others iterate beside it).
    Raises TuluLiteError when names or shapes are not the served model's: the server is as before. Raises ServerError
    when the update fails on its way or cannot be proven: the server is then started anew with the weights it had.
    """
    started = time.monotonic()
    state = client.wait_ready()
    folder = _folder(client)
    about = server_about(client, state)
    served = checkpoint_shapes(Path(state.model))
    known = declared_shapes(named_tensors)
    if known is not None:
        _check_names(known, served, Path(state.model))
    reference = reference or getattr(named_tensors, "reference", None)
    made: list[Path] = []
    writer: _Writer | None = None

    def produce(feed: Feed, state: ServerState) -> Push:
        nonlocal writer
        if writer is None:
            made.extend(make_folders(folder, version, state))
            writer = _Writer(named_tensors, made, about, spare_folder(made[0]), on_written)
            if known is None:
                writer.write(None)
                _check_names(writer.written.shapes, served, Path(state.model))
        return writer.feed(feed, state)

    try:
        report = _updated(client, folder, version, produce, reference)
    except BaseException as error:
        discard(folder, made)
        if made and isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _no_room(version, made[0].parent) from error
        raise
    tidy(folder, Path(state.push_dir))
    return _report(version, report, started)


class _Writer:
    """The files of one push: written once, however often a server has to be given them."""

    def __init__(
        self,
        named_tensors: Iterable[tuple[str, torch.Tensor]],
        folders: list[Path],
        about: dict[str, Any],
        spare: Path | None,
        on_written: Callable[[Push], None] | None = None,
    ) -> None:
        import torch

        self.on_written = on_written
        self.named_tensors, self.folders, self.spare = named_tensors, folders, spare
        self.cast = Cast(getattr(torch, about["dtype"]), frozenset(about["wide"]))
        self.written = Written()
        self.whole = False

    def write(self, on_file: Callable[[str, dict[str, str]], None] | None) -> None:
        self.written = write_files(
            self.named_tensors, self.folders, cast=self.cast, spare=self.spare, on_file=on_file
        )
        self.whole = True

    def feed(self, feed: Feed, state: ServerState) -> Push:
        """Give the files to a server as they come, or as they lie there."""
        if not self.whole:
            self.write(feed.put)
        else:
            for file in self.written.files:
                feed.put(file, {name: self.written.digests[name] for name in self.written.tensors[file]})
        push = Push(
            feed.version, tuple(self.written.files), combined_digest(self.written.digests), state.model
        )
        tell, self.on_written = self.on_written, None
        if tell is not None:
            tell(push)
        return push


def declared_shapes(named_tensors: Iterable[tuple[str, torch.Tensor]]) -> Shapes | None:
    """{name: shape} of what an iterable will give; None where only iterating can tell."""
    tell = getattr(named_tensors, "shapes", None)
    if callable(tell):
        return tell()
    if isinstance(named_tensors, (Sequence, ItemsView)):
        return {name: tuple(tensor.shape) for name, tensor in named_tensors}
    return None


_about: dict[tuple[str, int, int], dict[str, Any]] = {}


def server_about(client: RolloutClient, state: ServerState) -> dict[str, Any]:
    """What the server's workers say of themselves, asked once in each of its lives: {dtype, device, gpus, hosts,
    sharded, wide}. Raises NoAnswer, Refused."""
    key = (state.url, state.generation, state.pid)
    if key not in _about:
        workers = client.control().about()
        first = workers[0]
        _about.clear()
        _about[key] = {
            "dtype": first["dtype"],
            "device": first["device"],
            "gpus": [worker["gpu"] for worker in workers],
            "hosts": [worker["host"] for worker in workers],
            "sharded": any(worker["sharded"] for worker in workers),
            "wide": sorted({name for worker in workers for name in worker["wide"]}),
        }
    return _about[key]


def _report(version: int, report: dict[str, Any], started: float) -> PushReport:
    return PushReport(
        version,
        report["tensors"],
        report["digest"],
        report["checked"],
        tuple(report["unchecked"]),
        time.monotonic() - started,
        report.get("agreed", 0),
    )


def _no_room(version: int, folder: Path) -> TuluLiteError:
    free = shutil.disk_usage(folder).free / 2**20
    return TuluLiteError(
        f"the folder for pushed weights is full: weight update {version} does not fit into {folder}",
        f"{free:.0f} MiB are free there, and the server still holds the weights it had before",
        "free some of it; in a container make /dev/shm larger (docker run --shm-size)",
    )


def load_checkpoint(
    client: RolloutClient, model_dir: Path, version: int, reference: Reference | None = None
) -> PushReport:
    """Have the server load a folder's safetensors (in any float type, sharded or not); it reads the files itself.

    The folder must stay as it is until the next update: a server that restarts loads it again.
    Raises NeedsRestart when config.json says another model than the one served; TuluLiteError, ServerError as
    push_weights (but what cannot be compared needs no reference: the files are the model's own).
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
    report = _update(client, folder, Push(version, files, None, state.model), reference)
    tidy(folder, push_folder(state))
    return _report(version, report, started)


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


def _update(
    client: RolloutClient, folder: Path, push: Push, reference: Reference | None = None
) -> dict[str, Any]:
    """Load files that lie there. See _updated."""

    def feed(feed: Feed, state: ServerState) -> Push:
        feed.put_all(push.files, push.digest)
        return replace(push, model=state.model)

    return _updated(client, folder, push.version, feed, reference, proof=push.digest is not None)


_Produce = Callable[[Feed, ServerState], Push]


def _updated(
    client: RolloutClient,
    folder: Path,
    version: int,
    produce: _Produce,
    reference: Reference | None,
    proof: bool = True,
) -> dict[str, Any]:
    """The update itself; once more on a new server when the server died of itself on the way.

    produce(feed, state): puts the files into the feed and says what they are. proof: whether weights that cannot be
    compared must be proven by agreement. On any fault after the first order to the server it is marked for restart;
    last_push.json then still names the weights before.
    """
    with _turn(client, folder):  # of both tries: between them nobody may take the files for left over
        try:
            state, push, report = _attempt(client, folder, version, produce, reference, proof)
        except ServerError as error:
            cause = error.__cause__
            gone = isinstance(cause, NoAnswer) and not cause.timed_out
            if not gone and not (isinstance(cause, Refused) and cause.engine_died):
                raise
            state, push, report = _attempt(client, folder, version, produce, reference, proof)
    _survive_restart(client, state, push)
    return report


def _update_once(
    client: RolloutClient,
    folder: Path,
    version: int,
    produce: _Produce,
    reference: Reference | None,
    proof: bool,
    complete: Callable[[Push], Push] | None = None,
) -> dict[str, Any]:
    """The update with one attempt. complete(push): what is left to do when the server holds the weights and samples
    again."""
    with _turn(client, folder):
        state, push, report = _attempt(client, folder, version, produce, reference, proof, complete)
    _survive_restart(client, state, push)
    return report


@contextmanager
def _turn(client: RolloutClient, folder: Path) -> Iterator[None]:
    """The server for one weight update. Whoever makes or removes files of pushes does so within."""
    lasts = 8 * client.wait_ready().control_timeout_s  # each step has its own deadline within
    with update_under_way(folder, wait_s=lasts, lasts_s=lasts):
        yield


def _attempt(
    client: RolloutClient,
    folder: Path,
    version: int,
    produce: _Produce,
    reference: Reference | None,
    proof: bool,
    complete: Callable[[Push], Push] | None = None,
) -> tuple[ServerState, Push, dict[str, Any]]:
    """One attempt, in a turn."""
    state = client.wait_ready()  # another update may have gone before
    feed = Feed(client.control(), version, state.weight_update)
    try:
        push = produce(feed, state)
        report = feed.finish(push.digest)
        if report["unchecked"] and proof:
            report["agreed"] = _agreement(client.control(), version, state, report, reference)
        if complete is not None:
            push = complete(push)
    except BaseException as error:
        if not feed.abandon():
            raise  # nothing was asked of the server yet
        request_restart(folder, state.generation, f"weight update {version} failed: {error}")
        _await_restart(client, state.generation)
        if isinstance(error, ServerError):
            raise ServerError(
                f"weight update {version} failed: {error.what}",
                error.why,
                error.cure
                or "the server starts anew with its former weights; log.txt beside server.json says more",
            ) from error
        raise
    write_push(folder, push)
    return state, push, report


def _agreement(
    control: Control, version: int, state: ServerState, report: dict[str, Any], reference: Reference | None
) -> int:
    unchecked = _some(report["unchecked"])
    if reference is None:
        raise ServerError(
            f"weight update {version} cannot be proven",
            f"what the server holds of {unchecked} cannot be compared with what was sent",
            "give push_weights the trainer's log-probabilities (reference=...), so that greedy tokens can be compared",
        )
    config = read_config(Path(state.model))
    vocabulary = int((config.get("text_config") or config)["vocab_size"])
    return prove_by_agreement(control, reference, vocabulary, str(report.get("dtype", "")))


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
