"""The way of the sampling stages to the run's rollout server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..datasets.chat import ChatTemplate, load_tokenizer
from ..pipeline.models import local_model
from ..pipeline.protocol import SERVER_VARIABLE
from ..pipeline.sizes import context_length
from ..records import Prompt, RolloutGroup
from ..rollout.client import RolloutClient, Sampling
from ..rollout.server import RolloutServer
from ..rollout.weights import push_weights, serve_model
from .context import StepContext

if TYPE_CHECKING:
    import torch


class Sampler:
    """The policy's sampler: prompts in, judged-to-be responses out, and new weights when they come."""

    def __init__(self, client: RolloutClient, template: ChatTemplate, context: int) -> None:
        self.client, self.template, self.context = client, template, context

    @property
    def pad_id(self) -> int:
        return self.template.pad_id

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        positions: Sequence[int] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[RolloutGroup]:
        """A group of responses to each prompt, decoded. `positions` tell equal prompts apart (their samples differ)."""
        done = 0

        def count(_: RolloutGroup) -> None:
            nonlocal done
            done += 1
            if on_progress is not None:
                on_progress(done)

        stopping = replace(sampling, stop_token_ids=self.template.end_token_ids)
        return self.client.generate(prompts, stopping, on_group=count, positions=positions)

    def load(self, model: str) -> None:
        """Have the server sample from the model of a folder; it reads the files itself."""
        serve_model(self.client, Path(model), self._next_version())

    def push(self, weights: Iterable[tuple[str, torch.Tensor]], is_main: bool) -> None:
        """Have the server sample from these weights. Every process calls it: sharded weights are gathered one by one
        as they are read, which all processes take part in."""
        if is_main:
            push_weights(self.client, weights, self._next_version())
        else:
            for _ in weights:
                pass

    def _next_version(self) -> int:
        return self.client.wait_ready().weight_version + 1


@contextmanager
def open_sampler(ctx: StepContext) -> Iterator[Sampler]:
    """The run's server when there is one, else (a stage run by hand) one of this process's own, for as long."""
    template = ChatTemplate.load(
        ctx.recipe.chat_template, load_tokenizer(ctx.recipe.model, ctx.recipe.revision), ctx.recipe.model
    )
    context = context_length(ctx.recipe)
    state_file = os.environ.get(SERVER_VARIABLE)
    if state_file is not None:
        with RolloutClient(Path(state_file), decode=template.decode) as client:
            yield Sampler(client, template, context)
        return
    folder = ctx.dir / "server"
    with RolloutServer(ctx.recipe.server, local_model(ctx.recipe), folder, folder / "log.txt") as server:
        print("no server of a run to share: starting one for this stage", flush=True)
        server.wait_ready()
        with RolloutClient(server.state_file, decode=template.decode) as client:
            yield Sampler(client, template, context)
