"""Tests in the shapes in which data sets have them, and programs as people write them for judges."""

from __future__ import annotations

import json
from typing import Any

import pytest

from verifiers import BadReference, Sample, Status, Verdict, build

OPTIONS = {"allow_weak_sandbox": True}
ADD = "def add(a, b):\n    return a + b"
SUB = "def add(a, b):\n    return a - b"

RUNS = {
    "a function named test": "def test_add():\n    assert add(2, 3) == 5\n",
    "two of them": "def test_one():\n    assert add(0, 0) == 0\ndef test_two():\n    assert add(2, 3) == 5\n",
    "one that is called already": "def test_add():\n    assert add(2, 3) == 5\ntest_add()\n",
    "a main block": "if __name__ == '__main__':\n    assert add(2, 3) == 5\n",
    "an import of the program": "from solution import add\n\ndef test_add():\n    assert add(2, 3) == 5\n",
    "a class of tests": "class TestAdd:\n    def test_add(self):\n        assert add(2, 3) == 5\n",
    "a test case": "import unittest\nclass Cases(unittest.TestCase):\n    def setUp(self):\n        self.two = 2\n"
    "    def test_add(self):\n        self.assertEqual(add(self.two, 3), 5)\n"
    "if __name__ == '__main__':\n    unittest.main()\n",
    "a function passed on": "assert all(map(lambda case: add(*case) == sum(case), [(0, 0), (2, 3)]))",
    "json": json.dumps({"test_list": ["assert add(2, 3) == 5"], "test_imports": []}),
    "json of a list": json.dumps(["assert add(2, 3) == 5"]),
}  # fmt: skip


def judged(name: str, reference: Any, code: str, **options: Any) -> Verdict:
    judge = build({"use": name, "args": {**OPTIONS, **options}})
    judge.check_reference(reference)
    return judge.verify(Sample(f"```python\n{code}\n```", reference))


@pytest.mark.parametrize("name", RUNS)
def test_what_a_test_runner_would_call_is_called(name: str) -> None:
    assert judged("code_asserts", RUNS[name], SUB).status is Status.INCORRECT
    right = judged("code_asserts", RUNS[name], ADD)
    assert right.score == 1.0, right
    assert "weak" not in right.reason


VACUOUS = {
    "a function that nothing calls": "def verify():\n    assert add(2, 3) == 5\n",
    "a check without a caller": "def check(candidate):\n    assert candidate(2, 3) == 5\n",
    "a test that wants arguments": "def test_add(a, b):\n    assert add(a, b) == 5\n",
    "a tuple": "assert (add(2, 3) == 5, 'five')",
    "no assert": "add(2, 3) == 5",
    "a constant": "assert 5 == 5",
}


@pytest.mark.parametrize("name", VACUOUS)
def test_a_test_that_no_program_could_fail_is_refused_at_load(name: str) -> None:
    with pytest.raises(BadReference):
        judged("code_asserts", VACUOUS[name], SUB)


def test_a_test_that_never_calls_the_program_is_no_score() -> None:
    verdict = judged("code_asserts", "if False:\n    assert add(2, 3) == 5", SUB)
    assert verdict.status is Status.ERROR
    assert "never calls" in verdict.reason


# As EvalPlus writes its tests: the asserts stand in a function beside the check, or in none of the module's own
PLUS = """
import numpy as np

def close(out, exp):
    if out != exp:
        np.testing.assert_allclose(out, exp, rtol=1e-7, atol=1e-6)
"""
HUMANEVAL_PLUS = {
    "prompt": "def mean(numbers):\n    '''The mean.'''\n",
    "entry_point": "mean",
    "test": PLUS + "def check(candidate):\n    for inp, exp in zip([[[1.0, 2.0]], [[4.0]]], [1.5, 4.0]):\n"
    "        close(candidate(*inp), exp)\n",
}
MBPP_PLUS = PLUS + "for inp, exp in zip([[[1.0, 2.0]], [[4.0]]], [1.5, 4.0]):\n    close(mean(*inp), exp)\n"


@pytest.mark.parametrize(
    ("use", "reference"), [("code_humaneval", HUMANEVAL_PLUS), ("code_asserts", MBPP_PLUS)]
)
def test_asserts_that_stand_in_a_function_beside_the_check(use: str, reference: Any) -> None:
    pytest.importorskip("numpy")
    assert judged(use, reference, "def mean(n): return sum(n) / len(n) + 1e-9").score == 1.0
    assert judged(use, reference, "def mean(n): return 1.5").score == 0.0
    # numpy finds that nothing is close to anything
    assert judged(use, reference, "def mean(n): return []").status is Status.INCORRECT


