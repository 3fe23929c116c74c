"""From a program and its tests to outcomes: one sandboxed process a program, one question after another."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from verifiers.code.granted import prelude
from verifiers.code.names import State
from verifiers.code.plan import AssertFails, Unit
from verifiers.code.references import Tests
from verifiers.code.session import Candidate, Checker, Gone, Raised, Shelter
from verifiers.code.values import NotPlain, shown
from verifiers.errors import BadReference, VerifierError


class Broken(Exception):
    """The program does not even load; the reason in words."""


@dataclass
class Clock:
    """One judgement's time: all of it, and each test's share."""

    total_s: float
    test_s: float
    end: float = field(init=False)

    def __post_init__(self) -> None:
        self.end = time.monotonic() + self.total_s

    def test_deadline(self) -> float:
        return min(time.monotonic() + self.test_s, self.end)

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.end


@dataclass(frozen=True)
class Outcome:
    passed: bool
    why: str = ""
    weak: bool = False


def open_candidate(stack: ExitStack, shelter: Shelter, clock: Clock, sources: Sequence[str]) -> Candidate:
    """A process in which the prelude, the candidate's code and what follows it have run: `sources`, three.

    Raises Broken when the candidate's code does not load, BadReference when the prelude does not.
    """
    candidate = stack.enter_context(Candidate(shelter))
    candidate.deadline = clock.test_deadline()
    before, code, after = sources
    try:
        if before.strip():
            candidate.run(before)
    except (Gone, Raised) as fault:
        raise VerifierError(f"what the tests need before the program does not run: {fault}") from None
    candidate.deadline = clock.test_deadline()
    try:
        candidate.run(code)
        if after.strip():
            candidate.run(after)
    except (Gone, Raised, NotPlain) as fault:
        raise Broken(f"the program does not load: {fault}") from None
    return candidate


def run_tests(
    tests: Tests, units: Sequence[Unit], code: str, shelter: Shelter, clock: Clock, partial: bool
) -> list[Outcome]:
    """An outcome for each unit, up to the first that fails unless `partial`. Raises Broken."""
    outcomes: list[Outcome] = []
    sources = (tests.before, code, tests.after)
    with ExitStack() as stack:
        candidate = open_candidate(stack, shelter, clock, sources)
        state = State(candidate.put)
        for unit in units:
            if clock.over:
                outcomes.append(Outcome(False, f"timed out after {clock.total_s:g} s in all"))
                break
            if not tests.one_state:
                state = State(candidate.put)
            candidate.deadline = clock.test_deadline()
            outcome, gone = _one(unit, tests, candidate, state, shelter)
            outcomes.append(outcome)
            if not outcome.passed and not partial:
                break
            if gone and partial:  # the other tests deserve a process, where one can be had in the same state
                if any(u.leaves_state for u in units):
                    break
                stack.close()
                candidate = open_candidate(stack, shelter, clock, sources)
                state.ask = candidate.put
    return outcomes


def _one(
    unit: Unit, tests: Tests, candidate: Candidate, state: State, shelter: Shelter
) -> tuple[Outcome, bool]:
    """One test's outcome, and whether the candidate's process is gone with it."""
    weak = unit.weak_asserts > 0
    try:
        if unit.mode == "apart":
            unit.run(state)
        elif unit.mode == "checker":
            why = _in_checker(unit, tests, candidate, shelter)
            weak = why is None
            if why:
                return Outcome(False, why), False
        if unit.mode == "weak" or (weak and unit.mode == "checker"):
            candidate.put(_weak_source(unit, tests), {}, "exec")
    except AssertFails as fault:
        return Outcome(False, f"does not hold: {fault}", weak), False
    except Gone as fault:
        return Outcome(False, str(fault), weak), True
    except (Raised, NotPlain) as fault:
        return Outcome(False, str(fault), weak), False
    except (BadReference, VerifierError):
        raise
    except Exception as fault:  # what a test computes on an answer that is not of the kind it takes
        return Outcome(False, f"{type(fault).__name__}: {shown(str(fault), 200)}", weak), False
    return Outcome(True, "", weak), False


def _in_checker(unit: Unit, tests: Tests, candidate: Candidate, shelter: Shelter) -> str | None:
    """Why the test fails, "" when it passes, None when its calls cannot leave its process."""
    deadline = candidate.deadline
    started = time.monotonic()
    with Checker(shelter) as checker:
        candidate.deadline = deadline + time.monotonic() - started
        outcome, text = checker.check(candidate, unit, tests.setup, tests.check)
    if outcome == "unsendable":
        return None
    if outcome == "passes":
        return ""
    return f"the test {outcome}" + (f": {text}" if text else "")


def _weak_source(unit: Unit, tests: Tests) -> str:
    return unit.source + (f"\n{tests.check}({unit.proxies[0]})\n" if tests.check else "")


def run_calls(
    pairs: Sequence[tuple[Any, Any]],
    function: str,
    code: str,
    shelter: Shelter,
    clock: Clock,
    partial: bool,
    same: Any,
) -> list[Outcome]:
    """An outcome for each (arguments, wanted value). Raises Broken."""
    outcomes: list[Outcome] = []
    with ExitStack() as stack:
        sources = (prelude(code), code, "")
        candidate = open_candidate(stack, shelter, clock, sources)
        for given, wanted in pairs:
            if clock.over:
                outcomes.append(Outcome(False, f"timed out after {clock.total_s:g} s in all"))
                break
            candidate.deadline = clock.test_deadline()
            positional, named = ((), given) if isinstance(given, dict) else (given, {})
            gone = False
            try:
                found = candidate.put((function, tuple(positional), dict(named)), {}, "call")
                passed = same(found, wanted)
                why = "" if passed else f"{function}{shown(tuple(positional))} gave {shown(found)}"
            except (Gone, Raised, NotPlain) as fault:
                passed, why, gone = False, str(fault), isinstance(fault, Gone)
            outcomes.append(Outcome(passed, why))
            if not passed and not partial:
                break
            if gone:
                stack.close()
                candidate = open_candidate(stack, shelter, clock, sources)
    return outcomes
