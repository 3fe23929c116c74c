"""Steps that teach nothing, several in a row: noticed, explained, and ended where the recipe says so. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from ..errors import TuluLiteError
from ..recipe import RlvrStage
from ..records import RolloutGroup


class Watchdog:
    """Counts steps in a row without signal, and steps in which nothing ended. state: JSON."""

    def __init__(self, stage: RlvrStage) -> None:
        self.stage = stage
        self.state: dict[str, int] = {"silent": 0, "endless": 0}

    def look(self, step: int, figures: Mapping[str, float], groups: Iterable[RolloutGroup]) -> str | None:
        """A warning where it is time for one. figures: the step's, of all processes; groups: this process's.

        Raises TuluLiteError in its place with `no_signal: stop`.
        """
        silent, endless = figures["silent_groups_share"] >= 1, figures["truncated_share"] >= 1
        if self.stage.compares_beyond_groups:  # groups that are each all right or all wrong teach these
            silent = silent and figures["reward_spread"] == 0
        self.state = {
            "silent": (self.state["silent"] + 1) * silent,
            "endless": (self.state["endless"] + 1) * endless,
        }
        limit = self.stage.no_signal_steps
        fault: TuluLiteError | None = None
        if self.state["endless"] and self.state["endless"] % limit == 0:
            fault = self._endless(step)
        elif self.state["silent"] and self.state["silent"] % limit == 0:
            fault = self._silent(step, figures, groups)
        if fault is not None and self.stage.no_signal == "stop":
            raise fault
        return None if fault is None else "\n".join(fault.lines())

    def _endless(self, step: int) -> TuluLiteError:
        return TuluLiteError(
            f"step {step}: in {self.state['endless']} steps in a row no response ended within its budget of "
            f"{self.stage.sampling.max_tokens} tokens",
            why="the model does not end its answers, or the budget is too short for them; what is cut off is mostly wrong",
            cure="raise sampling.max_tokens, start from a model that was trained to end (sft with the same chat_template), "
            "or set unfinished_reward so that ending is rewarded",
        )

    def _silent(
        self, step: int, figures: Mapping[str, float], groups: Iterable[RolloutGroup]
    ) -> TuluLiteError:
        verdicts = [rollout.verdict for group in groups for rollout in group.rollouts]
        most = Counter(
            f"{one.verifier}: {one.status}, {one.reason or 'no reason given'}" for one in verdicts if one
        )
        common = f"; the most common verdict is {most.most_common(1)[0][0][:200]}" if most else ""
        if figures["pass_rate"] >= 1:
            why = "every response got full marks: the verifier accepts everything, or the prompts are too easy for this model"
            cure = "try the verifier on wrong answers (`python -m verifiers check`); take harder prompts"
        elif figures["pass_rate"] <= 0:
            why = "no response got full marks: the verifier rejects everything, or the prompts are too hard for this model"
            cure = "try the verifier on right answers (`python -m verifiers check`); take easier prompts, or start from a better model"
        else:
            why = "the responses to a prompt are all right or all wrong, so no group tells good from bad"
            cure = "raise samples_per_prompt or the temperature; use `refill` or `curriculum`"
        return TuluLiteError(
            f"step {step}: in {self.state['silent']} steps in a row no group of responses had different rewards",
            why=why + common,
            cure=cure,
        )
