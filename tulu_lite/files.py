"""Files that are whole or not there: written under a temporary name, synced, then renamed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .errors import TuluLiteError


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content`, so that a reader, or a kill at any moment, sees the old file or the new one."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, data: Any) -> None:
    write_atomic(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any | None:
    """The file's data, or None when it is not there."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def json_lines(data: bytes) -> list[Any]:
    """The values of a JSONL file's bytes, one a line. Raises ValueError for a line that is no JSON.

    Lines of bytes, since those of text end at U+2028, U+2029 and U+0085 too, which JSON leaves as they are in a string.
    Half a surrogate pair is taken as it was written.
    """
    return [json.loads(line) for line in data.splitlines()]


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends well, and leaves nothing when it does not."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise explain_os_error(error, path) from error
    finally:
        if temporary is not None:
            with suppress_os_errors():
                os.unlink(temporary)


@contextmanager
def locked(
    path: Path, wait_s: float, refusal: Callable[[], Exception], poll_s: float = 0.02
) -> Iterator[None]:
    """Hold a lock file; the kernel lets go of it when its holder ends. refusal: what is raised when another holds it for
    longer than wait_s seconds.

    Whoever took it unlocks it, not only closes it: a process that was forked meanwhile has the same open file, and would
    hold on as long as it lives.
    """
    pid = os.getpid()
    with path.open("a") as file:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise refusal() from None
                time.sleep(poll_s)
        try:
            yield
        finally:
            if os.getpid() == pid:
                fcntl.flock(file.fileno(), fcntl.LOCK_UN)


@contextmanager
def suppress_os_errors() -> Iterator[None]:
    try:
        yield
    except OSError:
        return


def explain_os_error(error: OSError, path: Path) -> Exception:
    """A full disk or a folder that cannot be written, as an error that says so; any other error unchanged."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TuluLiteError(
            f"the disk is full: could not write {path}",
            why="what was written before is whole; nothing was overwritten",
            cure="free some space, or set `output` to a folder on another disk, and run the same command again",
        )
    if error.errno in (
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOENT,
    ):  # ENOENT: no folder can be made there
        return TuluLiteError(
            f"cannot write {path}: {error.strerror}",
            cure="make the folder writable, or set `output` to one that is",
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return TuluLiteError(
            f"cannot write {path}: a part of the path is a file, not a folder",
            cure="set `output` to another folder",
        )
    return error
