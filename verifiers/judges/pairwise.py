"""Two responses to one prompt, compared in both orders: `judge_pairwise`, and `compare` for pairs at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from verifiers.base import Verdict, incorrect, scored, strip_thinking
from verifiers.errors import BadReference, SpecError, VerifierError
from verifiers.judges import prompts
from verifiers.judges.endpoint import Outage
from verifiers.judges.judge import Judge, no_answer, text_of
from verifiers.judges.prompts import Question
from verifiers.judges.reading import Unreadable
from verifiers.registry import verifier

Better = Literal["first", "second", "tie"]
_MIRRORED: dict[str, Better] = {"first": "second", "second": "first", "tie": "tie"}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Which of two responses is better. `orders` are what was said of each order, in the first order's terms."""

    better: Better
    orders: tuple[Better, Better]
    reason: str


@verifier("judge_pairwise", runs="async", version=prompts.VERSION)
@dataclass(kw_only=True, eq=False)
class JudgePairwise(Judge):
    """An LLM compares the response with another one, in both orders: 1 better, 0 worse, 0.5 a tie.

    Two orders that disagree are a tie. The other response is the reference, or the row's column `against`.

    against: the column with the other response; missing: the reference.
    """

    against: str | None = None

    calls = 2

    def check_reference(self, reference: Any) -> None:
        if self.against is None:
            text_of(reference, "the other response")

    async def verify(
        self, response: str, prompt: str, info: Mapping[str, Any], reference: Any = None
    ) -> Verdict:
        other = text_of(reference if self.against is None else info.get(self.against), "the other response")
        other = strip_thinking(other) or ""
        if response.strip() == other.strip():
            return scored(0.5, "the two are the same")
        if not response.strip():
            return incorrect("an empty response")
        if not other.strip():
            return scored(1.0, "the other response is empty")
        try:
            found = await self.compare(prompt, response, other)
        except (Outage, Unreadable) as fault:
            return no_answer(fault)
        return scored({"first": 1.0, "second": 0.0, "tie": 0.5}[found.better], found.reason)

    async def compare(self, prompt: str, first: str, second: str) -> Comparison:
        """Both orders at once. Raises Outage or Unreadable."""
        questions = [
            Question(
                "pairwise",
                prompts.PAIRWISE,
                self.quote(QUESTION=prompt, FIRST_RESPONSE=one, SECOND_RESPONSE=other),
                prompts.BETTER,
            )
            for one, other in ((first, second), (second, first))
        ]
        replies = await self.ask_all(questions)
        there: Better = replies[0]["better"]
        back: Better = _MIRRORED[replies[1]["better"]]
        reason = (
            f"in order: {there} ({replies[0]['analysis']}); in the other: {back} ({replies[1]['analysis']})"
        )
        return Comparison(there if there == back else "tie", (there, back), reason)


async def acompare(prompt: str, first: str, second: str, judge: JudgePairwise) -> Comparison:
    """Which of two finished responses is better. Raises VerifierError when the judge gives no answer."""
    stripped = [strip_thinking(text) for text in (first, second)]
    if None in stripped:
        raise BadReference("a response whose <think> is never closed cannot be compared")
    try:
        return await judge.compare(prompt, stripped[0] or "", stripped[1] or "")
    except (Outage, Unreadable) as fault:
        raise VerifierError(no_answer(fault).reason) from None


def compare(prompt: str, first: str, second: str, **settings: Any) -> Comparison:
    """As `acompare`, from plain code, with a judge's settings (base_url, model, ...).

    Raises SpecError for wrong settings, VerifierError when the judge gives no answer.
    """
    import asyncio

    try:
        judge = JudgePairwise(**settings)
    except TypeError as fault:
        raise SpecError(f"judge_pairwise: {fault}") from None

    async def once() -> Comparison:
        try:
            return await acompare(prompt, first, second, judge)
        finally:
            await judge.aclose()

    return asyncio.run(once())
