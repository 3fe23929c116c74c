"""Verifiers: did this response earn its reward?  Sample in, Verdict out, an error is never a score.

    from verifiers import Sample, VerifierPool, build

    build("gsm8k").verify(Sample("... so \\\\boxed{72}", "#### 72"))

    with VerifierPool(workers=4) as pool:
        verdicts = pool.verify([("math", Sample(response, reference)) for response, reference in rows])

This package imports nothing of tulu_lite and no torch, and can be used by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from verifiers.base import Sample, Status, Verdict, correct, error, incorrect, scored, unverifiable
from verifiers.errors import BadReference, NameTaken, SpecError, UnknownVerifier, VerifierError
from verifiers.registry import BUILT_IN, names, verifier
from verifiers.spec import Spec, Verifier, build

if TYPE_CHECKING:
    from verifiers.pool import VerifierPool

BUILT_IN.update(
    {
        "exact": "verifiers.text",
        "choice": "verifiers.text",
        "number": "verifiers.maths.judges",
        "gsm8k": "verifiers.maths.judges",
        "math": "verifiers.maths.judges",
        "boxed": "verifiers.maths.judges",
        "ifeval": "verifiers.constraints.ifeval",
        "ifeval_loose": "verifiers.constraints.ifeval",
        "ifbench": "verifiers.constraints.ifbench",
        "ifbench_loose": "verifiers.constraints.ifbench",
        "judge_aspect": "verifiers.judges.verdicts",
        "judge_reference": "verifiers.judges.verdicts",
        "judge_rubric": "verifiers.judges.verdicts",
        "judge_pairwise": "verifiers.judges.pairwise",
        "reward_model": "verifiers.judges.reward",
        "no_commas": "verifiers.constraints.single",
        "starts_with": "verifiers.constraints.single",
        "ends_with": "verifiers.constraints.single",
        "contains": "verifiers.constraints.single",
        "excludes": "verifiers.constraints.single",
        "length": "verifiers.constraints.single",
        "regex": "verifiers.constraints.single",
        "lowercase": "verifiers.constraints.single",
        "uppercase": "verifiers.constraints.single",
        "bullets": "verifiers.constraints.single",
        "language": "verifiers.constraints.single",
        "think_answer": "verifiers.constraints.formats",
        "json": "verifiers.constraints.formats",
        "json_schema": "verifiers.constraints.formats",
        "language_consistency": "verifiers.constraints.style",
        "soft_length": "verifiers.constraints.style",
        "no_repetition": "verifiers.constraints.style",
        "code_asserts": "verifiers.code.judges",
        "code_humaneval": "verifiers.code.judges",
        "code_io": "verifiers.code.judges",
        "code_stdio": "verifiers.code.judges",
    }
)

__all__ = [
    "BadReference",
    "NameTaken",
    "Sample",
    "Spec",
    "SpecError",
    "Status",
    "UnknownVerifier",
    "Verdict",
    "Verifier",
    "VerifierError",
    "VerifierPool",
    "build",
    "correct",
    "error",
    "incorrect",
    "names",
    "scored",
    "unverifiable",
    "verifier",
]


def __getattr__(name: str) -> Any:
    if name == "VerifierPool":  # not needed in a worker
        from verifiers.pool import VerifierPool

        return VerifierPool
    raise AttributeError(f"module 'verifiers' has no attribute {name!r}")
