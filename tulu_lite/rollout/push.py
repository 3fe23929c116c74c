"""One push for every device: all processes of a trainer call it, the weights take the way that fits where they are.

files        the server reads what one process wrote to shared memory: on a CPU, and wherever no other way fits
nccl, ipc    from GPU to GPU (`routes/gpu.py`); afterwards the files are written all the same, while the server samples,
             so that a server that dies loads them again
LoRA adapters have a push of their own (`adapters.py`).
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from ..errors import TuluLiteError
from ..training.sharding import is_main, rank
from . import pushed
from . import weights as files_push
from .checkpoint import checkpoint_shapes
from .client import RolloutClient
from .digest import combined_digest
from .routes.choose import Route, choose_route
from .routes.feed import Feed
from .routes.gpu import Messages, Source, open_transfer, trainer_gpus
from .state import Push, ServerState
from .weights import PushReport, server_about

if TYPE_CHECKING:
    from ..training.whole import WholeWeights


@dataclass(frozen=True)
class Plan:
    """What the main process tells the others before a push."""

    route: Route
    generation: int
    about: dict[str, Any]


class Pusher:
    """Pushes one model's weights, again and again, to one server; keeps the connection between GPUs.

    address: this machine's, as the server's machine reaches it, for NCCL; by default both are the same machine.
    """

    def __init__(self, client: RolloutClient, whole: WholeWeights, address: str | None = None) -> None:
        self.client, self.whole, self.address = client, whole, address
        self._engine: Any = None
        self._opened: tuple[Route, int] | None = None

    def push(self, version: int) -> PushReport | None:
        """Every process calls it; the main one gets the report. Raises as weights.push_weights; what the main process
        raises ends it, and the launcher ends the others."""
        gpus = trainer_gpus()
        plan = _tell(self._plan(gpus) if is_main() else None)
        report = None
        try:
            if plan.route == "files":
                if is_main():
                    report = files_push.push_weights(self.client, self.whole, version)
                else:
                    _take_part(self.whole)
            else:
                report = self._push_over_gpus(plan, version)
        finally:
            self.whole.done()
        self.whole.follow()
        return report

    def _plan(self, gpus: list[str]) -> Plan:
        state = self.client.wait_ready()
        about = server_about(self.client, state)
        device = next(iter(self.whole.model.parameters())).device.type
        route = choose_route(device, gpus, about)
        if route != "files" and self.whole.shapes() is None:
            route = "files"  # vLLM's transfers want every name and shape beforehand
        return Plan(route, state.generation, about)

    def _push_over_gpus(self, plan: Plan, version: int) -> PushReport | None:
        started = time.monotonic()
        if not is_main():
            self._connect(plan, None)
            self._engine.send_weights()
            _take_part(self.whole)  # the files
            return None
        state = self.client.wait_ready()
        folder = files_push._folder(self.client)
        model = Path(state.model)
        files_push._check_names(self.whole.shapes() or {}, checkpoint_shapes(model), model)

        def produce(feed: Feed, state: ServerState) -> Push:
            if state.generation != plan.generation:
                raise TuluLiteError(f"the rollout server was started anew during weight update {version}")
            feed.spoken = True
            self._connect(plan, Messages(self.client.control(), plan.route, state.weight_update))
            self._engine.send_weights()
            digest = combined_digest(self._engine.source.digests)
            return Push(version, (), digest, state.model)

        try:
            report = files_push._update_once(
                self.client, folder, version, produce, self.whole.reference, True, self._keep
            )
        except BaseException:
            self._engine = self._opened = None  # a transfer that failed cannot be used again
            raise
        pushed.tidy(folder, Path(state.push_dir))
        return replace(files_push._report(version, report, started), route=plan.route)

    def _connect(self, plan: Plan, messages: Messages | None) -> None:
        if self._opened == (plan.route, plan.generation):
            if messages is not None:
                self._engine.client = messages
            return
        shapes = self.whole.shapes()
        assert shapes is not None
        dtype = getattr(torch, plan.about["dtype"])
        source = Source(self.whole.__iter__, shapes, dtype, plan.about["wide"])
        talk = messages or Messages(self.client.control(), plan.route, "wait")
        self._engine = open_transfer(
            plan.route,
            talk,
            source,
            rank=rank(),
            server_gpus=len(plan.about["gpus"]),
            address=self.address,
        )
        self._opened = (plan.route, plan.generation)

    def _keep(self, push: Push) -> Push:
        """Write what the server now holds to files, for one that takes its place."""
        state = self.client.wait_ready()
        about = server_about(self.client, state)
        folder = files_push._folder(self.client)
        made = pushed.make_folders(folder, push.version, state)
        writer = files_push._Writer(self.whole, made, about, pushed.spare_folder(made[0]))
        try:
            writer.write(None)
        except OSError as error:
            pushed.discard(folder, made)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise files_push._no_room(push.version, made[0].parent) from error
            raise
        digest = combined_digest(writer.written.digests)
        return replace(push, files=tuple(writer.written.files), digest=digest)


def _take_part(whole: WholeWeights) -> None:
    """A process that is not the main one: gather beside it."""
    for _ in whole:
        pass


def _tell(plan: Plan | None) -> Plan:
    box: list[Any] = [plan]
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    assert box[0] is not None
    return box[0]
