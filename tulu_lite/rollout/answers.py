"""Reads the server's answers and believes nothing: what is missing or does not add up is an error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..errors import ServerError
from ..records import Rollout
from .adapter_state import Adapter
from .lean import NO_LOGPROB


class Unfinished(Exception):
    """A response was cut off by the server (aborted by a weight update), not by its length or an end token."""


def parse_choices(data: Any, n: int) -> list[Rollout]:
    """The n responses of one answer of /inference/v1/generate, by index.

    Raises Unfinished when any of them was aborted, ServerError when the answer is not whole.
    """
    try:
        choices = sorted(data["choices"], key=lambda choice: choice["index"])
        if any(choice["finish_reason"] == "abort" for choice in choices):
            raise Unfinished
        rollouts = [_rollout(choice) for choice in choices]
        indices = [choice["index"] for choice in choices]
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ServerError(
            f"the rollout server's answer cannot be read: {error!r}", str(data)[:300]
        ) from error
    if indices != list(range(n)):
        raise ServerError(f"the rollout server was asked for {n} responses and gave {len(indices)}")
    return rollouts


def _rollout(choice: dict[str, Any]) -> Rollout:
    tokens = tuple(choice["token_ids"])
    logprobs = _logprobs(choice["logprobs"], tokens)
    if not tokens:
        raise ValueError("a response without tokens")
    if not all(math.isfinite(value) and value > NO_LOGPROB for value in logprobs):
        raise ValueError("a logprob is not finite: the model's logits are NaN or infinite")
    reason = choice["finish_reason"]
    if reason not in ("stop", "length"):
        raise ValueError(f"a response ended by {reason!r}")
    return Rollout(tokens, logprobs, weight_versions(choice["weight_versions"], len(tokens)), reason)


def _logprobs(given: Any, tokens: tuple[int, ...]) -> tuple[float, ...]:
    """A lean answer's list, or of a server that is not ours a list of what it says of each token."""
    if isinstance(given, list):
        logprobs = tuple(map(float, given))
        if len(logprobs) != len(tokens):
            raise ValueError(f"{len(logprobs)} logprobs for {len(tokens)} tokens")
        return logprobs
    if tuple(entry["token_id"] for entry in given["content"]) != tokens:
        raise ValueError("its logprobs are of other tokens")
    return tuple(float(entry["logprob"]) for entry in given["content"])


def weight_versions(spans: list[dict[str, Any]], length: int) -> tuple[int, ...]:
    """[{version, start, end}, ...] as one version a token: [length]. Raises ValueError when a token has none."""
    versions: list[int] = []
    for span in spans:
        if span["start"] != len(versions):
            raise ValueError(f"no weight version for token {len(versions)}")
        versions += [int(span["version"])] * (span["end"] - span["start"])
    if len(versions) != length:
        raise ValueError(f"weight versions for {len(versions)} of {length} tokens")
    return tuple(versions)


def at_version(rollouts: Sequence[Rollout], adapter: Adapter) -> list[Rollout]:
    """Responses of an adapter, with the adapter's version as the weight version of each token.

    The server tells the version of the model below it. Raises ServerError when that is not the one the adapter was
    made for: it would be another policy.
    """
    below = {version for rollout in rollouts for version in rollout.weight_versions}
    if below - {adapter.base_version}:
        raise ServerError(
            f"the rollout server's weights were replaced under the adapter {adapter.served_name}",
            f"it was made for weight version {adapter.base_version} and was sampled on {sorted(below)}",
            "load the adapter's own model before sampling from it; only one may be loaded while adapters are trained",
        )
    return [
        replace(rollout, weight_versions=(adapter.version,) * len(rollout.token_ids)) for rollout in rollouts
    ]
