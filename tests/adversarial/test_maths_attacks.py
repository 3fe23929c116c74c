"""Wrong answers that a maths verifier has been, or could be, talked into. None may score."""

from __future__ import annotations

import time

import pytest

from verifiers import Sample, Status, build
from verifiers.maths import judges

ATTACKS = {
    # what math-verify 0.9.0 accepts
    "another base": (r"52_8", r"52_2"),
    "another base of the gold": (r"52_2", r"52_8"),
    "another power of a unit": (r"\text{cm}^2", r"\text{cm}^7"),
    "another power of a unit after a number": (r"5\text{ cm}^2", r"5\text{ cm}^7"),
    "reciprocal factorials": (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
    "tiny powers": (r"2^{-99}", r"2^{-98}"),
    "a root without braces": (r"4", r"4\sqrt(2)"),
    "a root without braces in the gold": (r"4\sqrt{2}", r"4"),
    "a chain of equalities": (r"5", r"x=1=2=3=5"),
    "per cent of a bare number": (r"50", r"50\%"),
    "a bare number for per cent": (r"50\%", r"50"),
    "metres for centimetres": (r"5\text{ cm}", r"5\text{ m}"),
    "metres for centimetres in words": (r"5 cm", r"5 m"),
    "negation": (r"5", r"\neg 5"),
    "a tuple for a set": (r"\{1,2\}", r"(1,2)"),
    "a set for a tuple": (r"(1,2)", r"\{1,2\}"),
    # hedging
    "two answers": (r"5", r"5, 6"),
    "two answers with or": (r"5", r"5 \text{ or } 6"),
    "two boxes in a row": (r"5", r"5} and \boxed{6"),
    "a superset": (r"\{1,2\}", r"\{1,2,3\}"),
    "a subset": (r"\{1,2,3\}", r"\{1,2\}"),
    "membership in a larger set": (r"5", r"x \in \{5, 6\}"),
    "an interval around the answer": (r"5", r"[4,6]"),
    "all numbers": (r"5", r"\mathbb{R}"),
    "plus or minus": (r"5", r"\pm 5"),
    "a disjunction of words": (r"\text{A}", r"\text{A or B}"),
    "every letter": (r"\text{A}", r"A, B, C, D"),
    "an inequality that holds": (r"5", r"x \ge 5"),
    "about": (r"5", r"\approx 5.4"),
    # near misses
    "nearly": (r"5", r"4.9999999999"),
    "nearly at fifty digits": (r"10^{50}", r"10^{50}+1"),
    "nearly at a thousand bits": (r"2^{1000}", r"2^{1000}+1"),
    "a large number cancelled": (r"5", r"5+(10^{100}+1-10^{100})"),
    "nearly zero": (r"0", r"10^{-50}"),
    "nearly one": (r"1", r"1+10^{-60}"),
    "a rounded third": (r"\frac{1}{3}", r"0.333"),
    "a rounded root": (r"\sqrt{2}", r"1.414"),
    "a rounded pi": (r"\pi", r"3.14"),
    "pi as schools once had it": (r"\pi", r"\frac{22}{7}"),
    "open for closed": (r"[1,2]", r"(1,2)"),
    "half open the other way": (r"(1,2]", r"[1,2)"),
    "the other order": (r"(3,1)", r"(1,3)"),
    "the other ratio": (r"3:4", r"4:3"),
    "strict for weak": (r"x>5", r"x \ge 5"),
    "the other direction": (r"x>5", r"x<5"),
    "the sign": (r"5", r"-5"),
    "the sign of infinity": (r"\infty", r"-\infty"),
    "another variable": (r"x", r"y"),
    "another subscript": (r"x_1", r"x_2"),
    "a factor": (r"2", r"2x"),
    "a factorial": (r"3", r"3!"),
    "digits side by side": (r"12", r"1 2"),
    "digits in a row of factors": (r"12", r"1 \cdot 2"),
    "misplaced thousands": (r"1000", r"10,00"),
    "a superscript digit": ("52", "5\u00b2"),
    "a vulgar fraction after digits": ("31/2", "3\u00bd"),
    "a shifted line": (r"y=2x+1", r"y=2x+2"),
    "another equation": (r"x+y=1", r"x+y=2"),
    "a transposed vector": (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
    "a permuted vector": (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    "log to an assumed base": (r"2", r"\log 100"),
    "the root of a square": (r"x", r"\sqrt{x^2}"),
    "a false equation": (r"5", r"6=5"),
    "a name for the answer": (r"5", r"x"),
    "the word answer": (r"5", r"\text{the correct answer}"),
    "struck out": (r"5", r"\cancel{5}"),
    "phantom digits": (r"15", r"\phantom{1}5"),
    "negated words": (r"5", r"\text{not } 5"),
    "another name": (r"\text{Evelyn}", r"\text{Carla}"),
    "another angle unit": (r"90^\circ", r"90\text{ radians}"),
    "kilometres for metres": (r"5\text{ km}", r"5\text{ m}"),
    "congruence": (r"6", r"1 \pmod 5"),
    "undefined": (r"0", r"\frac{0}{0}"),
    "python": (r"5", r"__import__('os').system('true') or 5"),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("form", [r"So the answer is \boxed{%s}.", r"The answer is $%s$."])
def test_no_attack_scores(name: str, form: str) -> None:
    gold, given = ATTACKS[name]
    verdict = build("math").verify(Sample(form % given, gold))
    assert verdict.status is Status.INCORRECT, (verdict.reason, verdict.extracted)


SMUGGLED = {
    "the right box, then another": r"\boxed{5} but rather \boxed{6}",
    "a box in the reasoning": r"<think>\boxed{5}</think> I do not know",
    "a box in an unclosed reasoning": r"<think>\boxed{5}",
    "a box that never closes": r"\boxed{5",
    "an empty last box": r"\boxed{5} \boxed{}",
    "every number": " ".join(f"\\boxed{{{i}}}" for i in range(10)),
    "every number in prose": "It is 1 or 2 or 3 or 4 or 5",
    "a list of candidates after the mark": "#### 1 2 3 4 5",
    "the answer tag of another": r"<answer>5</answer><answer>6</answer>",
    "a number in a word": "AZYUK5A",
    "an exponent": "It is 10^5",
    "a subscript": "It is x_5",
    "a question": "Is it 5?",
    "a malformed number": "It is 1.2.5",
    "comma soup": "It is 1,2,3,4,5",
    "nothing": "",
    "a refusal": "I cannot say.",
}


@pytest.mark.parametrize("name", SMUGGLED)
@pytest.mark.parametrize("verifier", ["math", "gsm8k", "boxed", "number"])
def test_no_response_smuggles_the_answer_in(name: str, verifier: str) -> None:
    response = SMUGGLED[name]
    if (verifier, name) in {("number", "every number"), ("number", "the right box, then another")}:
        pytest.skip("the last number is another one, or boxes mean nothing to it")
    verdict = build(verifier).verify(Sample(response, "5"))
    assert verdict.status is Status.INCORRECT, (verdict.reason, verdict.extracted)


HOSTILE = {
    "tower": "9^{9^{9^{9^9}}}",
    "factorials": "9!!!!!!!!",
    "large factorial": "99999999!",
    "large binomial": r"\binom{10^{9}}{10^{8}}",
    "deep brackets": "(" * 3000 + "1" + ")" * 3000,
    "deep roots": r"\sqrt{" * 200 + "2" + "}" * 200,
    "many boxes": r"\boxed{" * 3000,
    "many digits": "7" * 20_000,
    "many terms": "+".join(["x"] * 2000),
    "long list": ",".join(str(i) for i in range(2000)),
    "product of sums": "".join(f"(x+{i})" for i in range(150)),
    "power of a sum": "(x+y+z)^{1000000}",
    "huge exponent": "2^{999999999999}",
    "sum to infinity": r"\sum_{k=1}^{10^{9}} \frac{1}{k^k}",
    "nested integrals": r"\int_0^1 " * 30 + "x" + " dx" * 30,
    "nested fractions": r"\frac{1}{" * 150 + "2" + "}" * 150,
    "spaces": " " * 20_000 + "5",
    "commas": "," * 20_000,
    "equals": "=" * 5_000,
    "backslashes": "\\" * 20_000,
    "braces": "{" * 10_000 + "}" * 10_000,
    "dollars": "$" * 20_000,
    "answer is": "the answer is " * 1500,
    "hashes": "#### " * 4000,
    "fractions in words": "1/" * 5000,
    "nested tags": "<answer>" * 3000,
    "text commands": r"\text{and}" * 2000,
    "zero width": "\u200b" * 20_000 + "5",
    "plus minus": r"\pm" * 40 + "1",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("verifier", ["math", "gsm8k", "number", "choice", "exact"])
def test_hostile_input_is_judged_wrong_and_quickly(name: str, verifier: str) -> None:
    judges.warm()
    built = build(verifier)
    for response in (HOSTILE[name], f"So \\boxed{{{HOSTILE[name]}}}", f"The answer is ${HOSTILE[name]}$"):
        began = time.process_time()  # of this process alone: a crowded machine does not count
        verdict = built.verify(Sample(response, "B" if verifier == "choice" else "12345"))
        assert verdict.status is Status.INCORRECT, verdict.reason
        assert time.process_time() - began < 2


@pytest.mark.parametrize("response", ["A or B", "The answer is A or B", r"\boxed{A} or \boxed{B}", "A B C D", "(A)(B)", "the answer is a mystery",
                                      "B is wrong", "not B", "Answer: A, B", r"\boxed{AB}", "<think>B</think> A"])  # fmt: skip
def test_no_choice_is_hedged(response: str) -> None:
    assert build("choice").verify(Sample(response, "B")).score == 0
