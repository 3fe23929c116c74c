"""The ways of weights: which is chosen, what is written where, what is said to the server and in which order."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tulu_lite.errors import ServerError, TuluLiteError
from tulu_lite.rollout import weights
from tulu_lite.rollout.control import Refused
from tulu_lite.rollout.digest import combined_digest, tensor_digest
from tulu_lite.rollout.proof import disagreements, fixed_prompts, prove_by_agreement
from tulu_lite.rollout.routes import files
from tulu_lite.rollout.routes.choose import choose_route
from tulu_lite.rollout.routes.feed import Feed
from tulu_lite.rollout.routes.files import Cast, write_files
from tulu_lite.rollout.routes.gpu import Messages, Source
from tulu_lite.rollout.routes.handles import handle_from_json, handle_to_json

A, B, C = "GPU-a", "GPU-b", "GPU-c"


@pytest.mark.parametrize(
    ("device", "trainer", "server", "where", "route"),
    [
        ("cpu", [], [""], "cpu", "files"),
        ("cuda", [A], [""], "cpu", "files"),
        ("cpu", [], [A], "cuda", "files"),
        ("cuda", [A], [A], "cuda", "ipc"),
        ("cuda", [A, B], [A], "cuda", "ipc"),
        ("cuda", [A], [B], "cuda", "nccl"),
        ("cuda", [A], [B, C], "cuda", "nccl"),
        ("cuda", [A], [A, B], "cuda", "files"),
    ],
)
def test_route_by_device(device, trainer, server, where, route):
    assert choose_route(device, trainer, {"device": where, "gpus": server}) == route


# Files


def test_cast_once_before_the_digest_and_never_wider():
    cast = Cast(torch.bfloat16, frozenset({"A_log"}))
    wide = torch.tensor([1.0000001, 3.14159])
    assert cast("x.weight", wide).dtype == torch.bfloat16
    assert cast("x.A_log", wide) is wide
    assert cast("x.ids", torch.tensor([1, 2])).dtype == torch.int64
    half = wide.bfloat16()
    assert Cast(torch.float32)("x.weight", half) is half


def test_files_hold_the_cast_weights_and_their_digest(tmp_path):
    told: list[tuple[str, dict[str, str]]] = []
    tensor = torch.randn(8, 4)
    written = write_files(
        [("a", tensor)], [tmp_path], cast=Cast(torch.bfloat16), on_file=lambda *given: told.append(given)
    )
    held = load_file(written.files[0])["a"]
    assert torch.equal(held, tensor.bfloat16())
    assert told == [(written.files[0], {"a": tensor_digest(held)})]


def test_each_tensor_is_written_before_the_next_is_asked_for(tmp_path):
    """A gatherer may use one buffer for all."""
    buffer = torch.zeros(5)

    def gather():
        for value in (1.0, 2.0, 3.0):
            buffer.fill_(value)
            yield f"w{value:.0f}", buffer

    held = load_file(write_files(gather(), [tmp_path]).files[0])
    assert [held[f"w{n}"][0].item() for n in (1, 2, 3)] == [1.0, 2.0, 3.0]


def test_files_of_a_former_push_are_written_over_unless_linked(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BUCKET_BYTES", 40)
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir(), new.mkdir()
    write_files([("a", torch.zeros(100)), ("b", torch.zeros(10))], [old])
    inodes = [file.stat().st_ino for file in sorted(old.iterdir())]
    (tmp_path / "link").hardlink_to(old / "00001.safetensors")
    tensors = [("a", torch.randn(50)), ("b", torch.randn(10))]
    written = write_files(tensors, [new], spare=old)
    held = {name: tensor for file in written.files for name, tensor in load_file(file).items()}
    assert all(torch.equal(held[name], tensor) for name, tensor in tensors)
    now = [Path(file).stat().st_ino for file in written.files]
    assert now[0] == inodes[0]
    assert now[1] != inodes[1]
    assert not old.exists()
    assert torch.equal(load_file(tmp_path / "link")["b"], torch.zeros(10))


def full_after(monkeypatch, folder: Path, size: int) -> None:
    """Make a folder's files take `size` bytes in all, the last write in part: as a full file system does."""
    left = {"bytes": size}
    open_ = Path.open

    class Limited:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: Any) -> int:
            fits = min(len(data), left["bytes"])
            if fits == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            left["bytes"] -= fits
            return self.file.write(data[:fits])

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    def limited(path: Path, mode: str = "r", **options: Any) -> Any:
        file = open_(path, mode, **options)
        return Limited(file) if path.parent == folder and mode == "xb" else file

    monkeypatch.setattr(Path, "open", limited)


