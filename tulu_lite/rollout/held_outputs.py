"""An engine that tells its API server of a response once a second and when it ends, not at every token.  [vLLM 0.32]

vLLM's engine sends each step's tokens to the API server, which adds each to its response. For requests that are answered
as a whole that is work for nothing, and on a CPU it is taken from the sampling itself: an eighth of it with a small
model. Here the engine keeps what it has sampled of such a response and sends it joined. The API server ends up with the
same, only later. No token is told of under another weight version than the one that sampled it: when the version
changes, all that is kept is sent first. Once a second it is sent anyway, so that the count of sampled tokens shows that
the engine lives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .lean import FLAG

LONGEST_S = 1.0  # that a sampled token may be kept
_OTHERS = (  # fields of vLLM's EngineCoreOutput that tell more than tokens and their log-probabilities
    "new_prompt_logprobs_tensors", "prompt_token_id_logprobs", "pooling_output", "kv_transfer_params",
    "ec_transfer_params", "routed_experts", "mm_cache_miss_hashes", "new_sampling_mask", "spec_decode_metrics",
)  # fmt: skip


class Held:
    """What an engine has sampled and not sent.

    send: puts (client, vLLM's EngineCoreOutputs) in the queue to the API server.
    """

    def __init__(self, send: Callable[[tuple[int, Any]], None]) -> None:
        self.send = send
        self._kept: dict[str, tuple[int, _Joined]] = {}  # by request: its client, and its outputs so far
        self._version: str | None = None  # of the weights that sampled all of it
        self._since = 0.0

    def pass_on(
        self, outputs: dict[int, Any], requests: Mapping[str, Any], version: str | None, now: float
    ) -> None:
        """Take out of one step's EngineCoreOutputs, by client, what can wait, and those that say nothing else; send what
        must not wait any longer.

        requests: vLLM's, by id, those that have ended left out. version: of the weights that sampled this step.
        """
        kind = type(next(iter(outputs.values())))
        if self._kept and version != self._version:
            self._send_all(kind)
        for client, step in outputs.items():
            going = []
            for output in step.outputs:
                if (
                    output.finish_reason is None
                    and _plain(output)
                    and can_wait(requests.get(output.request_id))
                ):
                    self._keep(client, output, version, now)
                else:
                    going.append(self._whole(output))
            step.outputs = going
        for client in [client for client, step in outputs.items() if _silent(step)]:
            del outputs[client]
        if self._kept and now - self._since >= LONGEST_S:
            self._send_all(kind)

    def _keep(self, client: int, output: Any, version: str | None, now: float) -> None:
        if not self._kept:
            self._version, self._since = version, now
        if output.request_id in self._kept:
            self._kept[output.request_id][1].add(output)
        else:
            self._kept[output.request_id] = (client, _Joined(output))

    def _whole(self, output: Any) -> Any:
        """An output with all that was kept of its response before it."""
        _, joined = self._kept.pop(output.request_id, (0, None))
        return output if joined is None else joined.ending_in(output)

    def _send_all(self, kind: type) -> None:
        by_client: dict[int, list[Any]] = {}
        for client, joined in self._kept.values():
            by_client.setdefault(client, []).append(joined.output())
        for client, kept in by_client.items():
            self.send((client, kind(outputs=kept, weight_version=self._version)))
        self._kept.clear()


class _Joined:
    """Outputs of one response in the order they were sampled, as one: the first, with the tokens of all."""

    def __init__(self, first: Any) -> None:
        self.first = first
        self.tokens: list[int] = []
        self.logprobs: list[Any] = []
        self.events: list[Any] = []
        self.add(first)

    def add(self, later: Any) -> None:
        self.tokens += later.new_token_ids
        if later.new_logprobs is not None:
            self.logprobs.append(later.new_logprobs)
        self.events += later.events or ()

    def output(self) -> Any:
        return self._into(self.first)

    def ending_in(self, last: Any) -> Any:
        self.add(last)
        last.prefill_stats = self.first.prefill_stats or last.prefill_stats
        return self._into(last)

    def _into(self, output: Any) -> Any:
        output.new_token_ids, output.events = self.tokens, self.events or None
        output.new_logprobs = joined_logprobs(self.logprobs)
        return output


def joined_logprobs(parts: list[Any]) -> Any:
    """One of vLLM's LogprobsLists, arrays [tokens, 1 + alternatives], of several; None of none."""
    if len(parts) < 2:
        return parts[0] if parts else None
    return parts[0]._replace(
        logprob_token_ids=np.concatenate([part.logprob_token_ids for part in parts]),
        logprobs=np.concatenate([part.logprobs for part in parts]),
        sampled_token_ranks=np.concatenate([part.sampled_token_ranks for part in parts]),
        cu_num_generated_tokens=None,
    )


def can_wait(request: Any) -> bool:
    """Whether a vLLM request is one of ours that is answered as a whole, and the engine alone ends it."""
    parameters = getattr(request, "sampling_params", None)
    return (
        parameters is not None
        and bool((parameters.extra_args or {}).get(FLAG))
        and parameters.output_kind.name == "FINAL_ONLY"
        and not parameters.stop
    )


def _plain(output: Any) -> bool:
    return not output.num_nans_in_logits and all(getattr(output, name) is None for name in _OTHERS)


def _silent(step: Any) -> bool:
    named = ("scheduler_stats", "utility_output", "finished_requests", "wave_complete", "start_wave")
    return not step.outputs and all(getattr(step, name) is None for name in named)


def seldom(make_stats: Callable[..., Any]) -> Callable[..., Any]:
    """A vLLM scheduler's make_stats that counts itself only once a second while it has work. What is counted since the
    last time is part of the next; figures that are of one step alone are told at once."""

    def make_seldom(self: Any, *of_the_step: Any, **named: Any) -> Any:
        now = time.monotonic()
        nothing_new = all(one is None for one in (*of_the_step, *named.values()))
        if self.running and nothing_new and now - getattr(self, "counted_at", -LONGEST_S) < LONGEST_S:
            return None
        self.counted_at = now
        return make_stats(self, *of_the_step, **named)

    return make_seldom


def use_it() -> None:
    """Before the engine is forked."""
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore

    attach = EngineCore._attach_weight_version

    def attach_and_hold(self: Any, outputs: dict[int, Any]) -> None:
        """vLLM calls it on the outputs of each step before they are sent."""
        attach(self, outputs)
        queue = getattr(self, "output_queue", None)
        if queue is None or not outputs:  # an engine in the process that asks it has no queue
            return
        if not hasattr(self, "held_outputs"):
            self.held_outputs = Held(queue.put_nowait)
        self.held_outputs.pass_on(outputs, self.scheduler.requests, self._weight_version, time.monotonic())

    EngineCore._attach_weight_version = attach_and_hold  # type: ignore[method-assign]
    Scheduler.make_stats = seldom(Scheduler.make_stats)  # type: ignore[method-assign]
