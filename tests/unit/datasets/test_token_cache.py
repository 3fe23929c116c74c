"""Rows are tokenized once; what is torn, foreign or half made is made again, whoever else is at it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tulu_lite.datasets.cache import TokenCache
from tulu_lite.datasets.chat import ChatTemplate
from tulu_lite.datasets.conversations import load_conversations
from tulu_lite.datasets.pairs import load_pairs
from tulu_lite.datasets.store import Encoded, Place, StoreWriter, open_store
from tulu_lite.errors import TuluLiteError
from tulu_lite.recipe import DpoStage, SftStage

Write = Callable[..., str]
ROWS = [{"prompt": f"q{i}", "completion": "a" * (i + 1), "kind": f"k{i % 2}"} for i in range(9)]


def sft(data: Any, **how: Any) -> SftStage:
    return SftStage(name="sft", kind="sft", data=data, learning_rate=1e-3, **how)


def stores(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


class Counting:
    """A template that counts what it tokenizes."""

    def __init__(self, template: ChatTemplate) -> None:
        self.template, self.rows = template, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.template, name)

    def conversations(self, many: Any, *args: Any, **how: Any) -> Any:
        self.rows += len(many)
        return self.template.conversations(many, *args, **how)


numbers = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=6)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(numbers, numbers, st.integers(0, 3), st.integers(1, 10**12)), max_size=8),
    st.booleans(),
)
def test_a_store_gives_back_what_was_added(tmp_path_factory: Any, rows: Any, on_disk: bool) -> None:
    folder = tmp_path_factory.mktemp("store") if on_disk else None
    writer = StoreWriter(folder, 2)
    for a, b, file, line in rows:
        learnt = [False] * len(a) + [True] * len(b)
        writer.add(Encoded((a, b), learnt), Place(f"s{file}", file, line, (f"t={line}",)), unknown=file)
    store = writer.finish({"key": "k"})
    if folder is not None:
        store = open_store(folder, key="k")
    assert len(store) == len(rows)
    assert store.lengths().tolist() == [[len(a), len(b)] for a, b, *_ in rows]
    assert store.learnt_counts().tolist() == [len(b) for _, b, *_ in rows]
    for i, (a, b, file, line) in enumerate(rows):
        assert [part.tolist() for part in store.parts(i)] == [a, b]
        assert store.learnt(i).tolist() == [False] * len(a) + [True] * len(b)
        assert store.place(i) == Place(f"s{file}", file, line, (f"t={line}",))
        assert store.unknown(i) == file


def test_cached_rows_are_the_rows(write: Write, template: ChatTemplate, tmp_path: Path) -> None:
    path = write("a.jsonl", [*ROWS, {"prompt": "q", "completion": " "}])
    stage = sft({"path": path, "tags": ["kind"], "count": 6}, bad_rows="drop", max_length=30)
    counting: Any = Counting(template)
    cache = TokenCache(tmp_path / "cache")
    plain, report = load_conversations(stage, template, seed=3)
    for _ in range(2):
        cached, again = load_conversations(stage, counting, seed=3, cache=cache)
        assert list(cached) == list(plain)
        assert cached[-1] == plain[-1] and cached[1:3] == plain[1:3]
        assert again.to_json() == report.to_json()
    assert counting.rows == len(ROWS)  # once
    assert cached.lengths[:, 0].tolist() == [len(e.token_ids) for e in plain]  # type: ignore[attr-defined]
    assert {e.tags for e in plain} <= {("kind=k0",), ("kind=k1",)}
    load_conversations(sft({"path": path, "tags": ["kind"], "weight": 1}, bad_rows="drop", max_length=30), counting, seed=4, cache=cache)  # fmt: skip
    assert counting.rows == len(ROWS)  # another mix of the same rows, and another seed


def test_pairs_are_cached_too(write: Write, template: ChatTemplate, tmp_path: Path) -> None:
    path = write("p.jsonl", [{"prompt": "q", "chosen": "yes" * i, "rejected": "no"} for i in (1, 2)])
    stage = DpoStage(name="dpo", kind="dpo", init="base", data=path, learning_rate=1e-3)
    cache = TokenCache(tmp_path / "cache")
    plain, _ = load_pairs(stage, template, seed=0, stage_rows=None)
    assert list(load_pairs(stage, template, seed=0, stage_rows=None, cache=cache)[0]) == list(plain)
    cached, report = load_pairs(stage, template, seed=0, stage_rows=None, cache=cache)
    assert list(cached) == list(plain)
    assert (plain[1].file, plain[1].line) == (path, 2)
    assert report.tokens == sum(
        2 * len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in plain
    )


def test_what_decides_the_tokens_makes_another_store(
    write: Write, template: ChatTemplate, chars: Any, tmp_path: Path
) -> None:
    path, folder = write("a.jsonl", ROWS), tmp_path / "cache"

    def load(stage: Any = None, with_template: ChatTemplate = template) -> None:
        load_conversations(stage or sft(path), with_template, seed=0, cache=TokenCache(folder))

    load()
    made = [1]
    ours = ChatTemplate("other", template.source.replace("[", "("), chars)
    for change in (
        lambda: load(sft(path, max_length=100)), lambda: load(sft(path, loss_on="last")),
        lambda: load(sft({"path": path, "tags": ["kind"]})), lambda: load(with_template=ours),
        lambda: load(sft(path, filters={"duplicates": "exact"})), lambda: (write("a.jsonl", ROWS[1:]), load()),
    ):  # fmt: skip
        change()
        made.append(len(stores(folder)))
    assert made == [1, 2, 3, 4, 5, 6, 7]
    moved = tmp_path / "b" / "a.jsonl"
    moved.parent.mkdir()
    shutil.copy(path, moved)
    load(sft(str(moved)))
    assert (
        len(stores(folder)) == 7
    )  # the same content under another folder, and its rows are named where they lie
    (example, *_), _ = load_conversations(sft(str(moved)), template, seed=0, cache=TokenCache(folder))
    assert example.file == str(moved)


@pytest.mark.parametrize("harm", ["cut", "flip", "meta", "gone", "foreign", "file"])
def test_a_store_that_is_not_whole_is_made_again(
    write: Write, template: ChatTemplate, tmp_path: Path, harm: str
) -> None:
    stage, folder = sft(write("a.jsonl", ROWS)), tmp_path / "cache"
    plain = list(load_conversations(stage, template, seed=0, cache=TokenCache(folder))[0])
    (store,) = stores(folder)
    ids = store / "ids.bin"
    content = ids.read_bytes()
    if harm == "cut":
        ids.write_bytes(content[:-4])
    elif harm == "flip":
        ids.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif harm == "meta":
        (store / "meta.json").write_text('{"format": 1')
    elif harm == "gone":
        (store / "lines.bin").unlink()
    elif harm == "foreign":
        meta = (store / "meta.json").read_text()
        (store / "meta.json").write_text(meta.replace('"key": "', '"key": "0'))
    else:
        shutil.rmtree(store)
        store.write_text("a file")
    assert list(load_conversations(stage, template, seed=0, cache=TokenCache(folder))[0]) == plain
    assert open_store(store).meta["rows"] == len(ROWS)
    assert [p.name for p in folder.iterdir() if p.name.endswith(".tmp")] == []


def build(rows: int, pause: float = 0.0) -> Callable[[StoreWriter], dict[str, Any]]:
    def add(writer: StoreWriter) -> dict[str, Any]:
        for i in range(rows):
            writer.add(Encoded(([i],), [True]), Place("s", 0, i + 1))
            time.sleep(pause)
        return {}

    return add


def test_two_at_once_build_once(tmp_path: Path) -> None:
    cache, built = TokenCache(tmp_path), []

    def counted(writer: StoreWriter) -> dict[str, Any]:
        built.append(1)
        return build(3, 0.02)(writer)

    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(cache.store({"a": 1}, 1, counted))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert built == [1]
    assert [len(store) for store in found] == [3] * 4


CHILD = """
import sys, time
from pathlib import Path
from tulu_lite.datasets.cache import TokenCache
from tulu_lite.datasets.store import Encoded, Place
def build(writer):
    writer.add(Encoded(([7],), [True]), Place("s", 0, 1))
    print("half", flush=True)
    time.sleep(60)
TokenCache(Path(sys.argv[1])).store({"a": 1}, 1, build)
"""


def test_killed_while_building(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "half\n"
        with pytest.raises(TuluLiteError, match="another process has been tokenizing"):
            TokenCache(tmp_path, wait_s=0.1).store({"a": 1}, 1, build(2))
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.kill()
        child.wait(20)
    assert len(list(tmp_path.glob(".*.tmp"))) == 1
    assert len(TokenCache(tmp_path, wait_s=20).store({"a": 1}, 1, build(2))) == 2
    assert list(tmp_path.glob(".*.tmp")) == []


def test_a_fault_while_building_leaves_nothing(tmp_path: Path) -> None:
    def fail(writer: StoreWriter) -> dict[str, Any]:
        build(2)(writer)
        raise TuluLiteError("a bad row")

    with pytest.raises(TuluLiteError, match="a bad row"):
        TokenCache(tmp_path).store({"a": 1}, 1, fail)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TuluLiteError, match="cannot write"):
        TokenCache(tmp_path / "file" / "cache").store({"a": 1}, 1, build(1))
