from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tulu_lite.datasets.placeholders import render
from tulu_lite.datasets.sources import load_rows, select, unit_hash
from tulu_lite.errors import TuluLiteError
from tulu_lite.recipe import DataSource

Write = Callable[..., str]


def test_render_by_hand() -> None:
    row = {"body": "A", "question": "B?", "a": {"b": {"c": 3}}, "x.y": "dotted name", "_z1": 2.5}
    assert render("{body} {question}", row) == "A B?"
    assert render("{a.b.c}|{x.y}|{_z1}", row) == "3|dotted name|2.5"
    assert render("\\boxed{{{body}}} {{}}", row) == "\\boxed{A} {}"
    assert render("no columns", row) == "no columns"
    assert (
        render("{body}", {"body": "{question} {{ }}"}) == "{question} {{ }}"
    )  # text of a row is no template


@pytest.mark.parametrize("template", ["{body.__class__}", "{body.real}", "{a.keys}", "{missing}"])
def test_render_reaches_no_attributes(template: str) -> None:
    with pytest.raises(TuluLiteError, match=r"rows:7: this row has no .*body, a") as caught:
        render(template, {"body": "text", "a": {"b": 1}}, "rows:7")
    assert caught.value.cure


@pytest.mark.parametrize(
    "template", ["{body!r}", "{body:>10}", "{ body }", "{", "}", "{0}", "{}", "{body[0]}"]
)
def test_render_refuses_lone_braces(template: str) -> None:
    with pytest.raises(TuluLiteError, match="lone") as caught:
        render(template, {"body": "text"})
    assert "{{ and }}" in caught.value.cure


@pytest.mark.parametrize(
    ("value", "kind"), [(None, "null"), (["a"], "a list"), ({"t": 1}, "an object"), (True, "true or")]
)
def test_render_refuses_what_is_no_text(value: Any, kind: str) -> None:
    with pytest.raises(TuluLiteError, match=f"'body' is {kind}"):
        render("{body}", {"body": value})


@given(st.text(), st.text(alphabet="abc{}.\\ \n"))
def test_render_round_trip(value: str, literal: str) -> None:
    escaped = literal.replace("{", "{{").replace("}", "}}")
    assert render(escaped + "{v}" + escaped, {"v": value}) == literal + value + literal


def test_a_parquet_error_without_a_word_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    import pyarrow.parquet

    def fail(_: Path) -> None:
        raise pyarrow.ArrowInvalid

    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", fail)
    with pytest.raises(TuluLiteError, match="not a parquet file that can be read: ArrowInvalid"):
        load_rows([DataSource(path=str(tmp_path / "a.parquet"))], seed=0)


