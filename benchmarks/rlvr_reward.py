"""The reward of benchmarks/rlvr.py, one function for both sides: any text has some, so that every group has signal."""

from __future__ import annotations

from verifiers import verifier


@verifier("digit_share", version="1", accepts_truncated=True)
def digit_share(response: str) -> float:
    """The share of digits among the response's characters."""
    return sum(character.isdigit() for character in response) / max(len(response), 1)
