"""The way of the sampling stages to the run's rollout server."""

from __future__ import annotations

import copy
import os
import queue
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..datasets.chat import ChatTemplate, load_tokenizer
from ..judging import Judge, judging
from ..pipeline.models import local_model
from ..pipeline.protocol import SERVER_VARIABLE
from ..pipeline.sizes import context_length
from ..recipe import LoraSettings, serving
from ..records import Prompt, RolloutGroup
from ..rollout.adapters import can_serve, drop_adapter, push_adapter
from ..rollout.client import RolloutClient, Sampling
from ..rollout.everywhere import load_everywhere, next_version, push_everywhere
from ..rollout.fleet import open_servers
from ..rollout.lease import own_weights, place
from ..rollout.sleeping import put_to_sleep, wake
from .context import StepContext, step_context

if TYPE_CHECKING:
    import torch

UNSERVED = ("lm_head", "embed_tokens", "wte", "embed_in", "embed_out")  # adapters on these are merged instead


class Sampler:
    """The policy's sampler: prompts in, judged-to-be responses out, and new weights when they come."""

    def __init__(
        self, client: RolloutClient, template: ChatTemplate, context: int, sleep_level: int = 0
    ) -> None:
        self.client, self.template, self.context = client, template, context
        self.sleep_level = sleep_level  # 0: the server has memory of its own and never sleeps

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

    def arriving(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, positions: Sequence[int] | None = None
    ) -> Iterator[list[RolloutGroup]]:
        """`generate` in lists of the groups that came since the last list, in any order: sampling goes on while the
        caller works on one. Closing the iterator ends what is under way."""
        arrived: queue.SimpleQueue[RolloutGroup | None] = queue.SimpleQueue()
        stopping = replace(sampling, stop_token_ids=self.template.end_token_ids)
        task = self.client.submit(prompts, stopping, arrived.put, positions)
        task.add_done_callback(lambda _: arrived.put(None))  # the last that comes
        try:
            came: list[RolloutGroup | None] = []
            while not came or came[-1] is not None:
                came = [arrived.get()]
                while not arrived.empty():
                    came.append(arrived.get())
                if groups := [group for group in came if group is not None]:
                    yield groups
            task.result()
        finally:
            task.cancel()

    def speaking(self, template: ChatTemplate, context: int) -> Sampler:
        """This sampler for a model of another vocabulary: its responses are decoded and ended by this template."""
        bound = copy.copy(self)
        bound.client = copy.copy(self.client)
        bound.client.decode, bound.template, bound.context = template.decode, template, context
        return bound

    def submit(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        on_group: Callable[[RolloutGroup], None],
        positions: Sequence[int],
    ) -> Future[list[RolloutGroup]]:
        """`generate` in the background; cancelling the future ends it. on_group is called in the client's thread."""
        stopping = replace(sampling, stop_token_ids=self.template.end_token_ids)
        return self.client.submit(prompts, stopping, on_group, positions)

    # Where the server and training take turns on the same GPUs

    def sleep(self, is_main: bool) -> None:
        """Have the server give its GPU memory back for training, where the recipe colocates the two."""
        if self.sleep_level and is_main:
            put_to_sleep(self.client, self.sleep_level)

    def wake(self, is_main: bool) -> None:
        """Have it take its memory again. After sleep of level 2 weights must be loaded or pushed next."""
        if self.sleep_level and is_main:
            wake(self.client)

    # Whole weights

    def load(self, model: str) -> None:
        """Have the server sample from the model of a folder; it reads the files itself."""
        load_everywhere(self.client, Path(model), next_version(self.client))

    def load_once(self, model: str, *, wait_s: float = 3600.0, term_s: float = 3600.0) -> None:
        """`load`, unless the server holds that folder's model since another called this. For runs that put adapters beside
        one model at the same time: to load it again would take away the adapters that are there."""

        def load() -> int:
            version = next_version(self.client)
            load_everywhere(self.client, Path(model), version)
            return version

        def held() -> int:
            return next_version(self.client) - 1

        folder = self.client.shared_folder
        with own_weights(folder, f"model {model}", 0, load, held, wait_s=wait_s, term_s=term_s):
            pass

    def next_version(self) -> int:
        """The version that weights pushed next are to have: of the server, or of the bound adapter."""
        name = self.client.adapter
        if name is None:
            return next_version(self.client)
        held = [member.adapters() for member in self.client.living()]
        return 1 + max((adapters[name].version for adapters in held if name in adapters), default=0)

    def push(
        self, weights: Iterable[tuple[str, torch.Tensor]], is_main: bool, version: int | None = None
    ) -> None:
        """Have the server sample from these weights. Every process calls it: sharded weights are gathered one by one
        as they are read, which all processes take part in, and so they do where the server's weights can only be proven
        by the model's log-probabilities (training.whole.WholeWeights). version: by default the next one."""
        if is_main:
            try:
                push_everywhere(self.client, weights, version or next_version(self.client))
            finally:
                getattr(weights, "done", lambda: None)()
        else:
            for _ in weights:
                pass
            getattr(weights, "follow", lambda: None)()

    @contextmanager
    def turn(
        self,
        holder: str,
        mark: int,
        weights: Callable[[], Iterable[tuple[str, torch.Tensor]]],
        *,
        wait_s: float = 3600.0,
        term_s: float = 3600.0,
    ) -> Iterator[int]:
        """A turn on a server that several trainings share: within it the server holds this one's weights, and others
        wait. Gives their version on the server.

        holder: who asks, such as the step's id. mark: the number of its updates, to know weights that are there still.
        weights: called only when the server holds others. One process of a training calls it.
        """

        def push() -> int:
            version, tensors = next_version(self.client), weights()
            try:
                push_everywhere(self.client, tensors, version)
            finally:
                getattr(tensors, "done", lambda: None)()
            return version

        def held() -> int:
            return next_version(self.client) - 1

        folder = self.client.shared_folder
        with own_weights(folder, holder, mark, push, held, wait_s=wait_s, term_s=term_s) as (_, version):
            yield version

    # Adapters

    @contextmanager
    def place(
        self, holder: str, runs: int, *, wait_s: float = 3600.0, term_s: float = 3600.0
    ) -> Iterator[None]:
        """A place for one batch on a server that `runs` trainings sample adapters from at the same time.

        On a CPU a decoding step costs in proportion to its responses, so nothing is gained by all sampling at once; and
        those that sample together end together, then all train, and the server has nothing to do. So half of them may.
        On a GPU all may. One process of a training calls it.
        """
        if runs < 2 or not all(member.state().on_cpu for member in self.client.living()):
            yield
            return
        with place(
            self.client.shared_folder / "places", holder, (runs + 1) // 2, wait_s=wait_s, term_s=term_s
        ):
            yield

    def can_adapt(self, lora: LoraSettings) -> bool:
        """Whether all servers take the adapters that such a training makes; else they are merged and pushed whole."""
        targets = [lora.targets] if isinstance(lora.targets, str) else lora.targets
        served = not any(target.rpartition(".")[2] in UNSERVED for target in targets)
        self.client.wait_ready()
        return served and all(can_serve(member.state(), lora.rank) for member in self.client.living())

    def with_adapter(self, name: str) -> Sampler:
        """This sampler, sampling from the newest version of an adapter."""
        bound = copy.copy(self)
        bound.client = self.client.with_adapter(name)
        return bound

    def push_adapter(
        self, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], version: int | None = None
    ) -> None:
        """Have the server sample from its model with these adapters, for a sampler made by with_adapter."""
        name = self.client.adapter
        assert name is not None
        push_adapter(self.client, tensors.items(), config, name, version or self.next_version())

    def drop_adapter(self) -> None:
        """Have the server forget the adapter of a sampler made by with_adapter."""
        if self.client.adapter is not None:
            drop_adapter(self.client, self.client.adapter)


