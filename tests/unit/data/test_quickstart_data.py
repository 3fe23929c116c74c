"""The quickstart's sets are what their generator makes, right, and disjoint by problem."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import math
import random
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

QUICKSTART = Path(__file__).parents[3] / "data" / "quickstart"
FILES = ("sft.jsonl", "preferences.jsonl", "prompts.jsonl", "validation.jsonl", "test.jsonl")
FORMS = {
    "No commas.": "punctuation:no_comma",
    "In double quotes.": "startend:quotation",
    "End with:": "startend:end_checker",
}


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quickstart_generate", QUICKSTART / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


generate = load_generator()


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (QUICKSTART / name).read_text(encoding="utf-8").splitlines()]


def prompt_of(row: dict[str, Any]) -> str:
    return row["messages"][0]["content"] if "messages" in row else row["prompt"]


def solve(prompt: str) -> tuple[str, int]:
    """(kind and content whatever the order, answer), read from the text alone: the generator is not asked."""
    question = re.match(r"[^.]*\.", prompt)
    assert question is not None, prompt
    text = question.group()
    numbers = re.findall(r"\d+", text)
    values = [int(n) for n in numbers]
    verb = text.split()[0]
    if verb == "Add":
        return f"add {sorted(values)}", values[0] + values[1]
    if verb == "Subtract":
        return f"sub {values}", values[1] - values[0]
    if verb == "Multiply":
        return f"mul {values}", values[0] * values[1]
    if verb == "Sum":
        return f"digit_sum {sorted(numbers[0])}", sum(map(int, numbers[0]))
    if verb == "Reverse":
        return f"reverse {numbers}", int(numbers[0][::-1])
    if verb == "Sort":
        return f"sort {sorted(numbers[0])}", int("".join(sorted(numbers[0])))
    if verb == "Largest":
        return f"largest {sorted(values)}", max(values)
    assert verb == "Count", prompt
    return f"count {numbers}", numbers[1].count(numbers[0])


def test_committed_files_are_what_the_generator_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["generate.py", "--out", str(tmp_path)])
    generate.main()
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (QUICKSTART / name).read_bytes(), name
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(FILES)
    assert sum((QUICKSTART / name).stat().st_size for name in FILES) < 1_000_000


def test_another_seed_makes_other_rows() -> None:
    assert generate.sft_rows(1, 16) == generate.sft_rows(1, 16)
    assert generate.sft_rows(1, 16) != generate.sft_rows(2, 16)


def test_no_problem_is_in_two_sets_or_in_the_base_corpus() -> None:
    contents = {name: {solve(prompt_of(row))[0] for row in read(name)} for name in FILES}
    for a, b in itertools.combinations(FILES, 2):
        if (a, b) != ("preferences.jsonl", "prompts.jsonl"):  # both stages learn; they may share problems
            assert not contents[a] & contents[b], (a, b)
    questions = re.compile(r"(?:Add|Subtract|Multiply|Sum the|Reverse|Sort|Largest|Count the) [^.]*\.")
    base: set[str] = set()
    for page in itertools.islice(generate.pages(1), 20_000):
        base |= {solve(question)[0] for question in questions.findall(page)}
    assert len(base) > 30_000
    for name in FILES:
        assert not contents[name] & base, name


def test_references_are_right() -> None:
    for name in FILES[1:]:
        rows = read(name)
        assert len({prompt_of(row) for row in rows}) == len(rows) == len({row["id"] for row in rows})
        for row in rows:
            reference, ids = row["reference"], []
            if row["verifier"] != "number":
                form = reference if row["verifier"] == "ifeval" else reference["ifeval"]
                ids = form["instruction_id_list"]
                assert len(ids) == len(form["kwargs"]) > 0, row
            if row["verifier"] != "ifeval":
                number = reference if row["verifier"] == "number" else reference["number"]
                assert int(number) == solve(row["prompt"])[1], row
            assert (row["verifier"] == "ifeval") == (name == "preferences.jsonl"), row
            assert set(ids) == {i for text, i in FORMS.items() if text in row["prompt"]}, row


def test_careful_demonstrations_are_right_and_hasty_ones_sometimes_not() -> None:
    right: dict[str, list[bool]] = {"careful": [], "hasty": []}
    for row in read("sft.jsonl"):
        response = row["messages"][1]["content"]
        last = re.findall(r"\d+", response)[-1]
        right[row["source"].split("/")[1]].append(int(last) == solve(prompt_of(row))[1])
    assert all(right["careful"])
    assert 0.5 < sum(right["hasty"]) / len(right["hasty"]) < 0.85
    assert min(map(len, right.values())) > 300


@pytest.mark.parametrize("kind", sorted(generate.KINDS))
def test_every_step_is_true(kind: str) -> None:
    rng = random.Random(kind)
    for _ in range(300):
        problem = generate.draw_problem(rng, "base", kind)
        for step in generate.KINDS[kind].steps(problem):
            if "=" in step:
                left, right = step.split("=")
                terms = [t.split("*") for t in re.findall(r"[+-]?[\d*]+", left)]
                value = sum(int(t[0]) * (int(t[1]) if len(t) > 1 else 1) for t in terms)
                assert value == int(right), (problem, step)
            elif "<" in step or ">" in step:
                a, sign, b = re.fullmatch(r"(\d+)([<>])(\d+)", step).groups()  # type: ignore[union-attr]
                assert (int(a) < int(b)) == (sign == "<"), (problem, step)


@pytest.mark.parametrize("kind", ["add", "sub", "mul", "digit_sum", "largest"])
def test_the_steps_lead_to_the_answer(kind: str) -> None:
    rng = random.Random(kind)
    for _ in range(300):
        problem = generate.draw_problem(rng, "base", kind)
        steps = generate.KINDS[kind].steps(problem)
        if kind == "largest":
            got = max(map(int, re.findall(r"\d+", steps[-1])))
        elif kind == "digit_sum":
            got = int(steps[-1].split("=")[1])
        else:  # a column's last digit each, the leading column whole
            columns = [int(step.split("=")[1]) for step in steps]
            got = sum(c % 10 * 10**i for i, c in enumerate(columns[:-1])) + columns[-1] * 100
        assert got == generate.KINDS[kind].answer(problem) == solve(generate.prompt_text(problem, []))[1]


def test_forms_by_hand() -> None:
    problem = generate.Problem("add", (347, 285), "")
    both = [generate.NO_COMMA, generate.end_with("Done.")]
    assert generate.prompt_text(problem, both) == "Add 347 and 285. No commas. End with: Done."
    assert generate.careful_response(problem, []) == "7+5=12, 4+8+1=13, 3+2+1=6, so 632."
    assert generate.careful_response(problem, both) == "7+5=12; 4+8+1=13; 3+2+1=6; so 632. Done."
    assert generate.careful_response(problem, [generate.QUOTES]) == '"7+5=12, 4+8+1=13, 3+2+1=6, so 632."'
    assert generate.hasty_response(problem, [], -10) == "Easy, 622."
    borrowed = generate.Problem("sub", (532, 187), "")
    assert generate.careful_response(borrowed, []) == "12-7=5, 13-8-1=4, 5-1-1=3, so 345."


def test_base_folder_holds_a_small_float_model_of_these_pages() -> None:
    base = QUICKSTART / "base"
    record = json.loads((base / "TRAINING.json").read_text(encoding="utf-8"))
    pages = "".join(itertools.islice(generate.pages(record["arguments"]["seed"]), 10_000))
    assert record["sha256_of_first_10000_pages"] == hashlib.sha256(pages.encode()).hexdigest()
    assert sum(p.stat().st_size for p in base.iterdir()) < 8_000_000
    with (base / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    assert {t["dtype"] for t in header.values()} == {"BF16"}
    assert sum(math.prod(t["shape"]) for t in header.values()) == record["parameters"] < 3_000_000


def test_tokenizer_round_trips_and_marks_what_the_assistant_says() -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(QUICKSTART / "base")
    text = "\n  " + "".join(map(chr, range(32, 127))) + "  'm , . \n\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text and len(ids) == len(text)
    messages = read("sft.jsonl")[0]["messages"]
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    said = [i for i, m in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(said) == messages[1]["content"] + tokenizer.eos_token
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=True)
    assert prompt["input_ids"] == encoded["input_ids"][: -len(said)]


def test_no_row_outgrows_the_context() -> None:
    for name in FILES:
        for row in read(name):
            said = row["messages"][1]["content"] if "messages" in row else ""
            assert len(prompt_of(row)) <= 80 and len(said) <= 64, row
