"""Which prompts a step takes: a seeded order without end, by measured pass rates where the recipe says so. No torch."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from ..datasets.batching import epoch_order
from ..recipe.stages.rlvr_parts import CurriculumSettings
from ..records import Prompt


class PromptStream:
    """The endless sequence of seeded permutations of the prompts, and the place that has been reached in it.

    With a curriculum, prompts whose measured pass rate is outside of (low, high) are passed over with the chance
    1 - keep; a place's chance is a function of the seed and the place alone. `state` is JSON, and all there is.
    """

    def __init__(
        self, prompts: Sequence[Prompt], seed: int, curriculum: CurriculumSettings | None = None
    ) -> None:
        self.prompts, self.seed, self.curriculum = prompts, seed, curriculum
        self.by_id = {prompt.id: prompt for prompt in prompts}
        self.state: dict[str, Any] = {"place": 0, "rates": {}}
        self._order: tuple[int, list[int]] = (-1, [])  # an epoch, and its order

    def take(self, count: int) -> list[Prompt]:
        """The next prompts. For each at most one epoch is passed over: then it comes as it is."""
        chosen: list[Prompt] = []
        passed_over = 0
        while len(chosen) < count:
            prompt = self._at(self.state["place"])
            if self._passes_over(prompt, self.state["place"]) and passed_over < len(self.prompts):
                passed_over += 1
            else:
                chosen.append(prompt)
                passed_over = 0
            self.state["place"] += 1
        return chosen

    def record(self, tried: Iterable[tuple[str, float, int]]) -> None:
        """(prompt id, share passed, responses) of groups that were judged; only a curriculum keeps them."""
        if self.curriculum is None:
            return
        for id, share, responses in tried:
            if responses:
                self.state["rates"][id] = [*self.state["rates"].get(id, []), share][-self.curriculum.window :]

    def rate(self, id: str) -> float | None:
        """The measured pass rate; None when it was never drawn."""
        shares = self.state["rates"].get(id)
        return sum(shares) / len(shares) if shares else None

    def others(self, step: int, taken: Collection[str], count: int) -> list[Prompt]:
        """Up to `count` different prompts from which a step's batch is filled up again: a function of seed and arguments,
        and none of those taken while there are others."""
        some = min(len(self.prompts), count + len(taken))
        drawn = random.Random(f"{self.seed}:refill:{step}").sample(range(len(self.prompts)), some)
        free = [i for i in drawn if self.prompts[i].id not in taken]
        return [self.prompts[i] for i in (free or drawn)[:count]]

    def outside_share(self) -> float:
        """The share of measured prompts that are too easy or too hard now."""
        rates = [self.rate(id) for id in self.state["rates"]]
        return sum(self._is_outside(rate) for rate in rates) / len(rates) if rates else 0.0

    def _at(self, place: int) -> Prompt:
        epoch, within = divmod(place, len(self.prompts))
        if self._order[0] != epoch:
            self._order = (epoch, epoch_order(len(self.prompts), self.seed, epoch))
        return self.prompts[self._order[1][within]]

    def _is_outside(self, rate: float | None) -> bool:
        limits = self.curriculum
        return limits is not None and rate is not None and not limits.low < rate < limits.high

    def _passes_over(self, prompt: Prompt, place: int) -> bool:
        if self.curriculum is None or not self._is_outside(self.rate(prompt.id)):
            return False
        return random.Random(f"{self.seed}:curriculum:{place}").random() >= self.curriculum.keep
