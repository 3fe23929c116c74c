"""Weights as safetensors files that the server reads itself: each tensor is written as it comes, and cast and digested
on the way, so that nothing but the file holds a second copy.

Files go to shared memory while it has room and to the temporary folder's disk where it has not. Pages are what costs:
a new file in shared memory is written at a third of the speed of one that is written over, so the files of the push
before the last are kept and used again.
"""

from __future__ import annotations

import errno
import json
import shutil
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from ...errors import TuluLiteError
from ..checkpoint import DTYPES, Shapes
from ..digest import tensor_bytes, tensor_digest

if TYPE_CHECKING:
    import torch

BUCKET_BYTES = (
    1 << 27
)  # a file ends with the tensor that reaches this; the server reads one while the next is written
_HEADER_BYTES = 1 << 17  # set aside for a file's header, which is known last
_TENSORS = 400  # of one file, so that its header has room
_CHUNK = 1 << 20  # written and digested while it lies in the cache
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class Written:
    """What was written: files in order, {file: names in it}, {name: digest}, {name: shape}."""

    files: list[str] = field(default_factory=list)
    tensors: dict[str, list[str]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    shapes: Shapes = field(default_factory=dict)


@dataclass(frozen=True)
class Cast:
    """What the server keeps its weights in, so that no wider type travels. dtype None: as they are."""

    dtype: torch.dtype | None = None
    wide: frozenset[str] = frozenset()  # last parts of names that the server keeps wider

    def __call__(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        narrower = (
            self.dtype is not None
            and tensor.is_floating_point()
            and tensor.dtype.itemsize > self.dtype.itemsize
            and name.rpartition(".")[2] not in self.wide
        )
        return tensor.to(self.dtype) if narrower else tensor


def write_files(
    named_tensors: Iterable[tuple[str, torch.Tensor]],
    folders: list[Path],
    *,
    cast: Cast | None = None,
    spare: Path | None = None,
    on_file: Callable[[str, dict[str, str]], None] | None = None,
) -> Written:
    """Write tensors, each before the next is asked for, to files of about BUCKET_BYTES.

    folders: where files may lie, the best first; when one is full the next is used. They exist.
    spare: a folder of files that nobody needs any longer, in the first one's file system, to be written over.
    on_file(path, {name: digest}): called for each file when it is whole.
    Raises TuluLiteError when a name comes twice, OSError (ENOSPC) when the last folder is full.
    """
    written = Written()
    bucket = _Bucket(folders, spare)

    def flush() -> None:
        path, digests = bucket.close()
        written.files.append(path)
        written.tensors[path] = list(digests)
        if on_file is not None:
            on_file(path, digests)

    try:
        for name, given in named_tensors:
            if name in written.digests:
                raise TuluLiteError(f"the weight {name!r} was given twice", cure="give each weight once")
            whole: Any = given.full_tensor() if hasattr(given, "full_tensor") else given  # FSDP2's DTensor
            tensor = (cast or Cast())(name, whole.detach()).to("cpu").contiguous()
            del whole, given
            written.digests[name] = bucket.add(name, tensor)
            written.shapes[name] = tuple(tensor.shape)
            del tensor
            if bucket.size >= BUCKET_BYTES or len(bucket.header) >= _TENSORS:
                flush()
        if bucket.header:
            flush()
    finally:
        bucket.abandon()
        if spare is not None:
            shutil.rmtree(spare, ignore_errors=True)
    return written


class _Bucket:
    """One safetensors file at a time, written in one pass: its header last, into the room left for it."""

    def __init__(self, folders: list[Path], spare: Path | None) -> None:
        self._folders, self._spare, self._count = list(folders), spare, 0
        self._file: Any = None
        self.header: dict[str, Any] = {}
        self.digests: dict[str, str] = {}
        self.size = 0

    def add(self, name: str, tensor: torch.Tensor) -> str:
        """Append a contiguous CPU tensor; returns its digest."""
        if self._file is None:
            self._open()
        try:
            number = self._write(tensor)
        except OSError as error:
            if error.errno not in _FULL or len(self._folders) == 1:
                raise
            self._move_on()
            number = self._write(tensor)
        end = self.size + tensor.nbytes
        dtype = DTYPES[str(tensor.dtype).removeprefix("torch.")]
        self.header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [self.size, end]}
        self.size = end
        self.digests[name] = tensor_digest(tensor, number)
        return self.digests[name]

    def _write(self, tensor: torch.Tensor) -> int:
        """Copy the bytes to the end of the file; returns their XXH3."""
        digest = xxhash.xxh3_64()
        data = tensor_bytes(tensor) if tensor.numel() else memoryview(b"")
        for start in range(0, len(data), _CHUNK):
            chunk = data[start : start + _CHUNK]
            digest.update(chunk)
            self._put(chunk)
        return digest.intdigest()

    def _put(self, data: Any) -> None:
        left = memoryview(data)
        while len(left):  # an unbuffered file may take a part only, as one does that is nearly full
            left = left[self._file.write(left) :]

    def _open(self) -> None:
        self._path = self._folders[0] / f"{self._count:05d}.safetensors"
        old = None if self._spare is None else self._spare / self._path.name
        if old is not None and old.is_file() and old.stat().st_nlink == 1:
            old.rename(self._path)
            self._file = self._path.open("r+b", buffering=0)
        else:
            self._file = self._path.open("xb", buffering=0)
        self._file.seek(8 + _HEADER_BYTES)

    def _move_on(self) -> None:
        """The folder is full: take what is written of this file to the next one."""
        full = self._path
        self._file.close()
        del self._folders[0]
        self._spare = None
        self._open()
        with full.open("rb") as source:
            source.seek(8 + _HEADER_BYTES)
            left = self.size
            while left > 0 and (chunk := source.read(min(left, _CHUNK))):
                self._put(chunk)
                left -= len(chunk)
        full.unlink()

    def close(self) -> tuple[str, dict[str, str]]:
        """Finish the file; returns its path and its tensors' digests."""
        text = json.dumps(self.header).encode()
        if len(text) > _HEADER_BYTES:
            raise TuluLiteError("names of weights are too long for a file's header")
        self._file.truncate(8 + _HEADER_BYTES + self.size)
        self._file.seek(0)
        self._put(struct.pack("<Q", _HEADER_BYTES) + text.ljust(_HEADER_BYTES))
        self._file.close()
        done = (str(self._path), self.digests)
        self._file, self.header, self.digests, self.size = None, {}, {}, 0
        self._count += 1
        return done

    def abandon(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
