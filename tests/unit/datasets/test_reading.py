"""Several files, patterns, streaming, broken rows: what is read, what is dropped, and that both are said."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tulu_lite.datasets import readers, rows
from tulu_lite.datasets.chat import ChatTemplate
from tulu_lite.datasets.conversations import load_conversations
from tulu_lite.datasets.prompts import load_prompts, report_prompts
from tulu_lite.datasets.readers import read_file
from tulu_lite.datasets.sources import iterate_rows, load_rows
from tulu_lite.errors import TuluLiteError
from tulu_lite.pipeline.expand import expand
from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.recipe import DataSource, SftStage, load_recipe

Write = Callable[..., str]


def sft(data: Any, **how: Any) -> SftStage:
    return SftStage(name="sft", kind="sft", data=data, learning_rate=1e-3, **how)


def row(text: str) -> dict[str, str]:
    return {"prompt": text, "completion": "a"}


def test_several_files_and_patterns(write: Write, tmp_path: Path) -> None:
    b, a, c = write("b.jsonl", [row("2")]), write("a.jsonl", [row("1")]), write("c.json", [row("3")])
    odd = write("x[1].jsonl", [row("4")])

    def read(path: Any) -> list[tuple[str, str]]:
        return [(r.data["prompt"], r.source) for r in load_rows([DataSource(path=path)], seed=0)]

    assert read(str(tmp_path / "[ab].jsonl")) == [("1", "a"), ("2", "b")]
    assert read([c, str(tmp_path / "[ab].jsonl"), a]) == [("3", "c"), ("1", "a"), ("2", "b")]  # no file twice
    assert read(odd) == [("4", "x[1]")]  # a file that is there is no pattern
    assert read(str(tmp_path / "**" / "b.jsonl")) == [("2", "b")]
    assert b
    with pytest.raises(TuluLiteError, match="no data file fits the pattern"):
        read(str(tmp_path / "z*.jsonl"))
    for path, message in (([], "an empty list"), (["a.jsonl", "b.csv"], "'b.csv' does not end in")):
        with pytest.raises(ValidationError, match=message):
            DataSource(path=path)


@settings(max_examples=60)
@given(
    st.lists(st.recursive(st.none() | st.integers() | st.floats(allow_nan=False) | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=8), max_size=6),
    st.integers(1, 9),
    st.sampled_from([None, 1]),
)  # fmt: skip
def test_a_json_list_streams_as_it_loads(
    tmp_path_factory: Any, data: list[Any], block: int, indent: Any
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps(data, indent=indent), encoding="utf-8")
    before, readers._BLOCK = readers._BLOCK, block
    try:
        assert list(read_file(path, streaming=True)) == list(enumerate(data, start=1))
    finally:
        readers._BLOCK = before


def test_a_number_goes_on_in_the_next_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = [10.25, -3.5e10, 'x"],', [1, {"a": 2}], True, 7]
    (tmp_path / "a.json").write_text(json.dumps(data))
    for block in range(1, 40):
        monkeypatch.setattr(readers, "_BLOCK", block)
        assert [value for _, value in read_file(tmp_path / "a.json", streaming=True)] == data


@pytest.mark.parametrize("text", ["[1, 2", "[1 2]", "[1,]", "[1], 2", "{}", '"a"', "[1}", "[,1]"])
def test_broken_lists_do_not_stream(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    for streaming in (True, False):
        with pytest.raises(TuluLiteError, match=r"a\.json"):
            list(read_file(tmp_path / "a.json", streaming))


def test_streaming_reads_no_more_than_it_needs(write: Write) -> None:
    path = write("a.jsonl", "".join(json.dumps(row(str(i))) + "\n" for i in range(50)) + "not JSON\n")
    entry = DataSource(path=path, streaming=True, limit=20)
    assert [r.line for r in iterate_rows(entry, seed=0)] == list(range(1, 21))  # the first, not a choice
    some = DataSource(path=path, streaming=True, limit=5, share=(0, 0.5))
    whole = DataSource(path=write("b.jsonl", [row(str(i)) for i in range(50)]), share=(0, 0.5))
    assert [r.line for r in iterate_rows(some, seed=0)] == [r.line for r in iterate_rows(whole, seed=0)][:5]


def test_streamed_rows_are_the_same_examples(
    write: Write, template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("a.jsonl", [row(f"question {i}") for i in range(10)])
    plain = list(load_conversations(sft(path), template, seed=0)[0])
    alive, most = [0], [0]
    real = rows.iterate_rows

    class Counted(rows.Item):
        def __init__(self, *args: Any, **how: Any) -> None:
            super().__init__(*args, **how)
            alive[0] += 1
            most[0] = max(most[0], alive[0])

        def __del__(self) -> None:
            alive[0] -= 1

    monkeypatch.setattr(rows, "CHUNK", 2)
    monkeypatch.setattr(rows, "Item", Counted)
    assert rows.iterate_rows is real
    streamed, _ = load_conversations(sft({"path": path, "streaming": True}), template, seed=0)
    assert list(streamed) == plain
    assert most[0] <= 5  # a chunk, and the one before it until it is let go


def test_hub_streaming(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def endless() -> Iterator[Any]:
        yield from (row(str(i)) for i in range(10**9))

    def load(*args: Any, **how: Any) -> Any:
        asked.append(how)
        return endless()

    monkeypatch.setattr(datasets, "load_dataset", load)
    entry = DataSource(hub="o/n", streaming=True, limit=3)
    assert [r.where for r in iterate_rows(entry, seed=0)] == ["o/n:1", "o/n:2", "o/n:3"]
    assert asked == [{"split": "train", "revision": None, "streaming": True}]


BAD = [
    json.dumps(row("good 1")),
    '{"prompt": "torn',
    "[1, 2]",
    json.dumps({"prompt": "q", "completion": " "}),
    json.dumps({"messages": [{"role": "system", "content": "S"}]}),
    json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "user", "content": "q"}]}),
    json.dumps({"prompt": "\ud800", "completion": "a"}),
    json.dumps({"question": "q"}),
    json.dumps(row("good 2")),
]
REASONS = {
    "broken JSON": 2, "no object": 3, "an empty completion": 4, "only a system turn": 5, "roles out of turn": 6,
    "broken Unicode": 7, "no prompt": 8,
}  # fmt: skip


def test_bad_rows_are_dropped_counted_and_named(write: Write, template: ChatTemplate, tmp_path: Path) -> None:
    path = write("a.jsonl", "\n".join(BAD) + "\n")
    examples, report = load_conversations(sft(path, bad_rows="drop"), template, seed=0)
    assert [e.line for e in examples] == [1, 9]
    assert {d.reason: d.line for d in report.rows_dropped} == REASONS
    assert dict(report.dropped_of) == {"a": dict.fromkeys(REASONS, 1)}
    assert f"1 of 9 rows dropped: broken Unicode ({path}:7)" in report.notes()
    written = json.loads(report.write(tmp_path).read_text())
    assert written["dropped"] == dict.fromkeys(REASONS, 1)
    assert written["sources"] == {"a": {"rows": 2, "tokens": report.tokens, "loss_tokens": 4}}


@pytest.mark.parametrize(("reason", "line"), REASONS.items())
def test_bad_rows_stop_by_default(write: Write, template: ChatTemplate, reason: str, line: int) -> None:
    path = write("a.jsonl", f"{BAD[0]}\n{BAD[line - 1]}\n")
    with pytest.raises(TuluLiteError, match=r"a\.jsonl:2") as caught:
        load_conversations(sft(path), template, seed=0)
    assert "bad_rows: drop" in caught.value.cure
    assert getattr(caught.value, "reason", "") == reason


def test_a_row_that_the_template_refuses_is_a_bad_row(write: Write, chars: Any) -> None:
    strict = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ '[' + m.role + ']' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content + eos_token }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
    )
    template = ChatTemplate("strict", strict, chars)
    template.check()
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path = write(
        "a.jsonl", [{"messages": t} for t in (talk, [{"role": "system", "content": "S"}, *talk], talk)]
    )
    examples, report = load_conversations(sft(path, bad_rows="drop"), template, seed=0)
    assert [e.line for e in examples] == [1, 3]
    assert report.dropped == {"the chat template refuses it": 1}
    with pytest.raises(TuluLiteError, match=r"a\.jsonl:2: the chat template .* no system"):
        load_conversations(sft(path), template, seed=0)


def test_a_fault_of_the_recipe_is_no_bad_row(write: Write, template: ChatTemplate) -> None:
    path = write("a.jsonl", [row("q")])
    with pytest.raises(TuluLiteError, match="a lone '{'"):
        load_conversations(sft({"path": path, "prompt": "{"}, bad_rows="drop"), template, seed=0)


def test_unknown_characters_are_counted(write: Write, template: ChatTemplate) -> None:
    path = write("a.jsonl", [row("plain"), row("☃ and ☃"), row("<unk> is text")])
    examples, report = load_conversations(sft({"path": path, "repeat": 2}), template, seed=0)
    assert len(examples) == 6
    assert report.unknown == {"a": 2}
    assert report.notes() == [
        f"2 tokens stand for characters that the vocabulary lacks: a 2 (first at {path}:2)"
    ]
    prompt = write("p.jsonl", [{"prompt": "☃", "reference": 1, "verifier": "exact"}])
    _, found = report_prompts([DataSource(path=prompt)], template, seed=0, max_prompt_tokens=None)
    assert found.unknown == {"p": 1}


def test_prompts_follow_the_stages_rules(write: Write, template: ChatTemplate) -> None:
    prompts = [{"prompt": f"q{i}", "reference": i, "verifier": "exact"} for i in range(6)]
    path = write(
        "p.jsonl", [*prompts, {"prompt": "Q0!", "reference": 9, "verifier": "exact"}, {"prompt": "no"}]
    )
    how: Any = {"seed": 0, "max_prompt_tokens": 30}
    rules = sft({"path": path, "count": 9, "max_repeat": 2}, bad_rows="drop", filters={"duplicates": "exact"})
    made, report = report_prompts(rules.data, template, **how, rules=rules)
    assert [p.reference for p in made[:6]] == list(range(6))
    assert len(made) == 9
    assert len({p.id for p in made}) == 9
    assert report.dropped == {"a duplicate": 1, "no column 'reference'": 1}
    long = write("l.jsonl", [*prompts[:1], {"prompt": "q" * 50, "reference": 1, "verifier": "exact"}])
    with pytest.raises(TuluLiteError, match=r"l\.jsonl:2: the prompt has 68 tokens"):
        load_prompts([DataSource(path=long)], template, **how)
    dropped, report = report_prompts([DataSource(path=long)], template, **how, rules=rules)
    assert len(dropped) == 1
    assert report.dropped == {"a prompt that leaves no room for a response": 1}


def test_a_recipes_patterns_and_evaluation_sets_count_by_content(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"w")
    (tmp_path / "recipe.yaml").write_text(
        "name: t\nmodel: ./model\noutput: ./out\nstages:\n"
        "  - {name: s, kind: sft, learning_rate: 1e-3, data: {path: ['rows/*.jsonl']}, filters: {decontaminate: test.jsonl}}\n"
    )
    (tmp_path / "rows").mkdir()
    for name in ("rows/a.jsonl", "rows/b.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(json.dumps(row("q")) + "\n")

    def key() -> str:
        recipe = load_recipe(tmp_path / "recipe.yaml")
        (step,) = expand(recipe, Ledger(Path(recipe.output)))
        return step.key

    keys = [key(), key()]
    for name in ("rows/b.jsonl", "test.jsonl", "rows/c.jsonl"):
        (tmp_path / name).write_text(json.dumps(row("other")) + "\n")
        keys.append(key())
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4
    stage = load_recipe(tmp_path / "recipe.yaml").stages[0]
    assert stage.data[0].path == (str(tmp_path / "rows/*.jsonl"),)
    assert stage.filters.decontaminate is not None
    assert stage.filters.decontaminate.against[0].path == str(tmp_path / "test.jsonl")
