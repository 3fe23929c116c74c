"""The judges: `judge_aspect`, `judge_reference`, `judge_rubric` (and `judge_pairwise`, in pairwise.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from verifiers.base import Verdict, correct, incorrect, scored
from verifiers.errors import BadReference, SpecError
from verifiers.judges import prompts
from verifiers.judges.endpoint import Outage
from verifiers.judges.judge import Judge, grade, no_answer, text_of
from verifiers.judges.prompts import Question
from verifiers.judges.reading import Unreadable
from verifiers.registry import verifier

Aspect = Literal["helpfulness", "instruction_following", "honesty", "truthfulness", "all"]
EMPTY = "an empty response"


@verifier("judge_aspect", runs="async", version=prompts.VERSION)
@dataclass(kw_only=True, eq=False)
class JudgeAspect(Judge):
    """An LLM grades the response from 1 to 5, as 0 to 1: its helpfulness, instruction following, honesty or
    truthfulness, or the mean of all four (UltraFeedback, Tülu 3), each asked for by itself.

    aspect: one of the four, or "all".
    """

    aspect: Aspect = "all"

    def __post_init__(self) -> None:
        self.calls = len(self._asked())
        super().__post_init__()

    def _asked(self) -> list[str]:
        return list(prompts.ASPECTS) if self.aspect == "all" else [self.aspect]

    async def verify(self, response: str, prompt: str) -> Verdict:
        if not response.strip():
            return incorrect(EMPTY)
        quotation = self.quote(QUESTION=prompt, RESPONSE=response)
        asked = self._asked()
        questions = [Question(name, prompts.ASPECTS[name], quotation, prompts.GRADE) for name in asked]
        try:
            replies = await self.ask_all(questions)
        except (Outage, Unreadable) as fault:
            return no_answer(fault)
        scores = [int(reply["score"]) for reply in replies]
        reason = "; ".join(
            f"{name} {score}/5: {reply['analysis']}"
            for name, score, reply in zip(asked, scores, replies, strict=True)
        )
        return scored(math.fsum(map(grade, scores)) / len(scores), reason)


def check_answer(reference: Any) -> None:
    text_of(reference, "the right answer")


@verifier("judge_reference", runs="async", version=prompts.VERSION, check_reference=check_answer)
@dataclass(kw_only=True, eq=False)
class JudgeReference(Judge):
    """An LLM says whether the response arrives at the reference answer, in whatever words."""

    async def verify(self, response: str, reference: Any, prompt: str) -> Verdict:
        answer = text_of(reference, "the right answer")
        if not response.strip():
            return incorrect(EMPTY)
        quotation = self.quote(QUESTION=prompt, REFERENCE_ANSWER=answer, RESPONSE=response)
        try:
            (reply,) = await self.ask_all(
                [Question("reference", prompts.REFERENCE, quotation, prompts.CORRECT)]
            )
        except (Outage, Unreadable) as fault:
            return no_answer(fault)
        made = correct if reply["verdict"] == "correct" else incorrect
        return made(str(reply["analysis"]))


MAX_CRITERIA = 40


def read_criteria(rubric: Any) -> list[tuple[str, float]]:
    """[(criterion, weight)] of a list of texts or {criterion: ..., weight: ...}. Raises BadReference."""
    if not isinstance(rubric, (list, tuple)) or not 0 < len(rubric) <= MAX_CRITERIA:
        raise BadReference(f"a rubric is text, or a list of 1 to {MAX_CRITERIA} criteria")
    criteria: list[tuple[str, float]] = []
    for item in rubric:
        text, weight = (item, 1.0) if isinstance(item, str) else _weighted(item)
        if not isinstance(text, str) or not text.strip():
            raise BadReference(f"a criterion must be text, got {str(item)[:80]!r}")
        criteria.append((text, weight))
    if sum(max(weight, 0.0) for _, weight in criteria) <= 0:
        raise BadReference("no criterion has a weight above 0")
    return criteria


def _weighted(item: Any) -> tuple[Any, float]:
    if not isinstance(item, dict) or set(item) - {"criterion", "weight"}:
        raise BadReference(f"a criterion is text or {{criterion, weight}}, got {str(item)[:80]!r}")
    weight = item.get("weight", 1.0)
    if (
        isinstance(weight, bool)
        or not isinstance(weight, (int, float))
        or not math.isfinite(weight)
        or not weight
    ):
        raise BadReference(f"the weight of a criterion is {weight!r}, it must be a number other than 0")
    return item.get("criterion"), float(weight)


@verifier("judge_rubric", runs="async", version=prompts.VERSION)
@dataclass(kw_only=True, eq=False)
class JudgeRubric(Judge):
    """An LLM judges the response by a rubric, a policy, or weighted criteria.

    rubric: text, or a list of criteria: texts or {criterion: ..., weight: ...}. Missing: the row's reference.
    answer: of a text: "grade", from 1 to 5, or "complies", yes or no (for a policy). Of criteria, the score is
    the weight of those met over the sum of all positive weights; what a negative weight takes away ends at 0.
    """

    rubric: Any = None
    answer: Literal["grade", "complies"] = "grade"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rubric is not None:
            try:
                self.check_rubric(self.rubric)
            except BadReference as fault:
                raise SpecError(f"judge_rubric: {fault}") from None

    def check_rubric(self, rubric: Any) -> None:
        if isinstance(rubric, str):
            text_of(rubric, "a rubric")
        else:
            read_criteria(rubric)

    def check_reference(self, reference: Any) -> None:
        if self.rubric is None:
            self.check_rubric(reference)

    async def verify(self, response: str, prompt: str, reference: Any = None) -> Verdict:
        rubric = self.rubric if self.rubric is not None else reference
        self.check_rubric(rubric)
        if not response.strip():
            return incorrect(EMPTY)
        try:
            if isinstance(rubric, str):
                return await self._by_text(response, prompt, rubric)
            return await self._by_criteria(response, prompt, read_criteria(rubric))
        except (Outage, Unreadable) as fault:
            return no_answer(fault)

    async def _by_text(self, response: str, prompt: str, rubric: str) -> Verdict:
        if self.answer == "complies":
            quotation = self.quote(POLICY=rubric, QUESTION=prompt, RESPONSE=response)
            (reply,) = await self.ask_all([Question("policy", prompts.POLICY, quotation, prompts.COMPLIES)])
            made = correct if reply["verdict"] == "complies" else incorrect
            return made(str(reply["analysis"]))
        quotation = self.quote(RUBRIC=rubric, QUESTION=prompt, RESPONSE=response)
        (reply,) = await self.ask_all([Question("rubric", prompts.RUBRIC, quotation, prompts.GRADE)])
        return scored(grade(reply["score"]), f"{reply['score']}/5: {reply['analysis']}")

    async def _by_criteria(self, response: str, prompt: str, criteria: list[tuple[str, float]]) -> Verdict:
        texts = {f"CRITERION_{number}": text for number, (text, _) in enumerate(criteria, 1)}
        quotation = self.quote(**texts, QUESTION=prompt, RESPONSE=response)
        schema = prompts.criteria_schema(len(criteria))
        (reply,) = await self.ask_all([Question("criteria", prompts.CRITERIA, quotation, schema)])
        met = [bool(reply[f"criterion_{number}"]) for number in range(1, len(criteria) + 1)]
        gained = math.fsum(weight for (_, weight), yes in zip(criteria, met, strict=True) if yes)
        most = math.fsum(weight for _, weight in criteria if weight > 0)
        marks = ", ".join(f"{number} {'met' if yes else 'not met'}" for number, yes in enumerate(met, 1))
        return scored(min(1.0, max(0.0, gained / most)), f"{marks}: {reply['analysis']}")