@dataclass(frozen=True)
class Unserved:
    """What a stage that trains on recorded samples needs in a sampler's place: nothing is sampled, no server is there."""

    template: ChatTemplate
    context: int

    @classmethod
    def of(cls, ctx: StepContext) -> Unserved:
        return cls(_template(ctx), context_length(ctx.recipe))

    @property
    def pad_id(self) -> int:
        return self.template.pad_id


def _template(ctx: StepContext) -> ChatTemplate:
    tokenizer = load_tokenizer(ctx.recipe.model, ctx.recipe.revision)
    return ChatTemplate.load(ctx.recipe.chat_template, tokenizer, ctx.recipe.model)


@contextmanager
def sampling_step(stage_class: type) -> Iterator[tuple[StepContext, Sampler, Judge]]:
    """What a stage that samples and judges begins with: its step, the policy's sampler, and the verifiers."""
    with (
        step_context(stage_class) as ctx,
        open_sampler(ctx) as sampler,
        judging(ctx.recipe, ctx.stage.max_error_share) as judge,
    ):
        yield ctx, sampler, judge


@contextmanager
def open_sampler(ctx: StepContext) -> Iterator[Sampler]:
    """The run's server when there is one, else (a stage run by hand) one of this process's own, for as long."""
    template = _template(ctx)
    context = context_length(ctx.recipe)
    level = ctx.recipe.server.sleep_level if ctx.recipe.server.colocate else 0
    state_file = os.environ.get(SERVER_VARIABLE)
    if state_file is not None:
        with RolloutClient(Path(state_file), decode=template.decode) as client:
            sampler = Sampler(client, template, context, level)
            sampler.wake(
                int(os.environ.get("RANK", "0")) == 0
            )  # a training stage before may have let it sleep
            yield sampler
        return
    folder = ctx.dir / "server"
    with open_servers(serving(ctx.recipe), local_model(ctx.recipe), folder, folder / "log.txt") as server:
        print("no server of a run to share: starting one for this stage", flush=True)
        server.wait_ready()
        with RolloutClient(server.state_file, decode=template.decode) as client:
            yield Sampler(client, template, context, level)
