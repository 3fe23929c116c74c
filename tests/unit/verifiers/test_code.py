"""Programs judged in a real sandbox, the strongest that this machine gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from verifiers import BadReference, Sample, Status, Verdict, VerifierPool, build
from verifiers.code.references import read_calls

OPTIONS: dict[str, Any] = {"allow_weak_sandbox": True, "time_limit_s": 20.0, "total_limit_s": 30.0}
NUMPY_TEST = "import numpy as np\nassert np.allclose(f([1, 2]), [2.0, 4.0])"


def judged(name: str, reference: Any, code: str, **options: Any) -> Verdict:
    response = code if "```" in code else f"```python\n{code}\n```"
    return build({"use": name, "args": {**OPTIONS, **options}}).verify(Sample(response, reference))


# ---------------------------------------------------------------- asserts

ADD = ["assert add(2, 3) == 5", "assert add('a', 'b') == 'ab'", "assert add([1], [2]) == [1, 2]"]


def test_a_right_program_is_correct_and_the_tier_is_named() -> None:
    verdict = judged("code_asserts", ADD, "def add(a, b):\n    return a + b")
    assert verdict.status is Status.CORRECT
    assert verdict.tier
    assert verdict.reason == f"3 of 3 tests passed [{verdict.tier}]"
    assert verdict.extracted == "def add(a, b):\n    return a + b"


def test_partial_credit_is_the_share_of_tests() -> None:
    code = "def add(a, b):\n    return a + b if a != 2 else 0"
    assert judged("code_asserts", ADD, code).score == 0.0
    verdict = judged("code_asserts", ADD, code, partial=True)
    assert verdict.score == pytest.approx(2 / 3)
    assert verdict.status is Status.PARTIAL


def test_a_program_that_dies_in_one_test_is_asked_the_others_for_partial_credit() -> None:
    code = "import os\ndef add(a, b):\n    return a + b if a != 2 else os._exit(0)"
    assert judged("code_asserts", ADD, code, partial=True).score == pytest.approx(2 / 3)


def test_max_tests_are_spread_over_all() -> None:
    tests = [f"assert f({n}) == {n}" for n in range(10)]
    verdict = judged("code_asserts", tests, "def f(x):\n    return x if x in (0, 5) else None", max_tests=2)
    assert verdict.status is Status.CORRECT
    assert verdict.reason.startswith("2 of 2")


VALUES = [
    "None", "True", "0", "-7", "10 ** 30", "1.5", "float('inf')", "'text \\u00e9\\n\"'", "b'\\x00\\xff'", "(1, (2, 'x'))",
    "[[], {}]", "{'a': [1], 2: None, (1, 2): 3.5}", "{1, 2, 3}", "frozenset('ab')", "1 + 2j", "range(3)", "set()",
]  # fmt: skip


def test_every_kind_of_plain_data_is_compared_exactly() -> None:
    tests = [f"assert f({n}) == {value}" for n, value in enumerate(VALUES)]
    answers = f"ANSWERS = [{', '.join(VALUES)}]\n"
    assert (
        judged("code_asserts", tests, answers + "def f(n):\n    return ANSWERS[n]").status is Status.CORRECT
    )
    other = judged("code_asserts", tests, answers + "def f(n):\n    return ANSWERS[n - 1]", partial=True)
    assert other.score == 0.0


def test_truth_and_numbers_are_equal_as_in_python() -> None:
    tests = [
        "assert f(1) == True",
        "assert f(1) == 1.0",
        "assert f(1) in (True,)",
        "assert not f(0)",
        "assert f('x')",
    ]
    assert judged("code_asserts", tests, "def f(x):\n    return x").status is Status.CORRECT


def test_a_setup_that_needs_the_program_s_class() -> None:
    reference = {
        "test_setup_code": "root = Node(1)\nroot.left = Node(2)",
        "test_list": ["assert height(root) == 2", "assert height(root.left) == 1"],
    }
    code = """
class Node:
    def __init__(self, v): self.v, self.left, self.right = v, None, None
