"""Programs judged by their tests: `code_asserts`, `code_humaneval`, `code_io` and `code_stdio`.

Which part of a response is the program: extract.py. How a test is taken apart: expressions.py, plan.py.
What holds whatever the program does: its process is never told a wanted value (but for tests said to be
weak) and never says what the verdict is; every reason names the sandbox's tier.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from verifiers.base import Verdict, incorrect, scored
from verifiers.code import extract, references, stdio
from verifiers.code.references import Tests
from verifiers.code.running import Broken, Clock, Outcome, run_calls, run_tests
from verifiers.code.session import Shelter
from verifiers.code.values import as_lists, near
from verifiers.demand import demanded
from verifiers.errors import SpecError
from verifiers.registry import verifier
from verifiers.sandbox import Limits, Tier, choose

SPARE_S = 2.0  # of the pool's deadline, for starting and ending processes on a busy machine


class CodeVerifier:
    """What the four have in common.

    partial             the score is the share of tests that pass; without it all must
    time_limit_s        wall-clock seconds a test may take (the program's loading counts as one)
    total_limit_s       wall-clock seconds that all of it may take
    cpu_limit_s         processor seconds of one process: what ends a busy loop, also on a crowded machine
    memory_mb           memory of the program's process
    sandbox             the tier that it must have at least: bubblewrap, namespaces, landlock, limits
    allow_weak_sandbox  where nothing better is to be had, run under resource limits alone
    max_tests           use only this many tests, evenly spread over the reference's
    """

    def __init_subclass__(cls) -> None:
        """What `**options` stands for is said in the signature, so that a name spelt wrongly is found."""
        own = inspect.signature(cls.__init__).parameters
        if "options" in own:
            common = list(inspect.signature(CodeVerifier.__init__).parameters.values())[1:]
            mine = [p for name, p in own.items() if name not in ("self", "options")]
            cls.__signature__ = inspect.Signature([*mine, *common])  # type: ignore[attr-defined]
            annotations = {k: v for k, v in cls.__init__.__annotations__.items() if k != "options"}
            cls.__init__.__annotations__ = {**CodeVerifier.__init__.__annotations__, **annotations}

    def __init__(
        self,
        partial: bool = False,
        time_limit_s: float = 10.0,
        total_limit_s: float = 20.0,
        cpu_limit_s: int = 6,
        memory_mb: int = 512,
        sandbox: str | None = None,
        allow_weak_sandbox: bool = False,
        max_tests: int | None = None,
    ) -> None:
        for name, value in (("time_limit_s", time_limit_s), ("total_limit_s", total_limit_s)):
            if not 0 < value <= 3600:
                raise SpecError(f"{name} is {value!r}, it must be above 0 and at most 3600 s")
        if max_tests is not None and max_tests < 1:
            raise SpecError(f"max_tests is {max_tests!r}, it must be at least 1")
        if sandbox is not None and sandbox.upper() not in Tier.__members__:
            tiers = ", ".join(str(tier) for tier in sorted(Tier, reverse=True))
            raise SpecError(f"sandbox is {sandbox!r}, not one of {tiers}")
        self.partial, self.max_tests = partial, max_tests
        self.time_limit_s, self.total_limit_s = time_limit_s, total_limit_s
        self.timeout_s = total_limit_s + SPARE_S  # the pool's own deadline for this verifier
        self._limits = Limits(cpu_s=cpu_limit_s, memory_mb=memory_mb)
        self._sandbox, self._allow_weak = sandbox, allow_weak_sandbox

    def shelter(self) -> Shelter:
        """As strong as this verifier and its pool demand. Raises SandboxUnavailable."""
        demand = demanded().joined(self._sandbox, self._allow_weak)
        return Shelter(choose(demand.tier, demand.allow_weak), self._limits)

    def clock(self) -> Clock:
        return Clock(self.total_limit_s, self.time_limit_s)

    def some(self, tests: Sequence[Any]) -> Sequence[Any]:
        """At most max_tests of them, evenly spread."""
        if self.max_tests is None or len(tests) <= self.max_tests:
            return tests
        return [tests[index * len(tests) // self.max_tests] for index in range(self.max_tests)]

    def verdict(self, outcomes: Sequence[Outcome], count: int, tier: Tier, code: str) -> Verdict:
        passed = sum(outcome.passed for outcome in outcomes)
        weak = sum(outcome.weak for outcome in outcomes)
        first = next((outcome.why for outcome in outcomes if not outcome.passed), "")
        words = f"{passed} of {count} tests passed"
        if weak:
            words += f", {weak} in the weak mode, where the program's own process says so"
        words += f" [{tier}]" + (f"; {first}" if first else "")
        score = passed / count if self.partial else float(passed == count)
        return replace(scored(score, words, code), tier=str(tier))

    def broken(self, fault: Broken, count: int, tier: Tier, code: str) -> Verdict:
        return self.verdict([Outcome(False, str(fault))], count, tier, code)


def _function_tests(judge: CodeVerifier, tests: Tests, code: str) -> Verdict:
    shelter = judge.shelter()
    units = tests.units if tests.one_state else judge.some(tests.units)
    try:
        outcomes = run_tests(tests, units, code, shelter, judge.clock(), judge.partial)
    except Broken as fault:
        return judge.broken(fault, len(units), shelter.tier, code)
    return judge.verdict(outcomes, len(units), shelter.tier, code)


@verifier("code_asserts", version="2")
class CodeAsserts(CodeVerifier):
    """The response's program satisfies every assert of the reference (MBPP).

    The reference is a string, a list of strings, or a mapping {test_list, test_setup_code, test_imports}.
    """

    def check_reference(self, reference: Any) -> None:
        references.read_asserts(reference)

    def verify(self, response: str, reference: Any) -> Verdict:
        tests = references.read_asserts(reference)
        code, why = extract.program(response, tests.names)
        return incorrect(why) if code is None else _function_tests(self, tests, code)


@verifier("code_humaneval", version="2")
class CodeHumanEval(CodeVerifier):
    """The response's function passes a check function (HumanEval): {test, entry_point, prompt}.

    The response may define the function anew or continue the prompt with its body.
    """

    def check_reference(self, reference: Any) -> None:
        references.read_check(reference)

    def verify(self, response: str, reference: Any) -> Verdict:
        tests = references.read_check(reference)
        code, why = extract.program(response, tests.names)
        if code is None:
            return incorrect(why)
        if not extract.defines(code, tests.names[0]):
            code = extract.continuation(tests.prompt, code)
        return _function_tests(self, tests, code)


@verifier("code_io", version="2")
class CodeIo(CodeVerifier):
    """Called with each input, the response's function (or method of a class Solution) returns the output.

    The reference is {fn_name, inputs, outputs} or {fn_name, tests: [{input, output}, ...]}. Tuples count as lists, as JSON knows none.
    tolerance  how far a float may be off, absolutely or as a share; 0 for not at all
    wrapped    each output is a list that holds the value (some APPS rows); a reference may say it of its own row
    """

    def __init__(self, tolerance: float = 0.0, wrapped: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.tolerance, self.wrapped = _tolerance(tolerance), wrapped

    def check_reference(self, reference: Any) -> None:
        references.read_calls(reference)

    def verify(self, response: str, reference: Any) -> Verdict:
        tests = references.read_calls(reference)
        code, why = extract.program(response, (tests.function, "Solution"))
        if code is None:
            return incorrect(why)
        shelter = self.shelter()
        pairs = self.some(list(zip(tests.inputs, tests.outputs, strict=True)))
        try:
            outcomes = run_calls(
                pairs, tests.function, code, shelter, self.clock(), self.partial, self._comparison()
            )
        except Broken as fault:
            return self.broken(fault, len(pairs), shelter.tier, code)
        return self.verdict(outcomes, len(pairs), shelter.tier, code)

    def _comparison(self) -> Callable[[Any, Any], bool]:
        def same(found: Any, wanted: Any) -> bool:
            if self.wrapped and isinstance(wanted, list) and len(wanted) == 1:
                wanted = wanted[0]
            found, wanted = as_lists(found), as_lists(wanted)
            return near(found, wanted, self.tolerance) if self.tolerance else bool(found == wanted)

        return same


@verifier("code_stdio", version="2")
class CodeStdio(CodeVerifier):
    """Run once for each input, the response's program prints the output (LiveCodeBench, CodeContests).

    The reference is {inputs: [...], outputs: [...]} or a list of {input, output}. White space at the ends of
    lines and of the text is ignored; where lines differ, their words are compared one by one.
    tolerance  how far a number with a decimal point may be off, absolutely or as a share; 0 for not at all
    """

    def __init__(self, tolerance: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.tolerance = _tolerance(tolerance)

    def check_reference(self, reference: Any) -> None:
        references.read_programs(reference)

    def verify(self, response: str, reference: Any) -> Verdict:
        tests = references.read_programs(reference)
        code, why = extract.program(response)
        if code is None:
            return incorrect(why)
        shelter, clock = self.shelter(), self.clock()
        pairs = self.some(list(zip(tests.inputs, tests.outputs, strict=True)))
        outcomes: list[Outcome] = []
        for given, wanted in pairs:
            if clock.over:
                outcomes.append(Outcome(False, f"timed out after {self.total_limit_s:g} s in all"))
                break
            outcomes.append(stdio.run(code, given, wanted, shelter, clock, self.tolerance))
            if not outcomes[-1].passed and not self.partial:
                break
        return self.verdict(outcomes, len(pairs), shelter.tier, code)


def _tolerance(value: float) -> float:
    if not 0 <= value < 1:
        raise SpecError(f"tolerance is {value!r}, it must be in [0, 1)")
    return value
