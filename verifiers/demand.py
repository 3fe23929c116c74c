"""Which sandbox tier a run demands: said to the pool, known in its workers.

A verifier that executes what the model wrote asks `demanded()` and hands the answer to
`verifiers.sandbox.choose`, so that a recipe's demand reaches it wherever it runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from verifiers.errors import VerifierError

TIERS = ("limits", "landlock", "namespaces", "bubblewrap")  # weakest first
TIER_VARIABLE = "VERIFIERS_SANDBOX"
WEAK_VARIABLE = "VERIFIERS_ALLOW_WEAK_SANDBOX"


@dataclass(frozen=True, slots=True)
class Demand:
    """`tier`: at least this one, None for the strongest there is; `allow_weak`: consent to resource limits only."""

    tier: str | None = None
    allow_weak: bool = False

    def __post_init__(self) -> None:
        if self.tier is not None and self.tier not in TIERS:
            raise VerifierError(
                f"no sandbox tier is called {self.tier!r}",
                cure=f"There are, weakest first: {', '.join(TIERS)}.",
            )

    def environment(self) -> dict[str, str]:
        return {TIER_VARIABLE: self.tier or "", WEAK_VARIABLE: "1" if self.allow_weak else ""}

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Demand:
        return cls(environment.get(TIER_VARIABLE) or None, bool(environment.get(WEAK_VARIABLE)))

    def joined(self, tier: str | None, allow_weak: bool) -> Demand:
        """With what a verifier itself asks for: the stronger tier of both, and consent if either gave it."""
        asked = [name for name in (self.tier, tier and tier.lower()) if name]
        return Demand(max(asked, key=TIERS.index, default=None), self.allow_weak or allow_weak)


def demanded() -> Demand:
    """What the pool that this worker belongs to demands; elsewhere what the environment says, or nothing."""
    return Demand.of(os.environ)