def test_formats_give_the_same_rows(write: Write, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    data = [{"prompt": "a\u2028b", "n": {"x": [1, 2]}}, {"prompt": "c", "n": {"x": []}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(data), tmp_path / "rows.parquet")
    paths = [write("rows.json", data), write("rows.jsonl", data), str(tmp_path / "rows.parquet")]
    for path in paths:
        rows = load_rows([DataSource(path=path)], seed=0)
        assert [row.data for row in rows] == data
        assert [(row.file, row.line, row.source) for row in rows] == [(path, 1, "rows"), (path, 2, "rows")]


def test_line_numbers_count_blank_lines_and_byte_order_marks(write: Write) -> None:
    rows = load_rows(
        [DataSource(path=write("a.jsonl", '\ufeff{"a": "x\u2028y"}\r\n\n  \n{"a": "z"}'))], seed=0
    )
    assert [(row.line, row.data["a"]) for row in rows] == [(1, "x\u2028y"), (4, "z")]


def test_source_names(write: Write) -> None:
    path = write("named.jsonl", [{"a": 1, "source": "own"}, {"a": 2}, {"a": 3, "source": None}])
    assert [row.source for row in load_rows([DataSource(path=path)], seed=0)] == ["own", "named", "named"]
    assert {row.source for row in load_rows([DataSource(path=path, source="set")], seed=0)} == {"set"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "has no rows"),
        ("a.json", " \n", "has no rows"),
        ("a.json", "[]", "has no rows"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', r"a\.jsonl:2: this is not valid JSON"),
        ("a.json", '[{"a": 1},\n {"a" 1}]', r"a\.json:2: this is not valid JSON"),
        ("a.jsonl", '{"a": 1}\n[1]\n', r"a\.jsonl:2: a row is an object .* but this one is \[1\]"),
        ("a.json", '{"a": 1}', "holds a list of objects, but this one holds an object"),
        ("a.parquet", "not parquet", "not a parquet file"),
    ],
)
def test_broken_files(write: Write, name: str, content: str, message: str) -> None:
    with pytest.raises(TuluLiteError, match=message):
        load_rows([DataSource(path=write(name, content))], seed=0)


def test_missing_and_undecodable_files(tmp_path: Path) -> None:
    for name in ("none.jsonl", "none.json", "none.parquet"):
        with pytest.raises(TuluLiteError, match=f"there is no data file .*{name}") as caught:
            load_rows([DataSource(path=str(tmp_path / name))], seed=0)
        assert "relative to the recipe" in caught.value.cure
    (tmp_path / "l.jsonl").write_bytes(b'{"a": 1}\n{"a": "\xff"}\n')
    with pytest.raises(TuluLiteError, match=r"l\.jsonl:2: this is not UTF-8"):
        load_rows([DataSource(path=str(tmp_path / "l.jsonl"))], seed=0)
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(TuluLiteError, match="cannot read the data file"):
        load_rows([DataSource(path=str(tmp_path / "d.jsonl"))], seed=0)


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        return datasets.Dataset.from_list([{"prompt": "p"}])

    entry = DataSource(hub="org/name", config="main", split="test", revision="abc")
    monkeypatch.setattr(datasets, "load_dataset", load)
    (row,) = load_rows([entry], seed=0)
    assert (row.data, row.source, row.where) == ({"prompt": "p"}, "org/name", "org/name:1")
    assert asked == [(("org/name", "main"), {"split": "test", "revision": "abc"})]

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(TuluLiteError, match=r"cannot load the hub data set org/name .*: no route") as caught:
        load_rows([entry], seed=0)
    assert "`path:`" in caught.value.cure


def test_unit_hash_is_the_start_of_sha256() -> None:
    digest = hashlib.sha256(b"What is 2+2?").hexdigest()
    assert unit_hash("What is 2+2?") == pytest.approx(int(digest[:16], 16) / 16**16, abs=1e-12)


@given(st.lists(st.text(), max_size=40, unique=True), st.floats(0.01, 0.99))
def test_shares_are_disjoint_and_complete(texts: list[str], cut: float) -> None:
    def side(low: float, high: float) -> list[str]:
        entry = DataSource(path="x.jsonl", share=(low, high))
        if not any(low <= unit_hash(text) < high for text in texts):
            with pytest.raises(TuluLiteError, match="no row falls in share"):
                select(texts, entry, 0, str)
            return []
        return select(texts, entry, 0, str)

    left, right = side(0, cut), side(cut, 1)
    assert sorted(left + right) == sorted(texts)
    assert not set(left) & set(right)


def test_share_goes_by_the_prompt_however_it_is_written(write: Write) -> None:
    texts = [f"question {i}" for i in range(200)]
    plain = write("plain.jsonl", [{"prompt": text} for text in texts])
    chats = [
        {"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": "x"}]} for t in texts
    ]
    chat = write("chat.jsonl", chats)
    halves = []
    for path in (plain, chat):
        rows = load_rows([DataSource(path=path, share=(0, 0.5))], seed=0)
        halves.append([row.line for row in rows])
    assert halves[0] == halves[1]
    assert 70 < len(halves[0]) < 130


def test_limit_is_a_seeded_choice_in_file_order_then_repeated(write: Write) -> None:
    path = write("n.jsonl", [{"prompt": str(i)} for i in range(50)])

    def lines(seed: int, **how: Any) -> list[int]:
        return [row.line for row in load_rows([DataSource(path=path, **how)], seed=seed)]

    some = lines(1, limit=10)
    assert some == sorted(some)
    assert len(set(some)) == 10
    assert some == lines(1, limit=10)
    assert some != lines(2, limit=10)
    assert some != list(range(1, 11))
    assert lines(1, limit=10, repeat=3) == some * 3
    assert lines(1, limit=99) == list(range(1, 51))
    share = set(lines(1, share=(0, 0.5)))
    assert set(lines(1, share=(0, 0.5), limit=5)) < share


def test_share_names_the_row_without_the_column(write: Write) -> None:
    path = write("rows.jsonl", [{"prompt": "a"}, {"question": "b"}])
    with pytest.raises(TuluLiteError, match=r"rows\.jsonl:2: this row has no 'prompt'.*fields are question"):
        load_rows([DataSource(path=path, share=(0, 0.5))], seed=0)


def test_stage_rows_are_not_read_here() -> None:
    with pytest.raises(TuluLiteError, match="only a dpo stage"):
        load_rows([DataSource(stage="pairs")], seed=0)


def test_no_torch_at_import() -> None:
    code = (
        "import sys; import tulu_lite.datasets.chat, tulu_lite.datasets.prompts, tulu_lite.datasets.pairs, "
        "tulu_lite.datasets.conversations, tulu_lite.datasets.batching; "
        "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]", json.dumps(done.stdout)