def height(n): return 0 if n is None else 1 + max(height(n.left), height(n.right))"""
    assert judged("code_asserts", reference, code).status is Status.CORRECT
    assert judged("code_asserts", reference, code.replace("1 + max", "max")).score == 0.0


def test_a_test_with_a_loop_and_exceptions_runs_apart_from_the_program() -> None:
    test = "seen = []\nfor n in (4, -1):\n    try:\n        seen.append(root(n))\n    except ValueError as e:\n        seen.append(str(e))\nassert seen == [2.0, 'negative']"  # fmt: skip
    code = "def root(n):\n    if n < 0: raise ValueError('negative')\n    return n ** 0.5"
    verdict = judged("code_asserts", [test], code)
    assert verdict.status is Status.CORRECT
    assert "weak" not in verdict.reason
    assert judged("code_asserts", [test], code.replace("ValueError", "KeyError")).score == 0.0


def test_a_list_changed_in_place_is_changed_for_a_test_in_its_own_process() -> None:
    test = "x = [3, 1, 2]\nwhile x != [1, 2, 3]:\n    order(x)\n    break\nassert x == [1, 2, 3]"
    assert judged("code_asserts", [test], "def order(x):\n    x.sort()").status is Status.CORRECT
    assert judged("code_asserts", [test], "def order(x):\n    return sorted(x)").score == 0.0


def test_numpy_works_where_it_is_installed() -> None:
    pytest.importorskip("numpy")
    code = "import numpy as np\ndef f(x):\n    return np.array(x) * 2.0\ndef g(x):\n    return np.sum(x)"
    verdict = judged(
        "code_asserts", [NUMPY_TEST, "assert list(f([1])) == [2.0]", "assert g([1, 2]) == 3"], code
    )
    assert verdict.status is Status.CORRECT, verdict
    assert "weak" not in verdict.reason
    assert judged("code_asserts", [NUMPY_TEST], code.replace("2.0", "2.1")).score == 0.0


def test_the_same_sample_gets_the_same_answer_in_every_process() -> None:
    """Sets of texts come in one order, whatever the process's own seed is."""
    script = (
        "import json, sys\nfrom verifiers import Sample, build\n"
        "spec = {'use': 'code_io', 'args': {'allow_weak_sandbox': True}}\n"
        "code = '```python\\ndef f(x):\\n    return list({c for c in \"abcdefgh\"})\\n```'\n"
        "print(build(spec).verify(Sample(code, {'fn_name': 'f', 'inputs': [[1]], 'outputs': [0]})).reason)"
    )
    said = {subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout for _ in range(2)}  # fmt: skip
    assert len(said) == 1
    assert "gave [" in said.pop()


# ---------------------------------------------------------------- a check function

HALF = {
    "prompt": "from typing import List\n\ndef scale(x):\n    return x * 10\n\ndef half(x: float) -> float:\n    '''Half.'''\n",
    "entry_point": "half",
    "test": "METADATA = {}\n\ndef check(candidate):\n    assert candidate(4) == 2\n    assert abs(candidate(3) - 1.5) < 1e-6\n"
    "    assert True\n",
}


@pytest.mark.parametrize(
    "response",
    [
        "    return x / 2",
        "return x / 2",
        "```python\n    return x / 2\n```",
        "```python\ndef half(x):\n    return x / 2\n```",
        "```python\ndef half(x: List[int]):\n    return scale(x) / 20\n```",
        HALF["prompt"] + "    return x / 2\n",
    ],
)
def test_a_function_or_its_body(response: str) -> None:
    verdict = build({"use": "code_humaneval", "args": OPTIONS}).verify(Sample(response, HALF))
    assert verdict.status is Status.CORRECT, verdict
    assert verdict.reason.startswith("2 of 2")
    wrong = build({"use": "code_humaneval", "args": OPTIONS}).verify(Sample(response.replace("2", "3"), HALF))
    assert wrong.score == 0.0


def test_a_check_that_uses_the_prompt_s_own_functions() -> None:
    reference = {
        "prompt": "def twice(x):\n    return 2 * x\n\ndef half(x):\n    '''Undo twice.'''\n",
        "entry_point": "half",
        "test": "def check(candidate):\n    import random\n    for _ in range(20):\n        n = random.randint(1, 9)\n"
        "        assert candidate(twice(n)) == n\n",
    }
    assert judged("code_humaneval", reference, "def half(x):\n    return x // 2").status is Status.CORRECT
    cheat = "def twice(x):\n    return 0\ndef half(x):\n    return twice(x)"
    assert judged("code_humaneval", reference, cheat).score == 0.0


# ---------------------------------------------------------------- inputs and outputs


def test_calls_of_a_function_and_of_a_method() -> None:
    reference = {
        "fn_name": "Solution.pair",
        "inputs": ["[1, 2]\n3", "[]\n0"],
        "outputs": ["[2, 3]", "[0, 0]"],
    }
    function = "def pair(xs, n):\n    return len(xs), n"
    method = "class Solution:\n    def pair(self, xs: List[int], n: int):\n        return [len(xs), n]"
    assert judged("code_io", reference, function).status is Status.CORRECT
    assert judged("code_io", reference, "from typing import List\n" + method).status is Status.CORRECT
    assert judged("code_io", reference, function.replace(", n", ", 1", 2)).score == 0.0


def test_named_arguments_tolerance_and_wrapped_outputs() -> None:
    reference = {"fn_name": "third", "inputs": [{"x": 1}, [2]], "outputs": [[0.3333333], [0.6666667]]}
    code = "def third(x):\n    return x / 3"
    assert judged("code_io", reference, code, tolerance=1e-6, wrapped=True).status is Status.CORRECT
    assert judged("code_io", reference, code, wrapped=True).score == 0.0
    assert judged("code_io", reference, code, tolerance=1e-6).score == 0.0
    assert judged("code_io", {**reference, "wrapped": True}, code, tolerance=1e-6).status is Status.CORRECT
    with pytest.raises(BadReference, match="no list of one value"):
        read_calls({**reference, "outputs": [[0.3], 0.6], "wrapped": True})


