"""MBPP's and HumanEval's own solutions against their own tests, and spoiled ones: `code_parity.py FOLDER`.

FOLDER holds mbpp/mbpp.jsonl and humaneval/HumanEval.jsonl.gz. Prints how many solutions pass, how many
asserts run in which mode, and how many spoiled solutions (which all should fail) pass, with their names.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path[:] = [
    p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent
]  # a verifiers.py is there
from verifiers import Sample, VerifierPool  # noqa: E402
from verifiers.code import references  # noqa: E402

OPTIONS = {"time_limit_s": 30.0, "total_limit_s": 60.0, "cpu_limit_s": 30}


def rows(folder: Path) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """(verifier, name, solution, reference)"""
    for line in (folder / "mbpp" / "mbpp.jsonl").read_bytes().splitlines():
        row = json.loads(line)
        yield "code_asserts", f"MBPP/{row['task_id']}", row["code"], row
    with gzip.open(folder / "humaneval" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            yield "code_humaneval", row["task_id"], row["prompt"] + row["canonical_solution"], row


class _Spoil(ast.NodeTransformer):
    """Every `return` of the named functions, changed."""

    def __init__(self, how: str, names: tuple[str, ...]) -> None:
        self.how, self.names, self.inside = how, names, False
        self.changed = 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        outer, self.inside = self.inside, node.name in self.names
        self.generic_visit(node)
        self.inside = outer
        return node

    def visit_Return(self, node: ast.Return) -> ast.AST:
        if not self.inside or node.value is None:
            return node
        self.changed += 1
        value = ast.unparse(node.value)
        spoiled = {
            "None": "None",
            "a wrong constant": "'another value'",
            "off by one": f"(lambda v: v + 1 if type(v) in (int, float) else v + v[:1] or v + type(v)([0]) "
            f"if type(v) in (list, tuple) else v + ' ' if type(v) is str else not v)({value})",
            "equal to all": f"type('Any', (), {{'__eq__': lambda s, o: True}})() or ({value})",
        }[self.how]
        return ast.parse(f"return {spoiled}").body[0]


SPOILED = ("None", "a wrong constant", "off by one", "equal to all")


def spoiled(code: str, how: str, names: tuple[str, ...]) -> str | None:
    tree = ast.parse(code)
    spoil = _Spoil(how, names)
    tree = spoil.visit(tree)
    return ast.unparse(ast.fix_missing_locations(tree)) if spoil.changed else None


def modes(verifier: str, reference: Any) -> Counter[str]:
    """Asserts by mode; a weak one in a test that is otherwise taken apart counts as weak."""
    read = references.read_asserts if verifier == "code_asserts" else references.read_check
    counted: Counter[str] = Counter()
    for unit in read(reference).units:
        counted[unit.mode] += unit.asserts - unit.weak_asserts
        counted["weak"] += unit.weak_asserts
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    items, labels = [], []
    counted: dict[str, Counter[str]] = {"code_asserts": Counter(), "code_humaneval": Counter()}
    for verifier, name, code, reference in rows(arguments.folder):
        by_mode = modes(verifier, reference)
        counted[verifier] += by_mode
        if by_mode["weak"]:
            print(f"weak: {name}, {by_mode['weak']} asserts")
        spec = {"use": verifier, "args": OPTIONS}
        read = references.read_asserts if verifier == "code_asserts" else references.read_check
        names = read(reference).names
        for how in ("as it is", *SPOILED):
            text = code if how == "as it is" else spoiled(code, how, names)
            if text is not None:
                items.append((spec, Sample(f"```python\n{text}\n```", reference)))
                labels.append((verifier, how, name))
    with VerifierPool(workers=arguments.workers) as pool:
        verdicts = pool.verify(items)
        print(f"{pool.stats.items_per_s:.0f} checks a second with {arguments.workers} workers")
    passed: Counter[tuple[str, str]] = Counter()
    total: Counter[tuple[str, str]] = Counter()
    for (verifier, how, name), verdict in zip(labels, verdicts, strict=True):
        total[verifier, how] += 1
        passed[verifier, how] += verdict.score == 1.0
        if (verdict.score == 1.0) != (how == "as it is"):
            print(f"{name}, {how}: {verdict.status}, {verdict.reason}")
    for verifier, by_mode in counted.items():
        print(verifier, dict(by_mode))
        for how in ("as it is", *SPOILED):
            print(f"  {how}: {passed[verifier, how]} of {total[verifier, how]} pass")
    print("tier:", {verdict.tier for verdict in verdicts})


if __name__ == "__main__":
    main()
