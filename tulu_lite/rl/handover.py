"""The way of new weights to the sampler: whole or as an adapter, at once or when this run's turn on the server comes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from ..errors import TuluLiteError
from ..training.model import adapter_config, adapter_tensors
from ..training.policy_batch import Clock
from ..training.whole import WholeWeights


class Handover:
    """Hands a model's weights to a stages.sampling.Sampler, and knows which version has which step's weights.

    adapts: the server keeps this run's adapter beside its model. holder: the name by which this run asks for turns.
    runs: how many are on the server at the same time, this one included; 1 for adapters that need not wait for a place.
    """

    def __init__(
        self,
        sampler: Any,
        accelerator: Accelerator,
        model: nn.Module,
        adapts: bool,
        holder: str = "",
        runs: int = 1,
    ) -> None:
        self.sampler, self.accelerator, self.model = sampler, accelerator, model
        self.adapts, self.holder, self.runs = adapts, holder, runs
        self.steps: dict[int, int] = {}  # of versions on the server: the step whose weights they are
        self.held: int | None = None  # the step whose weights the sampler has, where nobody else changes them
        self.several = accelerator.num_processes > 1
        self.clock: Clock | None = None

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def step_of(self, version: int) -> int:
        """The step whose weights a version on the server is. Raises TuluLiteError for a version of somebody else."""
        if version not in self.steps:
            raise TuluLiteError(
                f"a response was sampled from weights of version {version}, which this run did not push",
                why="something else replaced the server's weights, so the response is of another policy",
                cure="let each run that trains all weights have a server of its own, or start them by one `tulu-lite run`",
            )
        return self.steps[version]

    def push(self, step: int) -> None:
        """Have the sampler hold the weights after `step`, unless it does. Every process calls it."""
        if self.held == step:
            return
        began = time.perf_counter()
        self.sampler.wake(self.is_main)
        version = self._tell(self.sampler.next_version() if self.is_main else None)
        self.steps[version] = step  # before anything can be sampled from them
        if self.adapts:
            tensors = adapter_tensors(self.model)  # all processes gather, where weights are sharded
            if self.is_main:
                self.sampler.push_adapter(tensors, adapter_config(self.model), version)
        else:
            self.sampler.push(WholeWeights(self.model), self.is_main, version)
        self.accelerator.wait_for_everyone()
        self.held = step
        if self.clock is not None:
            self.clock.add("push", time.perf_counter() - began)

    @contextmanager
    def turn(self, step: int) -> Iterator[None]:
        """Within it the sampler holds the weights after `step`. On a server that several runs share it is a lease with
        whole weights, and a place with adapters, which others wait for. Every process enters it, and all leave it
        together."""
        if self.runs == 1:
            self.push(step)
            yield
            return
        if self.adapts:
            with self._place():
                self.push(step)
                yield
                if self.several:
                    self.accelerator.wait_for_everyone()
            return
        with ExitStack() as lease:
            began = self._given = time.perf_counter()
            if self.is_main:
                version = lease.enter_context(self.sampler.turn(self.holder, step, self._weights))
                self._tell(("held", version))
            else:
                version = self._follow()
            self.steps[version] = step
            self._count(began)
            yield
            if self.several:
                self.accelerator.wait_for_everyone()  # all have their samples

    @contextmanager
    def _place(self) -> Iterator[None]:
        """The main process waits for it, and the others for that one."""
        began = time.perf_counter()
        with self.sampler.place(self.holder, self.runs) if self.is_main else nullcontext():
            self._tell(None)
            if self.clock is not None:
                self.clock.add("wait", time.perf_counter() - began)
            yield

    def _weights(self) -> WholeWeights:
        """Called on the main process when the server holds other weights: the other processes gather beside it."""
        self._given = time.perf_counter()
        self._tell(("push", 0))
        return WholeWeights(self.model)

    def _count(self, began: float) -> None:
        """Waiting until the turn was given (all of it, where nothing had to be pushed), then pushing."""
        now = time.perf_counter()
        given = now if self._given == began else self._given
        if self.clock is not None:
            self.clock.add("wait", given - began)
            self.clock.add("push", now - given)

    def _follow(self) -> int:
        """The other processes' part of a turn: gather when asked to, until the version is told."""
        while True:
            what, version = self._tell(None)
            if what == "held":
                return version
            whole = WholeWeights(self.model)
            for _ in whole:
                pass
            whole.follow()

    def _tell(self, value: Any) -> Any:
        """The main process's value, on all."""
        return broadcast_object_list([value])[0] if self.several else value