def test_calls_as_a_list_of_tests() -> None:
    reference = {
        "func_name": "double",
        "tests": [{"input": "2", "output": "4"}, {"input": "[3]\n", "output": "[3, 3]"}],
    }
    assert judged("code_io", reference, "def double(x):\n    return x * 2").status is Status.CORRECT
    assert judged("code_io", reference, "def double(x):\n    return x + 2").score == 0.0
    with pytest.raises(BadReference, match="needs an input and an output"):
        read_calls({"func_name": "double", "tests": [{"input": "2"}]})


ECHO = [{"input": "3\n1 2 3\n", "output": "6\n"}, {"input": "1\n5", "output": "5"}]


def test_programs() -> None:
    right = "import sys\ndef main():\n    n, *xs = map(int, sys.stdin.read().split())\n    print(sum(xs))\nif __name__ == '__main__':\n    main()"
    assert judged("code_stdio", ECHO, right).status is Status.CORRECT
    assert (
        judged("code_stdio", ECHO, "input()\nprint(sum(map(int, input().split())))\nexit()").status
        is Status.CORRECT
    )
    wrong = judged("code_stdio", ECHO, "input()\nprint(input().split()[-1])", partial=True)
    assert wrong.score == 0.5
    assert "printed '3'" in wrong.reason
    assert "ZeroDivisionError" in judged("code_stdio", ECHO, "1 / 0").reason


def test_a_program_that_reads_less_than_it_is_given_passes() -> None:
    long = [{"input": "7\n" + "x" * 3_000_000, "output": "7"}]
    assert judged("code_stdio", long, "print(input())").status is Status.CORRECT


# ---------------------------------------------------------------- our own faults are no score


def test_no_sandbox_is_an_error_and_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    from verifiers.code import judges
    from verifiers.sandbox import SandboxUnavailable

    def none(*_: object) -> None:
        raise SandboxUnavailable("no sandbox of that tier")

    monkeypatch.setattr(judges, "choose", none)
    verdict = judged("code_asserts", ADD, "def add(a, b):\n    return a + b")
    assert verdict.status is Status.ERROR
    assert verdict.score is None


@pytest.mark.parametrize(
    "boot", ["import posix; posix._exit(3)", "print('no hello')", "raise SystemExit('broken')"]
)
def test_a_process_of_ours_that_does_not_start_is_an_error(
    boot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from verifiers.code import session, stdio

    monkeypatch.setattr(session, "BOOT", boot)
    monkeypatch.setattr(stdio, "BOOT", boot)
    for name, reference in (("code_asserts", ADD), ("code_stdio", ECHO)):
        verdict = judged(name, reference, "def add(a, b):\n    return a + b")
        assert verdict.status is Status.ERROR, verdict
        assert "did not start" in verdict.reason


def test_a_prelude_that_does_not_run_is_an_error() -> None:
    reference = {**HALF, "prompt": "import no_such_module\n" + HALF["prompt"]}
    assert judged("code_humaneval", reference, "def half(x):\n    return x / 2").status is Status.ERROR


def test_no_process_and_no_descriptor_is_left() -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    judged("code_asserts", ADD, "def add(a, b):\n    return a + b")
    once = len(os.listdir("/proc/self/fd")) if before else 0
    for code in (
        "def add(a, b):\n    return a + b",
        "import os\nos._exit(0)",
        "def add(a, b):\n    import time; time.sleep(9)",
    ):
        judged("code_asserts", ADD, code, time_limit_s=0.3)
    assert (len(os.listdir("/proc/self/fd")) if before else 0) <= once


def test_through_the_pool() -> None:
    spec = {"use": "code_asserts", "args": OPTIONS}
    samples = [
        Sample(f"```python\ndef add(a, b):\n    return {body}\n```", ADD)
        for body in ("a + b", "b", "a + b # 2")
    ]
    with VerifierPool(workers=2) as pool:
        assert [v.score for v in pool.verify([(spec, s) for s in samples])] == [1.0, 0.0, 1.0]


# ---------------------------------------------------------------- the data sets themselves

DATA = os.environ.get("VERIFIERS_DATA", "")


@pytest.mark.skipif(not DATA, reason="VERIFIERS_DATA names no folder with the data sets")
def test_canonical_solutions_of_mbpp_pass() -> None:
    rows = [json.loads(line) for line in (Path(DATA) / "mbpp" / "mbpp.jsonl").read_text("utf-8").splitlines()]
    spec = {"use": "code_asserts", "args": {**OPTIONS, "cpu_limit_s": 30}}
    with VerifierPool(workers=2) as pool:
        verdicts = pool.verify([(spec, Sample(f"```python\n{row['code']}\n```", row)) for row in rows])
    failed = [(r["task_id"], v.reason) for r, v in zip(rows, verdicts, strict=True) if v.score != 1.0]
    assert not failed