STDIO = {"inputs": ["3\n1 2 3\n"], "outputs": ["6\n"]}
READERS = {
    "by the size of the input": "import io, os\ninput = io.BytesIO(os.read(0, os.fstat(0).st_size)).readline\n"
    "input()\nprint(sum(map(int, input().split())))",
    "in a thread of much stack": "import sys, threading\nthreading.stack_size(1 << 29)\nsys.setrecursionlimit(10 ** 7)\n"
    "def main():\n    input()\n    print(sum(map(int, input().split())))\n"
    "t = threading.Thread(target=main)\nt.start()\nt.join()",
    "without its imports": "input()\nvalues: List[int] = list(map(int, input().split()))\n"
    "print(reduce(operator.add, Counter(values).elements()) + gcd(2, 4) - 2)",
    "with names of its own": "import datetime\nclass Counter: pass\ndef gcd(a): return datetime.date(2000, 1, a).day\n"
    "input()\nprint(gcd(6))",
    "deep in recursion": "def deep(n):\n    return 0 if n == 0 else 1 + deep(n - 1)\n"
    "input()\nprint(sum(map(int, input().split())) + deep(20000) - 20000)",
    "from the descriptor": "lines = open(0).read().split()\nprint(sum(map(int, lines[1:])))\nexit()",
    "after a byte order mark": "\ufeffinput()\nprint(sum(map(int, input().split())))",
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_programs_as_contests_have_them(name: str) -> None:
    verdict = judged("code_stdio", STDIO, READERS[name])
    assert verdict.score == 1.0, verdict


def test_a_program_cannot_change_its_input_s_file() -> None:
    code = "import os\ntry:\n    os.ftruncate(0, 1 << 40)\nexcept OSError:\n    input()\n    print(6)"
    assert judged("code_stdio", STDIO, code).score == 1.0


def test_without_files_in_memory_the_input_comes_by_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.memfd_create")
    assert judged("code_stdio", STDIO, READERS["without its imports"]).score == 1.0


@pytest.mark.parametrize(
    "reference",
    [{"input": ["3\n1 2 3\n"], "output": ["6\n"]}, json.dumps([{"input": "3\n1 2 3\n", "output": "6\n"}])],
)
def test_inputs_and_outputs_by_other_names(reference: Any) -> None:
    assert judged("code_stdio", reference, READERS["without its imports"]).score == 1.0


def test_a_row_that_names_a_function_is_none_of_a_program() -> None:
    with pytest.raises(BadReference, match="code_io"):
        judged("code_stdio", {**STDIO, "fn_name": "total"}, "print(6)")


def test_a_method_without_its_imports() -> None:
    reference = {"fn_name": "pair", "inputs": ["[2, 7, 11]\n9"], "outputs": ["[0, 1]"]}
    code = (
        "class Solution:\n    @cache\n    def deep(self, n):\n        return n and self.deep(n - 1)\n"
        "    def pair(self, nums: List[int], target: int) -> List[int]:\n        self.deep(5000)\n"
        "        return next([i, j] for i, j in combinations(range(len(nums)), 2) if nums[i] + nums[j] == target)"
    )
    assert judged("code_io", reference, code).score == 1.0


# ---------------------------------------------------------------- partial credit and limits


def test_partial_credit_goes_on_after_a_call_that_ends_the_process() -> None:
    reference = {"fn_name": "same", "inputs": [[1], [2], [3]], "outputs": [1, 2, 3]}
    code = "import os\ndef same(x):\n    if x == 2: os._exit(0)\n    return x"
    assert judged("code_io", reference, code, partial=True).score == pytest.approx(2 / 3)


def test_what_the_tests_left_in_a_process_is_not_made_up_when_it_ended() -> None:
    tests = ["box = add([1], [2])\nassert box == [1, 2]\nbox.append(3)\nassert add(box, []) == [1, 2, 3]"]
    dies = "import os\ndef add(a, b):\n    if b == []: os._exit(0)\n    return a + b"
    tests = ["assert add(0, 1) == 1", *tests, "assert add(1, 2) == 3"]
    assert judged("code_asserts", tests, dies, partial=True).score == pytest.approx(1 / 3)


def test_an_object_that_is_no_plain_data_has_its_truth() -> None:
    assert judged("code_asserts", ["assert add(1, 2)"], "def add(a, b): return object()").score == 1.0
    empty = "class Empty:\n    def __bool__(self): return False\ndef add(a, b): return Empty()"
    assert judged("code_asserts", ["assert add(1, 2)"], empty).score == 0.0


def test_random_inputs_of_a_test_are_the_same_every_time() -> None:
    test = "import random\nwhile True:\n    x = random.random()\n    assert add(x, 1) == x + 1, x\n    break"
    first, again = (judged("code_asserts", [test], SUB).reason for _ in range(2))
    assert "fails: 0." in first
    assert first == again
