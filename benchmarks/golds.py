"""Does every gold answer of GSM8K and MATH-500 verify against itself, as it stands and in the usual other forms?

    python benchmarks/golds.py --gsm8k PATH/train.jsonl PATH/test.jsonl --math500 PATH/math500.jsonl

Prints a count for each data set and form, and every gold that does not. Exits 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path[:] = [
    p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent
]  # a verifiers.py is there
from verifiers import BadReference, Sample, build  # noqa: E402
from verifiers.maths import numerals  # noqa: E402

Form = tuple[str, str]  # its name, a response that states the gold in it


def rows(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def number_forms(gold: str) -> Iterator[Form]:
    """Ways to say a whole number or decimal, as GSM8K's golds are."""
    plain = gold.replace(",", "")
    yield "bare", gold
    yield "after ####", f"Some working with 3 steps.\n#### {gold}"
    yield "boxed in a sentence", rf"So she has \boxed{{{gold}}} of them left."
    yield "between dollars", f"Therefore the total is ${plain}$."
    yield "the answer is", f"The answer is {gold}."
    yield "bold", f"It makes **{gold}**"
    yield "in \\text", rf"\boxed{{\text{{{gold}}}}}"
    yield "with a unit", rf"\boxed{{{gold}\text{{ hours}}}}"
    yield "with a word", f"In all it is {gold} apples."
    yield "as money", rf"He pays \boxed{{\${gold}}}"
    yield "thousands", rf"\boxed{{{int(plain):,}}}" if re.fullmatch(r"-?\d+", plain) else plain
    yield "with decimals", f"The answer is {plain}.00" if "." not in plain else plain
    yield "an equation", rf"$\boxed{{x = {plain}}}$"
    yield "after reasoning", f"<think>Maybe 17? No.</think>\nThe answer is {gold}"


def latex_forms(gold: str, solution: str) -> Iterator[Form]:
    """Ways to write a LaTeX answer, as MATH's golds are."""
    yield "its own solution", solution
    yield "boxed", rf"\boxed{{{gold}}}"
    yield "boxed in a sentence", rf"Therefore the answer is $\boxed{{{gold}}}$, as we wanted."
    yield "displayed", rf"Thus \[\boxed{{{gold}.}}\]"
    yield "the answer is", f"The answer is ${gold}$."
    yield "final answer", f"**Final Answer:** ${gold}$"
    yield "other fractions", r"\boxed{" + re.sub(r"\\d?frac", r"\\tfrac", gold) + "}"
    yield (
        "large brackets",
        r"\boxed{" + re.sub(r"(?<!\\left)\(", r"\\left(", re.sub(r"(?<!\\right)\)", r"\\right)", gold)) + "}",
    )
    yield "no spaces", r"\boxed{" + re.sub(r"(?<=[^A-Za-z]) +| +(?=[^A-Za-z&\\])", "", gold) + "}"
    yield "more spaces", r"\boxed{ " + re.sub(r"([=+,])", r" \1 ", gold) + " }"
    yield "thin spaces", r"\boxed{\," + gold + r"\,}"
    numeral = numerals.parse(gold)
    if numeral is None:
        return
    if re.fullmatch(r"-?\d+", gold):
        yield "with decimals", rf"\boxed{{{gold}.0}}"
        yield "with a unit", rf"\boxed{{{gold}\text{{ units}}}}"
    value = numeral.value
    if "frac" in gold and not numeral.percent:
        yield "slash", rf"\boxed{{{value.numerator}/{value.denominator}}}"
        yield "not in lowest terms", rf"\boxed{{\frac{{{2 * value.numerator}}}{{{2 * value.denominator}}}}}"
        if 10**9 % value.denominator == 0:
            yield "decimal", rf"\boxed{{{float(value)!r}}}"


def check(verifier: str, gold: str, forms: Iterator[Form], prompt: str, counts: Counter[str]) -> list[str]:
    """What does not score full, in words; counts[form] grows by one for what does."""
    judge = build(verifier)
    try:
        judge.check_reference(gold)
    except BadReference as fault:
        return [f"{gold!r} is refused: {fault}"]
    failed = []
    for name, response in forms:
        verdict = judge.verify(Sample(response, gold, prompt))
        counts[name] += verdict.score == 1
        if verdict.score != 1:
            failed.append(f"{gold!r} as {name!r}: {verdict.reason} ({verdict.extracted!r})")
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gsm8k", type=Path, nargs="*", default=[])
    parser.add_argument("--math500", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    failures: list[str] = []
    for file in args.gsm8k:
        for verifier in ("gsm8k", "math"):
            counts: Counter[str] = Counter()
            all_rows = rows(file)
            for row in all_rows:
                solution = row["answer"]
                gold = solution.rpartition("####")[2].strip()
                forms = [("its own solution", solution), *number_forms(gold)]
                failures += check(verifier, gold, iter(forms), "", counts)
            report(f"{file.name} with {verifier}", len(all_rows), counts)
    for file in args.math500:
        counts = Counter()
        all_rows = rows(file)
        for row in all_rows:
            forms_of = latex_forms(row["answer"], row["solution"])
            failures += check("math", row["answer"], forms_of, row["problem"], counts)
        report(f"{file.name} with math", len(all_rows), counts)
    print("\n".join(failures[:50]))
    sys.exit(1 if failures else 0)


def report(what: str, golds: int, counts: Counter[str]) -> None:
    print(f"{what}: {golds} golds")
    for name, count in counts.items():
        print(f"  {name:24} {count:>6}")


if __name__ == "__main__":
    main()