@pytest.mark.parametrize("size", [1000, 4 * 300 + 100])
def test_full_shared_memory_is_left_for_the_disk_in_the_middle_of_a_file(tmp_path, monkeypatch, size):
    memory, disk = tmp_path / "memory", tmp_path / "disk"
    memory.mkdir(), disk.mkdir()
    full_after(monkeypatch, memory, size)
    tensors = [(f"w{n}", torch.randn(300)) for n in range(4)]
    written = write_files(tensors, [memory, disk])
    held = {name: tensor for file in written.files for name, tensor in load_file(file).items()}
    assert all(torch.equal(held[name], tensor) for name, tensor in tensors)
    assert [Path(file).parent for file in written.files] == [disk]
    assert not list(memory.iterdir())
    full_after(monkeypatch, disk, size)
    (disk / "00000.safetensors").unlink()
    with pytest.raises(OSError, match="No space left"):
        write_files(tensors, [memory, disk])


# What is said to the server


class FakeControl:
    """Notes the orders; answers with what a server would."""

    def __init__(self, fails_at: str = "", **report: Any) -> None:
        self.orders: list[Any] = []
        self.fails_at, self.report = fails_at, {"tensors": 1, "checked": 1, "unchecked": [], "digest": ""}
        self.report |= report

    def _note(self, name: str, *given: Any) -> None:
        self.orders.append((name, *given))
        if name == self.fails_at:
            raise Refused(f"{name} failed", 500)

    def begin_update(self, mode: str) -> None:
        self._note("begin", mode)

    def update(self, info: dict[str, Any]) -> None:
        self._note("update", info)

    def finish_update(self, version: int, digest: str | None) -> dict[str, Any]:
        self._note("finish", version, digest)
        return dict(self.report)

    def call(self, method: str, path: str, body: Any = None) -> None:
        self._note(path, body)

    def greedy(self, token_ids: Any, tokens: int) -> list[int]:
        return [token_ids[0] % 3] * tokens


def test_the_server_loads_one_file_while_the_next_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BUCKET_BYTES", 1)
    control = FakeControl()
    feed = Feed(control, 7, "keep")
    seen: list[int] = []

    def gather():
        for n in range(3):
            yield f"w{n}", torch.full((3,), float(n))
            while n and len([order for order in control.orders if order[0] == "update"]) < n:
                pass  # the former file is loaded before this one is finished
            seen.append(len(control.orders))

    written = write_files(gather(), [tmp_path], on_file=feed.put)
    digest = combined_digest(written.digests)
    feed.finish(digest)
    assert control.orders[0] == ("begin", "keep")
    assert [order[1]["files"][0] for order in control.orders[1:4]] == written.files
    assert control.orders[4] == ("finish", 7, digest)
    assert seen[2] >= 3


def test_a_fault_of_the_server_is_raised_at_the_end_and_nothing_more_is_said(tmp_path):
    control = FakeControl("update")
    feed = Feed(control, 7, "wait")
    for name in ("a", "b"):
        feed.put(name, {name: "x"})
    with pytest.raises(Refused, match="update failed"):
        feed.finish("d")
    assert feed.abandon()
    assert [order[0] for order in control.orders] == ["begin", "update"]
    assert not Feed(control, 8, "wait").abandon()


def test_unproven_weights_are_refused_or_proven_by_agreement(tmp_path):
    (tmp_path / "config.json").write_text('{"vocab_size": 50}')
    state = weights.ServerState("ready", model=str(tmp_path))
    report = {"unchecked": ["layers.0.weight"], "dtype": "float32"}
    with pytest.raises(ServerError, match=r"update 3 cannot be proven.*layers\.0\.weight"):
        weights._agreement(FakeControl(), 3, state, report, None)

    def right(samples):
        return [torch.eye(50)[list(response)] for _, response in samples]

    def wrong(samples):
        return [torch.eye(50)[[token + 1 for token in response]] for _, response in samples]

    assert weights._agreement(FakeControl(), 3, state, report, right) == 32
    with pytest.raises(ServerError, match="greedy tokens are not the trainer's: 32 of 32"):
        weights._agreement(FakeControl(), 3, state, report, wrong)


def test_rounding_may_decide_between_equals_and_nan_never_agrees():
    rows = torch.tensor([[-1.0, -1.0005], [-1.0, -1.5], [float("nan"), 0.0]])
    samples = [((1,), (1, 1, 0))]
    assert disagreements(samples, [rows], 1e-3)[0] == pytest.approx(0.5)
    assert len(disagreements(samples, [rows], 1e-3)) == 2
    assert len(disagreements(samples, [rows], 1.0)) == 1


