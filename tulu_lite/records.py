"""What flows through the engine: Prompt -> RolloutGroup of Rollouts -> PreferencePair.

Token ids are made once (by the chat template for a prompt, by the sampler for a response) and are
carried from there on; text is only ever decoded from them, never encoded again. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from verifiers import Verdict


@dataclass(frozen=True, slots=True)
class Prompt:
    """One problem to sample responses for."""

    id: str  # stable across runs: a hash of source and text
    text: str  # the rendered chat prompt, for people and judges
    token_ids: tuple[int, ...]
    source: str  # the data set it came from, for metrics by source
    verifier: str = ""  # a name the recipe or the verifier registry knows; "" = cannot be verified
    reference: Any = None  # what the verifier compares with
    user: str = ""  # the last user turn alone


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response. logprobs are those of the distribution it was sampled from."""

    token_ids: tuple[int, ...]  # [T] response tokens, the end token included when it was sampled
    logprobs: tuple[float, ...]  # [T] natural log, at the sampling temperature
    weight_versions: tuple[int, ...]  # [T] version of the weights that sampled each token
    finish_reason: str  # "stop" (an end token was sampled) or "length" (the budget ran out)
    text: str = ""  # decoded without the end token
    verdict: Verdict | None = None  # None until verified
    encoded: bool = (
        False  # made from another model's text: no token was sampled, so there are no logprobs or versions
    )

    def __post_init__(self) -> None:
        if self.encoded and not self.logprobs and not self.weight_versions:
            return
        if not len(self.token_ids) == len(self.logprobs) == len(self.weight_versions):
            raise ValueError(
                f"a rollout has {len(self.token_ids)} tokens but {len(self.logprobs)} logprobs and "
                f"{len(self.weight_versions)} weight versions: the sampler's answer is not whole"
            )

    @property
    def finished(self) -> bool:
        return self.finish_reason == "stop"

    @property
    def score(self) -> float | None:
        return None if self.verdict is None else self.verdict.score

    def judged(self, verdict: Verdict) -> Rollout:
        return replace(self, verdict=verdict)


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """All responses sampled for one prompt in one step."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]

    @property
    def scores(self) -> list[float | None]:
        return [rollout.score for rollout in self.rollouts]


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A chosen and a rejected response to one prompt, token ids as they were sampled."""

    prompt: Prompt
    chosen: Rollout
    rejected: Rollout
    provenance: Mapping[str, Any] = field(default_factory=dict)  # stage, seed, weight version, sample indices