@pytest.mark.parametrize("vocabulary", [2, 5, 128, 50000])
def test_fixed_prompts_are_of_the_vocabulary_and_differ(vocabulary):
    prompts = fixed_prompts(vocabulary)
    assert all(0 <= token < vocabulary for prompt in prompts for token in prompt)
    assert vocabulary < 10 or len(set(prompts)) == len(prompts)
    prove_by_agreement(
        FakeControl(),
        lambda samples: [torch.zeros(len(r), vocabulary + 3) for _, r in samples],
        vocabulary,
        "",
    )


# Between GPUs


def cuda_handle(size: int = 6) -> tuple[Any, ...]:
    """As torch's reduce_tensor gives for a CUDA tensor of bytes."""
    return (
        torch.Tensor, torch.Size([size]), (1,), 0, torch.storage.TypedStorage, torch.uint8, 0, b"h\x00\xff", size, 512,
        False, b"counter", 3, b"event", True,
    )  # fmt: skip


def test_ipc_handles_survive_json_and_nothing_else_is_taken():
    import json

    handle = cuda_handle()
    data = json.loads(json.dumps(handle_to_json(handle)))
    assert handle_from_json(data) == handle
    with pytest.raises(ValueError, match="rebuild_cuda_tensor"):
        handle_to_json((print, "x"))
    with pytest.raises(ValueError, match="no type of a tensor"):
        handle_from_json(data | {"dtype": "load"})
    with pytest.raises(KeyError):
        handle_from_json({"size": [1]})


def test_messages_of_a_transfer_between_gpus():
    control = FakeControl()
    messages = Messages(control, "ipc", "wait")
    messages.init_weight_transfer_engine({"packed": True})
    assert not messages.spoken
    messages.start_weight_update()
    assert messages.spoken
    info = {"names": ["a"], "ipc_handles": {A: cuda_handle()}, "ipc_handles_pickled": None}
    messages.update_weights(info)
    messages.finish_weight_update()
    assert [order[0] for order in control.orders] == ["/init_weight_transfer_engine", "begin", "update"]
    assert control.orders[0][1] == {"init_info": {"route": "ipc", "info": {"packed": True}}}
    sent = control.orders[2][1]
    assert sent["route"] == "ipc"
    assert handle_from_json(sent["info"]["ipc_handles"][A]) == cuda_handle()
    assert "ipc_handles_pickled" not in sent["info"]


def test_source_gives_what_it_declares_and_digests_it():
    given = {"a.weight": torch.randn(3, 2), "b.A_log": torch.randn(4)}
    source = Source(given.items, {"a.weight": (3, 2), "b.A_log": (4,)}, torch.bfloat16, ["A_log"])
    for _ in range(2):
        sent = dict(source)
        assert source.digests == {name: tensor_digest(tensor) for name, tensor in sent.items()}
    assert sent["a.weight"].dtype == torch.bfloat16
    assert sent["b.A_log"].dtype == torch.float32
    assert source._type("a.weight") == torch.bfloat16


def test_shapes_are_known_beforehand_where_they_can_be():
    model = torch.nn.Linear(3, 2)
    want = {"weight": (2, 3), "bias": (2,)}
    assert weights.declared_shapes(model.named_parameters()) is None
    assert weights.declared_shapes(list(model.named_parameters())) == want
    assert weights.declared_shapes(dict(model.named_parameters()).items()) == want


def test_a_report_of_several_workers_is_of_all_of_them(monkeypatch):
    from tulu_lite.rollout.control import Control

    control = Control("http://127.0.0.1:1", None, 1.0)
    reports = [
        {"digest": "d", "tensors": 2, "checked": 5, "unchecked": []},
        {"digest": "d", "tensors": 2, "checked": 3, "unchecked": ["x"]},
    ]
    answers = {"/collective_rpc": {"results": reports}, "/weight_info": {"weight_version": "4"}}
    monkeypatch.setattr(control, "call", lambda method, path, body=None, timeout_s=None: answers.get(path))
    assert control.finish_update(4, "d") == reports[0] | {"checked": 3, "unchecked": ["x"]}
    with pytest.raises(ServerError, match="did not take weight version 4"):
        control.finish_update(4, "other")
    with pytest.raises(TuluLiteError, match="holds weight version 4, not 5"):
        control.finish_update(5, "d")
